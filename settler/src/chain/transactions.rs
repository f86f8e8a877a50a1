//! What one endpoint is asked about transactions, and what it is sent.

use alloy::{
    eips::{BlockId, BlockNumberOrTag},
    primitives::{Address, B256, Bytes, U256},
    providers::Provider as _,
    rpc::types::TransactionRequest,
    sol_types::SolInterface as _,
    transports::TransportError,
};
use comptoir_contracts_bindings::Settlement::SettlementErrors;

use super::{ChainError, Endpoint};

/// The percentile of recent tips that is offered.
const TIP_PERCENTILE: f64 = 50.0;
/// Blocks whose tips are looked at.
const TIP_BLOCKS: u64 = 10;

impl Endpoint {
    pub(super) async fn nonce(&self, account: Address, at: B256) -> Result<u64, ChainError> {
        let count = self.provider.get_transaction_count(account);
        Ok(count.block_id(BlockId::hash(at)).await?)
    }

    /// What the call would do: nothing against it, or the error that the contract would raise.
    pub(super) async fn preflight(
        &self,
        from: Address,
        calldata: Bytes,
        at: B256,
    ) -> Result<Result<(), Refusal>, ChainError> {
        let call = self.provider.call(self.request(from, calldata));
        match call.block(BlockId::hash(at)).await {
            Ok(_) => Ok(Ok(())),
            Err(error) => Refusal::of(error).map(Err),
        }
    }

    /// The gas of a call that nothing is against.
    pub(super) async fn estimate_gas(
        &self,
        from: Address,
        calldata: Bytes,
        at: B256,
    ) -> Result<u64, ChainError> {
        let estimate = self.provider.estimate_gas(self.request(from, calldata));
        Ok(estimate.block(BlockId::hash(at)).await?)
    }

    fn request(&self, from: Address, calldata: Bytes) -> TransactionRequest {
        TransactionRequest::default()
            .from(from)
            .to(self.contract)
            .input(calldata.into())
    }

    pub(super) async fn recent_tip_wei(&self) -> Result<u128, ChainError> {
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

    pub(super) async fn send(&self, raw: &[u8]) -> Result<(), ChainError> {
        let sent = self.provider.send_raw_transaction(raw).await;
        Ok(sent.map(drop)?)
    }

    pub(super) async fn ether(&self, account: Address) -> Result<U256, ChainError> {
        Ok(self.provider.get_balance(account).await?)
    }

    pub(super) async fn cost_wei(&self, tx_hash: B256) -> Result<Option<u128>, ChainError> {
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

impl PartialEq for Refusal {
    /// Each kind of node has words of its own for the same refusal.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Custom(one), Self::Custom(other)) => one.abi_encode() == other.abi_encode(),
            (Self::Other(_), Self::Other(_)) => true,
            (Self::Custom(_), Self::Other(_)) | (Self::Other(_), Self::Custom(_)) => false,
        }
    }
}
