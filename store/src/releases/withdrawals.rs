//! Withdrawals: asked for, held, taken back.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, ReleaseId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Release, ReleaseKind, ReleaseState, Row};
use crate::{
    PgTransaction,
    codec::to_numeric,
    holds::{self, Hold, HoldError, HoldSource},
    ledger::PostError,
};

/// Why a withdrawal was not made or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum WithdrawalError {
    /// A withdrawal of nothing.
    #[error("a withdrawal moves at least one base unit")]
    Nothing,
    /// None of this account has that identifier.
    #[error("no such withdrawal")]
    NotFound,
    /// It is released.
    #[error("the withdrawal is released")]
    AlreadyReleased,
    /// The money could not be held or given back.
    #[error("hold the withdrawal")]
    Hold(#[from] HoldError),
    /// A statement failed.
    #[error("write the withdrawal")]
    Database(#[from] sqlx::Error),
}

/// Holds an owner's money and queues it for the next seals.
///
/// # Errors
/// When the owner has less available.
pub async fn request_withdrawal(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    (account, owner): (AccountId, Address),
    amount: Amount,
    now: OffsetDateTime,
) -> Result<Release, WithdrawalError> {
    if amount.is_zero() {
        return Err(WithdrawalError::Nothing);
    }
    let id = ReleaseId::generate();
    let source = HoldSource::Withdrawal(id);
    holds::place(
        tx,
        &Hold {
            source,
            owner,
            asset_id,
            amount,
        },
        now,
    )
    .await?;
    sqlx::query!(
        "INSERT INTO releases (release_id, asset_id, owner, kind, amount_base, account_id, created_at)
         VALUES ($1, $2, $3, 'withdrawal', $4, $5, $6)",
        id.0,
        asset_id,
        owner.as_slice(),
        to_numeric(amount),
        account.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(Release {
        id,
        owner,
        kind: ReleaseKind::Withdrawal,
        amount,
        released: Amount::ZERO,
        state: ReleaseState::Queued,
        created_at: now,
        released_at: None,
    })
}

/// Takes back what is not released of a withdrawal. Cancelling it again changes nothing.
///
/// # Errors
/// When there is none of this account, or it is released.
pub async fn cancel_withdrawal(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    id: ReleaseId,
    now: OffsetDateTime,
) -> Result<Release, WithdrawalError> {
    let release = find_withdrawal(tx, account, id)
        .await?
        .ok_or(WithdrawalError::NotFound)?;
    match release.state {
        ReleaseState::Cancelled => return Ok(release),
        ReleaseState::Released => return Err(WithdrawalError::AlreadyReleased),
        ReleaseState::Queued => {}
    }
    // The hold decides against a seal or another cancellation of the same moment.
    match holds::release(tx, HoldSource::Withdrawal(id), now).await {
        Err(HoldError::NotHeld) => {}
        // The rest was taken back before: this part was released, and waits again only because its batch was vetoed.
        Err(HoldError::Post(PostError::AlreadyPosted)) => {
            return Err(WithdrawalError::AlreadyReleased);
        }
        released => {
            released?;
            sqlx::query!("UPDATE releases SET state = 'cancelled' WHERE release_id = $1 AND state = 'queued'", id.0)
                .execute(&mut **tx)
                .await?;
        }
    }
    let release = find_withdrawal(tx, account, id)
        .await?
        .ok_or(WithdrawalError::NotFound)?;
    if release.state == ReleaseState::Cancelled {
        Ok(release)
    } else {
        Err(WithdrawalError::AlreadyReleased)
    }
}

/// A withdrawal of this account.
///
/// # Errors
/// When the statement fails.
pub async fn find_withdrawal(
    conn: &mut PgConnection,
    account: AccountId,
    id: ReleaseId,
) -> sqlx::Result<Option<Release>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE release_id = $1 AND account_id = $2",
        id.0,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(Row::decode).transpose()
}

/// The withdrawals of this account, newest first, older than `before`.
///
/// # Errors
/// When the statement fails.
pub async fn list_withdrawals(
    conn: &mut PgConnection,
    account: AccountId,
    before: Option<ReleaseId>,
    limit: i64,
) -> sqlx::Result<Vec<Release>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE account_id = $1 AND ($2::uuid IS NULL OR release_id < $2)
         ORDER BY release_id DESC LIMIT $3",
        account.0,
        before.map(|id| id.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}
