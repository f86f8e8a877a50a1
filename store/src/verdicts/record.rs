//! What follows from a ruling, each in one transaction: a draw, a completed job, one more execution, or the end.

use std::collections::{BTreeMap, BTreeSet};

use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{ReceiptId, ReplicaId, WorkerId},
    job::{Cause, JobSpec, JobState, Tier, state::EndedAs},
    policy::Checked,
    replay::{self, Piece},
    segment::steps_in_all,
    verdict::VerdictKind,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Accepted, Case, OUTPUT_ABOVE_TERMS, ShownResult, UNSTABLE_RESULT, VerdictError, accept_all,
    drop_due, results,
    shares::{self, Share},
};
use crate::{
    PgTransaction, attempts,
    codec::to_enum,
    draws::{self, MadeDraw},
    events,
    holdback::{self, Earners},
    jobs::{self, Failure},
    queue, receipts,
    worker_records::{self, Record},
};

/// The draw that decides whether the one result of a sampled job is run again; made once. `None` for other tiers.
pub async fn draw(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    now: OffsetDateTime,
) -> Result<Option<MadeDraw>, VerdictError> {
    if case.tier != Tier::Sampled {
        return Ok(None);
    }
    lock(tx, case).await?;
    if let Some(made) = draws::find(tx, case.job).await? {
        return Ok(Some(made));
    }
    let result = case.results.first().ok_or(VerdictError::Moved)?;
    let record = worker_records::lock(tx, result.worker, now).await?;
    let of = (result.attempt, result.seal);
    let pieces = match &case.spec {
        JobSpec::Training(spec) => Some(replay::pieces(spec, case.meter.rows())),
        JobSpec::Inference(_) => None,
    };
    draws::draw(tx, case.job, of, (record.trusted(now), pieces), now).await?;
    Ok(draws::find(tx, case.job).await?)
}

/// Completes the job: pays for it, gives its owner the outputs, marks every result, and writes down what it says of each
/// worker.
pub async fn accept(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    verdict: &Accepted,
    now: OffsetDateTime,
) -> Result<ReceiptId, VerdictError> {
    let accepted = accept_all(tx, &[(case, verdict)], now).await?;
    accepted.into_iter().next().ok_or(VerdictError::Moved)?
}

/// The results that the client's charge pays for: the first that was accepted of a sampled job, else all of them.
pub(super) fn paid_results<'a>(case: &'a Case, verdict: &Accepted) -> Vec<&'a ShownResult> {
    let accepted = case.results.iter().zip(&verdict.accepted);
    let accepted = accepted
        .filter(|(_, accepted)| **accepted)
        .map(|(it, _)| it);
    match case.tier {
        Tier::Sampled => accepted.filter(|it| it.replay.is_none()).take(1).collect(),
        Tier::None | Tier::Replicated | Tier::Quorum => accepted.collect(),
    }
}

/// Writes into the workers' records what the verdict says of them, and bars whoever was refuted. Who earns held-back pay
/// comes back: of a sampled job, whoever ran what was drawn for.
pub(super) async fn judge(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    verdict: &Accepted,
    shares: &[Share],
    now: OffsetDateTime,
) -> Result<Earners, VerdictError> {
    if case.tier == Tier::None {
        return Ok(Earners::new());
    }
    let first_is_paid = verdict.accepted.first() == Some(&true);
    let holds_back = case.tier == Tier::Sampled && first_is_paid;
    let earning = shares.iter().filter(|_| holds_back);
    let workers: BTreeSet<WorkerId> = case
        .results
        .iter()
        .map(|result| result.worker)
        .chain(earning.clone().map(|share| share.worker))
        .collect();
    let mut records = BTreeMap::<WorkerId, Record>::new();
    for worker in workers {
        let record = worker_records::lock(tx, worker, now).await?;
        records.insert(worker, record);
    }
    let alone = verdict.accepted.iter().filter(|it| **it).count() < 2;
    for (result, accepted) in case.results.iter().zip(&verdict.accepted) {
        let checked = match (accepted, alone) {
            (false, _) => Checked::Refuted,
            (true, false) => Checked::Confirmed,
            (true, true) => Checked::Unaudited,
        };
        let record = &records[&result.worker];
        worker_records::judge(tx, result.worker, record, checked, now).await?;
        if checked == Checked::Refuted {
            worker_records::bar(tx, result.worker, result.attempt, now).await?;
        }
    }
    let mut earners = Earners::new();
    for share in earning {
        let number = worker_records::number_result(tx, share.worker).await?;
        earners.insert(share.payee, (share.worker, number));
    }
    Ok(earners)
}

/// Every accepted result that the charge did not pay for is owed for by the house: as much as the paid run earned, or the
/// part of it that was replayed.
pub(super) async fn owe_confirmations(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    verdict: &Accepted,
    paid: &[&ShownResult],
    now: OffsetDateTime,
) -> Result<(), VerdictError> {
    let unpaid: Vec<&ShownResult> = case
        .results
        .iter()
        .zip(&verdict.accepted)
        .filter(|(it, accepted)| **accepted && !paid.iter().any(|paid| paid.attempt == it.attempt))
        .map(|(it, _)| it)
        .collect();
    if unpaid.is_empty() {
        return Ok(());
    }
    let receipt = receipts::find_of_job(tx, case.job)
        .await?
        .ok_or(sqlx::Error::RowNotFound)?;
    let parties = receipt.bill.parties().iter();
    let earned = parties.filter(|it| !it.party.platform);
    let earned = Amount::sum(earned.map(|it| it.credit)).ok_or(sqlx::Error::RowNotFound)?;
    for result in unpaid {
        let owner = shares::payee(tx, result.worker).await?;
        let of = (result.attempt, case.job);
        let part = match (&case.spec, result.replay) {
            (JobSpec::Training(spec), Some(piece)) => {
                let in_all = steps_in_all(spec, case.meter.rows());
                earned.part(piece.until.saturating_sub(piece.from), in_all)
            }
            _ => earned,
        };
        holdback::owe(tx, of, case.asset_id, owner, part, now).await?;
    }
    Ok(())
}

