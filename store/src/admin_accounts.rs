//! Accounts as an operator sees them: what they have and did, never what is in their files; and what is decided about them.

use alloy_primitives::Address;
use comptoir_domain::{
    id::AccountId,
    limits::{OwnLimits, Usage},
};
use sqlx::PgConnection;
use time::{OffsetDateTime, Time};
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::to_address,
    limits::to_bigint,
    sessions::{self, EndReason},
};

/// An account and what was decided about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controlled {
    /// The account.
    pub id: AccountId,
    /// Its e-mail address.
    pub email: Option<String>,
    /// What it may act as.
    pub roles: Vec<String>,
    /// Its bound address.
    pub address: Option<Address>,
    /// When it signed up.
    pub created_at: OffsetDateTime,
    /// Since when an operator holds it.
    pub frozen: Option<Frozen>,
    /// Its own limits.
    pub limits: OwnLimits,
}

/// Why and since when an account is frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// Since when.
    pub at: OffsetDateTime,
    /// Why.
    pub reason: String,
}

/// What an account has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// What its limits are compared with.
    pub usage: Usage,
    /// API keys that work.
    pub api_keys: i64,
    /// Sign-ins that live.
    pub sessions: i64,
    /// Workers that were not taken out.
    pub workers: i64,
}

/// Which accounts to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    /// Those whose e-mail address begins so, in lower case.
    pub email: Option<&'a str>,
    /// The one that is bound to this address.
    pub address: Option<Address>,
    /// Those that may act as this.
    pub role: Option<&'a str>,
    /// Those that are frozen, or are not.
    pub frozen: Option<bool>,
}

/// Why nothing was decided about an account.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No such account.
    #[error("no such account")]
    NotFound,
    /// An administrator is removed, not frozen: or one could shut the others out.
    #[error("the account is an administrator's")]
    IsAdmin,
    /// The database failed.
    #[error("write what was decided about an account")]
    Database(#[from] sqlx::Error),
}

/// The account of this identifier.
///
/// # Errors
/// When the statement fails.
pub async fn find(conn: &mut PgConnection, id: AccountId) -> sqlx::Result<Option<Controlled>> {
    let found = select(conn, Some(id), Filter::default(), None, 1).await?;
    Ok(found.into_iter().next())
}

/// Accounts, newest first, made before `before`.
///
/// # Errors
/// When the statement fails.
pub async fn list(
    conn: &mut PgConnection,
    filter: Filter<'_>,
    before: Option<AccountId>,
    limit: i64,
) -> sqlx::Result<Vec<Controlled>> {
    select(conn, None, filter, before, limit).await
}

/// What an account has. Its money is in the ledger.
///
/// # Errors
/// When the statement fails.
pub async fn holdings(
    conn: &mut PgConnection,
    id: AccountId,
    now: OffsetDateTime,
) -> sqlx::Result<Holdings> {
    let row = sqlx::query!(
        r#"SELECT
             (SELECT count(*) FROM jobs WHERE account_id = $1 AND finished_at IS NULL) AS "open_jobs!",
             (SELECT count(*) FROM jobs WHERE account_id = $1 AND created_at >= $3) AS "jobs_today!",
             stored_bytes($1) AS "stored!",
             (SELECT count(*) FROM api_keys WHERE account_id = $1 AND revoked_at IS NULL
                 AND (expires_at IS NULL OR expires_at > $2)) AS "api_keys!",
             (SELECT count(*) FROM sessions WHERE account_id = $1 AND ended_at IS NULL AND expires_at > $2) AS "sessions!",
             (SELECT count(*) FROM workers WHERE account_id = $1 AND revoked_at IS NULL) AS "workers!""#,
        id.0,
        now,
        now.replace_time(Time::MIDNIGHT),
    )
    .fetch_one(conn)
    .await?;
    Ok(Holdings {
        usage: Usage {
            open_jobs: row.open_jobs.unsigned_abs(),
            jobs_today: row.jobs_today.unsigned_abs(),
            storage_bytes: row.stored.unsigned_abs(),
        },
        api_keys: row.api_keys,
        sessions: row.sessions,
        workers: row.workers,
    })
}

