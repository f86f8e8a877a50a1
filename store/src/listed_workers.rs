//! Workers as their owner and operators see them.

use comptoir_domain::{
    amount::Amount,
    id::{AccountId, WorkerId},
    job::Device,
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    admin_workers::Control,
    codec::{to_amount, to_enum},
};

/// A worker, what it did, and what was decided about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedWorker {
    /// Its identifier.
    pub id: WorkerId,
    /// Whose it is.
    pub account: AccountId,
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
    /// Leases that it holds.
    pub leases: i64,
    /// Attempts whose result was accepted.
    pub accepted: i64,
    /// Attempts that failed, were lost or were rejected.
    pub failed: i64,
    /// When it joined.
    pub joined_at: OffsetDateTime,
    /// When it was last heard of.
    pub last_seen_at: Option<OffsetDateTime>,
    /// Since when it gets nothing because a result of its was refuted.
    pub barred_at: Option<OffsetDateTime>,
    /// When it was taken out for good.
    pub revoked_at: Option<OffsetDateTime>,
    /// What an operator decided, why, and since when.
    pub control: Option<(Control, String, OffsetDateTime)>,
}

/// Which workers to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Only those of this account.
    pub account: Option<AccountId>,
    /// Only those about which this was decided.
    pub control: Option<Control>,
}

impl Filter {
    /// Those of one account.
    #[must_use]
    pub const fn of(account: AccountId) -> Self {
        Self {
            account: Some(account),
            control: None,
        }
    }
}

/// The worker of this identifier, if the filter lets it pass.
///
/// # Errors
/// When the statement fails.
pub async fn find(
    conn: &mut PgConnection,
    filter: Filter,
    worker: WorkerId,
) -> sqlx::Result<Option<ListedWorker>> {
    let found = select(conn, Some(worker), filter, None, 1).await?;
    Ok(found.into_iter().next())
}

/// Workers, newest first, joined before `before`.
///
/// # Errors
/// When the statement fails.
pub async fn list(
    conn: &mut PgConnection,
    filter: Filter,
    before: Option<WorkerId>,
    limit: i64,
) -> sqlx::Result<Vec<ListedWorker>> {
    select(conn, None, filter, before, limit).await
}

struct Row {
    worker_id: Uuid,
    account_id: Uuid,
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
    barred_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    control: Option<String>,
    reason: Option<String>,
    since: Option<OffsetDateTime>,
}

async fn select(
    conn: &mut PgConnection,
    worker: Option<WorkerId>,
    filter: Filter,
    before: Option<WorkerId>,
    limit: i64,
) -> sqlx::Result<Vec<ListedWorker>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT worker_id, account_id, name, device, device_name, memory_bytes, threads, workers.numeric_class, libtorch, version,
               price_floor_nano, unsandboxed, joined_at, revoked_at, worker_heartbeats.seen_at AS "last_seen_at?",
               worker_records.barred_at AS "barred_at?", counts.leases AS "leases!", counts.accepted AS "accepted!",
               counts.failed AS "failed!", worker_controls.state AS "control?", worker_controls.reason AS "reason?",
               worker_controls.since AS "since?"
           FROM workers LEFT JOIN worker_heartbeats USING (worker_id) LEFT JOIN worker_controls USING (worker_id)
               LEFT JOIN worker_records USING (worker_id), LATERAL (
               SELECT count(*) FILTER (WHERE state IN ('running', 'sealed', 'revealed')) AS leases,
                   count(*) FILTER (WHERE state = 'accepted') AS accepted,
                   count(*) FILTER (WHERE state IN ('failed', 'lost', 'rejected')) AS failed
               FROM attempts WHERE attempts.worker_id = workers.worker_id
           ) AS counts
           WHERE ($1::uuid IS NULL OR worker_id = $1) AND ($2::uuid IS NULL OR account_id = $2)
               AND ($3::text IS NULL OR worker_controls.state = $3) AND ($4::uuid IS NULL OR worker_id < $4)
           ORDER BY worker_id DESC LIMIT $5"#,
        worker.map(|it| it.0),
        filter.account.map(|it| it.0),
        filter.control.map(Control::as_str),
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}

impl Row {
    fn decode(self) -> sqlx::Result<ListedWorker> {
        let control = self.control.as_deref();
        let control = control
            .map(|it| to_enum("control", it, Control::parse))
            .transpose()?;
        Ok(ListedWorker {
            id: WorkerId(self.worker_id),
            account: AccountId(self.account_id),
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
            barred_at: self.barred_at,
            revoked_at: self.revoked_at,
            control: control
                .zip(self.reason)
                .zip(self.since)
                .map(|((control, reason), since)| (control, reason, since)),
        })
    }
}
