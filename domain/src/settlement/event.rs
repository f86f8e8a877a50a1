//! What the settlement contract reports. Every event carries a sequence number one higher than the event before it.

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use super::text;

/// An event of the contract. Amounts are base units, times seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// Tokens came in for an account.
    Deposited {
        /// Whose they are.
        account: Address,
        /// Who sent them.
        from: Address,
        /// The number of the deposit, from 1.
        deposit_seq: u64,
        /// How many arrived.
        #[serde(with = "text::decimal")]
        amount: u128,
    },
    /// A batch was committed.
    BatchCommitted {
        /// Its number.
        batch: u64,
        /// The hash of its header.
        hash: B256,
        /// When claims can be proven against it.
        active_at: u64,
    },
    /// The newest batch was vetoed.
    BatchCancelled {
        /// Its number.
        batch: u64,
        /// The hash of its header.
        hash: B256,
        /// What commits have to carry from now on.
        generation: u32,
    },
    /// An account was paid what was released to it.
    Claimed {
        /// Who was paid.
        account: Address,
        /// Against which batch.
        batch: u64,
        /// How much now.
        #[serde(with = "text::decimal")]
        amount: u128,
        /// How much ever.
        #[serde(with = "text::decimal")]
        cumulative: u128,
    },
    /// An account was paid all it had, after a freeze.
    Escaped {
        /// Who was paid.
        account: Address,
        /// How much now.
        #[serde(with = "text::decimal")]
        amount: u128,
        /// How much ever.
        #[serde(with = "text::decimal")]
        cumulative: u128,
    },
    /// An account asked to leave.
    ExitRequested {
        /// Which.
        account: Address,
        /// When anyone may freeze over it.
        due_at: u64,
    },
    /// An exit was served.
    ExitAnswered {
        /// Whose.
        account: Address,
    },
    /// Deposits and commits have stopped for good.
    Frozen,
    /// Some operations are stopped for now.
    Paused {
        /// Which.
        bits: u8,
        /// Until when.
        until: u64,
    },
    /// Caps, windows, the end of a pause, a rescue of surplus: nothing that the ledger follows.
    Other {
        /// The event's name.
        name: String,
    },
}

impl Event {
    /// The text form of its kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Deposited { .. } => "deposited",
            Self::BatchCommitted { .. } => "batch_committed",
            Self::BatchCancelled { .. } => "batch_cancelled",
            Self::Claimed { .. } => "claimed",
            Self::Escaped { .. } => "escaped",
            Self::ExitRequested { .. } => "exit_requested",
            Self::ExitAnswered { .. } => "exit_answered",
            Self::Frozen => "frozen",
            Self::Paused { .. } => "paused",
            Self::Other { .. } => "other",
        }
    }
}

/// Where an event stands on the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The block's number.
    pub block_number: u64,
    /// The block's hash.
    pub block_hash: B256,
    /// The transaction that caused it.
    pub tx_hash: B256,
    /// Its place among the block's logs.
    pub log_index: u64,
    /// Its place among all events of the contract, from 1.
    pub event_seq: u64,
    /// What it says.
    pub event: Event,
}
