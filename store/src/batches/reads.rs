//! Batches, read.

use alloy_primitives::B256;
use comptoir_domain::{
    id::{BatchId, ReceiptId},
    settlement::{BatchState, Header},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Batch;
use crate::codec::{to_amount, to_enum, to_hash};

/// Which batches are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// Those before this one.
    pub before: Option<BatchId>,
    /// So many.
    pub limit: i64,
}

struct Row {
    batch_id: Uuid,
    asset_id: i32,
    number: i64,
    generation: i64,
    state: String,
    hash: Vec<u8>,
    prev_hash: Vec<u8>,
    receipts_root: Vec<u8>,
    accounts_root: Vec<u8>,
    data_hash: Vec<u8>,
    data_bytes: i64,
    receipt_count: i64,
    account_count: i64,
    deposit_seq_seen: i64,
    total_payable_base: BigDecimal,
    total_available_base: BigDecimal,
    deposits_seen_base: BigDecimal,
    sealed_at: OffsetDateTime,
    active_at: Option<OffsetDateTime>,
    anchored_at: Option<OffsetDateTime>,
}

impl Row {
    fn decode(self) -> sqlx::Result<Batch> {
        let header = Header {
            id: self.number.cast_unsigned(),
            generation: self
                .generation
                .try_into()
                .map_err(|error: std::num::TryFromIntError| sqlx::Error::Decode(error.into()))?,
            receipt_count: self.receipt_count.cast_unsigned(),
            deposit_seq_seen: self.deposit_seq_seen.cast_unsigned(),
            total_payable: to_amount("total_payable_base", &self.total_payable_base)?.base(),
            total_available: to_amount("total_available_base", &self.total_available_base)?.base(),
            deposits_seen: to_amount("deposits_seen_base", &self.deposits_seen_base)?.base(),
            prev_hash: to_hash("prev_hash", &self.prev_hash)?,
            receipts_root: to_hash("receipts_root", &self.receipts_root)?,
            accounts_root: to_hash("accounts_root", &self.accounts_root)?,
            data_hash: to_hash("data_hash", &self.data_hash)?,
        };
        Ok(Batch {
            id: BatchId(self.batch_id),
            asset: self.asset_id,
            state: to_enum("state", &self.state, BatchState::parse)?,
            header,
            hash: to_hash("hash", &self.hash)?,
            data_bytes: self.data_bytes.cast_unsigned(),
            account_count: self.account_count.cast_unsigned(),
            sealed_at: self.sealed_at,
            active_at: self.active_at,
            anchored_at: self.anchored_at,
        })
    }
}

/// One batch.
///
/// # Errors
/// When the database refuses.
pub async fn find(conn: &mut PgConnection, batch: BatchId) -> sqlx::Result<Option<Batch>> {
    select(
        conn,
        Select {
            batch: Some(batch),
            ..Select::default()
        },
    )
    .await
}

/// The batch that stands under a number; a cancelled one does not.
///
/// # Errors
/// When the database refuses.
pub async fn find_number(
    conn: &mut PgConnection,
    asset: i32,
    number: u64,
) -> sqlx::Result<Option<Batch>> {
    select(
        conn,
        Select {
            asset: Some(asset),
            number: Some(number),
            standing: true,
            ..Select::default()
        },
    )
    .await
}

