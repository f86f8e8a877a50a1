//! Allowances: what an API process may spend on calls of one payer and one credential. Opened as a hold, kept while the process is alive, and
//! closed by charging what was counted.

mod close;
mod free;

use std::{collections::BTreeSet, time::Duration};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, AllowanceId, ApiKeyId},
    ledger::AccountKey,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::to_numeric,
    exits,
    holds::{self, Hold, HoldError, HoldSource},
    ledger, limits,
    spending::Budgets,
};

pub use close::{CloseError, close};
pub use free::{give_back_free, take_free};

/// For how long an allowance is kept without a word of its process.
pub const ALLOWANCE_GRACE: Duration = Duration::from_mins(1);

/// What is wanted is cut at this part of what there is, so that jobs, purchases and other keys of the payer find something as well.
const PART_OF_BALANCE: u64 = 4;

/// An allowance that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewAllowance {
    /// Its name.
    pub id: AllowanceId,
    /// Who calls.
    pub account: AccountId,
    /// The key that calls are made with, and whose limit counts; `None`: a person who signed in.
    pub key: Option<ApiKeyId>,
    /// Whose money.
    pub payer: Address,
    /// Row of `assets`.
    pub asset_id: i32,
    /// The process that spends it.
    pub process: Uuid,
    /// With less than this it is of no use; one base unit at least.
    pub least: Amount,
    /// More than this is not needed.
    pub wanted: Amount,
}

/// Why there is no allowance.
#[derive(Debug, thiserror::Error)]
pub enum AllowanceError {
    /// An operator froze the account.
    #[error("the account is frozen")]
    Frozen,
    /// The payer asked the contract to leave.
    #[error("the payer is leaving")]
    Leaving,
    /// The payer has less than the least.
    #[error("insufficient funds: {available} base units are available")]
    InsufficientFunds {
        /// What the payer has.
        available: Amount,
    },
    /// The key may spend less than the least.
    #[error("the key's spend limit leaves {left} base units")]
    KeyLimit {
        /// What it may still spend.
        left: Amount,
    },
    /// The money could not be held.
    #[error("hold an allowance")]
    Hold(#[from] HoldError),
    /// A statement failed.
    #[error("open an allowance")]
    Database(#[from] sqlx::Error),
}

/// Opens an allowance of at least `least` and at most `wanted`: how much it is. More than the least is a quarter of what the payer can spend and the
/// key may, at most. It counts against the limit of the period in which it is opened.
///
/// # Errors
/// When that is less than the least; the caller rolls back.
pub async fn open(
    tx: &mut PgTransaction<'_>,
    new: &NewAllowance,
    now: OffsetDateTime,
) -> Result<Amount, AllowanceError> {
    if limits::is_frozen(tx, new.account).await? {
        return Err(AllowanceError::Frozen);
    }
    let mut budgets = Budgets::lock(tx, new.key, now).await?;
    let (owner, asset_id) = (new.payer, new.asset_id);
    let accounts = [AccountKey::Available(owner), AccountKey::Held(owner)];
    ledger::lock(tx, asset_id, accounts).await?;
    if exits::is_leaving(tx, asset_id, owner).await? {
        return Err(AllowanceError::Leaving);
    }
    let available = ledger::spendable(tx, asset_id, &BTreeSet::from([owner])).await?;
    let available = available.get(&owner).copied().unwrap_or_default();
    let left = new.key.and_then(|key| budgets.left(key));
    let amount = granted(new, available, left)?;
    let hold = Hold {
        source: HoldSource::Allowance(new.id),
        owner,
        asset_id,
        amount,
    };
    if let Some(key) = new.key {
        let taken = budgets.take(key, amount);
        taken.map_err(|above| AllowanceError::KeyLimit { left: above.left })?;
    }
    holds::place(tx, &hold, now).await?;
    let made = new.key.map(|key| (key, hold.source, amount));
    budgets.keep(tx, made.as_slice()).await?;
    sqlx::query!(
        "INSERT INTO allowances (allowance_id, account_id, api_key_id, payer, asset_id, process_id, amount_base, opened_at, kept_until)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        new.id.0,
        new.account.0,
        new.key.map(|it| it.0),
        owner.as_slice(),
        asset_id,
        new.process,
        to_numeric(amount),
        now,
        now.saturating_add(grace()),
    )
    .execute(&mut **tx)
    .await?;
    Ok(amount)
}

/// As much as is wanted, and a part of what there is, or the least.
fn granted(
    new: &NewAllowance,
    available: Amount,
    left: Option<Amount>,
) -> Result<Amount, AllowanceError> {
    let one = Amount::from_base(1).expect("one is an amount");
    let least = new.least.max(one);
    match left {
        Some(left) if left < least => Err(AllowanceError::KeyLimit { left }),
        _ if available < least => Err(AllowanceError::InsufficientFunds { available }),
        left => {
            let there_is = available.min(left.unwrap_or(available));
            let part = there_is.part(1, PART_OF_BALANCE);
            Ok(new.wanted.min(part).max(least))
        }
    }
}

/// The process is alive: its open allowances are kept for another [`ALLOWANCE_GRACE`]. How many those are.
///
/// # Errors
/// When the statement fails.
pub async fn keep(
    conn: &mut PgConnection,
    process: Uuid,
    now: OffsetDateTime,
) -> sqlx::Result<u64> {
    let kept = sqlx::query!(
        "UPDATE allowances SET kept_until = $2 WHERE process_id = $1 AND closed_at IS NULL",
        process,
        now.saturating_add(grace()),
    )
    .execute(conn)
    .await?;
    Ok(kept.rows_affected())
}

/// Allowances whose process fell silent, longest ago first.
///
/// # Errors
/// When the statement fails.
pub async fn abandoned(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<AllowanceId>> {
    let ids = sqlx::query_scalar!(
        "SELECT allowance_id FROM allowances WHERE closed_at IS NULL AND kept_until < $1 ORDER BY kept_until LIMIT $2",
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(AllowanceId).collect())
}

/// Puts off closing one that could not be closed, so that it does not stand before the others.
///
/// # Errors
/// When the statement fails.
pub async fn put_off(
    conn: &mut PgConnection,
    id: AllowanceId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE allowances SET kept_until = $2 WHERE allowance_id = $1 AND closed_at IS NULL",
        id.0,
        now.saturating_add(grace()),
    )
    .execute(conn)
    .await
    .map(drop)
}

fn grace() -> time::Duration {
    time::Duration::try_from(ALLOWANCE_GRACE).expect("a minute is a duration")
}
