//! The chain as the majority of the configured nodes tells it: what is read of the contract, at which block, and what is
//! sent. No fillers: nonce, fees and bytes are the settler's own.

mod ballot;
mod contract;
mod endpoint;
mod error;
mod header;
mod quorum;
mod transactions;

use std::{sync::Arc, time::Duration};

use alloy::{
    eips::BlockId,
    primitives::{Address, B256, Bytes, U256},
    providers::RootProvider,
};
use comptoir_domain::{asset::Asset, settlement::event::Logged};
use comptoir_store::chain::Block;
use url::Url;

use crate::config::Finality;

use endpoint::Endpoint;
use quorum::Quorum;

pub use contract::{AccountTotals, Caps, Kept, Room, Totals};
pub use endpoint::provider;
pub use error::ChainError;
pub use header::{from_contract, to_contract};
pub use quorum::Odd;
pub use transactions::Refusal;

/// Blocks between an endpoint's newest and the majority's before that is told: nodes hear of a block within seconds,
const HEADS_APART_MAX: u64 = 3;
/// and call a whole epoch final or safe at once, some a little later than others.
const EPOCHS_APART_MAX: u64 = 64;

/// How long an answer of a node may take, unless a configuration says otherwise.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(20);

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

/// The contract, seen through as many nodes as are configured.
#[derive(Debug, Clone)]
pub struct Chain {
    nodes: Quorum,
    contract: Address,
    id: u64,
}

