//! Why the nodes were of no use.

use alloy::{contract::Error as ContractError, eips::BlockId, transports::TransportError};

/// Why the nodes were of no use.
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
    /// There is no node to ask.
    #[error("no RPC endpoint is configured")]
    NoEndpoint,
    /// The same node twice is no second opinion.
    #[error("the RPC endpoint {0} is configured twice")]
    SameEndpoint(String),
    /// The nodes contradict each other, and none of them has a majority.
    #[error("the nodes disagree about {what}: {parties}")]
    NoMajority {
        /// What was asked.
        what: &'static str,
        /// Who sides with whom.
        parties: String,
    },
    /// Too few nodes answered.
    #[error("only {answered} of the nodes told {what}, {needed} have to")]
    TooFew {
        /// What was asked.
        what: &'static str,
        /// How many answered.
        answered: usize,
        /// How many have to say the same.
        needed: usize,
        /// Why another did not.
        source: Box<Self>,
    },
    /// A node did not answer in time.
    #[error("a node did not answer in time")]
    Silent,
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
