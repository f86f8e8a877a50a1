//! Keys of sellers, wrapped: their versions' data keys open with these.

use comptoir_domain::{envelope::WRAPPED_BYTES, id::AccountId, root_keys::WrappedTenantKey};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::codec::to_sized;

/// The account's key, if it has one.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
) -> sqlx::Result<Option<WrappedTenantKey>> {
    let row = sqlx::query!(
        "SELECT root_key, wrapped FROM tenant_keys WHERE account_id = $1",
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(WrappedTenantKey {
            root_key: row.root_key,
            wrapped: to_wrapped("wrapped", &row.wrapped)?,
        })
    })
    .transpose()
}

/// Gives the account its key, unless it has one: that one counts.
pub async fn create(
    conn: &mut PgConnection,
    account: AccountId,
    key: &WrappedTenantKey,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "INSERT INTO tenant_keys (account_id, root_key, wrapped, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (account_id) DO NOTHING",
        account.0,
        key.root_key,
        &key.wrapped[..],
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Some accounts whose key another root key than this one wraps, without those whose key did not open since then.
pub async fn wrapped_otherwise(
    conn: &mut PgConnection,
    root_key: &str,
    since: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<(AccountId, WrappedTenantKey)>> {
    let rows = sqlx::query!(
        "SELECT account_id, root_key, wrapped FROM tenant_keys
         WHERE root_key <> $1 AND (rewrap_failed_at IS NULL OR rewrap_failed_at < $2)
         ORDER BY rewrap_failed_at NULLS FIRST, account_id LIMIT $3",
        root_key,
        since,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let key = |root_key: String, wrapped: &[u8]| {
        let wrapped = to_wrapped("wrapped", wrapped)?;
        Ok::<_, sqlx::Error>(WrappedTenantKey { root_key, wrapped })
    };
    rows.into_iter()
        .map(|row| Ok((AccountId(row.account_id), key(row.root_key, &row.wrapped)?)))
        .collect()
}

/// Puts the same key, wrapped anew, in the place of how it was wrapped before.
pub async fn rewrap(
    conn: &mut PgConnection,
    account: AccountId,
    old: &WrappedTenantKey,
    new: &WrappedTenantKey,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE tenant_keys SET root_key = $3, wrapped = $4, rewrap_failed_at = NULL WHERE account_id = $1 AND wrapped = $2",
        account.0,
        &old.wrapped[..],
        new.root_key,
        &new.wrapped[..],
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Notes that a key does not open: others are tried before it is again.
pub async fn fail(
    conn: &mut PgConnection,
    account: AccountId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE tenant_keys SET rewrap_failed_at = $2 WHERE account_id = $1",
        account.0,
        now,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// A wrapped key as the database keeps it.
pub(crate) fn to_wrapped(column: &'static str, stored: &[u8]) -> sqlx::Result<[u8; WRAPPED_BYTES]> {
    to_sized(column, stored, "a wrapped key")
}
