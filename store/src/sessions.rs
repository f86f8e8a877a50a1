//! Refresh tokens: each is spent once and replaced; whoever spends one twice ends the whole family,
//! because one of the two who hold it stole it.

use comptoir_domain::{
    digest::Sha256,
    id::{AccountId, RefreshTokenId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::PgTransaction;

/// Why a refresh token is worth nothing.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// Unknown, expired or revoked.
    #[error("the refresh token is not valid")]
    Invalid,
    /// It was spent before. Its family is revoked now, so commit.
    #[error("the refresh token was spent before")]
    Reused,
    /// Postgres failed.
    #[error("spend a refresh token")]
    Database(#[from] sqlx::Error),
}

/// Starts a family: somebody signed in.
pub async fn start(
    connection: &mut PgConnection,
    account: AccountId,
    token: Sha256,
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> sqlx::Result<()> {
    insert(
        connection,
        account,
        Uuid::now_v7(),
        token,
        (now, expires_at),
    )
    .await
}

async fn insert(
    connection: &mut PgConnection,
    account: AccountId,
    family: Uuid,
    token: Sha256,
    (now, expires_at): (OffsetDateTime, OffsetDateTime),
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO refresh_tokens (refresh_token_id, account_id, family_id, token_sha256, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        RefreshTokenId::generate().0,
        account.0,
        family,
        token.0.as_slice(),
        now,
        expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Spends one token and puts `next` in its place; says whose it was.
///
/// After [`RefreshError::Reused`] the caller commits too: the revocation is in the transaction.
pub async fn rotate(
    tx: &mut PgTransaction<'_>,
    spent: Sha256,
    next: Sha256,
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> Result<AccountId, RefreshError> {
    let token = sqlx::query!(
        "SELECT refresh_token_id, account_id, family_id, expires_at, used_at, revoked_at
         FROM refresh_tokens WHERE token_sha256 = $1 FOR NO KEY UPDATE",
        spent.0.as_slice(),
    )
    .fetch_optional(&mut **tx)
    .await?
    .ok_or(RefreshError::Invalid)?;
    if token.used_at.is_some() {
        revoke_family(tx, token.family_id, now).await?;
        return Err(RefreshError::Reused);
    }
    if token.revoked_at.is_some() || token.expires_at <= now {
        return Err(RefreshError::Invalid);
    }
    sqlx::query!(
        "UPDATE refresh_tokens SET used_at = $2 WHERE refresh_token_id = $1",
        token.refresh_token_id,
        now
    )
    .execute(&mut **tx)
    .await?;
    let account = AccountId(token.account_id);
    insert(tx, account, token.family_id, next, (now, expires_at)).await?;
    Ok(account)
}

/// Ends the sign-in that this token descends from. An unknown token has nothing to end.
pub async fn end(
    connection: &mut PgConnection,
    token: Sha256,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let family = sqlx::query_scalar!(
        "SELECT family_id FROM refresh_tokens WHERE token_sha256 = $1",
        token.0.as_slice(),
    )
    .fetch_optional(&mut *connection)
    .await?;
    match family {
        Some(family) => revoke_family(connection, family, now).await,
        None => Ok(()),
    }
}

/// Forgets at most `limit` tokens that expired; says how many. A spent one is known until then, so that its
/// reuse is noticed.
pub async fn forget_expired(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM refresh_tokens WHERE refresh_token_id IN
            (SELECT refresh_token_id FROM refresh_tokens WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
        now,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}

async fn revoke_family(
    connection: &mut PgConnection,
    family: Uuid,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE refresh_tokens SET revoked_at = $2 WHERE family_id = $1 AND revoked_at IS NULL",
        family,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}
