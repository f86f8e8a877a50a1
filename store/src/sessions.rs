//! Sessions: somebody signed in, with refresh tokens or with a cookie. Whatever names a session is worth nothing once
//! it has ended. A refresh token is spent once and replaced; whoever spends one twice ends its session, because one of
//! the two who hold it stole it.

use alloy_primitives::Address;
use comptoir_domain::{
    digest::Sha256,
    id::{AccountId, RefreshTokenId, SessionId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction, codec,
    limits::{self, LimitError},
};

/// How somebody signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// With e-mail and password.
    Password,
    /// With a signed message (EIP-4361).
    Siwe,
}

/// What a session is continued with; only its hash is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// The first of its refresh tokens.
    RefreshToken(Sha256),
    /// A cookie.
    Cookie(Sha256),
}

/// Why a session ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Its holder signed out.
    Logout,
    /// A spent refresh token was shown again.
    TokenReused,
    /// The account's password was replaced.
    PasswordReset,
    /// An operator froze the account.
    Operator,
}

impl Method {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Siwe => "siwe",
        }
    }
}

impl EndReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::TokenReused => "token_reused",
            Self::PasswordReset => "password_reset",
            Self::Operator => "operator",
        }
    }
}

/// A session that has not ended, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveSession {
    /// The session.
    pub id: SessionId,
    /// Whose it is.
    pub account: AccountId,
    /// The account's bound address.
    pub address: Option<Address>,
}

/// Why no session was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An operator froze the account.
    #[error("the account is frozen")]
    Frozen,
    /// Postgres failed.
    #[error("start a session")]
    Database(#[from] sqlx::Error),
}

/// Why a refresh token is worth nothing.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// Unknown or expired, or its session has ended.
    #[error("the refresh token is not valid")]
    Invalid,
    /// It was spent before, and its session went on until now. It is ended, so commit. A token of a session that had ended is
    /// [`Self::Invalid`], spent or not.
    #[error("the refresh token was spent before")]
    Reused {
        /// The session.
        session: SessionId,
        /// Whose it was.
        account: AccountId,
    },
    /// Postgres failed.
    #[error("spend a refresh token")]
    Database(#[from] sqlx::Error),
}

