//! Jobs: made from a quote, watched, taken back, ended.
//!
//! Lock order, everywhere: rows of `queue`, then the job, then ledger accounts. A transaction therefore ends or
//! settles one job, not several: it would hold ledger accounts while it waits for the next job's queue rows.

mod create;
mod end;
pub mod explain;

use std::collections::HashMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{AccountId, JobId, QuoteId, ReceiptId, ReplicaId},
    job::{Cause, Device, JobSpec, JobState, ReplicaState, Tier},
    price::Meter,
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

pub use create::{CreateError, NewJob, create, create_all};
pub use end::{CancelError, EndError, Ended, cancel, end};

use crate::codec::{to_address, to_amount, to_digest, to_document, to_enum};

/// Most jobs of one page.
pub const LIST_MAX: i64 = 101;

/// Why a job ended without a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Who answers for it.
    pub cause: Cause,
    /// A stable word for programs.
    pub code: String,
    /// A sentence for people.
    pub detail: Option<String>,
}

/// A job as its owner sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its identifier.
    pub id: JobId,
    /// Whose it is.
    pub account: AccountId,
    /// The quote it was made from.
    pub quote: QuoteId,
    /// Who pays.
    pub payer: Address,
    /// What its owner calls it.
    pub name: Option<String>,
    /// What it computes.
    pub spec: JobSpec,
    /// How the result is verified.
    pub tier: Tier,
    /// The kind of device it runs on.
    pub device: Device,
    /// The terms of its price.
    pub meter: Meter,
    /// The price version it was quoted.
    pub price_version: i32,
    /// The most its owner would pay.
    pub max_cost: Amount,
    /// What its price comes to, rounded up: what is held until it ends.
    pub hold: Amount,
    /// What was charged, once it completed.
    pub charge: Option<Charge>,
    /// Memory that a worker must offer.
    pub min_memory_bytes: u64,
    /// The numeric class that the first lease settled on, where all replicas need the same.
    pub numeric_class: Option<String>,
    /// Where it stands.
    pub state: JobState,
    /// How its result was verified.
    pub verdict: Option<String>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Its executions, by ordinal.
    pub replicas: Vec<Replica>,
    /// Its results, by name: none before it completed, nor while they wait for the seller of a dataset.
    pub outputs: Vec<Output>,
    /// Do its results wait for the seller of the dataset that it computed on?
    pub awaits_release: bool,
    /// Were they denied, since that seller did not release them in time?
    pub release_denied: bool,
    /// When it ends, done or not.
    pub deadline_at: OffsetDateTime,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When the first worker took it.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
    /// The number of its last event; whatever is shown of a job changes with it.
    pub last_seq: i64,
}

/// What a completed job cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The receipt.
    pub receipt: ReceiptId,
    /// The amount.
    pub amount: Amount,
    /// What was given back of it.
    pub refunded: Amount,
}

/// One execution. Who runs it stays between the service and the worker's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its identifier.
    pub id: ReplicaId,
    /// 0, 1, …
    pub ordinal: i16,
    /// Where it stands.
    pub state: ReplicaState,
    /// Tries so far.
    pub attempts: i32,
    /// The numeric class of the latest try.
    pub numeric_class: Option<String>,
    /// How long the latest try computed, as its worker says. Shown, never charged.
    pub compute_ms: Option<i64>,
}

/// A result of a completed job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its name, such as `weights`.
    pub name: String,
    /// The blob.
    pub sha256: Sha256,
    /// The blob's size.
    pub bytes: u64,
}

/// Which of an account's jobs to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct JobFilter<'a> {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only `training` or `inference`.
    pub kind: Option<&'a str>,
    /// Only those made after.
    pub created_after: Option<OffsetDateTime>,
    /// Only those made before.
    pub created_before: Option<OffsetDateTime>,
}

/// The account's job of this identifier.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    job: JobId,
) -> sqlx::Result<Option<Job>> {
    let found = select(conn, account, Some(job), JobFilter::default(), None, 1).await?;
    Ok(found.into_iter().next())
}

