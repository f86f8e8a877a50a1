//! Changes of the address that an account is paid at: asked for, taken back, applied when their time has come.

use alloy_primitives::Address;
use comptoir_domain::id::{AccountId, AddressChangeId};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use crate::{
    PgTransaction,
    accounts::{self, BindError},
    codec::to_address,
    violates,
};

/// How long a change waits, so that the account's owner hears of it and can take it back.
pub const DELAY: Duration = Duration::hours(24);
/// Money that comes back to an address this long after an account left it is still made claimable there: longer than
/// any job that it pays for may run.
const SWEPT_FOR: Duration = Duration::days(45);

/// A change that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressChange {
    /// Its identifier.
    pub id: AddressChangeId,
    /// Whose address.
    pub account: AccountId,
    /// Where the account is paid now.
    pub old: Address,
    /// Where it wants to be paid.
    pub new: Address,
    /// When it was asked for.
    pub requested_at: OffsetDateTime,
    /// When it is applied.
    pub effective_at: OffsetDateTime,
}

/// Why a change was not asked for.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Another change of the account waits.
    #[error("a change of the address waits already")]
    Pending,
    /// The address cannot be this account's.
    #[error("change to an address")]
    Bind(#[from] BindError),
    /// Postgres failed.
    #[error("ask for a change of the address")]
    Database(#[from] sqlx::Error),
}

/// What became of a change whose time had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The account is paid at the new address.
    Changed,
    /// Another account had taken the address meanwhile.
    Refused,
}

/// Asks for a change to an address whose owner signed for it.
pub async fn request(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    (old, new): (Address, Address),
    now: OffsetDateTime,
) -> Result<AddressChange, ChangeError> {
    let change = AddressChange {
        id: AddressChangeId::generate(),
        account,
        old,
        new,
        requested_at: now,
        effective_at: now.saturating_add(DELAY),
    };
    sqlx::query!(
        "INSERT INTO address_changes (address_change_id, account_id, old_address, new_address, requested_at, effective_at, state)
         VALUES ($1, $2, $3, $4, $5, $6, 'pending')",
        change.id.0,
        account.0,
        old.as_slice(),
        new.as_slice(),
        now,
        change.effective_at,
    )
    .execute(&mut **tx)
    .await
    .map_err(|error| {
        if violates(&error, "address_changes_one_pending") {
            ChangeError::Pending
        } else {
            error.into()
        }
    })?;
    Ok(change)
}

/// The change of the account that waits.
pub async fn find_pending(
    connection: &mut PgConnection,
    account: AccountId,
) -> sqlx::Result<Option<AddressChange>> {
    let row = sqlx::query!(
        "SELECT address_change_id, old_address, new_address, requested_at, effective_at
         FROM address_changes WHERE account_id = $1 AND state = 'pending'",
        account.0,
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(AddressChange {
            id: AddressChangeId(row.address_change_id),
            account,
            old: to_address("old_address", &row.old_address)?,
            new: to_address("new_address", &row.new_address)?,
            requested_at: row.requested_at,
            effective_at: row.effective_at,
        })
    })
    .transpose()
}

/// Takes back the change of the account that waits; `None` when none does.
pub async fn cancel(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    now: OffsetDateTime,
) -> sqlx::Result<Option<AddressChange>> {
    let Some(change) = find_pending(tx, account).await? else {
        return Ok(None);
    };
    Ok(end(tx, change.id, "cancelled", now)
        .await?
        .then_some(change))
}

/// Ends a change that waits; `false` when it waits no longer.
async fn end(
    tx: &mut PgTransaction<'_>,
    id: AddressChangeId,
    state: &str,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let ended = sqlx::query!(
        "UPDATE address_changes SET state = $2, ended_at = $3 WHERE address_change_id = $1 AND state = 'pending'",
        id.0,
        state,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(ended.rows_affected() == 1)
}

/// Applies one change whose time has come, if there is one that nobody else is at; those of frozen accounts wait on. The transaction's caller tells the
/// account's owner, and commits.
pub async fn apply_due(
    tx: &mut PgTransaction<'_>,
    now: OffsetDateTime,
) -> sqlx::Result<Option<(AddressChange, Applied)>> {
    let row = sqlx::query!(
        "SELECT address_change_id, account_id, old_address, new_address, requested_at, effective_at FROM address_changes
         WHERE state = 'pending' AND effective_at <= $1
             AND NOT EXISTS (SELECT FROM account_controls k WHERE k.account_id = address_changes.account_id AND frozen_at IS NOT NULL)
         ORDER BY effective_at LIMIT 1 FOR UPDATE SKIP LOCKED",
        now,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let change = AddressChange {
        id: AddressChangeId(row.address_change_id),
        account: AccountId(row.account_id),
        old: to_address("old_address", &row.old_address)?,
        new: to_address("new_address", &row.new_address)?,
        requested_at: row.requested_at,
        effective_at: row.effective_at,
    };
    let applied = match accounts::check_changeable(tx, change.account, change.new).await {
        Ok(()) => Applied::Changed,
        Err(BindError::Database(error)) => return Err(error),
        Err(_) => Applied::Refused,
    };
    let state = match applied {
        Applied::Changed => "applied",
        Applied::Refused => "refused",
    };
    end(tx, change.id, state, now).await?;
    if applied == Applied::Changed {
        sqlx::query!(
            "UPDATE accounts SET address = $2, address_bound_at = $3 WHERE account_id = $1",
            change.account.0,
            change.new.as_slice(),
            now,
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(Some((change, applied)))
}

/// Addresses that accounts left lately, that nobody has bound since, and that have something available: it can be claimed
/// on-chain by their keys, and in no other way.
pub async fn left_with_money(
    connection: &mut PgConnection,
    asset_id: i32,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<(AccountId, Address)>> {
    let rows = sqlx::query!(
        "SELECT DISTINCT c.account_id, c.old_address FROM address_changes c
         JOIN ledger_accounts la ON la.asset_id = $1 AND la.owner = c.old_address AND la.code = 'available' AND la.balance_base > 0
         WHERE c.state = 'applied' AND c.ended_at > $2
             AND NOT EXISTS (SELECT FROM accounts WHERE address = c.old_address)
             AND NOT EXISTS (SELECT FROM account_controls k WHERE k.account_id = c.account_id AND frozen_at IS NOT NULL)
         LIMIT $3",
        asset_id,
        now.saturating_sub(SWEPT_FOR),
        limit,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let old = to_address("old_address", &row.old_address)?;
            Ok((AccountId(row.account_id), old))
        })
        .collect()
}