/// Starts a session: somebody signed in.
///
/// # Errors
/// When the account is frozen.
pub async fn start(
    tx: &mut PgTransaction<'_>,
    (account, method): (AccountId, Method),
    credential: Credential,
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> Result<SessionId, StartError> {
    refuse_frozen(tx, account).await?;
    let id = SessionId::generate();
    let (refresh, cookie) = match credential {
        Credential::RefreshToken(token) => (Some(token), None),
        Credential::Cookie(cookie) => (None, Some(cookie)),
    };
    sqlx::query!(
        "INSERT INTO sessions (session_id, account_id, method, cookie_sha256, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        id.0,
        account.0,
        method.as_str(),
        cookie.as_ref().map(|hash| hash.0.as_slice()),
        now,
        expires_at,
    )
    .execute(&mut **tx)
    .await?;
    if let Some(token) = refresh {
        insert_token(tx, (id, account), token, (now, expires_at)).await?;
    }
    Ok(id)
}

/// Whoever freezes the account in this moment ends the session that is about to begin, or is seen here: both lock the account.
async fn refuse_frozen(tx: &mut PgTransaction<'_>, account: AccountId) -> Result<(), StartError> {
    sqlx::query!(
        "SELECT account_id FROM accounts WHERE account_id = $1 FOR SHARE",
        account.0
    )
    .fetch_one(&mut **tx)
    .await?;
    match limits::refuse_frozen(tx, account).await {
        Ok(()) => Ok(()),
        Err(LimitError::Frozen | LimitError::Reached(_)) => Err(StartError::Frozen),
        Err(LimitError::Database(error)) => Err(error.into()),
    }
}

async fn insert_token(
    connection: &mut PgConnection,
    (session, account): (SessionId, AccountId),
    token: Sha256,
    (now, expires_at): (OffsetDateTime, OffsetDateTime),
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO refresh_tokens (refresh_token_id, account_id, family_id, token_sha256, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        RefreshTokenId::generate().0,
        account.0,
        session.0,
        token.0.as_slice(),
        now,
        expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The sessions of these identifiers, each unless it has ended by the time beside it; in their order.
pub async fn find_live_all(
    connection: &mut PgConnection,
    asked: &[(SessionId, OffsetDateTime)],
) -> sqlx::Result<Vec<Option<LiveSession>>> {
    let (ids, times): (Vec<_>, Vec<_>) = asked.iter().map(|(id, now)| (id.0, *now)).unzip();
    let rows = sqlx::query!(
        r#"SELECT it.place AS "place!", session_id, account_id, address
           FROM UNNEST($1::uuid[], $2::timestamptz[]) WITH ORDINALITY AS it (id, now, place)
           JOIN sessions ON session_id = it.id AND ended_at IS NULL AND expires_at > it.now
           JOIN accounts USING (account_id)"#,
        &ids,
        &times,
    )
    .fetch_all(connection)
    .await?;
    let mut found = vec![None; asked.len()];
    for row in rows {
        let session = live(
            SessionId(row.session_id),
            AccountId(row.account_id),
            row.address,
        )?;
        codec::put(&mut found, row.place, Some(session));
    }
    Ok(found)
}

/// The session that a cookie continues, unless it has ended.
pub async fn find_by_cookie(
    connection: &mut PgConnection,
    cookie: Sha256,
    now: OffsetDateTime,
) -> sqlx::Result<Option<LiveSession>> {
    let row = sqlx::query!(
        "SELECT session_id, account_id, address FROM sessions JOIN accounts USING (account_id)
         WHERE cookie_sha256 = $1 AND ended_at IS NULL AND expires_at > $2",
        cookie.0.as_slice(),
        now,
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        live(
            SessionId(row.session_id),
            AccountId(row.account_id),
            row.address,
        )
    })
    .transpose()
}

fn live(id: SessionId, account: AccountId, address: Option<Vec<u8>>) -> sqlx::Result<LiveSession> {
    let address = address.map(|stored| codec::to_address("address", &stored));
    Ok(LiveSession {
        id,
        account,
        address: address.transpose()?,
    })
}

/// Spends one token and puts `next` in its place; says of which session.
///
/// After [`RefreshError::Reused`] the caller commits too: the session's end is in the transaction.
pub async fn rotate(
    tx: &mut PgTransaction<'_>,
    spent: Sha256,
    next: Sha256,
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> Result<(SessionId, AccountId), RefreshError> {
    let token = sqlx::query!(
        "SELECT refresh_token_id, t.account_id, family_id, t.expires_at, used_at, ended_at
         FROM refresh_tokens t JOIN sessions ON session_id = family_id
         WHERE token_sha256 = $1 FOR NO KEY UPDATE OF t",
        spent.0.as_slice(),
    )
    .fetch_optional(&mut **tx)
    .await?
    .ok_or(RefreshError::Invalid)?;
    let (session, account) = (SessionId(token.family_id), AccountId(token.account_id));
    if token.used_at.is_some() {
        // Of two that show spent tokens at once, one ends the session.
        let ended = end(tx, session, EndReason::TokenReused, now).await?;
        return Err(if ended {
            RefreshError::Reused { session, account }
        } else {
            RefreshError::Invalid
        });
    }
    if token.ended_at.is_some() || token.expires_at <= now {
        return Err(RefreshError::Invalid);
    }
    sqlx::query!(
        "UPDATE refresh_tokens SET used_at = $2 WHERE refresh_token_id = $1",
        token.refresh_token_id,
        now
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE sessions SET expires_at = $2 WHERE session_id = $1",
        session.0,
        expires_at
    )
    .execute(&mut **tx)
    .await?;
    insert_token(tx, (session, account), next, (now, expires_at)).await?;
    Ok((session, account))
}

/// The session that a refresh token continues, and whose it is; `None` once it has ended.
pub async fn find_by_refresh_token(
    connection: &mut PgConnection,
    token: Sha256,
) -> sqlx::Result<Option<(SessionId, AccountId)>> {
    let family = sqlx::query!(
        "SELECT session_id, t.account_id FROM refresh_tokens t JOIN sessions ON session_id = family_id
         WHERE token_sha256 = $1 AND ended_at IS NULL",
        token.0.as_slice(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(family.map(|row| (SessionId(row.session_id), AccountId(row.account_id))))
}

/// Ends a session; says whether it did. One that has ended stays as it was.
pub async fn end(
    connection: &mut PgConnection,
    id: SessionId,
    reason: EndReason,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let ended = sqlx::query!(
        "UPDATE sessions SET ended_at = $3, end_reason = $2 WHERE session_id = $1 AND ended_at IS NULL",
        id.0,
        reason.as_str(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(ended.rows_affected() > 0)
}

/// Ends every session of the account; says how many.
pub async fn end_all(
    connection: &mut PgConnection,
    account: AccountId,
    reason: EndReason,
    now: OffsetDateTime,
) -> sqlx::Result<u64> {
    let ended = sqlx::query!(
        "UPDATE sessions SET ended_at = $3, end_reason = $2 WHERE account_id = $1 AND ended_at IS NULL",
        account.0,
        reason.as_str(),
        now,
    )
    .execute(connection)
    .await?;
    Ok(ended.rows_affected())
}

/// Forgets at most `limit` tokens and `limit` sessions that expired; says how many. A spent token is known until then,
/// so that its reuse is noticed.
pub async fn forget_expired(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let tokens = sqlx::query!(
        "DELETE FROM refresh_tokens WHERE refresh_token_id IN
            (SELECT refresh_token_id FROM refresh_tokens WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
        now,
        limit,
    )
    .execute(&mut *connection)
    .await?;
    let sessions = sqlx::query!(
        "DELETE FROM sessions WHERE session_id IN
            (SELECT session_id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
        now,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(tokens.rows_affected() + sessions.rows_affected())
}
