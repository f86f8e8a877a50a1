//! Settlement batches: what a snapshot of the ledger commits to, and where each batch is on its way.

mod movements;
mod reads;
mod snapshot;

use alloy_primitives::B256;
use comptoir_domain::{
    digest::Sha256,
    id::{BatchId, ReceiptId},
    settlement::{BatchState, Header},
};
use time::OffsetDateTime;

pub use reads::{
    Filter, active_for_claims, anchored, find, find_number, items, list, missing, of_receipt,
    standing, unfinished,
};
pub use snapshot::{Demand, Snapshot, demand, snapshot};

use crate::{PgTransaction, codec::to_numeric, ledger::PostError, releases};

/// A batch as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Which.
    pub id: BatchId,
    /// Row of `assets`.
    pub asset: i32,
    /// Where it is on its way.
    pub state: BatchState,
    /// What the contract is sent.
    pub header: Header,
    /// The header's hash.
    pub hash: B256,
    /// Length of the leaf file.
    pub data_bytes: u64,
    /// Leaves under the accounts root.
    pub account_count: u64,
    /// When it was sealed.
    pub sealed_at: OffsetDateTime,
    /// When claims can be proven against it; known once the contract holds it.
    pub active_at: Option<OffsetDateTime>,
    /// When it was seen to be final.
    pub anchored_at: Option<OffsetDateTime>,
}

impl Batch {
    /// The name of its leaf file in the object store.
    #[must_use]
    pub const fn data_hash(&self) -> Sha256 {
        Sha256(self.header.data_hash.0)
    }
}

/// A batch to be stored, with what it settles.
#[derive(Debug, Clone)]
pub struct NewBatch<'a> {
    /// Which.
    pub id: BatchId,
    /// What the contract is sent.
    pub header: Header,
    /// The header's hash.
    pub hash: B256,
    /// Length of the leaf file.
    pub data_bytes: u64,
    /// Leaves under the accounts root.
    pub account_count: u64,
    /// Receipts, and movements that are no charge, by index, with their leaves.
    pub items: &'a [(ReceiptId, B256)],
}

/// Why a batch was not stored.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A receipt is in another batch, or was not waiting.
    #[error("a receipt of the batch is settled already")]
    SettledAlready,
    /// An amount passes what is stored.
    #[error("a total of the batch is larger than 2^120 base units")]
    TooLarge,
    /// The database refused.
    #[error("store a batch")]
    Database(#[from] sqlx::Error),
}

/// Stores a sealed batch and takes its receipts out of the queue.
///
/// # Errors
/// When a receipt is settled already, or the number is taken.
pub async fn insert(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    batch: &NewBatch<'_>,
    now: OffsetDateTime,
) -> Result<(), SealError> {
    let NewBatch { header, .. } = batch;
    let base = |total: u128| {
        comptoir_domain::amount::Amount::from_base(total)
            .map(to_numeric)
            .ok_or(SealError::TooLarge)
    };
    sqlx::query!(
        "INSERT INTO settlement_batches (batch_id, asset_id, number, generation, state, hash, prev_hash, receipts_root, accounts_root,
             data_hash, data_bytes, receipt_count, account_count, deposit_seq_seen, total_payable_base, total_available_base,
             deposits_seen_base, sealed_at)
         VALUES ($1, $2, $3, $4, 'sealed', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        batch.id.0,
        asset,
        header.id.cast_signed(),
        i64::from(header.generation),
        batch.hash.as_slice(),
        header.prev_hash.as_slice(),
        header.receipts_root.as_slice(),
        header.accounts_root.as_slice(),
        header.data_hash.as_slice(),
        batch.data_bytes.cast_signed(),
        header.receipt_count.cast_signed(),
        batch.account_count.cast_signed(),
        header.deposit_seq_seen.cast_signed(),
        base(header.total_payable)?,
        base(header.total_available)?,
        base(header.deposits_seen)?,
        now,
    )
    .execute(&mut **tx)
    .await?;
    let receipts: Vec<_> = batch.items.iter().map(|(receipt, _)| receipt.0).collect();
    let leaves: Vec<_> = batch.items.iter().map(|(_, leaf)| leaf.to_vec()).collect();
    sqlx::query!(
        "INSERT INTO batch_items (receipt_id, batch_id, idx, leaf)
         SELECT item.receipt, $1, item.number - 1, item.leaf
         FROM UNNEST($2::uuid[], $3::bytea[]) WITH ORDINALITY AS item (receipt, leaf, number)
         JOIN unbatched_receipts u ON u.receipt_id = item.receipt",
        batch.id.0,
        &receipts,
        &leaves,
    )
    .execute(&mut **tx)
    .await?;
    let moved = movements::settle(tx, batch.id, (&receipts, &leaves)).await?;
    let taken = sqlx::query!(
        "DELETE FROM unbatched_receipts WHERE receipt_id = ANY ($1)",
        &receipts
    )
    .execute(&mut **tx)
    .await?;
    if taken.rows_affected() + moved != receipts.len() as u64 {
        return Err(SealError::SettledAlready);
    }
    releases::come_to(tx, asset, batch.id).await?;
    Ok(())
}

/// Moves a batch to the state that was observed; `active_at` is the contract's word for it. A batch that is done stays as
/// it is. One that is cancelled gives back its receipts and what was released for it: both wait for the next seal again.
///
/// # Errors
/// When the ledger refuses.
pub async fn advance(
    tx: &mut PgTransaction<'_>,
    batch: BatchId,
    to: BatchState,
    active_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Result<(), PostError> {
    let moved = sqlx::query_scalar!(
        "UPDATE settlement_batches
         SET state = $2, active_at = COALESCE($3, active_at),
             anchored_at = CASE WHEN $4 THEN COALESCE(anchored_at, $5) END
         WHERE batch_id = $1 AND state NOT IN ('claimable', 'cancelled', 'halted')
         RETURNING asset_id",
        batch.0,
        to.as_str(),
        active_at,
        to.is_anchored(),
        now,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let Some(asset) = moved else {
        return Ok(());
    };
    if to == BatchState::Cancelled {
        sqlx::query!(
            "WITH released AS (DELETE FROM batch_items WHERE batch_id = $1 RETURNING receipt_id)
             INSERT INTO unbatched_receipts (receipt_id, asset_id, gross_base)
             SELECT r.receipt_id, r.asset_id, r.gross_base FROM released JOIN receipts r USING (receipt_id)",
            batch.0
        )
        .execute(&mut **tx)
        .await?;
        movements::give_back(tx, batch).await?;
        releases::give_back(tx, asset, batch, now).await?;
    }
    Ok(())
}
