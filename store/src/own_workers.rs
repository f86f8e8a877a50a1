//! Workers as their owner sees them.

use comptoir_domain::{
    amount::Amount,
    id::{AccountId, WorkerId},
    job::Device,
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_enum},
};

/// A worker of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnWorker {
    /// Its identifier.
    pub id: WorkerId,
    /// What its owner calls it.
    pub name: String,
    /// The kind of device that runs its jobs.
    pub device: Device,
    /// The device's own name.
    pub device_name: String,
    /// Memory for one job.
    pub memory_bytes: i64,
    /// Threads per job.
    pub threads: i32,
    /// Whose results it equals bit by bit.
    pub numeric_class: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Version of the worker.
    pub version: String,
    /// The lowest rate it works for: nano base units per 10^9 multiply-adds.
    pub price_floor_nano: Amount,
    /// Its jobs run without walls.
    pub unsandboxed: bool,
    /// Leases it holds now.
    pub leases: i64,
    /// Attempts whose result was accepted.
    pub accepted: i64,
    /// Attempts that failed, were lost or were rejected.
    pub failed: i64,
    /// When it joined.
    pub joined_at: OffsetDateTime,
    /// When it was last heard of.
    pub last_seen_at: Option<OffsetDateTime>,
    /// When its owner took it out.
    pub revoked_at: Option<OffsetDateTime>,
    /// What an operator decided about it: `draining`, `quarantined`.
    pub control: Option<String>,
}

/// The account's worker of this identifier.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    worker: WorkerId,
) -> sqlx::Result<Option<OwnWorker>> {
    let found = select(conn, account, Some(worker), None, 1).await?;
    Ok(found.into_iter().next())
}

/// The account's workers, newest first, joined before `before`.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    before: Option<WorkerId>,
    limit: i64,
) -> sqlx::Result<Vec<OwnWorker>> {
    select(conn, account, None, before, limit).await
}

/// Takes a worker out: its tokens are refused from now on, and its leases run out. False when the account has no
/// such worker. Wake [`crate::wake::Channel::Worker`] after the commit.
pub async fn revoke(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    worker: WorkerId,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let revoked = sqlx::query!(
        "UPDATE workers SET revoked_at = coalesce(revoked_at, $3) WHERE worker_id = $1 AND account_id = $2",
        worker.0,
        account.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(revoked.rows_affected() == 1)
}

struct Row {
    worker_id: Uuid,
    name: String,
    device: String,
    device_name: String,
    memory_bytes: i64,
    threads: i32,
    numeric_class: String,
    libtorch: String,
    version: String,
    price_floor_nano: BigDecimal,
    unsandboxed: bool,
    leases: i64,
    accepted: i64,
    failed: i64,
    joined_at: OffsetDateTime,
    last_seen_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    control: Option<String>,
}

async fn select(
    conn: &mut PgConnection,
    account: AccountId,
    worker: Option<WorkerId>,
    before: Option<WorkerId>,
    limit: i64,
) -> sqlx::Result<Vec<OwnWorker>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT worker_id, name, device, device_name, memory_bytes, threads, numeric_class, libtorch, version,
               price_floor_nano, unsandboxed, joined_at, revoked_at, worker_heartbeats.seen_at AS "last_seen_at?",
               worker_controls.state AS "control?",
               counts.leases AS "leases!", counts.accepted AS "accepted!", counts.failed AS "failed!"
           FROM workers LEFT JOIN worker_heartbeats USING (worker_id) LEFT JOIN worker_controls USING (worker_id), LATERAL (
               SELECT count(*) FILTER (WHERE state IN ('running', 'sealed', 'revealed')) AS leases,
                   count(*) FILTER (WHERE state = 'accepted') AS accepted,
                   count(*) FILTER (WHERE state IN ('failed', 'lost', 'rejected')) AS failed
               FROM attempts WHERE attempts.worker_id = workers.worker_id
           ) AS counts
           WHERE account_id = $1 AND ($2::uuid IS NULL OR worker_id = $2) AND ($3::uuid IS NULL OR worker_id < $3)
           ORDER BY worker_id DESC LIMIT $4"#,
        account.0,
        worker.map(|it| it.0),
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::into_worker).collect()
}

impl Row {
    fn into_worker(self) -> sqlx::Result<OwnWorker> {
        Ok(OwnWorker {
            id: WorkerId(self.worker_id),
            name: self.name,
            device: to_enum("device", &self.device, Device::parse)?,
            device_name: self.device_name,
            memory_bytes: self.memory_bytes,
            threads: self.threads,
            numeric_class: self.numeric_class,
            libtorch: self.libtorch,
            version: self.version,
            price_floor_nano: to_amount("price_floor_nano", &self.price_floor_nano)?,
            unsandboxed: self.unsandboxed,
            leases: self.leases,
            accepted: self.accepted,
            failed: self.failed,
            joined_at: self.joined_at,
            last_seen_at: self.last_seen_at,
            revoked_at: self.revoked_at,
            control: self.control,
        })
    }
}
