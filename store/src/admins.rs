//! Administrators: who is one, how somebody becomes one, and how somebody stops being one.
//!
//! The role is in Postgres and nowhere else. It comes by a setup token, which a command prints that needs the database itself;
//! no administrator makes another, or one person could be two.

use comptoir_domain::{
    credential::Email,
    digest::Sha256,
    id::{AccountId, SessionId, SetupTokenId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    accounts::{self, SignUpError},
};

/// What decides whether somebody may act as an administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Has the account the role, and is not frozen?
    pub is_admin: bool,
    /// When the session began, if it lives and began with a password: a wallet alone makes no administrator.
    pub signed_in_at: Option<OffsetDateTime>,
}

/// An administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The account.
    pub account: AccountId,
    /// Its e-mail address.
    pub email: Option<String>,
    /// When the account was made.
    pub created_at: OffsetDateTime,
}

/// Why a setup token gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// Unknown, expired, redeemed before, or replaced by a newer one.
    #[error("the setup token is not valid")]
    Invalid,
    /// The account was not made.
    #[error("create the administrator's account")]
    SignUp(#[from] SignUpError),
    /// Postgres failed.
    #[error("redeem a setup token")]
    Database(#[from] sqlx::Error),
}

/// Why somebody stays an administrator.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The account is none.
    #[error("the account is not an administrator's")]
    NotAdmin,
    /// Nobody would be left.
    #[error("the account is the last administrator's")]
    Last,
    /// Postgres failed.
    #[error("remove an administrator")]
    Database(#[from] sqlx::Error),
}

/// What the account may do as an administrator in this session, now.
pub async fn standing(
    conn: &mut PgConnection,
    account: AccountId,
    session: Option<SessionId>,
    now: OffsetDateTime,
) -> sqlx::Result<Standing> {
    let row = sqlx::query!(
        r#"SELECT 'platform' = ANY (roles) AND frozen_at IS NULL AS "is_admin!", sessions.created_at AS "signed_in_at?"
           FROM accounts
               LEFT JOIN account_controls USING (account_id)
               LEFT JOIN sessions ON sessions.account_id = accounts.account_id AND session_id = $2
                   AND method = 'password' AND ended_at IS NULL AND expires_at > $3
           WHERE accounts.account_id = $1"#,
        account.0,
        session.map(|it| it.0),
        now,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map_or(
        Standing {
            is_admin: false,
            signed_in_at: None,
        },
        |row| Standing {
            is_admin: row.is_admin,
            signed_in_at: row.signed_in_at,
        },
    ))
}

/// Is the account an administrator's now?
pub(crate) async fn is_admin(conn: &mut PgConnection, account: AccountId) -> sqlx::Result<bool> {
    let is_admin = sqlx::query_scalar!(
        r#"SELECT 'platform' = ANY (roles) AND frozen_at IS NULL AS "is_admin!"
           FROM accounts LEFT JOIN account_controls USING (account_id) WHERE account_id = $1"#,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    Ok(is_admin.unwrap_or_default())
}

/// Keeps the digest of a setup token for this e-mail address. One that was made before is worth nothing any more.
pub async fn issue_setup_token(
    tx: &mut PgTransaction<'_>,
    email: &Email,
    secret: Sha256,
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> sqlx::Result<SetupTokenId> {
    sqlx::query!(
        "UPDATE setup_tokens SET ended_at = $2 WHERE email = $1 AND ended_at IS NULL",
        email.as_str(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    let id = SetupTokenId::generate();
    sqlx::query!(
        "INSERT INTO setup_tokens (setup_token_id, email, secret_sha256, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5)",
        id.0,
        email.as_str(),
        &secret.0,
        now,
        expires_at,
    )
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// The e-mail address that a setup token is for, if it can be redeemed.
pub async fn setup_email(
    conn: &mut PgConnection,
    secret: Sha256,
    now: OffsetDateTime,
) -> Result<Email, RedeemError> {
    let email = sqlx::query_scalar!(
        "SELECT email FROM setup_tokens WHERE secret_sha256 = $1 AND ended_at IS NULL AND expires_at > $2",
        &secret.0,
        now,
    )
    .fetch_optional(conn)
    .await?
    .ok_or(RedeemError::Invalid)?;
    email
        .parse()
        .map_err(|_| RedeemError::Database(sqlx::Error::Decode("not an e-mail address".into())))
}

/// Spends a setup token: the account of its e-mail address is an administrator's from now on, with this password. An account
/// that was there before may be somebody else's work, so whatever opened it is worth nothing any more.
pub async fn redeem(
    tx: &mut PgTransaction<'_>,
    secret: Sha256,
    password_hash: &str,
    now: OffsetDateTime,
) -> Result<AccountId, RedeemError> {
    let email = setup_email(tx, secret, now).await?;
    let spent = sqlx::query!(
        "UPDATE setup_tokens SET ended_at = $2 WHERE secret_sha256 = $1 AND ended_at IS NULL",
        &secret.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    if spent.rows_affected() == 0 {
        return Err(RedeemError::Invalid);
    }
    let known = sqlx::query_scalar!(
        "SELECT account_id FROM accounts WHERE email = $1 FOR NO KEY UPDATE",
        email.as_str(),
    )
    .fetch_optional(&mut **tx)
    .await?;
    let account = match known {
        Some(account) => AccountId(account),
        None => accounts::create(tx, &email, password_hash, now).await?.id,
    };
    sqlx::query!(
        "UPDATE accounts SET password_hash = $2, roles = array_append(array_remove(roles, 'platform'), 'platform')
         WHERE account_id = $1",
        account.0,
        password_hash,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE sessions SET ended_at = $2, end_reason = 'password_reset' WHERE account_id = $1 AND ended_at IS NULL",
        account.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE api_keys SET revoked_at = $2 WHERE account_id = $1 AND revoked_at IS NULL",
        account.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM password_resets WHERE account_id = $1",
        account.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(account)
}

/// The administrators, oldest account first.
pub async fn list(conn: &mut PgConnection) -> sqlx::Result<Vec<Admin>> {
    let rows = sqlx::query!(
        "SELECT account_id, email, created_at FROM accounts WHERE 'platform' = ANY (roles) ORDER BY account_id",
    )
    .fetch_all(conn)
    .await?;
    let admins = rows.into_iter().map(|row| Admin {
        account: AccountId(row.account_id),
        email: row.email,
        created_at: row.created_at,
    });
    Ok(admins.collect())
}

/// Takes the role away. Two who remove each other come one after the other: one of them stays.
pub async fn remove(tx: &mut PgTransaction<'_>, account: AccountId) -> Result<(), RemoveError> {
    let admins = sqlx::query_scalar!(
        "SELECT account_id FROM accounts WHERE 'platform' = ANY (roles) ORDER BY account_id FOR NO KEY UPDATE",
    )
    .fetch_all(&mut **tx)
    .await?;
    if !admins.contains(&account.0) {
        return Err(RemoveError::NotAdmin);
    }
    if admins.len() == 1 {
        return Err(RemoveError::Last);
    }
    sqlx::query!(
        "UPDATE accounts SET roles = array_remove(roles, 'platform') WHERE account_id = $1",
        account.0,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
