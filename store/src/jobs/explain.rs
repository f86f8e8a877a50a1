//! Why a job waits, worker class by worker class.

use comptoir_domain::{
    amount::Amount,
    id::JobId,
    job::{
        Device, Tier,
        waiting::{Demand, Judged, Obstacle},
    },
};
use sqlx::{PgConnection, types::BigDecimal};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    codec::{to_amount, to_enum},
    unstable,
};

/// A worker that was not heard of for this long counts as offline.
pub const LIVE_FOR: Duration = Duration::seconds(60);
/// Positions in the queue are counted up to here.
pub const POSITION_MAX: i64 = 10_000;

/// What the waiting replicas of a job ask of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// What they ask of the workers together.
    pub demand: Demand,
    /// The kind of device.
    pub device: Device,
    /// Memory that a worker must offer.
    pub min_memory_bytes: u64,
    /// The rate that is paid: nano base units per 10^9 multiply-adds.
    pub rate_nano: Amount,
    /// The numeric class they are bound to.
    pub numeric_class: Option<String>,
    /// Replicas that are claimed before the first of them, counted up to [`POSITION_MAX`].
    pub position: i64,
    /// When the first of them may be claimed, by the database's clock, if that is still to come.
    pub ready_at: Option<OffsetDateTime>,
}

/// The workers of one numeric class on one kind of device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerClass {
    /// The kind of device.
    pub device: Device,
    /// The class.
    pub numeric_class: String,
    /// Its workers, by what keeps them from the job.
    pub judged: Vec<Judged>,
}

/// What the job's waiting replicas ask. `None` when none waits.
pub async fn waiting(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Option<Waiting>> {
    let row = sqlx::query!(
        r#"SELECT count(*) OVER () AS "replicas!", replica_id, device, min_memory_bytes, rate_nano,
               jobs.numeric_class, jobs.tier, jobs.kind,
               CASE WHEN ready_at > clock_timestamp() THEN ready_at END AS ready_at
           FROM queue JOIN jobs USING (job_id)
           WHERE job_id = $1 AND lease_token IS NULL
           ORDER BY priority, replica_id LIMIT 1"#,
        job.0,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let tier = to_enum("tier", &row.tier, Tier::parse)?;
    let replicas = row.replicas.unsigned_abs();
    let position = position(conn, row.replica_id).await?;
    Ok(Some(Waiting {
        demand: Demand::of(tier, row.kind == "training", replicas),
        device: to_enum("device", &row.device, Device::parse)?,
        min_memory_bytes: row.min_memory_bytes.unsigned_abs(),
        rate_nano: to_amount("rate_nano", &row.rate_nano)?,
        numeric_class: row.numeric_class,
        position,
        ready_at: row.ready_at,
    }))
}

/// How many waiting replicas are claimed before this one: those of its device that come before it in the order
/// in which [`crate::queue::claim`] takes them.
async fn position(conn: &mut PgConnection, replica: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "position!" FROM (
               SELECT 1 FROM queue, (SELECT device, priority FROM queue WHERE replica_id = $1) AS this
               WHERE lease_token IS NULL AND queue.device = this.device
                   AND (queue.priority, replica_id) < (this.priority, $1)
               LIMIT $2
           ) AS before"#,
        replica,
        POSITION_MAX,
    )
    .fetch_one(conn)
    .await
}

/// Every class of workers, and what keeps each of its workers from the job. The order of the conditions is that
/// of [`Obstacle`].
pub async fn classes(
    conn: &mut PgConnection,
    job: JobId,
    waiting: &Waiting,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<WorkerClass>> {
    let rows = sqlx::query!(
        r#"WITH unstable AS (
               SELECT it.numeric_class FROM jobs JOIN quotes USING (quote_id)
               JOIN unstable_classes it ON it.program_sha256 = decode(spec ->> 'program', 'hex')
               WHERE jobs.job_id = $1 AND jobs.tier <> 'none' AND marked_at > $7
           ), judged AS (
               SELECT device, numeric_class, account_id, CASE
                   WHEN device <> $2 THEN 'device'
                   WHEN memory_bytes < $3 THEN 'memory'
                   WHEN price_floor_nano > $4 THEN 'price_floor'
                   WHEN numeric_class <> $5 THEN 'class_peer'
                   WHEN account_id IN (SELECT owner_account_id FROM replicas WHERE job_id = $1) THEN 'owner_used'
                   WHEN numeric_class IN (SELECT numeric_class FROM unstable) THEN 'unstable_class'
                   WHEN seen_at IS NULL OR seen_at < $6 THEN 'offline'
               END AS obstacle
               FROM workers LEFT JOIN worker_heartbeats USING (worker_id)
               WHERE revoked_at IS NULL AND NOT EXISTS (
                   SELECT FROM worker_records records WHERE records.worker_id = workers.worker_id AND barred_at IS NOT NULL
               ) AND NOT EXISTS (
                   SELECT FROM worker_controls controls WHERE controls.worker_id = workers.worker_id
               ) AND NOT EXISTS (
                   SELECT FROM account_controls controls
                   WHERE controls.account_id = workers.account_id AND frozen_at IS NOT NULL
               )
           )
           SELECT device AS "device!", numeric_class AS "numeric_class!", obstacle,
               count(*) AS "workers!", count(DISTINCT account_id) AS "owners!"
           FROM judged GROUP BY device, numeric_class, obstacle ORDER BY device, numeric_class, obstacle"#,
        job.0,
        waiting.device.as_str(),
        i64::try_from(waiting.min_memory_bytes).unwrap_or(i64::MAX),
        BigDecimal::from(waiting.rate_nano.base()),
        waiting.numeric_class,
        now.saturating_sub(LIVE_FOR),
        unstable::marked_since(now),
    )
    .fetch_all(conn)
    .await?;
    let mut classes = Vec::<WorkerClass>::new();
    for row in rows {
        let device = to_enum("device", &row.device, Device::parse)?;
        let obstacle = row.obstacle.as_deref();
        let judged = Judged {
            obstacle: obstacle
                .map(|it| to_enum("obstacle", it, parse))
                .transpose()?,
            workers: row.workers.unsigned_abs(),
            owners: row.owners.unsigned_abs(),
        };
        match classes.last_mut() {
            Some(last) if last.device == device && last.numeric_class == row.numeric_class => {
                last.judged.push(judged);
            }
            Some(_) | None => classes.push(WorkerClass {
                device,
                numeric_class: row.numeric_class,
                judged: vec![judged],
            }),
        }
    }
    Ok(classes)
}

fn parse(obstacle: &str) -> Option<Obstacle> {
    Some(match obstacle {
        "device" => Obstacle::Device,
        "memory" => Obstacle::Memory,
        "price_floor" => Obstacle::PriceFloor,
        "class_peer" => Obstacle::ClassPeer,
        "owner_used" => Obstacle::OwnerUsed,
        "unstable_class" => Obstacle::UnstableClass,
        "offline" => Obstacle::Offline,
        _ => return None,
    })
}