/// Stops an account from submitting, withdrawing and making keys; its workers get no leases. Its sessions end, and none begins;
/// its API keys read and cancel, and it may leave on-chain. Says how many sessions ended. Freezing it again changes nothing.
///
/// # Errors
/// When there is none, or it is an administrator's.
pub async fn freeze(
    tx: &mut PgTransaction<'_>,
    id: AccountId,
    reason: &str,
    now: OffsetDateTime,
) -> Result<u64, ControlError> {
    if lock(tx, id).await? {
        return Err(ControlError::IsAdmin);
    }
    sqlx::query!(
        "INSERT INTO account_controls (account_id, frozen_at, frozen_reason, updated_at) VALUES ($1, $3, $2, $3)
         ON CONFLICT (account_id) DO UPDATE SET frozen_at = $3, frozen_reason = $2, updated_at = $3
         WHERE account_controls.frozen_at IS NULL",
        id.0,
        reason,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(sessions::end_all(tx, id, EndReason::Operator, now).await?)
}

/// Lets a frozen account go on. Doing it again changes nothing.
///
/// # Errors
/// When there is no such account.
pub async fn unfreeze(
    tx: &mut PgTransaction<'_>,
    id: AccountId,
    now: OffsetDateTime,
) -> Result<(), ControlError> {
    lock(tx, id).await?;
    sqlx::query!(
        "UPDATE account_controls SET frozen_at = NULL, frozen_reason = NULL, updated_at = $2
         WHERE account_id = $1 AND frozen_at IS NOT NULL",
        id.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Gives an account limits of its own, where they are named, and the deployment's where not.
///
/// # Errors
/// When there is no such account.
pub async fn set_limits(
    tx: &mut PgTransaction<'_>,
    id: AccountId,
    own: OwnLimits,
    now: OffsetDateTime,
) -> Result<(), ControlError> {
    lock(tx, id).await?;
    sqlx::query!(
        "INSERT INTO account_controls (account_id, open_jobs_max, jobs_per_day_max, storage_bytes_max, updated_at)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (account_id) DO UPDATE SET open_jobs_max = $2, jobs_per_day_max = $3, storage_bytes_max = $4,
             updated_at = $5",
        id.0,
        own.open_jobs.map(to_bigint),
        own.jobs_per_day.map(to_bigint),
        own.storage_bytes.map(to_bigint),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Locks an account for a decision about it. Is it an administrator's?
pub async fn lock(tx: &mut PgTransaction<'_>, id: AccountId) -> Result<bool, ControlError> {
    sqlx::query_scalar!(
        r#"SELECT 'platform' = ANY (roles) AS "is_admin!" FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE"#,
        id.0,
    )
    .fetch_optional(&mut **tx)
    .await?
    .ok_or(ControlError::NotFound)
}

struct Row {
    account_id: Uuid,
    email: Option<String>,
    roles: Vec<String>,
    address: Option<Vec<u8>>,
    created_at: OffsetDateTime,
    frozen_at: Option<OffsetDateTime>,
    frozen_reason: Option<String>,
    open_jobs_max: Option<i64>,
    jobs_per_day_max: Option<i64>,
    storage_bytes_max: Option<i64>,
}

async fn select(
    conn: &mut PgConnection,
    id: Option<AccountId>,
    filter: Filter<'_>,
    before: Option<AccountId>,
    limit: i64,
) -> sqlx::Result<Vec<Controlled>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT account_id, email, roles, address, created_at, frozen_at AS "frozen_at?",
               frozen_reason AS "frozen_reason?", open_jobs_max AS "open_jobs_max?",
               jobs_per_day_max AS "jobs_per_day_max?", storage_bytes_max AS "storage_bytes_max?"
           FROM accounts LEFT JOIN account_controls USING (account_id)
           WHERE ($1::uuid IS NULL OR account_id = $1) AND ($2::text IS NULL OR starts_with(email, $2))
               AND ($3::bytea IS NULL OR address = $3) AND ($4::text IS NULL OR $4 = ANY (roles))
               AND ($5::boolean IS NULL OR (frozen_at IS NOT NULL) = $5) AND ($6::uuid IS NULL OR account_id < $6)
           ORDER BY account_id DESC LIMIT $7"#,
        id.map(|it| it.0),
        filter.email,
        filter.address.map(|it| it.to_vec()),
        filter.role,
        filter.frozen,
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}

impl Row {
    fn decode(self) -> sqlx::Result<Controlled> {
        let address = self.address.as_deref();
        Ok(Controlled {
            id: AccountId(self.account_id),
            email: self.email,
            roles: self.roles,
            address: address.map(|it| to_address("address", it)).transpose()?,
            created_at: self.created_at,
            frozen: self
                .frozen_at
                .zip(self.frozen_reason)
                .map(|(at, reason)| Frozen { at, reason }),
            limits: OwnLimits {
                open_jobs: self.open_jobs_max.map(i64::unsigned_abs),
                jobs_per_day: self.jobs_per_day_max.map(i64::unsigned_abs),
                storage_bytes: self.storage_bytes_max.map(i64::unsigned_abs),
            },
        })
    }
}