/// The newest batch that stands.
///
/// # Errors
/// When the database refuses.
pub async fn standing(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Option<Batch>> {
    select(
        conn,
        Select {
            asset: Some(asset),
            standing: true,
            ..Select::default()
        },
    )
    .await
}

/// The newest batch that claims can be proven against.
///
/// # Errors
/// When the database refuses.
pub async fn active_for_claims(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Option<Batch>> {
    select(
        conn,
        Select {
            asset: Some(asset),
            claimable: true,
            ..Select::default()
        },
    )
    .await
}

/// The newest batch that the contract holds for good.
///
/// # Errors
/// When the database refuses.
pub async fn anchored(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Option<Batch>> {
    select(
        conn,
        Select {
            asset: Some(asset),
            anchored: true,
            ..Select::default()
        },
    )
    .await
}

/// The batch that settles a receipt, and the receipt's place in it.
///
/// # Errors
/// When the database refuses.
pub async fn of_receipt(
    conn: &mut PgConnection,
    receipt: ReceiptId,
) -> sqlx::Result<Option<(Batch, u64)>> {
    let item = sqlx::query!(
        "SELECT batch_id, idx FROM batch_items WHERE receipt_id = $1",
        receipt.0
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(item) = item else { return Ok(None) };
    let batch = find(conn, BatchId(item.batch_id)).await?;
    Ok(batch.map(|batch| (batch, item.idx.cast_unsigned())))
}

/// How many of these receipts and movements the database does not have.
///
/// # Errors
/// When the database refuses.
pub async fn missing(conn: &mut PgConnection, receipts: &[ReceiptId]) -> sqlx::Result<u64> {
    let ids: Vec<_> = receipts.iter().map(|receipt| receipt.0).collect();
    let missing = sqlx::query_scalar!(
        r#"SELECT count(*) AS "missing!" FROM UNNEST($1::uuid[]) AS it (id)
           WHERE NOT EXISTS (SELECT FROM receipts WHERE receipt_id = it.id)
             AND NOT EXISTS (SELECT FROM journal_entries WHERE journal_entry_id = it.id)"#,
        &ids
    )
    .fetch_one(conn)
    .await?;
    Ok(missing.cast_unsigned())
}

/// The leaves of a batch's receipts, by index.
///
/// # Errors
/// When the database refuses.
pub async fn items(conn: &mut PgConnection, batch: BatchId) -> sqlx::Result<Vec<B256>> {
    sqlx::query_scalar!(
        r#"SELECT leaf AS "leaf!" FROM (
               SELECT idx, leaf FROM batch_items WHERE batch_id = $1
               UNION ALL SELECT idx, leaf FROM batch_movements WHERE batch_id = $1
           ) items
           ORDER BY idx"#,
        batch.0
    )
    .fetch_all(conn)
    .await?
    .iter()
    .map(|leaf| to_hash("leaf", leaf))
    .collect()
}

/// Batches, newest first.
///
/// # Errors
/// When the database refuses.
pub async fn list(conn: &mut PgConnection, asset: i32, filter: Filter) -> sqlx::Result<Vec<Batch>> {
    sqlx::query_as!(
        Row,
        "SELECT batch_id, asset_id, number, generation, state, hash, prev_hash, receipts_root, accounts_root, data_hash, data_bytes,
                receipt_count, account_count, deposit_seq_seen, total_payable_base, total_available_base, deposits_seen_base,
                sealed_at, active_at, anchored_at
         FROM settlement_batches WHERE asset_id = $1 AND batch_id < $2 ORDER BY batch_id DESC LIMIT $3",
        asset,
        filter.before.map_or(Uuid::max(), |before| before.0),
        filter.limit,
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(Row::decode)
    .collect()
}

/// The batches that are still on their way, by number.
///
/// # Errors
/// When the database refuses.
pub async fn unfinished(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Vec<Batch>> {
    sqlx::query_as!(
        Row,
        "SELECT batch_id, asset_id, number, generation, state, hash, prev_hash, receipts_root, accounts_root, data_hash, data_bytes,
                receipt_count, account_count, deposit_seq_seen, total_payable_base, total_available_base, deposits_seen_base,
                sealed_at, active_at, anchored_at
         FROM settlement_batches
         WHERE asset_id = $1 AND state NOT IN ('claimable', 'cancelled') ORDER BY number, generation",
        asset,
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(Row::decode)
    .collect()
}

/// What one batch is looked up by; the newest that fits.
#[derive(Default)]
struct Select {
    batch: Option<BatchId>,
    asset: Option<i32>,
    number: Option<u64>,
    standing: bool,
    claimable: bool,
    anchored: bool,
}

async fn select(conn: &mut PgConnection, select: Select) -> sqlx::Result<Option<Batch>> {
    sqlx::query_as!(
        Row,
        "SELECT batch_id, asset_id, number, generation, state, hash, prev_hash, receipts_root, accounts_root, data_hash, data_bytes,
                receipt_count, account_count, deposit_seq_seen, total_payable_base, total_available_base, deposits_seen_base,
                sealed_at, active_at, anchored_at
         FROM settlement_batches
         WHERE ($1::uuid IS NULL OR batch_id = $1) AND ($2::integer IS NULL OR asset_id = $2)
           AND ($3::bigint IS NULL OR number = $3)
           AND (NOT $4 OR state <> 'cancelled') AND (NOT $5 OR state = 'claimable')
           AND (NOT $6 OR state IN ('anchored', 'claimable'))
         ORDER BY number DESC, generation DESC LIMIT 1",
        select.batch.map(|batch| batch.0),
        select.asset,
        select.number.map(u64::cast_signed),
        select.standing,
        select.claimable,
        select.anchored,
    )
    .fetch_optional(conn)
    .await?
    .map(Row::decode)
    .transpose()
}
