//! Verdicts: jobs whose results are all shown are ruled on, and paid for or not, each in one transaction.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    atto::Atto,
    digest::Sha256,
    id::{AccountId, AttemptId, JobId, ReceiptId, ReplicaId, WorkerId},
    job::{
        Cause, JobSpec, JobState, Tier,
        state::{EndedAs, InvalidTransition},
    },
    price::{Meter, PriceVersion},
    segment::{steps_by_worker, steps_in_all},
    verdict::VerdictKind,
};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use crate::{
    PgTransaction, attempts,
    charges::{self, ChargeError, JobCharge},
    codec::{to_address, to_digest, to_document, to_enum, to_wide},
    events,
    jobs::{self, EndError, Failure},
    prices::{self, PriceError},
    queue::interval,
};

/// The code of a job whose results never agreed.
pub const UNSTABLE_RESULT: &str = "unstable_result";
/// How long one scheduler has to rule before another may.
const RULE_WITHIN: Duration = Duration::seconds(60);

/// A job whose results are all shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub account: AccountId,
    /// Who pays.
    pub payer: Address,
    /// In what.
    pub asset_id: i32,
    /// How it is verified.
    pub tier: Tier,
    /// What was computed.
    pub spec: JobSpec,
    /// The digest of the specification.
    pub spec_sha256: Sha256,
    /// What is counted.
    pub meter: Meter,
    /// The price version that it was quoted.
    pub price: PriceVersion,
    /// What it was quoted.
    pub amount: Atto,
    /// The results, by ordinal of their replica.
    pub results: Vec<ShownResult>,
}

/// One result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownResult {
    /// The execution.
    pub replica: ReplicaId,
    /// Which execution of the job that is.
    pub ordinal: i16,
    /// The attempt that finished it.
    pub attempt: AttemptId,
    /// Who ran that.
    pub worker: WorkerId,
    /// In which numeric class.
    pub class: String,
    /// The digest of the outputs.
    pub result: Sha256,
    /// Blob by output name.
    pub outputs: BTreeMap<String, Sha256>,
}

/// A verdict that gives the job a result.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// How it was verified.
    pub kind: VerdictKind,
    /// The place of the result that the client gets.
    pub reference: usize,
    /// Per result: is it accepted?
    pub accepted: Vec<bool>,
    /// What the verdict rests on; its digest goes into the receipt.
    pub evidence: Value,
}

