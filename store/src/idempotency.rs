//! The reply of a request, kept in the transaction of its effect, so that a repeated request is
//! answered and not repeated.

use comptoir_domain::{digest::Sha256, id::AccountId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{PgTransaction, codec};

/// What makes two requests the same one.
#[derive(Debug, Clone, Copy)]
pub struct RequestKey<'a> {
    /// Who asks.
    pub account: AccountId,
    /// The method.
    pub method: &'a str,
    /// The path.
    pub path: &'a str,
    /// The client's `Idempotency-Key`.
    pub key: &'a str,
}

/// A reply that was given.
#[derive(Debug, Clone)]
pub struct StoredReply {
    /// Its status.
    pub status: u16,
    /// Its `Location`.
    pub location: Option<String>,
    /// Its body, sealed by the caller.
    pub body: Vec<u8>,
    /// The digest of the body of the request that it answered.
    pub request_sha256: Sha256,
}

/// Takes the key for this transaction. `false` when another transaction holds it now.
pub async fn try_lock(tx: &mut PgTransaction<'_>, key: &RequestKey<'_>) -> sqlx::Result<bool> {
    let name = format!(
        "idempotency {} {} {} {}",
        key.account, key.method, key.path, key.key
    );
    sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS "taken!""#,
        name,
    )
    .fetch_one(&mut **tx)
    .await
}

/// The reply that was given to this request, if it is kept still.
pub async fn find(
    connection: &mut PgConnection,
    key: &RequestKey<'_>,
    now: OffsetDateTime,
) -> sqlx::Result<Option<StoredReply>> {
    let row = sqlx::query!(
        "SELECT body_sha256, status, location, body FROM idempotency_keys
         WHERE account_id = $1 AND method = $2 AND path = $3 AND key = $4 AND expires_at > $5",
        key.account.0,
        key.method,
        key.path,
        key.key,
        now,
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let status = u16::try_from(row.status).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Some(StoredReply {
        status,
        location: row.location,
        body: row.body,
        request_sha256: codec::to_digest("body_sha256", &row.body_sha256)?,
    }))
}

/// Keeps a reply until `expires_at`; one that was kept before and expired makes way.
pub async fn keep(
    tx: &mut PgTransaction<'_>,
    key: &RequestKey<'_>,
    reply: &StoredReply,
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> sqlx::Result<()> {
    let status = i16::try_from(reply.status).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "DELETE FROM idempotency_keys
         WHERE account_id = $1 AND method = $2 AND path = $3 AND key = $4 AND expires_at <= $5",
        key.account.0,
        key.method,
        key.path,
        key.key,
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO idempotency_keys
            (account_id, method, path, key, body_sha256, status, location, body, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        key.account.0,
        key.method,
        key.path,
        key.key,
        reply.request_sha256.0.as_slice(),
        status,
        reply.location,
        reply.body,
        now,
        expires_at,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Forgets at most `limit` replies that expired; says how many.
pub async fn forget_expired(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM idempotency_keys WHERE (account_id, method, path, key) IN
            (SELECT account_id, method, path, key FROM idempotency_keys WHERE expires_at <= $1
             ORDER BY expires_at LIMIT $2)",
        now,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}
