//! The node: what is read of the contract, at which block, and what is sent to it. No fillers: nonce, fees and bytes are
//! the settler's own.

use std::time::Duration;

use alloy::{
    contract,
    eips::{BlockId, BlockNumberOrTag},
    primitives::{Address, B256, Bytes, U256},
    providers::{Provider as _, ProviderBuilder, RootProvider},
    rpc::types::{Filter, TransactionRequest},
    transports::TransportError,
};
use comptoir_contracts_bindings::{
    ComptoirToken,
    Settlement::{self, SettlementErrors, SettlementInstance},
};
use comptoir_domain::{
    asset::Asset,
    settlement::{Header, event::Logged},
};
use comptoir_store::chain::Block;
use url::Url;

use crate::{config::Finality, decode};

/// How long an answer of the node may take.
const RPC_TIMEOUT: Duration = Duration::from_secs(20);
/// The percentile of recent tips that is offered.
const TIP_PERCENTILE: f64 = 50.0;
/// Blocks whose tips are looked at.
const TIP_BLOCKS: u64 = 10;

/// Why the node was of no use.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The node did not answer, or with an error.
    #[error("ask the node")]
    Rpc(#[from] TransportError),
    /// The contract did not answer.
    #[error("read the contract")]
    Contract(#[source] Box<contract::Error>),
    /// The HTTP client cannot be made.
    #[error("make the HTTP client")]
    Client(#[from] reqwest::Error),
    /// It is a node of another chain.
    #[error("the node is on chain {found}, not {expected}")]
    WrongChain {
        /// The asset's chain.
        expected: u64,
        /// The node's.
        found: u64,
    },
    /// A block that must exist does not.
    #[error("the node does not have block {0}")]
    NoBlock(BlockId),
    /// An answer that cannot be.
    #[error("the node's answer holds {0}")]
    Malformed(&'static str),
}

impl From<contract::Error> for ChainError {
    fn from(error: contract::Error) -> Self {
        Self::Contract(Box::new(error))
    }
}

/// A block with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// What links it.
    pub block: Block,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// Wei for a unit of gas.
    pub base_fee_wei: u128,
}

/// The three blocks that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tips {
    /// The newest.
    pub head: Tip,
    /// Unlikely to leave the chain.
    pub safe: Tip,
    /// Never leaves the chain.
    pub final_: Tip,
}

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

/// A node, and the contract seen through it.
#[derive(Debug, Clone)]
pub struct Chain {
    provider: RootProvider,
    contract: Address,
    token: Address,
    id: u64,
}

impl Chain {
    /// Connects to a node of the asset's chain. Nothing is asked yet.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn connect(rpc: Url, asset: &Asset) -> Result<Self, ChainError> {
        Ok(Self {
            provider: provider(rpc)?,
            contract: asset.contract,
            token: asset.token,
            id: asset.chain_id,
        })
    }

    /// The contract's address.
    #[must_use]
    pub const fn contract(&self) -> Address {
        self.contract
    }

    /// The chain it is on.
    #[must_use]
    pub const fn chain_id(&self) -> u64 {
        self.id
    }

    /// The contract, to call.
    #[must_use]
    pub fn settlement(&self) -> SettlementInstance<&RootProvider> {
        Settlement::new(self.contract, &self.provider)
    }

    /// Is the node still on the right chain?
    ///
    /// # Errors
    /// When it is not.
    pub async fn check_chain(&self) -> Result<(), ChainError> {
        let found = self.provider.get_chain_id().await?;
        if found == self.id {
            Ok(())
        } else {
            Err(ChainError::WrongChain {
                expected: self.id,
                found,
            })
        }
    }

    /// The newest, the safe and the final block.
    ///
    /// # Errors
    /// When the node does not have them.
    pub async fn tips(&self, finality: Finality) -> Result<Tips, ChainError> {
        let head = self.tip(BlockId::latest()).await?;
        let [safe, final_] = match finality {
            Finality::Tags => [BlockId::safe(), BlockId::finalized()],
            Finality::Depth(depth) => [depth / 2, depth]
                .map(|back| BlockId::number(head.block.number.saturating_sub(back))),
        };
        Ok(Tips {
            head,
            safe: self.tip(safe).await?,
            final_: self.tip(final_).await?,
        })
    }

    /// A block that must exist.
    ///
    /// # Errors
    /// When it does not.
    pub async fn tip(&self, id: BlockId) -> Result<Tip, ChainError> {
        self.find(id).await?.ok_or(ChainError::NoBlock(id))
    }

    /// A block, if the chain has it.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn find(&self, id: BlockId) -> Result<Option<Tip>, ChainError> {
        let found = self.provider.get_block(id).await?;
        Ok(found.map(|block| {
            let header = &block.header;
            Tip {
                block: Block {
                    number: header.number,
                    hash: header.hash,
                    parent_hash: header.parent_hash,
                },
                timestamp: header.timestamp,
                base_fee_wei: u128::from(header.base_fee_per_gas.unwrap_or_default()),
            }
        }))
    }

    /// The events of one block.
    ///
    /// # Errors
    /// When the node fails, or a log is no event of the contract.
    pub async fn events_of(&self, block: B256) -> Result<Vec<Logged>, ChainError> {
        self.events(&Filter::new().address(self.contract).at_block_hash(block))
            .await
    }

    /// The events of a range of blocks that are final.
    ///
    /// # Errors
    /// When the node fails, or a log is no event of the contract.
    pub async fn events_between(&self, from: u64, to: u64) -> Result<Vec<Logged>, ChainError> {
        self.events(
            &Filter::new()
                .address(self.contract)
                .from_block(from)
                .to_block(to),
        )
        .await
    }

    async fn events(&self, filter: &Filter) -> Result<Vec<Logged>, ChainError> {
        let mut events = Vec::new();
        for log in self.provider.get_logs(filter).await? {
            if log.address() != self.contract {
                return Err(ChainError::Malformed("a log of another contract"));
            }
            events.extend(decode::logged(&log)?);
        }
        events.sort_unstable_by_key(|logged| logged.event_seq);
        Ok(events)
    }

    /// Is the contract there, at a block?
    ///
    /// # Errors
    /// When the node fails.
    pub async fn is_deployed(&self, at: B256) -> Result<bool, ChainError> {
        let code = self
            .provider
            .get_code_at(self.contract)
            .block_id(BlockId::hash(at))
            .await?;
        Ok(!code.is_empty())
    }

    /// What the contract says of everything, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn totals(&self, at: B256) -> Result<Totals, ChainError> {
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

    /// What the contract keeps of a batch, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn kept(&self, number: u64, at: B256) -> Result<Kept, ChainError> {
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

    /// The number of cancellations, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn generation(&self, at: B256) -> Result<u32, ChainError> {
        Ok(self
            .settlement()
            .generation()
            .block(BlockId::hash(at))
            .call()
            .await?)
    }

    /// What decides whether a batch can be sealed, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn room(&self, at: B256) -> Result<Room, ChainError> {
        let at = BlockId::hash(at);
        let settlement = self.settlement();
        let pause = settlement.paused().block(at).call().await?;
        let commits = settlement.PAUSE_COMMITS().call().await?;
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

    /// What the call would do now: the gas it takes, or the error that the contract would raise.
    ///
    /// # Errors
    /// When the node fails.
    pub async fn preflight(
        &self,
        from: Address,
        calldata: Bytes,
    ) -> Result<Result<u64, Refusal>, ChainError> {
        let request = TransactionRequest::default()
            .from(from)
            .to(self.contract)
            .input(calldata.into());
        match self
            .provider
            .call(request.clone())
            .block(BlockId::latest())
            .await
        {
            Ok(_) => {}
            Err(error) => return Refusal::of(error).map(Err),
        }
        match self
            .provider
            .estimate_gas(request)
            .block(BlockId::latest())
            .await
        {
            Ok(gas) => Ok(Ok(gas)),
            Err(error) => Refusal::of(error).map(Err),
        }
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
}