impl Chain {
    /// Connects to nodes of the asset's chain. Nothing is asked yet.
    ///
    /// # Errors
    /// When there is none, one is named twice, or the HTTP client cannot be made.
    pub fn connect(rpcs: &[Url], timeout: Duration, asset: &Asset) -> Result<Self, ChainError> {
        if rpcs.is_empty() {
            return Err(ChainError::NoEndpoint);
        }
        let mut endpoints = Vec::with_capacity(rpcs.len());
        for (place, rpc) in rpcs.iter().enumerate() {
            let name = endpoint::name(place + 1, rpc);
            if rpcs[..place].contains(rpc) {
                return Err(ChainError::SameEndpoint(name));
            }
            endpoints.push(Endpoint {
                name,
                provider: endpoint::provider_within(rpc.clone(), timeout)?,
                contract: asset.contract,
                token: asset.token,
            });
        }
        Ok(Self {
            nodes: Quorum::new(endpoints),
            contract: asset.contract,
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

    /// Each node by itself, for what proves itself by its hash.
    pub(crate) fn providers(&self) -> impl Iterator<Item = &RootProvider> {
        self.nodes.endpoints().iter().map(|it| &it.provider)
    }

    /// The endpoints that contradicted the majority or failed since this was asked last.
    #[must_use]
    pub fn odd_endpoints(&self) -> Vec<Odd> {
        self.nodes.review()
    }

    /// Are the nodes still on the right chain?
    ///
    /// # Errors
    /// When they are not.
    pub async fn check_chain(&self) -> Result<(), ChainError> {
        let ask = |it: Arc<Endpoint>| async move { it.chain_id().await };
        let found = self.nodes.agree("the chain id", ask).await?;
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
    /// When the nodes do not have them.
    pub async fn tips(&self, finality: Finality) -> Result<Tips, ChainError> {
        let head = self.tagged(("the newest block", HEADS_APART_MAX), BlockId::latest());
        let head = head.await?;
        let [safe, final_] = match finality {
            Finality::Tags => [
                self.tagged(("the safe block", EPOCHS_APART_MAX), BlockId::safe())
                    .await?,
                self.tagged(("the final block", EPOCHS_APART_MAX), BlockId::finalized())
                    .await?,
            ],
            Finality::Depth(depth) => {
                let back = |blocks| head.block.number.saturating_sub(blocks);
                [
                    self.tip(back(depth / 2)).await?,
                    self.tip(back(depth)).await?,
                ]
            }
        };
        Ok(Tips { head, safe, final_ })
    }

    /// Nodes are never at the same block for long: the newest that most of them have reached, if they agree which it is.
    async fn tagged(&self, what: (&'static str, u64), tag: BlockId) -> Result<Tip, ChainError> {
        if let Some(only) = self.nodes.only() {
            return only.tip(tag).await;
        }
        let ask = move |it: Arc<Endpoint>| async move { Ok(it.tip(tag).await?.block.number) };
        let number = self.nodes.reached(what, ask).await?;
        self.tip(number).await
    }

    /// A block that must exist.
    ///
    /// # Errors
    /// When it does not.
    pub async fn tip(&self, number: u64) -> Result<Tip, ChainError> {
        let none = ChainError::NoBlock(BlockId::number(number));
        self.find(number).await?.ok_or(none)
    }

    /// The block of a number, if the chain has it.
    ///
    /// # Errors
    /// When the nodes fail.
    pub async fn find(&self, number: u64) -> Result<Option<Tip>, ChainError> {
        let id = BlockId::number(number);
        let ask = move |it: Arc<Endpoint>| async move { it.find(id).await };
        self.nodes.agree("a block", ask).await
    }

    /// The events of one block.
    ///
    /// # Errors
    /// When the nodes fail, or a log is no event of the contract.
    pub async fn events_of(&self, block: B256) -> Result<Vec<Logged>, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.events_of(block).await };
        self.nodes.agree("the events of a block", ask).await
    }

    /// The events of a range of blocks that are final.
    ///
    /// # Errors
    /// When the nodes fail, or a log is no event of the contract.
    pub async fn events_between(&self, from: u64, to: u64) -> Result<Vec<Logged>, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.events_between(from, to).await };
        self.nodes.agree("the events of final blocks", ask).await
    }

    /// Is the contract there, at a block?
    ///
    /// # Errors
    /// When the nodes fail.
    pub async fn is_deployed(&self, at: B256) -> Result<bool, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.is_deployed(at).await };
        self.nodes.agree("the contract's code", ask).await
    }

    /// What the contract says of everything, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn totals(&self, at: B256) -> Result<Totals, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.totals(at).await };
        self.nodes.agree("the contract's totals", ask).await
    }

    /// What the contract keeps of a batch, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn kept(&self, number: u64, at: B256) -> Result<Kept, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.kept(number, at).await };
        self.nodes.agree("a batch", ask).await
    }

    /// The number of cancellations, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn generation(&self, at: B256) -> Result<u32, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.generation(at).await };
        self.nodes.agree("the generation", ask).await
    }

    /// The number of the newest batch that stands, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn last_batch(&self, at: B256) -> Result<u64, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.last_batch(at).await };
        self.nodes.agree("the last batch", ask).await
    }

    /// What decides whether a batch can be sealed, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn room(&self, at: B256) -> Result<Room, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.room(at).await };
        self.nodes.agree("what the contract takes", ask).await
    }

    /// How far payables may grow, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn caps(&self, at: B256) -> Result<Caps, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.caps(at).await };
        self.nodes.agree("the caps", ask).await
    }

    /// What the contract says of each of these accounts, at a block.
    ///
    /// # Errors
    /// When the contract does not answer.
    pub async fn accounts(
        &self,
        owners: &[Address],
        at: B256,
    ) -> Result<Vec<AccountTotals>, ChainError> {
        let owners: Arc<[Address]> = owners.into();
        let ask = move |it: Arc<Endpoint>| {
            let owners = Arc::clone(&owners);
            async move { it.accounts(&owners, at).await }
        };
        self.nodes.agree("accounts", ask).await
    }

    /// Transactions of an account that are mined, at a block.
    ///
    /// # Errors
    /// When the nodes fail.
    pub async fn nonce(&self, account: Address, at: B256) -> Result<u64, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.nonce(account, at).await };
        self.nodes.agree("a nonce", ask).await
    }

    /// What the call would do at a block: nothing against it, or the error that the contract would raise.
    ///
    /// # Errors
    /// When the nodes fail.
    pub async fn preflight(
        &self,
        from: Address,
        calldata: &Bytes,
        at: B256,
    ) -> Result<Result<(), Refusal>, ChainError> {
        let ask = |it: Arc<Endpoint>| {
            let calldata = calldata.clone();
            async move { it.preflight(from, calldata, at).await }
        };
        self.nodes.agree("what a call would do", ask).await
    }

    /// The gas that the call would take at a block, or the error that the contract would raise.
    ///
    /// # Errors
    /// When the nodes fail.
    pub async fn estimate_gas(
        &self,
        from: Address,
        calldata: &Bytes,
        at: B256,
    ) -> Result<Result<u64, Refusal>, ChainError> {
        if let Err(refusal) = self.preflight(from, calldata, at).await? {
            return Ok(Err(refusal));
        }
        let ask = |it: Arc<Endpoint>| {
            let calldata = calldata.clone();
            async move { it.estimate_gas(from, calldata, at).await }
        };
        self.nodes.middle("the gas of a call", ask).await.map(Ok)
    }

    /// What proposers were paid lately, in wei for a unit of gas.
    ///
    /// # Errors
    /// When the nodes fail.
    pub async fn recent_tip_wei(&self) -> Result<u128, ChainError> {
        let ask = |it: Arc<Endpoint>| async move { it.recent_tip_wei().await };
        self.nodes.middle("recent tips", ask).await
    }

    /// What an account has to pay gas with, in wei.
    ///
    /// # Errors
    /// When the nodes fail.
    pub async fn ether(&self, account: Address) -> Result<U256, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.ether(account).await };
        self.nodes.middle("the key's ether", ask).await
    }

    /// What a transaction cost, in wei; `None` where it is not mined.
    ///
    /// # Errors
    /// When the nodes fail.
    pub async fn cost_wei(&self, tx_hash: B256) -> Result<Option<u128>, ChainError> {
        let ask = move |it: Arc<Endpoint>| async move { it.cost_wei(tx_hash).await };
        self.nodes.agree("a transaction's receipt", ask).await
    }

    /// Hands signed bytes to every node: one that keeps them to itself cannot hold them up. Whatever they answer, the bytes
    /// may be mined.
    ///
    /// # Errors
    /// What a node says against them, where none took them.
    pub async fn send(&self, raw: &[u8]) -> Result<(), ChainError> {
        let raw: Arc<[u8]> = raw.into();
        let ask = |it: Arc<Endpoint>| {
            let raw = Arc::clone(&raw);
            async move { it.send(&raw).await }
        };
        self.nodes.tell(ask).await
    }
}
