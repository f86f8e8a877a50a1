//! What one endpoint says of the contract, at a block.

use alloy::{
    eips::BlockId,
    primitives::{Address, B256, Bytes, U256},
    providers::Provider as _,
    rpc::{client::BatchRequest, types::TransactionRequest},
    sol_types::SolCall,
};
use comptoir_contracts_bindings::{
    ComptoirToken,
    Settlement::{claimedCall, depositorsCall},
};

use super::{ChainError, Endpoint};

/// What the contract says of everything, at one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// All that ever came in.
    pub deposited: u128,
    /// All that was ever paid out.
    pub claimed: u128,
    /// What it holds of the token.
    pub balance: U256,
    /// The number of the last deposit.
    pub deposit_seq: u64,
    /// The number of the last event.
    pub event_seq: u64,
}

/// What the contract keeps of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The header's hash; zero without a batch.
    pub hash: B256,
    /// What was ever released, as of it.
    pub total_payable: u128,
    /// When its window ends.
    pub active_at: u64,
}

/// How far payables may grow, as the guardian and ADMIN set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// With one batch.
    pub per_batch: u128,
    /// On one day.
    pub per_day: u128,
}

/// What decides whether a batch can be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The newest batch that stands.
    pub last_batch: u64,
    /// Cancellations so far.
    pub generation: u32,
    /// How far payables may grow now.
    pub releasable: u128,
    /// When the last batch was committed, or the contract deployed.
    pub last_commit_at: u64,
    /// Silence after which anyone can freeze.
    pub escape_after: u64,
    /// Has it stopped for good?
    pub frozen: bool,
    /// Are commits paused?
    pub paused: bool,
}

/// What the contract says of one account, at one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountTotals {
    /// All that ever came in for it.
    pub deposited: U256,
    /// All that it was ever paid.
    pub claimed: U256,
}

impl Endpoint {
    pub(super) async fn is_deployed(&self, at: B256) -> Result<bool, ChainError> {
        let code = self
            .provider
            .get_code_at(self.contract)
            .block_id(BlockId::hash(at))
            .await?;
        Ok(!code.is_empty())
    }

    pub(super) async fn totals(&self, at: B256) -> Result<Totals, ChainError> {
        let at = BlockId::hash(at);
        let settlement = self.settlement();
        let token = ComptoirToken::new(self.token, &self.provider);
        Ok(Totals {
            deposited: settlement.totalDeposited().block(at).call().await?,
            claimed: settlement.totalClaimed().block(at).call().await?,
            balance: token.balanceOf(self.contract).block(at).call().await?,
            deposit_seq: settlement.depositSeq().block(at).call().await?.to::<u64>(),
            event_seq: settlement.eventSeq().block(at).call().await?,
        })
    }

    pub(super) async fn kept(&self, number: u64, at: B256) -> Result<Kept, ChainError> {
        let kept = self
            .settlement()
            .committedBatch(number)
            .block(BlockId::hash(at))
            .call()
            .await?;
        Ok(Kept {
            hash: kept.hash,
            total_payable: kept.totalPayable,
            active_at: kept.activeAt.to::<u64>(),
        })
    }

    pub(super) async fn generation(&self, at: B256) -> Result<u32, ChainError> {
        Ok(self
            .settlement()
            .generation()
            .block(BlockId::hash(at))
            .call()
            .await?)
    }

    pub(super) async fn last_batch(&self, at: B256) -> Result<u64, ChainError> {
        let at = BlockId::hash(at);
        Ok(self.settlement().lastBatch().block(at).call().await?)
    }

    pub(super) async fn room(&self, at: B256) -> Result<Room, ChainError> {
        let at = BlockId::hash(at);
        let settlement = self.settlement();
        let pause = settlement.paused().block(at).call().await?;
        let commits = settlement.PAUSE_COMMITS().block(at).call().await?;
        Ok(Room {
            last_batch: settlement.lastBatch().block(at).call().await?,
            generation: settlement.generation().block(at).call().await?,
            releasable: settlement.releasable().block(at).call().await?,
            last_commit_at: settlement.lastCommitAt().block(at).call().await?,
            escape_after: u64::from(settlement.escapeAfter().block(at).call().await?),
            frozen: settlement.frozen().block(at).call().await?,
            paused: pause.bits & commits != 0,
        })
    }

    pub(super) async fn caps(&self, at: B256) -> Result<Caps, ChainError> {
        let settlement = self.settlement();
        let caps = settlement.caps().block(BlockId::hash(at)).call().await?;
        Ok(Caps {
            per_batch: caps.perBatch,
            per_day: caps.perDay,
        })
    }

    /// Asked with one request.
    pub(super) async fn accounts(
        &self,
        owners: &[Address],
        at: B256,
    ) -> Result<Vec<AccountTotals>, ChainError> {
        let mut batch = BatchRequest::new(self.provider.client());
        let mut waiting = Vec::with_capacity(owners.len());
        for account in owners {
            let mut ask = |calldata: Vec<u8>| {
                let call = TransactionRequest::default()
                    .to(self.contract)
                    .input(calldata.into());
                batch.add_call::<_, Bytes>("eth_call", &(call, BlockId::hash(at)))
            };
            let deposited = ask(depositorsCall { account: *account }.abi_encode())?;
            let claimed = ask(claimedCall { account: *account }.abi_encode())?;
            waiting.push((deposited, claimed));
        }
        batch.send().await?;
        let mut totals = Vec::with_capacity(owners.len());
        for (deposited, claimed) in waiting {
            totals.push(AccountTotals {
                deposited: U256::from(decode::<depositorsCall>(&deposited.await?)?.deposited),
                claimed: decode::<claimedCall>(&claimed.await?)?,
            });
        }
        Ok(totals)
    }
}

fn decode<C: SolCall>(answer: &[u8]) -> Result<C::Return, ChainError> {
    C::abi_decode_returns(answer).map_err(|_| ChainError::Malformed("an answer of another shape"))
}