/// The account's jobs, newest first, older than `before`.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    filter: JobFilter<'_>,
    before: Option<JobId>,
    limit: i64,
) -> sqlx::Result<Vec<Job>> {
    select(conn, account, None, filter, before, limit.min(LIST_MAX)).await
}

struct JobRow {
    job_id: Uuid,
    account_id: Uuid,
    quote_id: Uuid,
    payer: Vec<u8>,
    name: Option<String>,
    spec: serde_json::Value,
    tier: String,
    device: String,
    meter: serde_json::Value,
    price_version_id: i32,
    max_cost_base: BigDecimal,
    hold_base: BigDecimal,
    receipt_id: Option<Uuid>,
    gross_base: Option<BigDecimal>,
    refunded_base: Option<BigDecimal>,
    min_memory_bytes: i64,
    numeric_class: Option<String>,
    state: String,
    verdict: Option<String>,
    failure_cause: Option<String>,
    failure_code: Option<String>,
    failure_detail: Option<String>,
    deadline_at: OffsetDateTime,
    created_at: OffsetDateTime,
    started_at: Option<OffsetDateTime>,
    finished_at: Option<OffsetDateTime>,
    event_seq: i64,
    awaits_release: bool,
    release_denied: bool,
}

async fn select(
    conn: &mut PgConnection,
    account: AccountId,
    job: Option<JobId>,
    filter: JobFilter<'_>,
    before: Option<JobId>,
    limit: i64,
) -> sqlx::Result<Vec<Job>> {
    let rows = sqlx::query_as!(
        JobRow,
        r#"SELECT job_id, jobs.account_id, jobs.quote_id, jobs.payer, jobs.name, quotes.spec, jobs.tier,
               quotes.device, quotes.meter, quotes.price_version_id, jobs.max_cost_base, quotes.hold_base,
               receipts.receipt_id AS "receipt_id?", receipts.gross_base AS "gross_base?",
               (SELECT sum(amount_base) FROM refunds WHERE refunds.job_id = jobs.job_id AND refunds.state = 'posted') AS refunded_base,
               quotes.min_memory_bytes, jobs.numeric_class, jobs.state, verdicts.kind AS "verdict?",
               jobs.failure_cause, jobs.failure_code, jobs.failure_detail, jobs.deadline_at,
               jobs.created_at, jobs.started_at, jobs.finished_at, jobs.event_seq,
               EXISTS (SELECT FROM withheld_results w WHERE w.job_id = jobs.job_id AND w.released_at IS NULL AND w.denied_at IS NULL) AS "awaits_release!",
               EXISTS (SELECT FROM withheld_results w WHERE w.job_id = jobs.job_id AND w.denied_at IS NOT NULL) AS "release_denied!"
           FROM jobs JOIN quotes USING (quote_id)
               LEFT JOIN receipts USING (job_id) LEFT JOIN verdicts USING (job_id)
           WHERE jobs.account_id = $1
               AND ($2::uuid IS NULL OR job_id = $2)
               AND ($3::text IS NULL OR jobs.state = $3)
               AND ($4::text IS NULL OR jobs.kind = $4)
               AND ($5::timestamptz IS NULL OR jobs.created_at > $5)
               AND ($6::timestamptz IS NULL OR jobs.created_at < $6)
               AND ($7::uuid IS NULL OR job_id < $7)
           ORDER BY job_id DESC LIMIT $8"#,
        account.0,
        job.map(|job| job.0),
        filter.state.map(JobState::as_str),
        filter.kind,
        filter.created_after,
        filter.created_before,
        before.map(|job| job.0),
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.job_id).collect();
    let mut replicas = replicas(conn, &ids).await?;
    let mut outputs = outputs(conn, &ids).await?;
    rows.into_iter()
        .map(|row| {
            let replicas = replicas.remove(&row.job_id).unwrap_or_default();
            let outputs = outputs.remove(&row.job_id).unwrap_or_default();
            row.into_job(replicas, outputs)
        })
        .collect()
}

