//! Verdicts: jobs whose results are all shown are ruled on, and paid for or not, each in one transaction.

mod complete;
mod record;
mod shares;

use std::collections::{BTreeMap, HashMap};

use alloy_primitives::Address;
use comptoir_domain::{
    atto::Atto,
    digest::Sha256,
    id::{AccountId, AttemptId, JobId, ReplicaId, WorkerId},
    job::{JobSpec, Tier, state::InvalidTransition},
    price::{Meter, PriceVersion},
    replay::Piece,
    verdict::VerdictKind,
};
use serde_json::Value;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    charges::ChargeError,
    codec::{to_address, to_digest, to_document, to_enum, to_wide},
    dataset_inputs::{self, Computed},
    jobs::EndError,
    prices::{self, PriceError},
    queue::interval,
};

pub use complete::{accept_all, lock_all};
pub use record::{Reason, accept, add_replica, draw, give_up, refuse_above_terms};

/// The code of a job whose results never agreed.
pub const UNSTABLE_RESULT: &str = "unstable_result";
/// The code of a job whose results have more bytes than its dataset's offer allows.
pub const OUTPUT_ABOVE_TERMS: &str = "output_above_terms";
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
    /// The checkpoints of each replica, in order: of sampled training alone.
    pub chains: BTreeMap<ReplicaId, Vec<Sha256>>,
    /// The offer of the dataset that it computed under, if it did.
    pub data: Option<Computed>,
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
    /// What it committed to.
    pub seal: Sha256,
    /// What opens that.
    pub salt: Sha256,
    /// Who ran that.
    pub worker: WorkerId,
    /// In which numeric class.
    pub class: String,
    /// The digest of the outputs.
    pub result: Sha256,
    /// Blob by output name.
    pub outputs: BTreeMap<String, Sha256>,
    /// The piece that was replayed; none where all of the job was run.
    pub replay: Option<Piece>,
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
    let found = find_cases(conn, &[job]).await?;
    Ok(found.into_iter().next())
}

