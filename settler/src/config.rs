//! What a settler is told at its start.

use std::{sync::Arc, time::Duration};

use alloy::{network::TxSigner, primitives::Signature};
use url::Url;

use crate::fees::FeePolicy;

/// When a block counts as final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    /// When the node says so (`finalized` and `safe`).
    Tags,
    /// When so many blocks follow it; half as many make it safe. For chains without those tags.
    Depth(u64),
}

impl Finality {
    /// How many blocks it takes, as far as that is known.
    #[must_use]
    pub const fn depth(self) -> Option<u64> {
        match self {
            Self::Tags => None,
            Self::Depth(depth) => Some(depth),
        }
    }
}

/// When a batch closes: whatever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// This long after the last one, when there is something to settle.
    pub interval: Duration,
    /// With so many receipts.
    pub receipts: u64,
    /// When the receipts charge so many base units: the most that would be lost with the service.
    pub value_base: u128,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            interval: Duration::from_hours(1),
            receipts: 10_000,
            // 10,000 tokens of 18 decimals.
            value_base: 10_000 * 10_u128.pow(18),
        }
    }
}

/// Who signs: a key in this process, or one in a vault that is asked for each signature. What comes back is checked.
pub type Signer = Arc<dyn TxSigner<Signature> + Send + Sync>;

/// What a settler is told at its start.
#[derive(Clone)]
pub struct Config {
    /// The nodes. Of several, the majority is believed.
    pub rpcs: Vec<Url>,
    /// How long an answer of a node may take.
    pub rpc_timeout: Duration,
    /// The key that holds the contract's SETTLER role.
    pub signer: Signer,
    /// How long a signature may take.
    pub signer_timeout: Duration,
    /// The block before the contract was deployed, or any earlier one.
    pub start_block: u64,
    /// When a block counts as final.
    pub finality: Finality,
    /// How far the final block may be behind the newest before that is told; where the node says what is final.
    pub finality_stall: Duration,
    /// How old the newest block may be, or how long it may stay the newest, before that is told.
    pub head_stale: Duration,
    /// When a batch closes.
    pub batches: BatchPolicy,
    /// What transactions may cost.
    pub fees: FeePolicy,
    /// Pause between two looks at the chain.
    pub poll: Duration,
    /// Names this process in the lease.
    pub holder: String,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("signer", &self.signer.address())
            .field("start_block", &self.start_block)
            .field("finality", &self.finality)
            .field("finality_stall", &self.finality_stall)
            .field("head_stale", &self.head_stale)
            .field("batches", &self.batches)
            .field("fees", &self.fees)
            .field("poll", &self.poll)
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}
