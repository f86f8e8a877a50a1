//! Join tokens of an account: made, listed, revoked. `workers` trades them for identities.

use comptoir_domain::{
    digest::Sha256,
    id::{AccountId, JoinTokenId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::PgTransaction;

/// A token to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewJoinToken<'a> {
    /// Its identifier, which is part of it.
    pub id: JoinTokenId,
    /// Whom its workers will earn for.
    pub account: AccountId,
    /// What its owner calls it.
    pub name: &'a str,
    /// The hash of its secret.
    pub secret: Sha256,
    /// How many workers may join with it.
    pub max_uses: u16,
    /// When it ends.
    pub expires_at: OffsetDateTime,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRow {
    /// Its identifier.
    pub id: JoinTokenId,
    /// What its owner calls it.
    pub name: String,
    /// How many workers may join with it.
    pub max_uses: i32,
    /// How many have.
    pub uses: i32,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it ends.
    pub expires_at: OffsetDateTime,
    /// When its owner ended it.
    pub revoked_at: Option<OffsetDateTime>,
}

/// Keeps a token's hash, and makes its account a provider.
pub async fn create(
    tx: &mut PgTransaction<'_>,
    new: &NewJoinToken<'_>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO join_tokens (join_token_id, account_id, name, secret_sha256, max_uses, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        new.id.0,
        new.account.0,
        new.name,
        &new.secret.0,
        i32::from(new.max_uses),
        now,
        new.expires_at,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE accounts SET roles = array_append(roles, 'provider')
         WHERE account_id = $1 AND NOT 'provider' = ANY (roles)",
        new.account.0,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// The account's token of this identifier.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    token: JoinTokenId,
) -> sqlx::Result<Option<JoinTokenRow>> {
    let found = select(conn, account, Some(token), None, 1).await?;
    Ok(found.into_iter().next())
}

/// The account's tokens, newest first, older than `before`.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    before: Option<JoinTokenId>,
    limit: i64,
) -> sqlx::Result<Vec<JoinTokenRow>> {
    select(conn, account, None, before, limit).await
}

/// Ends a token: nobody joins with it any more, those who have stay. False when the account has no such token.
pub async fn revoke(
    conn: &mut PgConnection,
    account: AccountId,
    token: JoinTokenId,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let revoked = sqlx::query!(
        "UPDATE join_tokens SET revoked_at = coalesce(revoked_at, $3) WHERE join_token_id = $1 AND account_id = $2",
        token.0,
        account.0,
        now,
    )
    .execute(conn)
    .await?;
    Ok(revoked.rows_affected() == 1)
}

async fn select(
    conn: &mut PgConnection,
    account: AccountId,
    token: Option<JoinTokenId>,
    before: Option<JoinTokenId>,
    limit: i64,
) -> sqlx::Result<Vec<JoinTokenRow>> {
    let rows = sqlx::query!(
        "SELECT join_token_id, name, max_uses, uses, created_at, expires_at, revoked_at FROM join_tokens
         WHERE account_id = $1 AND ($2::uuid IS NULL OR join_token_id = $2) AND ($3::uuid IS NULL OR join_token_id < $3)
         ORDER BY join_token_id DESC LIMIT $4",
        account.0,
        token.map(|it| it.0),
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| JoinTokenRow {
            id: JoinTokenId(row.join_token_id),
            name: row.name,
            max_uses: row.max_uses,
            uses: row.uses,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
        })
        .collect())
}
