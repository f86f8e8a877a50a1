//! What the node is asked about transactions, and what it is sent.

use alloy::{
    eips::{BlockId, BlockNumberOrTag},
    primitives::{Address, B256, Bytes, U256},
    providers::Provider as _,
    rpc::types::TransactionRequest,
    transports::TransportError,
};
use comptoir_contracts_bindings::Settlement::SettlementErrors;

use super::{Chain, ChainError};

/// The percentile of recent tips that is offered.
const TIP_PERCENTILE: f64 = 50.0;
/// Blocks whose tips are looked at.
const TIP_BLOCKS: u64 = 10;

impl Chain {
    /// Transactions of an account that are mined, at a block.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn nonce(&self, account: Address, at: BlockId) -> Result<u64, ChainError> {
        Ok(self
            .provider
            .get_transaction_count(account)
            .block_id(at)
            .await?)
    }

    /// What the call would do now: nothing against it, or the error that the contract would raise.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn preflight(
        &self,
        from: Address,
        calldata: Bytes,
    ) -> Result<Result<(), Refusal>, ChainError> {
        let answer = self
            .provider
            .call(self.request(from, calldata))
            .block(BlockId::latest())
            .await;
        match answer {
            Ok(_) => Ok(Ok(())),
            Err(error) => Refusal::of(error).map(Err),
        }
    }

    /// The gas that the call would take now, or the error that the contract would raise.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn estimate_gas(
        &self,
        from: Address,
        calldata: Bytes,
    ) -> Result<Result<u64, Refusal>, ChainError> {
        if let Err(refusal) = self.preflight(from, calldata.clone()).await? {
            return Ok(Err(refusal));
        }
        let answer = self
            .provider
            .estimate_gas(self.request(from, calldata))
            .block(BlockId::latest())
            .await;
        match answer {
            Ok(gas) => Ok(Ok(gas)),
            Err(error) => Refusal::of(error).map(Err),
        }
    }

    fn request(&self, from: Address, calldata: Bytes) -> TransactionRequest {
        TransactionRequest::default()
            .from(from)
            .to(self.contract)
            .input(calldata.into())
    }

    /// What proposers were paid lately, in wei for a unit of gas.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn recent_tip_wei(&self) -> Result<u128, ChainError> {
        let history = self
            .provider
            .get_fee_history(TIP_BLOCKS, BlockNumberOrTag::Latest, &[TIP_PERCENTILE])
            .await?;
        let mut tips: Vec<u128> = history
            .reward
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .collect();
        tips.sort_unstable();
        Ok(tips.get(tips.len() / 2).copied().unwrap_or_default())
    }

    /// Hands signed bytes to the node. Whatever it answers, the bytes may be mined.
    ///
    /// # Errors
    /// What the node says against them.
    pub async fn send(&self, raw: &[u8]) -> Result<(), TransportError> {
        self.provider.send_raw_transaction(raw).await.map(drop)
    }

    /// What an account has to pay gas with, in wei.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn ether(&self, account: Address) -> Result<U256, ChainError> {
        Ok(self.provider.get_balance(account).await?)
    }

    /// What a transaction cost, in wei; `None` where it is not mined.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn cost_wei(&self, tx_hash: B256) -> Result<Option<u128>, ChainError> {
        let receipt = self.provider.get_transaction_receipt(tx_hash).await?;
        Ok(receipt.map(|it| u128::from(it.gas_used).saturating_mul(it.effective_gas_price)))
    }
}

/// The error that the contract would raise.
#[derive(Debug)]
pub enum Refusal {
    /// One of its own.
    Custom(Box<SettlementErrors>),
    /// Any other, in the node's words.
    Other(String),
}

impl Refusal {
    fn of(error: TransportError) -> Result<Self, ChainError> {
        let Some(response) = error.as_error_resp() else {
            return Err(error.into());
        };
        if let Some(custom) = response.as_decoded_interface_error::<SettlementErrors>() {
            return Ok(Self::Custom(Box::new(custom)));
        }
        if response.as_revert_data().is_some() {
            return Ok(Self::Other(response.to_string()));
        }
        Err(error.into())
    }
}