/// A node without fillers and with a deadline.
///
/// # Errors
/// When the HTTP client cannot be made.
pub fn provider(rpc: Url) -> Result<RootProvider, ChainError> {
    let client = reqwest::Client::builder().timeout(RPC_TIMEOUT).build()?;
    Ok(ProviderBuilder::new()
        .disable_recommended_fillers()
        .connect_reqwest(client, rpc))
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

/// A header as the contract takes it.
#[must_use]
pub fn to_contract(header: &Header) -> Settlement::Header {
    Settlement::Header {
        id: header.id,
        generation: header.generation,
        receiptCount: header.receipt_count,
        depositSeqSeen: header.deposit_seq_seen,
        totalPayable: header.total_payable,
        totalAvailable: header.total_available,
        depositsSeen: header.deposits_seen,
        prevHash: header.prev_hash,
        receiptsRoot: header.receipts_root,
        accountsRoot: header.accounts_root,
        dataHash: header.data_hash,
    }
}

/// A header as the contract reports it.
#[must_use]
pub const fn from_contract(header: &Settlement::Header) -> Header {
    Header {
        id: header.id,
        generation: header.generation,
        receipt_count: header.receiptCount,
        deposit_seq_seen: header.depositSeqSeen,
        total_payable: header.totalPayable,
        total_available: header.totalAvailable,
        deposits_seen: header.depositsSeen,
        prev_hash: header.prevHash,
        receipts_root: header.receiptsRoot,
        accounts_root: header.accountsRoot,
        data_hash: header.dataHash,
    }
}
