//! Why a step of the settler did not finish. A step changes nothing by halves and is made again.

use comptoir_domain::settlement::file::InvalidBatch;
use comptoir_store::{
    assets::AssetError,
    batches::SealError,
    chain::FollowError,
    leader::FenceError,
    ledger::PostError,
    objects::{GetError, PutError},
};

use crate::{alert::Alert, chain::ChainError};

/// Why a step did not finish.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The node.
    #[error("read the chain")]
    Chain(#[from] ChainError),
    /// Another settler leads.
    #[error("lead")]
    Fence(#[from] FenceError),
    /// What was read of the chain does not fit together.
    #[error("follow the chain")]
    Follow(#[from] FollowError),
    /// The ledger.
    #[error("move money")]
    Post(#[from] PostError),
    /// The asset.
    #[error("read the asset")]
    Asset(#[from] AssetError),
    /// The leaves do not make a batch.
    #[error("make a batch")]
    Batch(#[from] InvalidBatch),
    /// The batch was not stored.
    #[error("store a batch")]
    Seal(#[from] SealError),
    /// The leaf file was not published.
    #[error("publish the leaf file")]
    Publish(#[from] PutError),
    /// The leaf file of an earlier batch is not there.
    #[error("read a leaf file")]
    LeafFile(#[from] GetError),
    /// The key did not sign as it should.
    #[error("sign a transaction")]
    Sign(#[from] alloy::signers::Error),
    /// The signature is another key's.
    #[error("the signature is not that of the settler's key")]
    WrongSignature,
    /// The key's holder did not answer in time.
    #[error("the settler's key did not sign in time")]
    SignerSilent,
    /// A computation was cut short.
    #[error("compute a batch")]
    Compute(#[from] tokio::task::JoinError),
    /// The database.
    #[error("use the database")]
    Database(#[from] sqlx::Error),
}

impl StepError {
    /// What is told of it.
    pub(crate) const fn alert(&self) -> Alert {
        match self {
            Self::Chain(ChainError::WrongChain { .. }) => Alert::WrongChain,
            Self::Chain(ChainError::NoMajority { .. }) => Alert::NodesDisagree,
            Self::Chain(_) | Self::Follow(FollowError::Gap { .. }) => Alert::NodeFailing,
            Self::Sign(_) | Self::WrongSignature | Self::SignerSilent => Alert::SignerFailing,
            Self::Fence(_)
            | Self::Follow(_)
            | Self::Post(_)
            | Self::Asset(_)
            | Self::Batch(_)
            | Self::Seal(_)
            | Self::Publish(_)
            | Self::LeafFile(_)
            | Self::Compute(_)
            | Self::Database(_) => Alert::StepFailing,
        }
    }
}

/// An error with its causes, each told once.
pub(crate) fn causes<E: std::error::Error>(error: &E) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
