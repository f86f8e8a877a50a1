//! Who asked the contract to leave. Nothing is spent for an owner while its exit is open: what it holds is released to
//! it at the next seal instead.

use std::collections::BTreeMap;

use std::collections::BTreeSet;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount},
    ledger::{self, PostError},
    releases,
};

/// Exits that one seal serves.
const EXITS_MAX: i64 = 1_000;

/// An exit that was not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The request, among all events of the contract.
    pub event_seq: u64,
    /// Who leaves.
    pub owner: Address,
    /// When anyone may freeze the contract over it.
    pub due_at: OffsetDateTime,
}

/// Has this owner an open exit?
///
/// # Errors
/// When the database refuses.
pub async fn is_leaving(conn: &mut PgConnection, asset: i32, owner: Address) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM exits WHERE asset_id = $1 AND owner = $2 AND answered_block_number IS NULL) AS "leaving!""#,
        asset,
        owner.as_slice()
    )
    .fetch_one(conn)
    .await
}

/// Which of these owners have an open exit?
///
/// # Errors
/// When the database refuses.
pub(crate) async fn leaving(
    conn: &mut PgConnection,
    asset: i32,
    owners: &BTreeSet<Address>,
) -> sqlx::Result<BTreeSet<Address>> {
    let owners: Vec<_> = owners.iter().map(|owner| owner.to_vec()).collect();
    sqlx::query_scalar!(
        "SELECT owner FROM exits WHERE asset_id = $1 AND owner = ANY ($2) AND answered_block_number IS NULL",
        asset,
        &owners,
    )
    .fetch_all(conn)
    .await?
    .iter()
    .map(|owner| to_address("owner", owner))
    .collect()
}

/// The open exits, oldest first.
///
/// # Errors
/// When the database refuses.
pub async fn open(conn: &mut PgConnection, asset: i32, limit: i64) -> sqlx::Result<Vec<Exit>> {
    sqlx::query!(
        "SELECT event_seq, owner, due_at FROM exits
         WHERE asset_id = $1 AND answered_block_number IS NULL ORDER BY event_seq LIMIT $2",
        asset,
        limit
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| {
        Ok(Exit {
            event_seq: row.event_seq.cast_unsigned(),
            owner: to_address("owner", &row.owner)?,
            due_at: row.due_at,
        })
    })
    .collect()
}

/// Moves what leaving owners have available to `payable`, oldest exit first, `at_most` in all, in one entry that `seal`
/// names. What is locked for a job follows when the job has ended. What it returns is how much it moved.
///
/// Wants READ COMMITTED: it waits for the accounts and then reads what they became.
///
/// # Errors
/// When the seal has its entry already, or a statement fails.
pub async fn release(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    seal: &str,
    at_most: Amount,
    now: OffsetDateTime,
) -> Result<Amount, PostError> {
    let leaving = open(tx, asset, EXITS_MAX).await?;
    let owners: Vec<_> = leaving.iter().map(|exit| exit.owner).collect();
    let accounts = owners
        .iter()
        .flat_map(|owner| [AccountKey::Available(*owner), AccountKey::Payable(*owner)]);
    ledger::lock(tx, asset, accounts).await?;
    let available = available(tx, asset, &owners).await?;
    let mut left = at_most;
    let mut lines = Lines::default();
    for owner in owners {
        let has = available.get(&owner).copied().unwrap_or_default();
        let amount = has.min(left);
        left = left.checked_sub(amount).expect("no more than what is left");
        lines = lines
            .debit(AccountKey::Available(owner), amount)
            .credit(AccountKey::Payable(owner), amount);
    }
    let moved = at_most
        .checked_sub(left)
        .expect("what is left is a part of it");
    if !moved.is_zero() {
        let entry = lines.into_entry(EntryKind::Release, Source::Seal(seal.to_owned()))?;
        let entry = ledger::post_locked(tx, asset, &entry, now).await?;
        releases::note(tx, asset, entry, &[]).await?;
    }
    Ok(moved)
}

/// What each of these owners may spend; none where it has no account.
async fn available(
    conn: &mut PgConnection,
    asset: i32,
    owners: &[Address],
) -> sqlx::Result<BTreeMap<Address, Amount>> {
    let owners: Vec<_> = owners.iter().map(|owner| owner.to_vec()).collect();
    sqlx::query!(
        r#"SELECT owner AS "owner!", balance_base FROM ledger_accounts
           WHERE asset_id = $1 AND code = 'available' AND owner = ANY ($2)"#,
        asset,
        &owners
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| {
        Ok((
            to_address("owner", &row.owner)?,
            to_amount("balance_base", &row.balance_base)?,
        ))
    })
    .collect()
}
