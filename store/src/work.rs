//! What workers report, in batches of one or of many workers: seals and reveals. A report that was taken before is taken
//! again; one without a live lease is stale.

use std::collections::{BTreeMap, BTreeSet};

use comptoir_domain::{
    digest::Sha256,
    id::{AttemptId, JobId, LeaseToken, WorkerId},
    lease,
    seal::{OUTPUT_CHECKPOINT, OUTPUT_TENSORS, OUTPUT_WEIGHTS, result_sha256, seal as seal_of},
};
use serde_json::json;
use sqlx::types::Json;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    attempts::{self, Reported},
    events,
    queue::interval,
};

/// Commits to a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// Who reports.
    pub worker: WorkerId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The secret of its lease.
    pub token: LeaseToken,
    /// The commitment.
    pub seal: Sha256,
    /// How long it computed, as the worker says.
    pub compute_ms: u64,
}

/// Shows a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reveal {
    /// Who reports.
    pub worker: WorkerId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The secret of its lease.
    pub token: LeaseToken,
    /// The random part of the seal.
    pub salt: [u8; 32],
    /// The digest of the outputs.
    pub result: Sha256,
    /// Blob by output name.
    pub outputs: BTreeMap<String, Sha256>,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Taken, now or before.
    Accepted,
    /// The lease is gone, or never was.
    Stale,
    /// Revealed before it was ordered.
    NotOrdered,
    /// An output that this attempt did not upload.
    BlobMissing,
    /// The reveal does not open the seal: the attempt is to be failed.
    SealMismatch,
    /// The result lacks the output of its kind: the attempt is to be failed.
    OutputMissing,
}

/// What a batch of reports changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taken {
    /// One per report.
    pub outcomes: Vec<Outcome>,
    /// Whom to wake after the commit.
    pub wakes: Wakes,
}

/// Who has something to look at once a transaction has committed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wakes {
    /// Jobs with new events: wake [`crate::wake::Channel::Job`] of each.
    pub jobs: BTreeSet<JobId>,
    /// Workers with new orders: wake [`crate::wake::Channel::Worker`] of each.
    pub workers: BTreeSet<WorkerId>,
    /// Do jobs wait for their verdict now?
    pub due: bool,
}

impl Wakes {
    /// Those of another batch, too.
    pub fn add(&mut self, other: Self) {
        self.jobs.extend(other.jobs);
        self.workers.extend(other.workers);
        self.due |= other.due;
    }
}

/// Takes seals, then reveals: an attempt that is sealed and told to reveal may be shown at once. What became of the seals, and of the
/// reveals.
pub async fn take(
    tx: &mut PgTransaction<'_>,
    seals: &[Seal],
    reveals: &[Reveal],
    now: OffsetDateTime,
) -> sqlx::Result<(Taken, Taken)> {
    let sealed = seals.iter().map(|seal| (seal.worker, seal.attempt));
    let shown = reveals.iter().map(|it| (it.worker, it.attempt));
    // All at once, in the order in which everybody locks them.
    attempts::lock(tx, sealed.chain(shown)).await?;
    let sealed = seal(tx, seals, now).await?;
    Ok((sealed, reveal(tx, reveals, now).await?))
}

/// Takes seals of locked jobs. Where no replica of a job runs any more, its sealed attempts are told to reveal.
async fn seal(
    tx: &mut PgTransaction<'_>,
    seals: &[Seal],
    now: OffsetDateTime,
) -> sqlx::Result<Taken> {
    if seals.is_empty() {
        return Ok(Taken::default());
    }
    let reports = seals.iter().map(|it| (it.worker, it.attempt, it.token));
    let known = attempts::reported(tx, reports).await?;
    let mut taken = Taken::default();
    let mut fresh = BTreeMap::new();
    for (place, seal) in seals.iter().enumerate() {
        let outcome = judge_seal(known[place].as_ref(), seal);
        if let (Outcome::Accepted, Some(found)) = (outcome, &known[place])
            && found.state == "running"
        {
            fresh.entry(seal.attempt).or_insert(seal);
            taken.wakes.jobs.insert(found.job);
        }
        taken.outcomes.push(outcome);
    }
    store_seals(tx, fresh.values().copied()).await?;
    let whole = order_reveals(tx, &mut taken, now).await?;
    for job in taken.wakes.jobs.difference(&whole) {
        events::append(tx, *job, events::kind::SEALED, &json!({}), now).await?;
    }
    Ok(taken)
}

