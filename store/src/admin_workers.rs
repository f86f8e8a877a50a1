//! Workers as an operator sees them, and what is decided about one.

use comptoir_domain::{
    id::{AccountId, WorkerId},
    job::Device,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::to_enum,
    faults::FaultError,
    recalls::{self, Recalled},
};

/// What an operator decided about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// It finishes what it has and gets nothing more.
    Draining,
    /// It gets nothing more, and what it has was taken back.
    Quarantined,
}

/// A worker and what was decided about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlledWorker {
    /// Its identifier.
    pub id: WorkerId,
    /// Whose it is.
    pub account: AccountId,
    /// What its owner calls it.
    pub name: String,
    /// The kind of device that runs its jobs.
    pub device: Device,
    /// Whose results it equals bit by bit.
    pub numeric_class: String,
    /// Its version.
    pub version: String,
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
    /// What was decided, why, and since when.
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

/// Why nothing was decided about a worker.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No such worker.
    #[error("no such worker")]
    NotFound,
    /// It was taken out for good.
    #[error("the worker was taken out")]
    Revoked,
    /// Its leases were not taken back.
    #[error("take the leases of a worker back")]
    Recall(#[from] FaultError),
    /// The database failed.
    #[error("write what was decided about a worker")]
    Database(#[from] sqlx::Error),
}

impl Control {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Draining, Self::Quarantined]
            .into_iter()
            .find(|it| it.as_str() == text)
    }
}

/// Drains a worker, or puts it into quarantine: then its leases are taken back with the decision. A decision replaces the
/// one before. Claims of this very moment do not see it: call [`recalls::of_worker`] once more after the commit of a quarantine.
///
/// # Errors
/// When there is none, or it was taken out.
pub async fn control(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    (control, reason): (Control, &str),
    now: OffsetDateTime,
) -> Result<Recalled, ControlError> {
    refuse_revoked(tx, worker).await?;
    sqlx::query!(
        "INSERT INTO worker_controls (worker_id, state, reason, since) VALUES ($1, $2, $3, $4)
         ON CONFLICT (worker_id) DO UPDATE SET state = $2, reason = $3, since = $4
         WHERE worker_controls.state <> $2",
        worker.0,
        control.as_str(),
        reason,
        now,
    )
    .execute(&mut **tx)
    .await?;
    match control {
        Control::Draining => Ok(Recalled::default()),
        Control::Quarantined => Ok(recalls::of_worker(tx, worker, now).await?),
    }
}

/// Lets a worker work again. Doing it again changes nothing.
///
/// # Errors
/// When there is none, or it was taken out.
pub async fn restore(tx: &mut PgTransaction<'_>, worker: WorkerId) -> Result<(), ControlError> {
    refuse_revoked(tx, worker).await?;
    sqlx::query!("DELETE FROM worker_controls WHERE worker_id = $1", worker.0)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Lets a worker that was refuted have work again; its trust starts anew, and what it forfeited stays so. Doing it again changes
/// nothing.
///
/// # Errors
/// When there is none, or it was taken out.
pub async fn lift_bar(tx: &mut PgTransaction<'_>, worker: WorkerId) -> Result<(), ControlError> {
    refuse_revoked(tx, worker).await?;
    sqlx::query!(
        "UPDATE worker_records SET barred_at = NULL, barred_for = NULL, trusted = 0
         WHERE worker_id = $1 AND barred_at IS NOT NULL",
        worker.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Takes a worker out for good: its leases are taken back and its tokens refused. Doing it again changes nothing.
///
/// # Errors
/// When there is none.
pub async fn disable(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    now: OffsetDateTime,
) -> Result<Recalled, ControlError> {
    let found = sqlx::query!(
        "UPDATE workers SET revoked_at = coalesce(revoked_at, $2) WHERE worker_id = $1",
        worker.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    if found.rows_affected() == 0 {
        return Err(ControlError::NotFound);
    }
    Ok(recalls::of_worker(tx, worker, now).await?)
}

async fn refuse_revoked(conn: &mut PgConnection, worker: WorkerId) -> Result<(), ControlError> {
    let revoked = sqlx::query_scalar!(
        r#"SELECT revoked_at IS NOT NULL AS "revoked!" FROM workers WHERE worker_id = $1"#,
        worker.0,
    )
    .fetch_optional(conn)
    .await?
    .ok_or(ControlError::NotFound)?;
    if revoked {
        Err(ControlError::Revoked)
    } else {
        Ok(())
    }
}

/// The worker of this identifier.
///
/// # Errors
/// When the statement fails.
pub async fn find(
    conn: &mut PgConnection,
    worker: WorkerId,
) -> sqlx::Result<Option<ControlledWorker>> {
    let found = select(conn, Some(worker), Filter::default(), None, 1).await?;
    Ok(found.into_iter().next())
}

/// Workers of all accounts, newest first, joined before `before`.
///
/// # Errors
/// When the statement fails.
pub async fn list(
    conn: &mut PgConnection,
    filter: Filter,
    before: Option<WorkerId>,
    limit: i64,
) -> sqlx::Result<Vec<ControlledWorker>> {
    select(conn, None, filter, before, limit).await
}

struct Row {
    worker_id: Uuid,
    account_id: Uuid,
    name: String,
    device: String,
    numeric_class: String,
    version: String,
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
) -> sqlx::Result<Vec<ControlledWorker>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT worker_id, account_id, name, device, workers.numeric_class, version, joined_at, revoked_at,
               worker_heartbeats.seen_at AS "last_seen_at?", worker_records.barred_at AS "barred_at?", counts.leases AS "leases!", counts.accepted AS "accepted!",
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
    fn decode(self) -> sqlx::Result<ControlledWorker> {
        let control = self.control.as_deref();
        let control = control
            .map(|it| to_enum("control", it, Control::parse))
            .transpose()?;
        Ok(ControlledWorker {
            id: WorkerId(self.worker_id),
            account: AccountId(self.account_id),
            name: self.name,
            device: to_enum("device", &self.device, Device::parse)?,
            numeric_class: self.numeric_class,
            version: self.version,
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
