//! The guardian's hand: one transaction at a time, sent again in each block until its nonce is used, with a higher fee when
//! it is stuck. What is wanted follows from the contract's state, so nothing has to be remembered over a restart.

use alloy::{
    consensus::{SignableTransaction as _, TxEip1559, TxEnvelope},
    eips::eip2718::Encodable2718 as _,
    network::TxSignerSync as _,
    primitives::{Address, B256, Bytes, TxKind, U256},
    signers::local::PrivateKeySigner,
    sol_types::{SolCall as _, SolInterface as _},
};
use anyhow::Context as _;
use comptoir_audit::{
    chain::{Block, Contract},
    rpc::RpcError,
};
use comptoir_contracts_bindings::Settlement::{SettlementErrors, cancelBatchCall, pauseCall};
use comptoir_settler::fees::{FeePolicy, Fees};
use serde_json::{Value, json};

/// More than a veto or a pause ever takes; what is not used is not paid.
const GAS: u64 = 300_000;

/// What came of an attempt to act.
#[derive(Debug)]
pub enum Outcome {
    /// A node was given the bytes.
    Sent(B256),
    /// The bytes are on their way, and nothing new is due.
    Waiting,
    /// The contract would refuse it now.
    Refused(Refusal),
    /// It is stuck, and the fee ceiling is reached.
    AtCeiling,
}

/// Why the contract would refuse.
#[derive(Debug)]
pub enum Refusal {
    /// Another pause is not allowed yet.
    PauseTooSoon,
    /// Any other reason, in words.
    Other(String),
}

#[derive(Debug, Clone)]
struct Pending {
    nonce: u64,
    calldata: Bytes,
    fees: Fees,
    raw: Vec<u8>,
    hash: B256,
    first_block: u64,
    last_block: u64,
    /// A node said that somebody has offered more for this nonce.
    outbid: bool,
}

/// A key, and what it has under way.
pub struct Hand {
    signer: PrivateKeySigner,
    policy: FeePolicy,
    pending: Option<Pending>,
}

/// The call that vetoes a batch.
#[must_use]
pub fn cancel(id: u64) -> Bytes {
    cancelBatchCall { id }.abi_encode().into()
}

/// The call that pauses.
#[must_use]
pub fn pause(bits: u8) -> Bytes {
    pauseCall { bits }.abi_encode().into()
}

impl Hand {
    /// A hand with nothing under way.
    #[must_use]
    pub const fn new(signer: PrivateKeySigner, policy: FeePolicy) -> Self {
        Self {
            signer,
            policy,
            pending: None,
        }
    }

    /// Whose hand it is.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.signer.address()
    }

    /// The bytes that are under way.
    #[must_use]
    pub fn raw(&self) -> Option<&[u8]> {
        self.pending.as_ref().map(|pending| pending.raw.as_slice())
    }

    /// Makes a call happen: signs it, sends it, sends it again, or offers more for it.
    ///
    /// # Errors
    /// When the node does not answer. What was sent may be mined all the same.
    pub async fn act(
        &mut self,
        contract: &Contract,
        calldata: Bytes,
        head: &Block,
    ) -> anyhow::Result<Outcome> {
        let node = contract.node();
        let address = self.address().to_string();
        let used = node
            .quantity("eth_getTransactionCount", json!([address, "latest"]))
            .await?;
        let used = u64::try_from(used).context("a nonce of more than 64 bits")?;
        self.pending.take_if(|pending| pending.nonce < used);
        if let Some(refusal) = self.preflight(contract, &calldata).await? {
            return Ok(Outcome::Refused(refusal));
        }
        let estimate = self.policy.estimate(head.base_fee_wei, 0);
        let (nonce, fees) = match &mut self.pending {
            None => (used, estimate),
            Some(pending) => {
                let waited = head.number.saturating_sub(pending.first_block);
                let stuck = pending.outbid || waited >= self.policy.bump_after_blocks;
                if pending.calldata == calldata && !stuck {
                    if pending.last_block >= head.number {
                        return Ok(Outcome::Waiting);
                    }
                    pending.last_block = head.number;
                    return self.send(contract).await;
                }
                let Some(fees) = self.policy.bump(pending.fees, estimate) else {
                    pending.last_block = head.number;
                    self.send(contract).await?;
                    return Ok(Outcome::AtCeiling);
                };
                (pending.nonce, fees)
            }
        };
        self.pending = Some(self.sign(contract, nonce, fees, calldata, head)?);
        self.send(contract).await
    }

    /// What the contract says of the call now; `None` when it would take it.
    async fn preflight(
        &self,
        contract: &Contract,
        calldata: &Bytes,
    ) -> anyhow::Result<Option<Refusal>> {
        let request = json!({
            "from": self.address().to_string(),
            "to": contract.address().to_string(),
            "data": calldata.to_string(),
        });
        match contract
            .node()
            .ask("eth_call", json!([request, "latest"]))
            .await
        {
            Ok(_) => Ok(None),
            Err(RpcError::Refused { message, data, .. }) => Ok(Some(refusal(message, data))),
            Err(error) => Err(error.into()),
        }
    }

    /// RFC 6979: the same fields make the same bytes, also after a restart.
    fn sign(
        &self,
        contract: &Contract,
        nonce: u64,
        fees: Fees,
        calldata: Bytes,
        head: &Block,
    ) -> anyhow::Result<Pending> {
        let mut transaction = TxEip1559 {
            chain_id: contract.chain_id(),
            nonce,
            gas_limit: GAS,
            max_fee_per_gas: fees.cap_wei,
            max_priority_fee_per_gas: fees.tip_wei,
            to: TxKind::Call(Address::new(contract.address().0)),
            value: U256::ZERO,
            access_list: alloy::eips::eip2930::AccessList::default(),
            input: calldata.clone(),
        };
        let signature = self
            .signer
            .sign_transaction_sync(&mut transaction)
            .context("sign")?;
        let envelope = TxEnvelope::Eip1559(transaction.into_signed(signature));
        Ok(Pending {
            nonce,
            calldata,
            fees,
            raw: envelope.encoded_2718(),
            hash: *envelope.tx_hash(),
            first_block: head.number,
            last_block: head.number,
            outbid: false,
        })
    }

    /// Hands the bytes to the node. Whatever it answers, they may be mined.
    async fn send(&mut self, contract: &Contract) -> anyhow::Result<Outcome> {
        let pending = self.pending.as_mut().context("nothing is under way")?;
        let raw = alloy::hex::encode_prefixed(&pending.raw);
        let sent: Result<Value, RpcError> = contract
            .node()
            .ask("eth_sendRawTransaction", json!([raw]))
            .await;
        match sent {
            Ok(_) => pending.outbid = false,
            Err(RpcError::Refused { message, .. }) => {
                pending.outbid = message.contains("underpriced");
                tracing::debug!(tx = %pending.hash, message, "the node did not take the transaction");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Outcome::Sent(pending.hash))
    }
}

fn refusal(message: String, data: Option<String>) -> Refusal {
    let data = data.and_then(|data| alloy::hex::decode(data).ok());
    match data.and_then(|data| SettlementErrors::abi_decode(&data).ok()) {
        Some(SettlementErrors::PauseTooSoon(_)) => Refusal::PauseTooSoon,
        Some(error) => Refusal::Other(format!("{error:?}")),
        None => Refusal::Other(message),
    }
}
