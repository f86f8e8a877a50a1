//! Does the ledger say what the contract says? Where it does not, settling stops until a person has looked.

use comptoir_domain::{amount::Amount, id::HaltId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{PgTransaction, codec::to_amount, ledger};

/// What ledger and index say about all accounts together, as of the final block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Deposits that were credited, by the index.
    pub credited: Amount,
    /// The number of the last one.
    pub deposit_seq: u64,
    /// Everything that was ever deposited, by the ledger.
    pub deposits: Amount,
    /// What owners, fees and dust have together.
    pub owed: Amount,
    /// What was ever released.
    pub payable: Amount,
    /// What the contract has paid up to the final block, by the index.
    pub claimed: Amount,
    /// An owner that was paid more than was released to it.
    pub overpaid_owners: i64,
}

/// Why settling stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    /// Which.
    pub id: HaltId,
    /// In one word.
    pub reason: String,
    /// In figures.
    pub detail: String,
    /// Since when.
    pub halted_at: OffsetDateTime,
}

/// Reads the totals; all of them as one statement's snapshot or the transaction's sees them.
///
/// # Errors
/// When the database refuses, or a sum is no amount.
pub async fn totals(
    conn: &mut PgConnection,
    asset: i32,
    final_number: u64,
) -> sqlx::Result<Totals> {
    let row = sqlx::query!(
        r#"SELECT
             (SELECT COALESCE(sum(amount_base), 0) FROM deposits WHERE asset_id = $1 AND credited_at IS NOT NULL) AS "credited!",
             (SELECT COALESCE(max(deposit_seq), 0) FROM deposits WHERE asset_id = $1 AND credited_at IS NOT NULL) AS "deposit_seq!",
             (SELECT COALESCE(sum(balance_base), 0) FROM ledger_accounts WHERE asset_id = $1 AND code <> 'deposits') AS "owed!",
             (SELECT COALESCE(sum(balance_base), 0) FROM ledger_accounts WHERE asset_id = $1 AND code = 'payable') AS "payable!",
             (SELECT COALESCE(sum(amount_base), 0) FROM claims WHERE asset_id = $1 AND block_number <= $2) AS "claimed!",
             (SELECT count(*) FROM (
                 SELECT owner, sum(amount_base) AS paid FROM claims WHERE asset_id = $1 AND kind = 'claimed' GROUP BY owner
              ) c LEFT JOIN ledger_accounts la ON la.asset_id = $1 AND la.owner = c.owner AND la.code = 'payable'
              WHERE c.paid > COALESCE(la.balance_base, 0)) AS "overpaid!""#,
        asset,
        final_number.cast_signed()
    )
    .fetch_one(&mut *conn)
    .await?;
    Ok(Totals {
        credited: to_amount("credited", &row.credited)?,
        deposit_seq: row.deposit_seq.cast_unsigned(),
        deposits: ledger::house_balances(conn, asset).await?.deposits,
        owed: to_amount("owed", &row.owed)?,
        payable: to_amount("payable", &row.payable)?,
        claimed: to_amount("claimed", &row.claimed)?,
        overpaid_owners: row.overpaid,
    })
}

/// Stops settling, unless it stands already.
///
/// # Errors
/// When the database refuses.
pub async fn halt(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    reason: &str,
    detail: &str,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO settler_halts (halt_id, asset_id, reason, detail, halted_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (asset_id) WHERE cleared_at IS NULL DO NOTHING",
        HaltId::generate().0,
        asset,
        reason,
        detail,
        now
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Why settling stands still; `None` while it does not.
///
/// # Errors
/// When the database refuses.
pub async fn open_halt(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Option<Halt>> {
    let row = sqlx::query!(
        "SELECT halt_id, reason, detail, halted_at FROM settler_halts WHERE asset_id = $1 AND cleared_at IS NULL",
        asset
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Halt {
        id: HaltId(row.halt_id),
        reason: row.reason,
        detail: row.detail,
        halted_at: row.halted_at,
    }))
}

/// Lets settling go on, after a person has looked. Returns whether it stood still.
///
/// # Errors
/// When the database refuses.
pub async fn clear_halt(
    conn: &mut PgConnection,
    asset: i32,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let cleared = sqlx::query!(
        "UPDATE settler_halts SET cleared_at = $2 WHERE asset_id = $1 AND cleared_at IS NULL",
        asset,
        now
    )
    .execute(conn)
    .await?;
    Ok(cleared.rows_affected() > 0)
}
