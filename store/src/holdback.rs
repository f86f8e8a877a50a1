//! Pay that is held back: kept at the charge, released after later results or once its worker has stopped, forfeited to
//! the clients it came from when its worker is barred. Proceeds of datasets that are blocked, which wait for the end of that. And what the house owes: for confirming runs, and its own part of what
//! such clients had paid.

mod debts;
mod fate;
pub mod proceeds;

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{JobId, WorkerId},
    ledger::Earned,
    policy::{
        audit::POLICY,
        holdback::{DisputeWindows, EXIT_MARGIN},
    },
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction, assets,
    codec::{to_address, to_amount, to_numeric},
    ledger::PostError,
    queue::interval,
    releases::{NewRelease, ReleaseKind},
};

pub use debts::{owe, owed, pay_owed};
pub use fate::Fate;
use fate::Share;

/// Entries of one transaction at most.
const AT_ONCE: i64 = 200;

/// Whose pay is held back: the worker that earned it for an owner, and the number of the result among its results.
pub type Earners = BTreeMap<Address, (WorkerId, i64)>;

/// What became of an owner's pay for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdback {
    /// Who earned it.
    pub owner: Address,
    /// How much.
    pub amount: Amount,
    /// `held`, `released` or `forfeited`.
    pub state: String,
}

