//! What was seen on the chain: the newest blocks, every event of the contract, and how far both were read.

mod events;
#[cfg(test)]
mod tests;

use alloy_primitives::B256;
use comptoir_domain::settlement::event::Logged;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{PgTransaction, codec::to_hash};
use events::{apply, record};

/// Blocks that are kept to walk back by, besides all that are not final yet.
pub const BLOCKS_KEPT: u64 = 256;

/// A block, by what links it to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// The hash of the block before it.
    pub parent_hash: B256,
}

/// How far the chain was read, and how far what was read is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The newest block read.
    pub head_number: u64,
    /// Its hash.
    pub head_hash: B256,
    /// The last event up to it.
    pub head_event_seq: u64,
    /// The newest final block that was acted on.
    pub final_number: u64,
    /// Its hash.
    pub final_hash: B256,
    /// The last event up to it.
    pub final_event_seq: u64,
    /// How many blocks make one final; `None` where the node says what is.
    pub final_depth: Option<u64>,
    /// Up to which block every account was compared with the contract.
    pub reconciled_number: u64,
}

/// Why blocks were not taken in or given back.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// An event is missing: the node's answer was not complete.
    #[error("event {found} follows event {last}: the node left some out")]
    Gap {
        /// The last event that is known.
        last: u64,
        /// The event that came next.
        found: u64,
    },
    /// Blocks that were final have left the chain.
    #[error("block {number} was final and has left the chain")]
    FinalReorganised {
        /// The newest block that is left.
        number: u64,
    },
    /// An amount passes what the ledger can hold.
    #[error("event {event_seq} carries more than 2^120 base units")]
    TooLarge {
        /// The event.
        event_seq: u64,
    },
    /// The database refused.
    #[error("follow the chain")]
    Database(#[from] sqlx::Error),
}

/// How far the chain was read; `None` before the first block.
///
/// # Errors
/// When the database refuses.
pub async fn cursor(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Option<Cursor>> {
    let row = sqlx::query!(
        "SELECT head_number, head_hash, head_event_seq, final_number, final_hash, final_event_seq, final_depth,
                reconciled_number
         FROM chain_cursors WHERE asset_id = $1",
        asset
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(Cursor {
            head_number: row.head_number.cast_unsigned(),
            head_hash: to_hash("head_hash", &row.head_hash)?,
            head_event_seq: row.head_event_seq.cast_unsigned(),
            final_number: row.final_number.cast_unsigned(),
            final_hash: to_hash("final_hash", &row.final_hash)?,
            final_event_seq: row.final_event_seq.cast_unsigned(),
            final_depth: row.final_depth.map(i64::cast_unsigned),
            reconciled_number: row.reconciled_number.cast_unsigned(),
        })
    })
    .transpose()
}

/// Begins to follow after `block`, before which the contract did not exist.
///
/// # Errors
/// When the database refuses.
pub async fn begin(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    block: &Block,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO chain_cursors (asset_id, head_number, head_hash, head_event_seq, final_number, final_hash, final_event_seq, updated_at)
         VALUES ($1, $2, $3, 0, $2, $3, 0, $4)",
        asset,
        block.number.cast_signed(),
        block.hash.as_slice(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    keep(tx, asset, block).await
}

/// The blocks that are kept, newest first: number and hash.
///
/// # Errors
/// When the database refuses.
pub async fn kept(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Vec<(u64, B256)>> {
    sqlx::query!(
        "SELECT number, hash FROM chain_blocks WHERE asset_id = $1 ORDER BY number DESC",
        asset
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| Ok((row.number.cast_unsigned(), to_hash("hash", &row.hash)?)))
    .collect()
}

/// Takes in the events up to `block`, which becomes the head.
///
/// # Errors
/// When an event is missing.
pub async fn append(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    block: &Block,
    events: &[Logged],
    now: OffsetDateTime,
) -> Result<(), FollowError> {
    let mut last = sqlx::query_scalar!(
        "SELECT head_event_seq FROM chain_cursors WHERE asset_id = $1",
        asset
    )
    .fetch_one(&mut **tx)
    .await?
    .cast_unsigned();
    for logged in events {
        if logged.event_seq != last + 1 {
            return Err(FollowError::Gap {
                last,
                found: logged.event_seq,
            });
        }
        last = logged.event_seq;
        record(tx, asset, logged, now).await?;
        apply(tx, asset, logged, now).await?;
    }
    keep(tx, asset, block).await?;
    sqlx::query!(
        "UPDATE chain_cursors SET head_number = $2, head_hash = $3, head_event_seq = $4, updated_at = $5 WHERE asset_id = $1",
        asset,
        block.number.cast_signed(),
        block.hash.as_slice(),
        last.cast_signed(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    // The last final block stays, however far the head runs ahead of it: everything after it may have to be read again.
    sqlx::query!(
        "DELETE FROM chain_blocks WHERE asset_id = $1 AND number <= $2
             AND number < (SELECT final_number FROM chain_cursors WHERE asset_id = $1)",
        asset,
        block.number.cast_signed() - BLOCKS_KEPT.cast_signed()
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Gives back every block after `number`, which becomes the head again, with all that came of their events.
///
/// # Errors
/// When a block among them was final.
pub async fn give_back(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    number: u64,
    now: OffsetDateTime,
) -> Result<(), FollowError> {
    let keep = number.cast_signed();
    let cursor = sqlx::query!(
        "SELECT final_number, final_event_seq FROM chain_cursors WHERE asset_id = $1",
        asset
    )
    .fetch_one(&mut **tx)
    .await?;
    if cursor.final_number > keep {
        return Err(FollowError::FinalReorganised { number });
    }
    sqlx::query!(
        "UPDATE chain_events SET orphaned_at = $3 WHERE asset_id = $1 AND block_number > $2 AND orphaned_at IS NULL",
        asset,
        keep,
        now
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM deposits WHERE asset_id = $1 AND block_number > $2 AND credited_at IS NULL",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM claims WHERE asset_id = $1 AND block_number > $2",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM exits WHERE asset_id = $1 AND block_number > $2",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE exits SET answered_block_number = NULL WHERE asset_id = $1 AND answered_block_number > $2",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM chain_blocks WHERE asset_id = $1 AND number > $2",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE chain_cursors
         SET head_number = $2, updated_at = $3,
             head_hash = (SELECT hash FROM chain_blocks WHERE asset_id = $1 AND number = $2),
             head_event_seq = (SELECT COALESCE(max(event_seq), $4) FROM chain_events
                               WHERE asset_id = $1 AND orphaned_at IS NULL AND event_seq > $4)
         WHERE asset_id = $1",
        asset,
        keep,
        now,
        cursor.final_event_seq,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Declares every block up to this one final, and says how that was known: by so many blocks after it, or by the node.
///
/// # Errors
/// When the database refuses.
pub async fn make_final(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    (number, hash): (u64, B256),
    depth: Option<u64>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE chain_cursors
         SET final_number = $2, final_hash = $3, final_depth = $4, updated_at = $5,
             final_event_seq = (SELECT COALESCE(max(event_seq), 0) FROM chain_events
                                WHERE asset_id = $1 AND orphaned_at IS NULL AND block_number <= $2)
         WHERE asset_id = $1",
        asset,
        number.cast_signed(),
        hash.as_slice(),
        depth.map(u64::cast_signed),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn keep(tx: &mut PgTransaction<'_>, asset: i32, block: &Block) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO chain_blocks (asset_id, number, hash, parent_hash) VALUES ($1, $2, $3, $4)",
        asset,
        block.number.cast_signed(),
        block.hash.as_slice(),
        block.parent_hash.as_slice(),
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