/// The priority of an execution that a job waits for which has been computed once: before all that wait for their first.
const FIRST: i16 = -1;

/// Why a job is executed once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its one result was drawn.
    Audit,
    /// Its results differ.
    Differ,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Differ => "results_differ",
        }
    }
}

/// Puts one more execution on the queue: of all the job, or of a piece of it, from what the first run had at its start.
/// Nobody but the house pays for it.
pub async fn add_replica(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    (reason, piece): (Reason, Option<Piece>),
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
        "INSERT INTO replicas (replica_id, job_id, ordinal, state, replay_piece, replay_from, replay_until, replay_ends,
             replay_checkpoint)
         VALUES ($1, $2, $3, 'queued', $4, $5, $6, $7, $8)",
        replica.0,
        case.job.0,
        ordinal,
        piece.map(|piece| i32::try_from(piece.number).unwrap_or(i32::MAX)),
        piece.map(|piece| i64::try_from(piece.from).unwrap_or(i64::MAX)),
        piece.map(|piece| i64::try_from(piece.until).unwrap_or(i64::MAX)),
        piece.map(|piece| ends_run(case, piece)),
        piece.and_then(|piece| start_of(case, piece)).map(|start| start.0.to_vec()),
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO queue (replica_id, job_id, priority, ready_at, device, min_memory_bytes, rate_nano)
         SELECT $1, job_id, $3, clock_timestamp(), quotes.device, min_memory_bytes, rate_nano
         FROM jobs JOIN quotes USING (quote_id) JOIN price_versions USING (price_version_id)
         WHERE job_id = $2",
        replica.0,
        case.job.0,
        FIRST,
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
    let data = json!({ "state": state, "reason": reason.as_str(), "replica": ordinal });
    events::append(tx, case.job, events::kind::QUEUED, &data, now).await?;
    drop_due(tx, case.job).await?;
    Ok(())
}

fn ends_run(case: &Case, piece: Piece) -> bool {
    match &case.spec {
        JobSpec::Training(spec) => piece.until >= steps_in_all(spec, case.meter.rows()),
        JobSpec::Inference(_) => true,
    }
}

/// The checkpoint that a piece of the first run started from; none at the start of the run.
fn start_of(case: &Case, piece: Piece) -> Option<Sha256> {
    let before = usize::try_from(piece.number.checked_sub(1)?).ok()?;
    let chain = case.chains.get(&case.results.first()?.replica)?;
    chain.get(before).copied()
}

/// Fails the job: no two results agree. Nobody is charged and nobody is blamed; the classes are marked as unstable for
/// the program.
pub async fn give_up(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    evidence: &Value,
    now: OffsetDateTime,
) -> Result<(), VerdictError> {
    lock(tx, case).await?;
    record(tx, case, VerdictKind::Unstable, evidence, now).await?;
    let classes: Vec<String> = case.results.iter().map(|it| it.class.clone()).collect();
    sqlx::query!(
        "INSERT INTO unstable_classes (job_id, numeric_class, program_sha256, marked_at)
         SELECT DISTINCT $1::uuid, class, $3::bytea, $4::timestamptz FROM unnest($2::text[]) AS it (class)",
        case.job.0,
        &classes,
        &case.spec.program().0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    let failure = Failure {
        cause: Cause::Operator,
        code: UNSTABLE_RESULT.to_owned(),
        detail: Some("no two executions gave the same result".to_owned()),
    };
    jobs::end(tx, case.job, EndedAs::Failed, Some(&failure), now).await?;
    drop_due(tx, case.job).await?;
    Ok(())
}

/// Fails the job where its results have more bytes than the offer that it computed under allows; says whether it did.
pub async fn refuse_above_terms(
    tx: &mut PgTransaction<'_>,
    case: &Case,
    verdict: &Accepted,
    now: OffsetDateTime,
) -> Result<bool, VerdictError> {
    let (Some(data), Some(result)) = (&case.data, case.results.get(verdict.reference)) else {
        return Ok(false);
    };
    lock(tx, case).await?;
    let sizes = queue::blob_sizes(tx, result.outputs.values().copied()).await?;
    let bytes = sizes
        .values()
        .fold(0_u64, |sum, it| sum.saturating_add(*it));
    if bytes <= data.output_bytes_max {
        return Ok(false);
    }
    let failure = Failure {
        cause: Cause::Client,
        code: OUTPUT_ABOVE_TERMS.to_owned(),
        detail: Some(format!(
            "the results have {bytes} bytes; the offer of the dataset allows {}",
            data.output_bytes_max
        )),
    };
    jobs::end(tx, case.job, EndedAs::Failed, Some(&failure), now).await?;
    drop_due(tx, case.job).await?;
    Ok(true)
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