/// Why held-back pay, or pay for an audit, was not moved.
#[derive(Debug, thiserror::Error)]
pub enum HoldbackError {
    /// The entry was refused.
    #[error("post held-back pay")]
    Post(#[from] PostError),
    /// No such asset.
    #[error("read the asset")]
    Asset(#[from] assets::AssetError),
    /// A statement failed.
    #[error("move held-back pay")]
    Database(#[from] sqlx::Error),
}

/// Writes down what a charge holds back. Its money is in the owners' `held_back` already.
pub(crate) async fn keep(
    tx: &mut PgTransaction<'_>,
    (job, asset_id, payer): (JobId, i32, Address),
    earned: &[(Address, Amount)],
    earners: &Earners,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    for (owner, amount) in earned.iter().filter(|(_, amount)| !amount.is_zero()) {
        let Some((worker, number)) = earners.get(owner) else {
            continue;
        };
        sqlx::query!(
            "INSERT INTO holdbacks (job_id, owner, worker_id, number, asset_id, payer, amount_base, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            job.0,
            owner.as_slice(),
            worker.0,
            number,
            asset_id,
            payer.as_slice(),
            to_numeric(*amount),
            now,
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// What became of the pay for a job, by owner.
pub async fn of_job(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Vec<Holdback>> {
    let rows = sqlx::query!(
        "SELECT owner, amount_base, state FROM holdbacks WHERE job_id = $1 ORDER BY owner",
        job.0,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Holdback {
                owner: to_address("owner", &row.owner)?,
                amount: to_amount("amount_base", &row.amount_base)?,
                state: row.state,
            })
        })
        .collect()
}

/// Workers with pay that is due to meet this fate.
pub async fn due(
    conn: &mut PgConnection,
    (fate, windows): (Fate, DisputeWindows),
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<WorkerId>> {
    let rows = sqlx::query_scalar!(
        "SELECT DISTINCT worker_id
         FROM holdbacks h JOIN worker_records records USING (worker_id) JOIN workers USING (worker_id)
             LEFT JOIN worker_heartbeats beats USING (worker_id)
             CROSS JOIN LATERAL (SELECT CASE WHEN amount_base < $7 THEN $3::timestamptz ELSE $8 END AS disputed_since) AS window_of
         WHERE h.state = 'held' AND CASE WHEN $1 THEN barred_at IS NOT NULL ELSE barred_at IS NULL AND (
             number + $2 <= results
             OR created_at < disputed_since AND (workers.revoked_at IS NOT NULL OR beats.seen_at < disputed_since)
             OR EXISTS (
                 SELECT FROM exits x WHERE x.asset_id = h.asset_id AND x.owner = h.owner
                     AND x.answered_block_number IS NULL AND (h.created_at < disputed_since OR exit_last_call(x.due_at, x.seen_at, $4) <= $5)
             )
         ) END
         ORDER BY worker_id LIMIT $6",
        fate == Fate::Forfeited,
        i64::try_from(POLICY.holdback).unwrap_or(i64::MAX),
        now.saturating_sub(windows.usual),
        interval(EXIT_MARGIN),
        now,
        limit,
        to_numeric(windows.large_from),
        now.saturating_sub(windows.large),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(WorkerId).collect())
}

struct Held {
    job: JobId,
    owner: Address,
    payer: Address,
    asset_id: i32,
    amount: Amount,
}

/// Moves what is due of one worker's held-back pay, the oldest first; how many jobs' pay that was. Barring the worker waits
/// for it, and it for that.
pub async fn move_due(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    (fate, windows): (Fate, DisputeWindows),
    now: OffsetDateTime,
) -> Result<usize, HoldbackError> {
    let barred = sqlx::query_scalar!(
        r#"SELECT barred_at IS NOT NULL AS "barred!" FROM worker_records WHERE worker_id = $1 FOR SHARE"#,
        worker.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    if barred != Some(fate == Fate::Forfeited) {
        return Ok(0);
    }
    let held = lock_due(tx, worker, (fate, windows), now).await?;
    let assets: std::collections::BTreeSet<i32> = held.iter().map(|it| it.asset_id).collect();
    for asset_id in assets {
        let of_asset: Vec<&Held> = held.iter().filter(|it| it.asset_id == asset_id).collect();
        move_held(tx, asset_id, &of_asset, fate, now).await?;
    }
    Ok(held.len())
}

async fn lock_due(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    (fate, windows): (Fate, DisputeWindows),
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Held>> {
    let rows = sqlx::query!(
        "SELECT job_id, h.owner, payer, h.asset_id, amount_base
         FROM holdbacks h JOIN worker_records records USING (worker_id) JOIN workers USING (worker_id)
             LEFT JOIN worker_heartbeats beats USING (worker_id)
             CROSS JOIN LATERAL (SELECT CASE WHEN amount_base < $8 THEN $3::timestamptz ELSE $9 END AS disputed_since) AS window_of
         WHERE worker_id = $7 AND h.state = 'held' AND ($1 OR number + $2 <= results
             OR created_at < disputed_since AND (workers.revoked_at IS NOT NULL OR beats.seen_at < disputed_since)
             OR EXISTS (
                 SELECT FROM exits x WHERE x.asset_id = h.asset_id AND x.owner = h.owner
                     AND x.answered_block_number IS NULL AND (h.created_at < disputed_since OR exit_last_call(x.due_at, x.seen_at, $4) <= $5)
             ))
         ORDER BY number, job_id, h.owner LIMIT $6 FOR NO KEY UPDATE OF h",
        fate == Fate::Forfeited,
        i64::try_from(POLICY.holdback).unwrap_or(i64::MAX),
        now.saturating_sub(windows.usual),
        interval(EXIT_MARGIN),
        now,
        AT_ONCE,
        worker.0,
        to_numeric(windows.large_from),
        now.saturating_sub(windows.large),
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Held {
                job: JobId(row.job_id),
                owner: to_address("owner", &row.owner)?,
                payer: to_address("payer", &row.payer)?,
                asset_id: row.asset_id,
                amount: to_amount("amount_base", &row.amount_base)?,
            })
        })
        .collect()
}

async fn move_held(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    held: &[&Held],
    fate: Fate,
    now: OffsetDateTime,
) -> Result<(), HoldbackError> {
    let shares = held.iter().map(|it| Share {
        of: Earned::Work(it.job),
        owner: it.owner,
        payer: it.payer,
        amount: it.amount,
    });
    let shares: Vec<_> = shares.collect();
    fate::move_shares(tx, asset_id, (fate, &shares), now).await?;
    let (jobs, owners): (Vec<Uuid>, Vec<Vec<u8>>) =
        held.iter().map(|it| (it.job.0, it.owner.to_vec())).unzip();
    sqlx::query!(
        "UPDATE holdbacks SET state = $3, ended_at = $4
         FROM UNNEST($1::uuid[], $2::bytea[]) AS it (job, owner)
         WHERE job_id = it.job AND holdbacks.owner = it.owner",
        &jobs,
        &owners,
        fate.as_str(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    if fate == Fate::Forfeited {
        debts::make_whole(tx, (&jobs, &owners), now).await?;
    }
    Ok(())
}

const fn earning(owner: Address, amount: Amount) -> NewRelease {
    NewRelease {
        owner,
        kind: ReleaseKind::Earning,
        amount,
    }
}
