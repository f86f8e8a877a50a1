//! Nonces of sign-in messages (EIP-4361): each is made by us and spent once.

use comptoir_domain::digest::Sha256;
use sqlx::PgConnection;
use time::OffsetDateTime;

/// Remembers a nonce.
pub async fn create(
    connection: &mut PgConnection,
    nonce: Sha256,
    expires_at: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO siwe_nonces (nonce_sha256, expires_at) VALUES ($1, $2)",
        nonce.0.as_slice(),
        expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Is it one of ours that was not spent yet?
pub async fn is_open(
    connection: &mut PgConnection,
    nonce: Sha256,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let found = sqlx::query!(
        "SELECT expires_at FROM siwe_nonces WHERE nonce_sha256 = $1 AND expires_at > $2",
        nonce.0.as_slice(),
        now,
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.is_some())
}

/// Spends a nonce; `false` when it is none of ours, was spent, or has expired.
pub async fn spend(
    connection: &mut PgConnection,
    nonce: Sha256,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let spent = sqlx::query!(
        "DELETE FROM siwe_nonces WHERE nonce_sha256 = $1 AND expires_at > $2",
        nonce.0.as_slice(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(spent.rows_affected() == 1)
}

/// Forgets at most `limit` nonces that expired; says how many.
pub async fn forget_expired(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM siwe_nonces WHERE nonce_sha256 IN
            (SELECT nonce_sha256 FROM siwe_nonces WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
        now,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}