/// Why a verdict was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum VerdictError {
    /// The job moved on while it was judged: judge again, if there is anything to judge.
    #[error("the job changed while it was judged")]
    Moved,
    /// The job could not be paid for.
    #[error("pay for the job")]
    Charge(#[from] ChargeError),
    /// The job could not be ended.
    #[error("end the job")]
    End(#[from] EndError),
    /// Its price is not there.
    #[error("find the price of the job")]
    Price(#[from] PriceError),
    /// The state does not allow it.
    #[error("move the job")]
    Invalid(#[from] InvalidTransition),
    /// The evidence has no canonical form.
    #[error("hash the evidence")]
    Evidence(#[from] serde_json::Error),
    /// The database failed.
    #[error("record a verdict")]
    Database(#[from] sqlx::Error),
}

/// Takes jobs that wait for their verdict; whoever takes one has a minute before another may.
pub async fn take_due(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<JobId>> {
    let jobs = sqlx::query_scalar!(
        "WITH due AS MATERIALIZED (
             SELECT job_id FROM verdicts_due WHERE due_at <= clock_timestamp()
             ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
         )
         UPDATE verdicts_due SET due_at = clock_timestamp() + $2::interval
         FROM due WHERE verdicts_due.job_id = due.job_id
         RETURNING verdicts_due.job_id",
        limit,
        interval(RULE_WITHIN),
    )
    .fetch_all(conn)
    .await?;
    Ok(jobs.into_iter().map(JobId).collect())
}

/// The job waits for no verdict any more.
pub async fn drop_due(conn: &mut PgConnection, job: JobId) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM verdicts_due WHERE job_id = $1", job.0)
        .execute(conn)
        .await
        .map(drop)
}

/// The job with its results; `None` when it does not wait for a verdict.
pub async fn find_case(conn: &mut PgConnection, job: JobId) -> Result<Option<Case>, VerdictError> {
    let Some(row) = sqlx::query!(
        "SELECT jobs.account_id, payer, jobs.asset_id, jobs.tier, spec, spec_sha256, meter, price_version_id, amount_atto
         FROM jobs JOIN quotes USING (quote_id) WHERE job_id = $1 AND state = 'verifying'",
        job.0,
    )
    .fetch_optional(&mut *conn)
    .await?
    else {
        return Ok(None);
    };
    let amount = to_wide("amount_atto", &row.amount_atto)?;
    Ok(Some(Case {
        job,
        account: AccountId(row.account_id),
        payer: to_address("payer", &row.payer)?,
        asset_id: row.asset_id,
        tier: to_enum("tier", &row.tier, Tier::parse)?,
        spec: to_document("spec", row.spec)?,
        spec_sha256: to_digest("spec_sha256", &row.spec_sha256)?,
        meter: to_document("meter", row.meter)?,
        price: prices::find(conn, row.price_version_id).await?,
        amount: Atto::from_atto(amount)
            .ok_or_else(|| sqlx::Error::Decode("`amount_atto` is above every amount".into()))?,
        results: results(conn, job).await?,
    }))
}

async fn results(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Vec<ShownResult>> {
    let rows = sqlx::query!(
        r#"SELECT attempts.replica_id, replicas.ordinal, attempt_id, worker_id, numeric_class,
             result_sha256 AS "result_sha256!", outputs AS "outputs!"
           FROM attempts JOIN replicas ON replicas.replica_id = attempts.replica_id
           WHERE attempts.job_id = $1 AND attempts.state = 'revealed'
           ORDER BY replicas.ordinal"#,
        job.0,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(ShownResult {
                replica: ReplicaId(row.replica_id),
                ordinal: row.ordinal,
                attempt: AttemptId(row.attempt_id),
                worker: WorkerId(row.worker_id),
                class: row.numeric_class,
                result: to_digest("result_sha256", &row.result_sha256)?,
                outputs: to_document("outputs", row.outputs)?,
            })
        })
        .collect()
}

/// Completes the job: pays for it, gives its owner the outputs, marks every result.
pub async fn accept(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    verdict: &Accepted,
    now: OffsetDateTime,
) -> Result<ReceiptId, VerdictError> {
    let state = lock(tx, case).await?.complete()?;
    let evidence = record(tx, case, verdict.kind, &verdict.evidence, now).await?;
    mark(tx, case, &verdict.accepted).await?;
    let result = case
        .results
        .get(verdict.reference)
        .ok_or(VerdictError::Moved)?;
    deliver(tx, case, &result.outputs, now).await?;
    let charge = JobCharge {
        job: case.job,
        account: case.account,
        payer: case.payer,
        asset_id: case.asset_id,
        meter: case.meter,
        price: case.price,
        amount: case.amount,
        shares: shares(tx, case, &verdict.accepted).await?,
        input: case.spec_sha256,
        result: result.result,
        verdict: evidence,
    };
    sqlx::query!(
        "UPDATE jobs SET state = $2, finished_at = $3 WHERE job_id = $1",
        case.job.0,
        state.as_str(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    drop_due(tx, case.job).await?;
    // Last: other jobs of the payer wait for these locks.
    let receipt = charges::settle_job(tx, &charge, now).await?;
    let data = json!({ "state": state, "verdict": verdict.kind, "receipt_id": receipt });
    events::append(tx, case.job, events::kind::COMPLETED, &data, now).await?;
    Ok(receipt)
}

/// Puts one more execution on the queue. Nobody but the operator pays for it.
pub async fn add_replica(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    now: OffsetDateTime,
) -> Result<(), VerdictError> {
    let state = lock(tx, case).await?.requeue()?;
    let replica = ReplicaId::generate();
    let ordinal = case
        .results
        .iter()
        .map(|it| it.ordinal)
        .max()
        .map_or(0, |last| last + 1);
    sqlx::query!(
        "INSERT INTO replicas (replica_id, job_id, ordinal, state) VALUES ($1, $2, $3, 'queued')",
        replica.0,
        case.job.0,
        ordinal,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO queue (replica_id, job_id, ready_at, device, min_memory_bytes, rate_nano)
         SELECT $1, job_id, clock_timestamp(), quotes.device, min_memory_bytes, rate_nano
         FROM jobs JOIN quotes USING (quote_id) JOIN price_versions USING (price_version_id)
         WHERE job_id = $2",
        replica.0,
        case.job.0,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE jobs SET state = $2 WHERE job_id = $1",
        case.job.0,
        state.as_str()
    )
    .execute(&mut **tx)
    .await?;
    let data = json!({ "state": state, "reason": "results_differ", "replica": ordinal });
    events::append(tx, case.job, events::kind::QUEUED, &data, now).await?;
    drop_due(tx, case.job).await?;
    Ok(())
}

/// Fails the job: no two results agree. Nobody is charged and nobody is blamed.
pub async fn give_up(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    evidence: &Value,
    now: OffsetDateTime,
) -> Result<(), VerdictError> {
    lock(tx, case).await?;
    record(tx, case, VerdictKind::Unstable, evidence, now).await?;
    let failure = Failure {
        cause: Cause::Operator,
        code: UNSTABLE_RESULT.to_owned(),
        detail: Some("no two executions gave the same result".to_owned()),
    };
    jobs::end(tx, case.job, EndedAs::Failed, Some(&failure), now).await?;
    drop_due(tx, case.job).await?;
    Ok(())
}

/// Locks the job, if it still waits for a verdict on these very results.
async fn lock(tx: &mut PgTransaction<'_>, case: &Case) -> Result<JobState, VerdictError> {
    attempts::lock_jobs(tx, &[case.job.0]).await?;
    let state = sqlx::query_scalar!("SELECT state FROM jobs WHERE job_id = $1", case.job.0)
        .fetch_one(&mut **tx)
        .await?;
    let state = to_enum("state", &state, JobState::parse)?;
    if state == JobState::Verifying && results(tx, case.job).await? == case.results {
        Ok(state)
    } else {
        Err(VerdictError::Moved)
    }
}

async fn record(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    kind: VerdictKind,
    evidence: &Value,
    now: OffsetDateTime,
) -> Result<Sha256, VerdictError> {
    let digest = Sha256::of_document(evidence)?;
    sqlx::query!(
        "INSERT INTO verdicts (job_id, kind, evidence, evidence_sha256, decided_at) VALUES ($1, $2, $3, $4, $5)",
        case.job.0,
        kind.as_str(),
        evidence,
        &digest.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(digest)
}

async fn mark(tx: &mut PgTransaction<'_>, case: &Case, accepted: &[bool]) -> sqlx::Result<()> {
    let attempts: Vec<_> = case.results.iter().map(|result| result.attempt.0).collect();
    sqlx::query!(
        "WITH told AS (
             SELECT attempt_id, CASE WHEN accepted THEN 'accepted' ELSE 'rejected' END AS state
             FROM unnest($1::uuid[], $2::boolean[]) AS it (attempt_id, accepted)
         ), marked AS (
             UPDATE attempts SET state = told.state FROM told WHERE attempts.attempt_id = told.attempt_id
             RETURNING attempts.replica_id, attempts.state
         )
         UPDATE replicas SET state = marked.state FROM marked WHERE replicas.replica_id = marked.replica_id",
        &attempts,
        accepted,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Gives the job's owner its outputs.
async fn deliver(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    outputs: &BTreeMap<String, Sha256>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let (names, blobs): (Vec<_>, Vec<_>) = outputs
        .iter()
        .map(|(name, sha256)| (name.clone(), sha256.0.to_vec()))
        .unzip();
    sqlx::query!(
        "WITH output AS (
             SELECT name, sha256 FROM unnest($2::text[], $3::bytea[]) AS it (name, sha256)
         ), listed AS (
             INSERT INTO job_outputs (job_id, name, sha256) SELECT $1, name, sha256 FROM output
         )
         INSERT INTO blob_owners (account_id, sha256, created_at) SELECT DISTINCT $4::uuid, sha256, $5::timestamptz FROM output
         ON CONFLICT (account_id, sha256) DO NOTHING",
        case.job.0,
        &names,
        &blobs,
        case.account.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Who did how much of the accepted work: optimizer steps of training, whole executions of inference.
async fn shares(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    accepted: &[bool],
) -> Result<Vec<(Address, u64)>, VerdictError> {
    let mut work: BTreeMap<Address, u64> = BTreeMap::new();
    for (result, _) in case
        .results
        .iter()
        .zip(accepted)
        .filter(|(_, accepted)| **accepted)
    {
        let last = payee(tx, result.worker).await?;
        let steps = match &case.spec {
            JobSpec::Inference(_) => BTreeMap::from([(last, 1)]),
            JobSpec::Training(spec) => {
                let segments = segments_run(tx, result.replica).await?;
                steps_by_worker(steps_in_all(spec, case.meter.rows()), segments, last)
            }
        };
        for (payee, steps) in steps {
            let share = work.entry(payee).or_default();
            *share = share.saturating_add(steps);
        }
    }
    Ok(work.into_iter().collect())
}

async fn payee(conn: &mut PgConnection, worker: WorkerId) -> sqlx::Result<Address> {
    let address = sqlx::query_scalar!(
        r#"SELECT address AS "address!" FROM workers JOIN accounts USING (account_id) WHERE worker_id = $1"#,
        worker.0,
    )
    .fetch_one(conn)
    .await?;
    to_address("address", &address)
}

/// The steps of each finished segment of a replica, and whom they are paid to.
async fn segments_run(
    conn: &mut PgConnection,
    replica: ReplicaId,
) -> sqlx::Result<Vec<(Address, u64)>> {
    let rows = sqlx::query!(
        r#"SELECT address AS "address!", step_to - step_from AS "steps!"
           FROM segments
           JOIN attempts USING (attempt_id)
           JOIN workers USING (worker_id)
           JOIN accounts USING (account_id)
           WHERE segments.replica_id = $1
           ORDER BY segment"#,
        replica.0,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok((
                to_address("address", &row.address)?,
                row.steps.unsigned_abs(),
            ))
        })
        .collect()
}
