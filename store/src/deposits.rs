//! Deposits: shown when they are seen, credited when they are final, once.

use alloy_primitives::{Address, B256};
use comptoir_domain::{amount::Amount, asset::Asset, id::DepositId, ledger::AccountKey};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_hash},
    ledger::{self, PostError},
};

/// Deposits that one transaction credits.
const CREDITS_MAX: i64 = 500;

/// A deposit that the chain has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deposit {
    /// Which.
    pub id: DepositId,
    /// Its number among the contract's deposits.
    pub deposit_seq: u64,
    /// Whose it is.
    pub owner: Address,
    /// Who sent it.
    pub sender: Address,
    /// How much arrived.
    pub amount: Amount,
    /// The block it is in.
    pub block_number: u64,
    /// The transaction that made it.
    pub tx_hash: B256,
    /// When it was seen.
    pub seen_at: OffsetDateTime,
    /// When it became final and was credited.
    pub credited_at: Option<OffsetDateTime>,
}

/// Credits deposits up to the final block, oldest first, and returns how many: 500 at most, none only when none is left.
/// The order matters: a batch says up to which deposit its accounts have seen. Call it once in a transaction: it locks
/// all accounts that it credits before it moves anything, and another call would add to them out of order.
///
/// # Errors
/// When the ledger refuses.
pub async fn credit(
    tx: &mut PgTransaction<'_>,
    asset: &Asset,
    final_number: u64,
    now: OffsetDateTime,
) -> Result<u64, PostError> {
    let rows = sqlx::query!(
        "SELECT deposit_id, event_seq, owner, amount_base FROM deposits
         WHERE asset_id = $1 AND credited_at IS NULL AND block_number <= $2
         ORDER BY event_seq LIMIT $3",
        asset.id,
        final_number.cast_signed(),
        CREDITS_MAX
    )
    .fetch_all(&mut **tx)
    .await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let owners = rows
        .iter()
        .map(|row| to_address("owner", &row.owner))
        .collect::<sqlx::Result<Vec<_>>>()?;
    let accounts = owners.iter().copied().map(AccountKey::Available);
    let accounts = accounts.chain([AccountKey::Deposits]);
    ledger::lock(tx, asset.id, accounts).await?;
    for (row, owner) in rows.iter().zip(&owners) {
        let amount = to_amount("amount_base", &row.amount_base)?;
        let source = format!("{}{}", source_prefix(asset), row.event_seq);
        ledger::deposit(tx, asset.id, *owner, amount, &source, now).await?;
        sqlx::query!(
            "UPDATE deposits SET credited_at = $2 WHERE deposit_id = $1",
            row.deposit_id,
            now
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(rows.len() as u64)
}

/// What an entry's source begins with; the number of the deposit's event follows.
pub(crate) fn source_prefix(asset: &Asset) -> String {
    format!("{}/{}/", asset.chain_id, asset.contract)
}

/// An owner's deposits, newest first, those before `before`.
///
/// # Errors
/// When the database refuses.
pub async fn list(
    conn: &mut PgConnection,
    asset: i32,
    owner: Address,
    before: Option<DepositId>,
    limit: i64,
) -> sqlx::Result<Vec<Deposit>> {
    sqlx::query!(
        "SELECT deposit_id, deposit_seq, owner, sender, amount_base, block_number, tx_hash, seen_at, credited_at
         FROM deposits WHERE asset_id = $1 AND owner = $2 AND deposit_id < $3
         ORDER BY deposit_id DESC LIMIT $4",
        asset,
        owner.as_slice(),
        before.map_or(Uuid::max(), |before| before.0),
        limit
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| {
        Ok(Deposit {
            id: DepositId(row.deposit_id),
            deposit_seq: row.deposit_seq.cast_unsigned(),
            owner: to_address("owner", &row.owner)?,
            sender: to_address("sender", &row.sender)?,
            amount: to_amount("amount_base", &row.amount_base)?,
            block_number: row.block_number.cast_unsigned(),
            tx_hash: to_hash("tx_hash", &row.tx_hash)?,
            seen_at: row.seen_at,
            credited_at: row.credited_at,
        })
    })
    .collect()
}

/// What the contract has paid an owner so far, as far as the chain was read.
///
/// # Errors
/// When the database refuses.
pub async fn paid_out(conn: &mut PgConnection, asset: i32, owner: Address) -> sqlx::Result<Amount> {
    let paid = sqlx::query_scalar!(
        r#"SELECT COALESCE(sum(amount_base), 0) AS "paid!" FROM claims WHERE asset_id = $1 AND owner = $2"#,
        asset,
        owner.as_slice()
    )
    .fetch_one(conn)
    .await?;
    to_amount("paid", &paid)
}