fn judge_seal(known: Option<&Reported>, seal: &Seal) -> Outcome {
    let Some(found) = known else {
        return Outcome::Stale;
    };
    match found.state.as_str() {
        "running" if found.held => Outcome::Accepted,
        "sealed" | "revealed" | "accepted" | "rejected" if found.seal == Some(seal.seal) => {
            Outcome::Accepted
        }
        _ => Outcome::Stale,
    }
}

async fn store_seals(
    tx: &mut PgTransaction<'_>,
    seals: impl Iterator<Item = &Seal>,
) -> sqlx::Result<()> {
    let (mut ids, mut digests, mut spent) = (Vec::new(), Vec::new(), Vec::new());
    for seal in seals {
        ids.push(seal.attempt.0);
        digests.push(seal.seal.0.to_vec());
        spent.push(i64::try_from(seal.compute_ms).unwrap_or(i64::MAX));
    }
    sqlx::query!(
        "WITH sealed AS (
             UPDATE attempts SET state = 'sealed', seal = told.seal, compute_ms = told.compute_ms
             FROM unnest($1::uuid[], $2::bytea[], $3::bigint[]) AS told (attempt_id, seal, compute_ms)
             WHERE attempts.attempt_id = told.attempt_id
             RETURNING attempts.replica_id
         )
         UPDATE replicas SET state = 'sealed' FROM sealed WHERE replicas.replica_id = sealed.replica_id",
        &ids,
        &digests,
        &spent,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Jobs of which no replica waits or runs go to `verifying`, and their sealed attempts are told to reveal. Those jobs.
async fn order_reveals(
    tx: &mut PgTransaction<'_>,
    taken: &mut Taken,
    now: OffsetDateTime,
) -> sqlx::Result<BTreeSet<JobId>> {
    let jobs: Vec<_> = taken.wakes.jobs.iter().map(|job| job.0).collect();
    let ordered = sqlx::query!(
        "WITH whole AS MATERIALIZED (
             SELECT job_id FROM jobs
             WHERE job_id = ANY ($1) AND state = 'leased' AND NOT EXISTS (
                 SELECT FROM replicas WHERE replicas.job_id = jobs.job_id AND replicas.state IN ('queued', 'leased')
             )
         ), changed AS (
             UPDATE jobs SET state = 'verifying', event_seq = event_seq + 1
             FROM whole WHERE jobs.job_id = whole.job_id
             RETURNING jobs.job_id, jobs.event_seq
         ), told AS (
             INSERT INTO job_events (job_id, seq, kind, data, created_at)
             SELECT job_id, event_seq, $2, jsonb_build_object('state', 'verifying'), $3 FROM changed
         )
         UPDATE attempts SET reveal_by = clock_timestamp() + $4::interval
         FROM whole
         WHERE attempts.job_id = whole.job_id AND attempts.state = 'sealed' AND attempts.reveal_by IS NULL
         RETURNING attempts.worker_id, attempts.job_id",
        &jobs,
        events::kind::VERIFYING,
        now,
        interval(lease::REVEAL),
    )
    .fetch_all(&mut **tx)
    .await?;
    taken
        .wakes
        .workers
        .extend(ordered.iter().map(|row| WorkerId(row.worker_id)));
    Ok(ordered.into_iter().map(|row| JobId(row.job_id)).collect())
}

