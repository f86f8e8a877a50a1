//! Replacing a password that its owner forgot: a request for an address, a token for the account, if it has one.

use comptoir_domain::{credential::Email, digest::Sha256, id::AccountId};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use crate::PgTransaction;

/// An account gets one token in this time, however often somebody asks.
const PAUSE: Duration = Duration::minutes(2);

/// Notes that somebody asked; the same work whether the address has an account or not.
pub async fn request(
    connection: &mut PgConnection,
    email: &Email,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO password_reset_requests (email, requested_at) VALUES ($1, $2) ON CONFLICT (email) DO NOTHING",
        email.as_str(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes at most `limit` requests, the oldest first; says how many, and the accounts that get a token now.
pub async fn take_requests(
    tx: &mut PgTransaction<'_>,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<(usize, Vec<AccountId>)> {
    let taken = sqlx::query!(
        r#"WITH taken AS MATERIALIZED (
             SELECT email FROM password_reset_requests ORDER BY requested_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ), gone AS (
             DELETE FROM password_reset_requests it USING taken WHERE it.email = taken.email RETURNING it.email
         )
         SELECT accounts.account_id AS "account_id?" FROM gone LEFT JOIN accounts ON accounts.email = gone.email
             AND NOT EXISTS (
                 SELECT FROM password_resets r WHERE r.account_id = accounts.account_id AND r.created_at > $2
             )
         ORDER BY accounts.account_id"#,
        limit,
        now.saturating_sub(PAUSE),
    )
    .fetch_all(&mut **tx)
    .await?;
    let accounts = taken.iter().filter_map(|row| row.account_id);
    Ok((taken.len(), accounts.map(AccountId).collect()))
}

/// Gives the account a token, in place of one that it had.
pub async fn create(
    connection: &mut PgConnection,
    account: AccountId,
    token: Sha256,
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO password_resets (token_sha256, account_id, created_at, expires_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (account_id) DO UPDATE
         SET token_sha256 = EXCLUDED.token_sha256, created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at",
        token.0.as_slice(),
        account.0,
        now,
        expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whose password the token replaces, while it holds.
pub async fn find(
    connection: &mut PgConnection,
    token: Sha256,
    now: OffsetDateTime,
) -> sqlx::Result<Option<AccountId>> {
    let account = sqlx::query_scalar!(
        "SELECT account_id FROM password_resets WHERE token_sha256 = $1 AND expires_at > $2",
        token.0.as_slice(),
        now,
    )
    .fetch_optional(connection)
    .await?;
    Ok(account.map(AccountId))
}

/// Spends a token and replaces the password; `None` when it was spent or has expired. The caller ends the sessions.
pub async fn spend(
    tx: &mut PgTransaction<'_>,
    token: Sha256,
    password_hash: &str,
    now: OffsetDateTime,
) -> sqlx::Result<Option<AccountId>> {
    let account = sqlx::query_scalar!(
        "WITH spent AS (
             DELETE FROM password_resets WHERE token_sha256 = $1 AND expires_at > $3 RETURNING account_id
         )
         UPDATE accounts SET password_hash = $2 FROM spent WHERE accounts.account_id = spent.account_id
         RETURNING accounts.account_id",
        token.0.as_slice(),
        password_hash,
        now,
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(account.map(AccountId))
}

/// Forgets at most `limit` tokens that expired; says how many.
pub async fn forget_expired(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM password_resets WHERE token_sha256 IN
            (SELECT token_sha256 FROM password_resets WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
        now,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}
