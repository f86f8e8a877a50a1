//! The node: what is read of the contract, at which block, and what is sent to it. No fillers: nonce, fees and bytes are
//! the settler's own.

mod contract;
mod header;
mod transactions;

use std::time::Duration;

use alloy::{
    contract::Error as ContractError,
    eips::BlockId,
    primitives::{Address, B256},
    providers::{Provider as _, ProviderBuilder, RootProvider},
    rpc::types::Filter,
    transports::TransportError,
};
use comptoir_contracts_bindings::Settlement::{self, SettlementInstance};
use comptoir_domain::{asset::Asset, settlement::event::Logged};
use comptoir_store::chain::Block;
use url::Url;

use crate::{config::Finality, decode};

pub use contract::{AccountTotals, Kept, Room, Totals};
pub use header::{from_contract, to_contract};
pub use transactions::Refusal;

/// How long an answer of the node may take, unless a configuration says otherwise.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the node was of no use.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The node did not answer, or with an error.
    #[error("ask the node")]
    Rpc(#[from] TransportError),
    /// The contract did not answer.
    #[error("read the contract")]
    Contract(#[source] Box<ContractError>),
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

impl From<ContractError> for ChainError {
    fn from(error: ContractError) -> Self {
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
    pub fn connect(rpc: Url, timeout: Duration, asset: &Asset) -> Result<Self, ChainError> {
        Ok(Self {
            provider: provider_within(rpc, timeout)?,
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
}

/// A node without fillers and with the usual deadline.
///
/// # Errors
/// When the HTTP client cannot be made.
pub fn provider(rpc: Url) -> Result<RootProvider, ChainError> {
    provider_within(rpc, RPC_TIMEOUT)
}

fn provider_within(rpc: Url, timeout: Duration) -> Result<RootProvider, ChainError> {
    let client = reqwest::Client::builder().timeout(timeout).build()?;
    Ok(ProviderBuilder::new()
        .disable_recommended_fillers()
        .connect_reqwest(client, rpc))
}