async fn outputs(
    conn: &mut PgConnection,
    jobs: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, Vec<Output>>> {
    let rows = sqlx::query!(
        "SELECT job_id, job_outputs.name, job_outputs.sha256, bytes
         FROM job_outputs JOIN jobs USING (job_id) JOIN blobs ON blobs.sha256 = job_outputs.sha256
         WHERE job_id = ANY ($1) AND jobs.state = 'completed'
             AND NOT EXISTS (SELECT FROM withheld_results w WHERE w.job_id = jobs.job_id AND w.released_at IS NULL)
         ORDER BY job_id, job_outputs.name",
        jobs,
    )
    .fetch_all(conn)
    .await?;
    let mut by_job = HashMap::<Uuid, Vec<Output>>::new();
    for row in rows {
        by_job.entry(row.job_id).or_default().push(Output {
            name: row.name,
            sha256: to_digest("sha256", &row.sha256)?,
            bytes: row.bytes.unsigned_abs(),
        });
    }
    Ok(by_job)
}

async fn replicas(
    conn: &mut PgConnection,
    jobs: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, Vec<Replica>>> {
    let rows = sqlx::query!(
        r#"SELECT job_id, replica_id, ordinal, replicas.state, latest.number AS "attempts?",
               latest.numeric_class AS "numeric_class?", latest.compute_ms
           FROM replicas LEFT JOIN LATERAL (
               SELECT number, numeric_class, compute_ms FROM attempts
               WHERE attempts.replica_id = replicas.replica_id ORDER BY number DESC LIMIT 1
           ) AS latest ON true
           WHERE job_id = ANY ($1) ORDER BY job_id, ordinal"#,
        jobs,
    )
    .fetch_all(conn)
    .await?;
    let mut by_job = HashMap::<Uuid, Vec<Replica>>::new();
    for row in rows {
        by_job.entry(row.job_id).or_default().push(Replica {
            id: ReplicaId(row.replica_id),
            ordinal: row.ordinal,
            state: to_enum("state", &row.state, ReplicaState::parse)?,
            attempts: row.attempts.unwrap_or_default(),
            numeric_class: row.numeric_class,
            compute_ms: row.compute_ms,
        });
    }
    Ok(by_job)
}

impl JobRow {
    fn into_job(self, replicas: Vec<Replica>, outputs: Vec<Output>) -> sqlx::Result<Job> {
        let cause = self.failure_cause.as_deref();
        let cause = cause
            .map(|it| to_enum("failure_cause", it, Cause::parse))
            .transpose()?;
        let gross = self.gross_base.as_ref();
        let gross = gross.map(|it| to_amount("gross_base", it)).transpose()?;
        let refunded = self.refunded_base.as_ref();
        let refunded = refunded.map_or(Ok(Amount::ZERO), |it| to_amount("refunded_base", it))?;
        let receipt = self.receipt_id.map(ReceiptId);
        Ok(Job {
            id: JobId(self.job_id),
            account: AccountId(self.account_id),
            quote: QuoteId(self.quote_id),
            payer: to_address("payer", &self.payer)?,
            name: self.name,
            spec: to_document("spec", self.spec)?,
            tier: to_enum("tier", &self.tier, Tier::parse)?,
            device: to_enum("device", &self.device, Device::parse)?,
            meter: to_document("meter", self.meter)?,
            price_version: self.price_version_id,
            max_cost: to_amount("max_cost_base", &self.max_cost_base)?,
            hold: to_amount("hold_base", &self.hold_base)?,
            charge: receipt.zip(gross).map(|(receipt, amount)| Charge {
                receipt,
                amount,
                refunded,
            }),
            min_memory_bytes: self.min_memory_bytes.unsigned_abs(),
            numeric_class: self.numeric_class,
            state: to_enum("state", &self.state, JobState::parse)?,
            verdict: self.verdict,
            failure: cause.zip(self.failure_code).map(|(cause, code)| Failure {
                cause,
                code,
                detail: self.failure_detail,
            }),
            replicas,
            outputs,
            awaits_release: self.awaits_release,
            release_denied: self.release_denied,
            deadline_at: self.deadline_at,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            last_seq: self.event_seq,
        })
    }
}