/// Those of the jobs that wait for a verdict, with their results.
pub async fn find_cases(
    conn: &mut PgConnection,
    jobs: &[JobId],
) -> Result<Vec<Case>, VerdictError> {
    let jobs: Vec<_> = jobs.iter().map(|job| job.0).collect();
    let rows = sqlx::query!(
        "SELECT job_id, jobs.account_id, payer, jobs.asset_id, jobs.tier, spec, spec_sha256, meter, price_version_id, amount_atto
         FROM jobs JOIN quotes USING (quote_id) WHERE job_id = ANY ($1) AND state = 'verifying' ORDER BY job_id",
        &jobs,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut shown = results_of(conn, &jobs).await?;
    let mut data = dataset_inputs::computed(conn, &jobs).await?;
    let mut published: HashMap<i32, PriceVersion> = HashMap::new();
    let mut cases = Vec::with_capacity(rows.len());
    for row in rows {
        let job = JobId(row.job_id);
        let amount = to_wide("amount_atto", &row.amount_atto)?;
        let tier = to_enum("tier", &row.tier, Tier::parse)?;
        let spec = to_document("spec", row.spec)?;
        let chains = match (tier, &spec) {
            (Tier::Sampled, JobSpec::Training(_)) => chains(conn, job).await?,
            _ => BTreeMap::new(),
        };
        let price = match published.get(&row.price_version_id) {
            Some(price) => *price,
            None => prices::find(conn, row.price_version_id).await?,
        };
        published.insert(price.id, price);
        cases.push(Case {
            job,
            account: AccountId(row.account_id),
            payer: to_address("payer", &row.payer)?,
            asset_id: row.asset_id,
            tier,
            spec,
            chains,
            spec_sha256: to_digest("spec_sha256", &row.spec_sha256)?,
            meter: to_document("meter", row.meter)?,
            price,
            amount: Atto::from_atto(amount)
                .ok_or_else(|| sqlx::Error::Decode("`amount_atto` is above every amount".into()))?,
            results: shown.remove(&job).unwrap_or_default(),
            data: data.remove(&job),
        });
    }
    Ok(cases)
}

async fn results(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Vec<ShownResult>> {
    let mut shown = results_of(conn, &[job.0]).await?;
    Ok(shown.remove(&job).unwrap_or_default())
}

/// The results that were shown for jobs, by ordinal of their replica.
async fn results_of(
    conn: &mut PgConnection,
    jobs: &[Uuid],
) -> sqlx::Result<HashMap<JobId, Vec<ShownResult>>> {
    let rows = sqlx::query!(
        r#"SELECT attempts.job_id, attempts.replica_id, replicas.ordinal, attempt_id, worker_id, numeric_class,
             result_sha256 AS "result_sha256!", outputs AS "outputs!", seal AS "seal!", salt AS "salt!",
             replay_piece, replay_from, replay_until
           FROM attempts JOIN replicas ON replicas.replica_id = attempts.replica_id
           WHERE attempts.job_id = ANY ($1) AND attempts.state = 'revealed'
           ORDER BY attempts.job_id, replicas.ordinal"#,
        jobs,
    )
    .fetch_all(conn)
    .await?;
    let mut shown: HashMap<JobId, Vec<ShownResult>> = HashMap::new();
    for row in rows {
        let result = ShownResult {
            replica: ReplicaId(row.replica_id),
            ordinal: row.ordinal,
            attempt: AttemptId(row.attempt_id),
            seal: to_digest("seal", &row.seal)?,
            salt: to_digest("salt", &row.salt)?,
            worker: WorkerId(row.worker_id),
            class: row.numeric_class,
            result: to_digest("result_sha256", &row.result_sha256)?,
            outputs: to_document("outputs", row.outputs)?,
            replay: row.replay_piece.map(|piece| Piece {
                number: piece.unsigned_abs(),
                from: row.replay_from.unwrap_or_default().unsigned_abs(),
                until: row.replay_until.unwrap_or_default().unsigned_abs(),
            }),
        };
        shown.entry(JobId(row.job_id)).or_default().push(result);
    }
    Ok(shown)
}

async fn chains(
    conn: &mut PgConnection,
    job: JobId,
) -> sqlx::Result<BTreeMap<ReplicaId, Vec<Sha256>>> {
    let rows = sqlx::query!(
        "SELECT replica_id, checkpoint_sha256 FROM segments JOIN replicas USING (replica_id)
         WHERE job_id = $1 ORDER BY replica_id, segment",
        job.0,
    )
    .fetch_all(conn)
    .await?;
    let mut chains: BTreeMap<ReplicaId, Vec<Sha256>> = BTreeMap::new();
    for row in rows {
        let checkpoint = to_digest("checkpoint_sha256", &row.checkpoint_sha256)?;
        chains
            .entry(ReplicaId(row.replica_id))
            .or_default()
            .push(checkpoint);
    }
    Ok(chains)
}

/// A verdict as it was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// `unverified`, `sampled`, `bitwise`, `tolerance` or `unstable`.
    pub kind: String,
    /// What it rests on.
    pub evidence: Value,
    /// The digest of that, which the receipt commits to.
    pub evidence_sha256: Sha256,
    /// When it was given.
    pub decided_at: OffsetDateTime,
}

/// The verdict on an account's job: `None` for no such job, `Some(None)` before it is given.
pub async fn find_decided(
    conn: &mut PgConnection,
    account: AccountId,
    job: JobId,
) -> sqlx::Result<Option<Option<Decided>>> {
    let row = sqlx::query!(
        r#"SELECT verdicts.kind AS "kind?", evidence AS "evidence?", evidence_sha256 AS "evidence_sha256?",
             decided_at AS "decided_at?"
           FROM jobs LEFT JOIN verdicts USING (job_id) WHERE job_id = $1 AND account_id = $2"#,
        job.0,
        account.0,
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let whole = row
        .kind
        .zip(row.evidence)
        .zip(row.evidence_sha256)
        .zip(row.decided_at);
    whole
        .map(|(((kind, evidence), sha256), decided_at)| {
            Ok(Decided {
                kind,
                evidence,
                evidence_sha256: to_digest("evidence_sha256", &sha256)?,
                decided_at,
            })
        })
        .transpose()
        .map(Some)
}
