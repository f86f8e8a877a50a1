//! Does the ledger say what the contract says? Where it does not, settling stops until a person has looked.

use alloy_primitives::Address;
use comptoir_domain::{amount::Amount, asset::Asset, id::HaltId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount},
    deposits, ledger,
};

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

/// What index and ledger say of one account, as of a final block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Whose.
    pub owner: Address,
    /// Its deposits, by the index.
    pub deposited: Amount,
    /// What it was paid, by the index.
    pub claimed: Amount,
    /// Its deposits of these blocks that the ledger does not have, or with another amount.
    pub unposted: u64,
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

/// The accounts that blocks after `after` and up to `until` paid in for or paid out to, by address, those beyond `page`.
///
/// # Errors
/// When the database refuses, or a sum is no amount.
pub async fn touched(
    conn: &mut PgConnection,
    asset: &Asset,
    (after, until): (u64, u64),
    page: Option<Address>,
    limit: i64,
) -> sqlx::Result<Vec<Account>> {
    sqlx::query!(
        r#"WITH touched AS (
             SELECT owner FROM deposits WHERE asset_id = $1 AND block_number > $2 AND block_number <= $3
             UNION SELECT owner FROM claims WHERE asset_id = $1 AND block_number > $2 AND block_number <= $3
           )
           SELECT t.owner AS "owner!",
             (SELECT COALESCE(sum(amount_base), 0) FROM deposits d
              WHERE d.asset_id = $1 AND d.owner = t.owner AND d.block_number <= $3) AS "deposited!",
             (SELECT COALESCE(sum(amount_base), 0) FROM claims c
              WHERE c.asset_id = $1 AND c.owner = t.owner AND c.block_number <= $3) AS "claimed!",
             (SELECT count(*) FROM deposits d
              LEFT JOIN journal_entries e ON e.source_kind = 'deposit' AND e.source_id = $6 || d.event_seq
              LEFT JOIN (postings p JOIN ledger_accounts la USING (ledger_account_id))
                  ON p.journal_entry_id = e.journal_entry_id AND la.owner = d.owner AND la.code = 'available'
              WHERE d.asset_id = $1 AND d.owner = t.owner AND d.block_number > $2 AND d.block_number <= $3
                AND p.amount_base IS DISTINCT FROM d.amount_base) AS "unposted!"
           FROM touched t WHERE $4::bytea IS NULL OR t.owner > $4 ORDER BY t.owner LIMIT $5"#,
        asset.id,
        after.cast_signed(),
        until.cast_signed(),
        page.map(|owner| owner.to_vec()),
        limit,
        deposits::source_prefix(asset),
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| {
        Ok(Account {
            owner: to_address("owner", &row.owner)?,
            deposited: to_amount("deposited", &row.deposited)?,
            claimed: to_amount("claimed", &row.claimed)?,
            unposted: row.unposted.cast_unsigned(),
        })
    })
    .collect()
}

/// Notes up to which block every account was compared with the contract.
///
/// # Errors
/// When the database refuses.
pub async fn reconciled(tx: &mut PgTransaction<'_>, asset: i32, until: u64) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE chain_cursors SET reconciled_number = $2 WHERE asset_id = $1",
        asset,
        until.cast_signed()
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
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
