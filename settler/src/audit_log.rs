//! Is the audit log still the one whose heads the batches name?

use std::collections::{BTreeMap, BTreeSet};

use comptoir_domain::{
    asset::Asset,
    digest::Sha256,
    settlement::{
        BatchState, Domain,
        file::{self, InvalidBatch},
    },
};
use comptoir_store::{
    audit,
    batches::{self, Batch, Filter},
    objects::{GetError, Objects},
};
use sqlx::{Connection as _, PgConnection};
use url::Url;

use crate::verify::{self, VerifyError};

/// Batches that are read at once.
const PAGE: i64 = 200;

/// A log that is what the batches say it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditLog {
    /// Its events.
    pub events: u64,
    /// Its head.
    pub head: Sha256,
    /// Batches whose heads stand in it.
    pub batches: u64,
    /// Events up to the head in the newest batch: those that nobody can change unseen any more.
    pub sealed_events: u64,
    /// The newest batch that was found on the chain, which vouches for all before it; none where no chain was asked.
    pub on_chain: Option<u64>,
}

/// Why a log is not what the batches say it was.
#[derive(Debug, thiserror::Error)]
pub enum AuditLogError {
    /// It contradicts itself.
    #[error("compute the chain of the audit log again")]
    Log(#[from] audit::VerifyError),
    /// Events were changed, left out or put in before the batch was sealed.
    #[error("batch {batch} names the head {head}, which the audit log never had")]
    Head {
        /// The number.
        batch: u64,
        /// What its leaf file says.
        head: Sha256,
    },
    /// A batch names an earlier head than the one before it, or none.
    #[error("the audit log was shorter at batch {batch} than at the batch before it")]
    Shorter {
        /// The number.
        batch: u64,
    },
    /// A batch is not the one of its hash, or does not follow the one before it.
    #[error("batch {batch} in the database is not the one that was sealed")]
    Batch {
        /// The number.
        batch: u64,
    },
    /// A leaf file is gone or was changed.
    #[error("read the leaf file of batch {batch}")]
    LeafFile {
        /// The number.
        batch: u64,
        /// What is wrong with it.
        #[source]
        source: GetError,
    },
    /// A leaf file begins with no header.
    #[error("read the header in the leaf file of batch {batch}")]
    Header {
        /// The number.
        batch: u64,
        /// What is wrong with it.
        #[source]
        source: InvalidBatch,
    },
    /// The chain holds another batch, or does not answer.
    #[error("compare with the chain")]
    Chain(#[from] VerifyError),
    /// The database refused.
    #[error("read batches")]
    Database(#[from] sqlx::Error),
}

/// Computes the log's chain again and compares it with the heads that the leaf files name; those with the digests in the
/// batches; and, with `rpc`, the newest anchored batch with the contract, which vouches for all before it.
///
/// # Errors
/// When anything was changed, or cannot be read.
pub async fn verify(
    connection: &mut PgConnection,
    objects: &Objects,
    asset: &Asset,
    rpc: Option<Url>,
) -> Result<AuditLog, AuditLogError> {
    let batches = standing(connection, asset).await?;
    let domain = Domain::new(asset.chain_id, asset.contract);
    for (place, batch) in batches.iter().enumerate() {
        let follows = place == 0 || batch.header.prev_hash == batches[place - 1].hash;
        if batch.header.hash(&domain) != batch.hash || !follows {
            return Err(AuditLogError::Batch {
                batch: batch.header.id,
            });
        }
    }
    let mut named = BTreeMap::new();
    for batch in &batches {
        named.insert(batch.header.id, head_in(objects, batch).await?);
    }
    let on_chain = match (
        rpc,
        batches.iter().rev().find(|it| it.anchored_at.is_some()),
    ) {
        (Some(rpc), Some(batch)) => {
            verify::batch(rpc, asset, batch.header.id, batch.hash).await?;
            Some(batch.header.id)
        }
        (None, _) | (_, None) => None,
    };
    let heads: BTreeSet<_> = named.values().copied().flatten().collect();
    let mut tx = connection
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let log = audit::verify(&mut tx, &heads).await?;
    tx.commit().await?;
    let mut sealed_events = 0;
    for (batch, head) in named {
        let place = match head {
            Some(head) => *log
                .places
                .get(&head)
                .ok_or(AuditLogError::Head { batch, head })?,
            None => 0,
        };
        if place < sealed_events {
            return Err(AuditLogError::Shorter { batch });
        }
        sealed_events = place;
    }
    Ok(AuditLog {
        events: log.chain.length,
        head: log.chain.head,
        batches: batches.len() as u64,
        sealed_events,
        on_chain,
    })
}

/// The batches that stand, by number.
async fn standing(connection: &mut PgConnection, asset: &Asset) -> sqlx::Result<Vec<Batch>> {
    let mut standing = Vec::new();
    let mut before = None;
    loop {
        let filter = Filter {
            before,
            limit: PAGE,
        };
        let page = batches::list(connection, asset.id, filter).await?;
        before = page.last().map(|batch| batch.id);
        if before.is_none() {
            break;
        }
        standing.extend(
            page.into_iter()
                .filter(|it| it.state != BatchState::Cancelled),
        );
    }
    standing.sort_unstable_by_key(|batch| batch.header.id);
    Ok(standing)
}

/// The head that a leaf file names, once the file was found to be the one that the batch commits to.
async fn head_in(objects: &Objects, batch: &Batch) -> Result<Option<Sha256>, AuditLogError> {
    let number = batch.header.id;
    let bytes = objects
        .get_all(batch.data_hash(), batch.data_bytes)
        .await
        .map_err(|source| AuditLogError::LeafFile {
            batch: number,
            source,
        })?;
    let first = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    file::audit_head(first).map_err(|source| AuditLogError::Header {
        batch: number,
        source,
    })
}