/// Takes reveals of locked jobs. A job whose results are all shown waits for its verdict.
async fn reveal(
    tx: &mut PgTransaction<'_>,
    reveals: &[Reveal],
    now: OffsetDateTime,
) -> sqlx::Result<Taken> {
    if reveals.is_empty() {
        return Ok(Taken::default());
    }
    let reports = reveals.iter().map(|it| (it.worker, it.attempt, it.token));
    let known = attempts::reported(tx, reports).await?;
    let mut taken = Taken::default();
    let mut fresh = BTreeMap::new();
    for (place, reveal) in reveals.iter().enumerate() {
        let outcome = judge_reveal(known[place].as_ref(), reveal);
        if let (Outcome::Accepted, Some(found)) = (outcome, &known[place])
            && found.state == "sealed"
        {
            fresh.entry(reveal.attempt).or_insert(reveal);
            taken.wakes.jobs.insert(found.job);
        }
        taken.outcomes.push(outcome);
    }
    store_reveals(tx, fresh.values().copied(), now).await?;
    taken.wakes.due = put_up_for_verdict(tx, &taken.wakes.jobs).await?;
    Ok(taken)
}

fn judge_reveal(known: Option<&Reported>, reveal: &Reveal) -> Outcome {
    let Some(found) = known else {
        return Outcome::Stale;
    };
    let shown = matches!(found.state.as_str(), "revealed" | "accepted" | "rejected");
    if shown && found.salt == Some(reveal.salt) {
        return Outcome::Accepted;
    }
    let Some(overdue) = found.overdue.filter(|_| found.held) else {
        return if found.held {
            Outcome::NotOrdered
        } else {
            Outcome::Stale
        };
    };
    if overdue {
        return Outcome::Stale;
    }
    let shown = seal_of(reveal.worker, reveal.attempt, &reveal.salt, reveal.result);
    let opens = found.seal == Some(shown) && result_sha256(&reveal.outputs) == reveal.result;
    let wanted = match found.kind.as_str() {
        "training" => OUTPUT_WEIGHTS,
        "replay" => OUTPUT_CHECKPOINT,
        _ => OUTPUT_TENSORS,
    };
    if !opens {
        Outcome::SealMismatch
    } else if !reveal.outputs.contains_key(wanted) {
        Outcome::OutputMissing
    } else if reveal
        .outputs
        .values()
        .all(|output| found.uploads.contains(output))
    {
        Outcome::Accepted
    } else {
        Outcome::BlobMissing
    }
}

async fn store_reveals(
    tx: &mut PgTransaction<'_>,
    reveals: impl Iterator<Item = &Reveal>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let (mut ids, mut salts, mut results, mut outputs) = (vec![], vec![], vec![], vec![]);
    for reveal in reveals {
        ids.push(reveal.attempt.0);
        salts.push(reveal.salt.to_vec());
        results.push(reveal.result.0.to_vec());
        outputs.push(Json(&reveal.outputs));
    }
    sqlx::query!(
        "WITH shown AS (
             UPDATE attempts
             SET state = 'revealed', salt = told.salt, result_sha256 = told.result, outputs = told.outputs, ended_at = $5
             FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::jsonb[]) AS told (attempt_id, salt, result, outputs)
             WHERE attempts.attempt_id = told.attempt_id
             RETURNING attempts.replica_id
         ), gone AS (
             DELETE FROM queue USING shown WHERE queue.replica_id = shown.replica_id
         )
         UPDATE replicas SET state = 'revealed' FROM shown WHERE replicas.replica_id = shown.replica_id",
        &ids,
        &salts,
        &results,
        &outputs as _,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

async fn put_up_for_verdict(
    tx: &mut PgTransaction<'_>,
    jobs: &BTreeSet<JobId>,
) -> sqlx::Result<bool> {
    let jobs: Vec<_> = jobs.iter().map(|job| job.0).collect();
    let due = sqlx::query!(
        "INSERT INTO verdicts_due (job_id, due_at)
         SELECT job_id, clock_timestamp() FROM jobs
         WHERE job_id = ANY ($1) AND NOT EXISTS (
             SELECT FROM replicas
             WHERE replicas.job_id = jobs.job_id AND replicas.state IN ('queued', 'leased', 'sealed')
         )
         ON CONFLICT (job_id) DO UPDATE SET due_at = EXCLUDED.due_at",
        &jobs,
    )
    .execute(&mut **tx)
    .await?;
    Ok(due.rows_affected() > 0)
}
