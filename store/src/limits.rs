//! What an account may have and do: its own limits or the deployment's, and whether an operator froze it.

use std::collections::HashMap;

use alloy_primitives::Address;
use comptoir_domain::{
    digest::Sha256,
    id::AccountId,
    limits::{Limits, OwnLimits, Reached, Usage},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
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

/// Where an account that submits jobs stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Did an operator freeze it?
    pub frozen: bool,
    /// What an operator decided for it.
    pub own: OwnLimits,
    /// What it has; storage is not counted.
    pub usage: Usage,
}

impl Standing {
    /// May the account submit one job more? Counts it, so that the next of the same group is judged after it.
    ///
    /// # Errors
    /// When it is frozen, or a limit is reached.
    pub fn admit_job(&mut self, deployment: Limits) -> Result<(), LimitError> {
        if self.frozen {
            return Err(LimitError::Frozen);
        }
        deployment.with(self.own).admit_job(self.usage)?;
        self.usage.open_jobs = self.usage.open_jobs.saturating_add(1);
        self.usage.jobs_today = self.usage.jobs_today.saturating_add(1);
        Ok(())
    }
}

/// Where accounts stand, for all submissions of a group at once. Exact when the caller has locked the ledger accounts of
/// the payers, as whoever places holds does.
///
/// # Errors
/// When the statement fails.
pub async fn standings(
    conn: &mut PgConnection,
    asset_id: i32,
    payers: &[(AccountId, Address)],
    deployment: Limits,
    now: OffsetDateTime,
) -> sqlx::Result<HashMap<AccountId, Standing>> {
    let accounts: Vec<_> = payers.iter().map(|(account, _)| account.0).collect();
    let owners: Vec<_> = payers.iter().map(|(_, owner)| owner.to_vec()).collect();
    // An open job is an open hold, which the payer's ledger lock guards. No more are counted than are allowed; without a
    // limit, none.
    let rows = sqlx::query!(
        r#"SELECT asked.account_id AS "account_id!", c.frozen_at IS NOT NULL AS "frozen!", c.open_jobs_max AS "open_jobs_max?",
             c.jobs_per_day_max AS "jobs_per_day_max?", coalesce(d.jobs, 0) AS "jobs_today!",
             CASE WHEN coalesce(c.open_jobs_max, $4) = 9223372036854775807 THEN 0 ELSE (
                 SELECT count(*) FROM (
                     SELECT FROM holds
                     WHERE holds.asset_id = $3 AND holds.owner = asked.owner AND ended_at IS NULL AND source_kind = 'job'
                     LIMIT coalesce(c.open_jobs_max, $4)
                 ) AS open
             ) END AS "open_jobs!"
           FROM unnest($1::uuid[], $2::bytea[]) AS asked (account_id, owner)
           LEFT JOIN account_controls c ON c.account_id = asked.account_id
           LEFT JOIN account_days d ON d.account_id = asked.account_id AND d.day = $5"#,
        &accounts,
        &owners,
        asset_id,
        to_bigint(deployment.open_jobs),
        now.date(),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let standing = Standing {
                frozen: row.frozen,
                own: OwnLimits {
                    open_jobs: row.open_jobs_max.map(i64::unsigned_abs),
                    jobs_per_day: row.jobs_per_day_max.map(i64::unsigned_abs),
                    storage_bytes: None,
                },
                usage: Usage {
                    open_jobs: row.open_jobs.unsigned_abs(),
                    jobs_today: row.jobs_today.unsigned_abs(),
                    storage_bytes: 0,
                },
            };
            (AccountId(row.account_id), standing)
        })
        .collect())
}

/// Counts submitted jobs towards the day's limit of each account.
///
/// # Errors
/// When the statement fails.
pub async fn count_jobs(
    conn: &mut PgConnection,
    submitted: &[(AccountId, i64)],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut submitted: Vec<(Uuid, i64)> = submitted.iter().map(|(id, jobs)| (id.0, *jobs)).collect();
    // In one order, like every lock on several rows.
    submitted.sort_unstable();
    let (accounts, jobs): (Vec<_>, Vec<_>) = submitted.into_iter().unzip();
    sqlx::query!(
        "INSERT INTO account_days (account_id, day, jobs)
         SELECT account_id, $3, jobs FROM unnest($1::uuid[], $2::bigint[]) AS submitted (account_id, jobs)
         ON CONFLICT (account_id, day) DO UPDATE SET jobs = account_days.jobs + excluded.jobs",
        &accounts,
        &jobs,
        now.date(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Lets one job of an account pass, and counts it: [`standings`] for a group of one. The caller has locked the payer's
/// ledger accounts.
///
/// # Errors
/// When the account is frozen, or a limit is reached; the transaction stays usable.
pub async fn admit_job(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    (account, payer): (AccountId, Address),
    deployment: Limits,
    now: OffsetDateTime,
) -> Result<(), LimitError> {
    let standings = standings(tx, asset_id, &[(account, payer)], deployment, now).await?;
    let mut standing = standings.get(&account).copied().unwrap_or_default();
    standing.admit_job(deployment)?;
    count_jobs(tx, &[(account, 1)], now).await?;
    Ok(())
}

/// Refuses a frozen account: before keys, join tokens, withdrawals, and whatever else spends or hands out rights.
///
/// # Errors
/// [`LimitError::Frozen`]
pub async fn refuse_frozen(conn: &mut PgConnection, account: AccountId) -> Result<(), LimitError> {
    let frozen = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM account_controls WHERE account_id = $1 AND frozen_at IS NOT NULL) AS "frozen!""#,
        account.0,
    )
    .fetch_one(conn)
    .await?;
    if frozen { Err(LimitError::Frozen) } else { Ok(()) }
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
        r#"SELECT asked.id AS "id!", frozen_at IS NOT NULL AS "frozen!", storage_bytes_max AS "storage_bytes_max?", (
               SELECT coalesce(sum(bytes), 0)::bigint FROM blob_owners JOIN blobs USING (sha256) WHERE account_id = asked.id
           ) AS "stored!"
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
    sqlx::query!(
        r#"SELECT pg_advisory_xact_lock(hashtextextended('storage ' || $1::text, 0)) AS "locked""#,
        account.to_string(),
    )
    .fetch_one(&mut **tx)
    .await?;
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

/// A limit as `bigint`; above it there is none.
pub(crate) fn to_bigint(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
