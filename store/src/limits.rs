//! What an account may have and do: its own limits or the deployment's, and whether an operator froze it.

use std::collections::{BTreeMap, HashMap, HashSet};

use alloy_primitives::Address;
use comptoir_domain::{
    digest::Sha256,
    id::AccountId,
    limits::{Limits, OwnLimits, Reached, Usage},
};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime, Time};
use uuid::Uuid;

use crate::PgTransaction;

/// Why an account may not do something.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// An operator froze it.
    #[error("the account is frozen")]
    Frozen,
    /// A limit stands in the way.
    #[error("a limit of the account is reached")]
    Reached(#[from] Reached),
    /// The database failed.
    #[error("read the limits of an account")]
    Database(#[from] sqlx::Error),
}

/// Submissions that other groups may bring in the same moment: an account with less room than that is judged under a lock.
const GROUPS_MAX: u64 = 2_048;

/// Where an account that submits jobs stands.
#[derive(Debug, Clone, Copy)]
struct Standing {
    frozen: bool,
    limits: Limits,
    usage: Usage,
}

impl Standing {
    /// May the account submit one job more? Counts it, so that the next of the same group is judged after it.
    fn admit_job(&mut self) -> Result<(), LimitError> {
        if self.frozen {
            return Err(LimitError::Frozen);
        }
        self.limits.admit_job(self.usage)?;
        self.usage.open_jobs = self.usage.open_jobs.saturating_add(1);
        self.usage.jobs_today = self.usage.jobs_today.saturating_add(1);
        Ok(())
    }

    /// Could others that submit in the same moment matter?
    fn is_close(&self) -> bool {
        let close = |used: u64, limit| used.saturating_add(GROUPS_MAX) >= limit;
        close(self.usage.open_jobs, self.limits.open_jobs)
            || close(self.usage.jobs_today, self.limits.jobs_per_day)
    }
}

/// May these accounts submit a job each, one after the other? Reads once for all of a group; accounts that are close to a limit
/// are locked and read again, so that groups of the same moment do not pass it together.
///
/// # Errors
/// When a statement fails.
pub async fn admit_jobs(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    payers: &[(AccountId, Address)],
    deployment: Limits,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Result<(), LimitError>>> {
    let distinct: BTreeMap<AccountId, Address> = payers.iter().copied().collect();
    let mut standings = standings(tx, asset_id, &distinct, deployment, now).await?;
    let close: BTreeMap<AccountId, Address> = distinct
        .into_iter()
        .filter(|(account, _)| standings.get(account).is_some_and(Standing::is_close))
        .collect();
    if !close.is_empty() {
        lock(tx, "jobs", close.keys().copied()).await?;
        standings.extend(self::standings(tx, asset_id, &close, deployment, now).await?);
    }
    let judge = |(account, _): &(AccountId, Address)| match standings.get_mut(account) {
        Some(standing) => standing.admit_job(),
        None => Ok(()),
    };
    Ok(payers.iter().map(judge).collect())
}

/// Takes a lock of its own for each account, in one order, until the transaction ends.
async fn lock(
    tx: &mut PgTransaction<'_>,
    what: &str,
    accounts: impl IntoIterator<Item = AccountId>,
) -> sqlx::Result<()> {
    let names: Vec<String> = accounts
        .into_iter()
        .map(|account| format!("{what} {account}"))
        .collect();
    sqlx::query!(
        "SELECT pg_advisory_xact_lock(it.key)
         FROM (SELECT DISTINCT hashtextextended(name, 0) AS key FROM unnest($1::text[]) AS named (name) ORDER BY 1) AS it",
        &names,
    )
    .fetch_all(&mut **tx)
    .await
    .map(drop)
}

/// No more is counted than is allowed; without a limit, nothing.
async fn standings(
    conn: &mut PgConnection,
    asset_id: i32,
    payers: &BTreeMap<AccountId, Address>,
    deployment: Limits,
    now: OffsetDateTime,
) -> sqlx::Result<HashMap<AccountId, Standing>> {
    let accounts: Vec<_> = payers.keys().map(|account| account.0).collect();
    let owners: Vec<_> = payers.values().map(|owner| owner.to_vec()).collect();
    let today = now.replace_time(Time::MIDNIGHT);
    let rows = sqlx::query!(
        r#"SELECT asked.account_id AS "account_id!", c.frozen_at IS NOT NULL AS "frozen!", c.open_jobs_max AS "open_jobs_max?",
             c.jobs_per_day_max AS "jobs_per_day_max?",
             CASE WHEN coalesce(c.open_jobs_max, $4) = $6 THEN 0 ELSE (
                 SELECT count(*) FROM (
                     SELECT FROM holds
                     WHERE holds.asset_id = $3 AND holds.owner = asked.owner AND ended_at IS NULL AND source_kind = 'job'
                     LIMIT coalesce(c.open_jobs_max, $4)
                 ) AS open
             ) END AS "open_jobs!",
             CASE WHEN coalesce(c.jobs_per_day_max, $5) = $6 THEN 0 ELSE (
                 SELECT count(*) FROM (
                     SELECT FROM jobs
                     WHERE jobs.account_id = asked.account_id AND job_id >= $7 AND created_at >= $8
                     LIMIT coalesce(c.jobs_per_day_max, $5)
                 ) AS recent
             ) END AS "jobs_today!"
           FROM unnest($1::uuid[], $2::bytea[]) AS asked (account_id, owner)
           LEFT JOIN account_controls c ON c.account_id = asked.account_id"#,
        &accounts,
        &owners,
        asset_id,
        to_bigint(deployment.open_jobs),
        to_bigint(deployment.jobs_per_day),
        i64::MAX,
        earliest_id(today.saturating_sub(Duration::DAY)),
        today,
    )
    .fetch_all(conn)
    .await?;
    let standing = rows.into_iter().map(|row| {
        let own = OwnLimits {
            open_jobs: row.open_jobs_max.map(i64::unsigned_abs),
            jobs_per_day: row.jobs_per_day_max.map(i64::unsigned_abs),
            storage_bytes: None,
        };
        let standing = Standing {
            frozen: row.frozen,
            limits: deployment.with(own),
            usage: Usage {
                open_jobs: row.open_jobs.unsigned_abs(),
                jobs_today: row.jobs_today.unsigned_abs(),
                storage_bytes: 0,
            },
        };
        (AccountId(row.account_id), standing)
    });
    Ok(standing.collect())
}

/// The smallest identifier that was made at a moment or later. Identifiers begin with their time, so that an account's jobs of
/// a day lie together in the index; the clock that made them may be off by less than a day.
fn earliest_id(moment: OffsetDateTime) -> Uuid {
    let milliseconds = u64::try_from(moment.unix_timestamp())
        .unwrap_or_default()
        .saturating_mul(1_000);
    Uuid::from_u128(u128::from(milliseconds) << 80)
}

/// Refuses a frozen account: before keys, join tokens, withdrawals, and whatever else spends or hands out rights.
///
/// # Errors
/// [`LimitError::Frozen`]
pub async fn refuse_frozen(conn: &mut PgConnection, account: AccountId) -> Result<(), LimitError> {
    if frozen(conn, &[account]).await?.is_empty() {
        Ok(())
    } else {
        Err(LimitError::Frozen)
    }
}

/// Those of these accounts that are frozen.
///
/// # Errors
/// When the statement fails.
pub async fn frozen(
    conn: &mut PgConnection,
    accounts: &[AccountId],
) -> sqlx::Result<HashSet<AccountId>> {
    let ids: Vec<_> = accounts.iter().map(|it| it.0).collect();
    let frozen = sqlx::query_scalar!(
        "SELECT account_id FROM account_controls WHERE account_id = ANY ($1) AND frozen_at IS NOT NULL",
        &ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(frozen.into_iter().map(AccountId).collect())
}

/// Is somebody else's account frozen?
///
/// # Errors
/// When the statement fails.
pub async fn is_frozen(conn: &mut PgConnection, account: AccountId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT is_frozen($1) AS "is_frozen!""#, account.0)
        .fetch_one(conn)
        .await
}

/// How many bytes more the account may store, and what the limit is.
///
/// # Errors
/// When it is frozen.
pub async fn storage_room(
    conn: &mut PgConnection,
    account: AccountId,
    deployment: Limits,
) -> Result<(u64, Reached), LimitError> {
    let row = sqlx::query!(
        r#"SELECT asked.id AS "id!", frozen_at IS NOT NULL AS "frozen!", storage_bytes_max AS "storage_bytes_max?", stored_bytes(asked.id) AS "stored!"
           FROM (SELECT $1::uuid) AS asked (id) LEFT JOIN account_controls ON account_id = asked.id"#,
        account.0,
    )
    .fetch_one(conn)
    .await?;
    if row.frozen {
        return Err(LimitError::Frozen);
    }
    let limits = deployment.with(OwnLimits {
        storage_bytes: row.storage_bytes_max.map(i64::unsigned_abs),
        ..OwnLimits::default()
    });
    let usage = Usage {
        storage_bytes: row.stored.unsigned_abs(),
        ..Usage::default()
    };
    Ok((
        limits.room(usage),
        Reached::StorageBytes(limits.storage_bytes),
    ))
}

/// Lets a stored blob become the account's, if there is room: exact, however many uploads end at once. One that it has
/// already takes none.
///
/// # Errors
/// When the account is frozen, or has no room.
pub async fn admit_blob(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    (sha256, bytes): (Sha256, u64),
    deployment: Limits,
) -> Result<(), LimitError> {
    lock(tx, "storage", [account]).await?;
    let known = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM blob_owners WHERE account_id = $1 AND sha256 = $2) AS "known!""#,
        account.0,
        &sha256.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    let (room, reached) = storage_room(tx, account, deployment).await?;
    if known || bytes <= room {
        Ok(())
    } else {
        Err(reached.into())
    }
}

/// Lets so many bytes of dataset files be announced, if there is room: exact, however many requests ask at once.
///
/// # Errors
/// When the account is frozen, or has no room.
pub async fn admit_bytes(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    bytes: u64,
    deployment: Limits,
) -> Result<(), LimitError> {
    lock(tx, "storage", [account]).await?;
    let (room, reached) = storage_room(tx, account, deployment).await?;
    if bytes <= room {
        Ok(())
    } else {
        Err(reached.into())
    }
}

/// A limit as `bigint`; above it there is none.
pub(crate) fn to_bigint(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
