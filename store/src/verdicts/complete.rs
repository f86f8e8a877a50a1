//! Verdicts that give jobs a result, for all of a group in a few statements: paid for, delivered, marked, told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use alloy_primitives::Address;
use comptoir_domain::{
    digest::Sha256,
    id::{JobId, ReceiptId, WorkerId},
    job::{JobSpec, JobState, Tier},
};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{
    Accepted, Case, ShownResult, VerdictError, record, results_of,
    shares::{self, Share},
};
use crate::{
    PgTransaction, attempts,
    charges::{self, JobCharge},
    codec::{to_address, to_enum},
    events,
    holdback::Earners,
    withheld_results, worker_records,
};

/// A case with its verdict.
type Judged<'a> = (&'a Case, &'a Accepted);

/// Completes jobs: pays for each, gives its owner the outputs, marks every result, and writes down what it says of each
/// worker. A job that moved on while it was judged is left alone, and does not concern the others.
///
/// # Errors
/// When one of them cannot be paid for, or a statement fails: then none is completed; the caller rolls back, and completes them
/// one by one.
pub async fn accept_all(
    tx: &mut PgTransaction<'_>,
    judged: &[Judged<'_>],
    now: OffsetDateTime,
) -> Result<Vec<Result<ReceiptId, VerdictError>>, VerdictError> {
    let standing = lock(tx, judged).await?;
    let open: Vec<Judged<'_>> = judged
        .iter()
        .filter(|(case, _)| standing.contains(&case.job))
        .copied()
        .collect();
    let mut receipts: HashMap<JobId, ReceiptId> = HashMap::new();
    if !open.is_empty() {
        let made = complete(tx, &open, now).await?;
        receipts.extend(open.iter().map(|(case, _)| case.job).zip(made));
    }
    let receipt = |(case, _): &Judged<'_>| receipts.remove(&case.job).ok_or(VerdictError::Moved);
    Ok(judged.iter().map(receipt).collect())
}

/// Locks jobs that are to be ruled on together, and the records of the workers that their verdicts may change, before
/// anything else: in the order in which everybody locks them.
pub async fn lock_all(
    tx: &mut PgTransaction<'_>,
    cases: &[&Case],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let jobs: Vec<_> = cases.iter().map(|case| case.job.0).collect();
    attempts::lock_jobs(tx, &jobs).await?;
    let judged = cases.iter().filter(|case| case.tier != Tier::None);
    let workers: BTreeSet<WorkerId> = judged
        .flat_map(|case| case.results.iter().map(|result| result.worker))
        .collect();
    for worker in workers {
        worker_records::lock(tx, worker, now).await?;
    }
    Ok(())
}

/// Locks the jobs; those that still wait for a verdict on these very results.
async fn lock(
    tx: &mut PgTransaction<'_>,
    judged: &[Judged<'_>],
) -> Result<BTreeSet<JobId>, VerdictError> {
    let jobs: Vec<_> = judged.iter().map(|(case, _)| case.job.0).collect();
    attempts::lock_jobs(tx, &jobs).await?;
    let rows = sqlx::query!(
        "SELECT job_id, state FROM jobs WHERE job_id = ANY ($1)",
        &jobs
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut verifying = BTreeSet::new();
    for row in rows {
        if to_enum("state", &row.state, JobState::parse)? == JobState::Verifying {
            verifying.insert(JobId(row.job_id));
        }
    }
    let mut shown = results_of(tx, &jobs).await?;
    verifying.retain(|job| {
        let results = shown.remove(job).unwrap_or_default();
        judged
            .iter()
            .any(|(case, _)| case.job == *job && case.results == results)
    });
    Ok(verifying)
}

async fn complete(
    tx: &mut PgTransaction<'_>,
    judged: &[Judged<'_>],
    now: OffsetDateTime,
) -> Result<Vec<ReceiptId>, VerdictError> {
    let evidence = write_verdicts(tx, judged, now).await?;
    mark(tx, judged).await?;
    deliver(tx, judged, now).await?;
    let payees = payees(tx, judged).await?;
    let mut charged: Vec<(JobCharge, Earners)> = Vec::with_capacity(judged.len());
    for ((case, verdict), evidence) in judged.iter().zip(evidence) {
        let paid = record::paid_results(case, verdict);
        let shares = match &case.spec {
            JobSpec::Inference(_) => whole_executions(&paid, &payees),
            JobSpec::Training(_) => shares::of(tx, case, &paid).await?,
        };
        let earners = record::judge(tx, case, verdict, &shares, now).await?;
        let result = case
            .results
            .get(verdict.reference)
            .ok_or(VerdictError::Moved)?;
        let charge = JobCharge {
            job: case.job,
            account: case.account,
            payer: case.payer,
            asset_id: case.asset_id,
            meter: case.meter,
            price: case.price,
            amount: case.amount,
            shares: shares.iter().map(|it| (it.payee, it.steps)).collect(),
            data: case.data.as_ref().map(|it| it.charge.clone()),
            input: case.spec_sha256,
            result: result.result,
            verdict: evidence,
        };
        charged.push((charge, earners));
    }
    // Late: other jobs of the payers wait for these locks.
    let mut due: Vec<(&JobCharge, &Earners)> = Vec::with_capacity(charged.len());
    for (charge, earners) in &charged {
        due.push((charge, earners));
    }
    let receipts = charges::settle_all(tx, &due, now).await?;
    for (case, verdict) in judged {
        let paid = record::paid_results(case, verdict);
        record::owe_confirmations(tx, case, verdict, &paid, now).await?;
    }
    finish(tx, judged, &receipts, now).await?;
    Ok(receipts)
}

/// Shares of inference: each owner gets as much as it has executions.
fn whole_executions(paid: &[&ShownResult], payees: &HashMap<WorkerId, Address>) -> Vec<Share> {
    let mut work: BTreeMap<Address, Share> = BTreeMap::new();
    for result in paid {
        let Some(payee) = payees.get(&result.worker) else {
            continue;
        };
        let share = work.entry(*payee).or_insert(Share {
            payee: *payee,
            worker: result.worker,
            steps: 0,
        });
        share.steps = share.steps.saturating_add(1);
    }
    work.into_values().collect()
}

/// Whom the earnings of workers go to.
async fn payees(
    conn: &mut PgConnection,
    judged: &[Judged<'_>],
) -> sqlx::Result<HashMap<WorkerId, Address>> {
    let workers: BTreeSet<_> = judged
        .iter()
        .flat_map(|(case, _)| case.results.iter().map(|result| result.worker.0))
        .collect();
    let workers: Vec<_> = workers.into_iter().collect();
    let rows = sqlx::query!(
        r#"SELECT worker_id, address AS "address!" FROM workers JOIN accounts USING (account_id)
           WHERE worker_id = ANY ($1)"#,
        &workers,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok((
                WorkerId(row.worker_id),
                to_address("address", &row.address)?,
            ))
        })
        .collect()
}

async fn write_verdicts(
    tx: &mut PgTransaction<'_>,
    judged: &[Judged<'_>],
    now: OffsetDateTime,
) -> Result<Vec<Sha256>, VerdictError> {
    let digests = judged
        .iter()
        .map(|(_, verdict)| Sha256::of_document(&verdict.evidence));
    let digests = digests.collect::<Result<Vec<_>, _>>()?;
    let kinds = judged.iter().map(|(_, it)| it.kind.as_str().to_owned());
    let evidence: Vec<Value> = judged.iter().map(|(_, it)| it.evidence.clone()).collect();
    sqlx::query!(
        "INSERT INTO verdicts (job_id, kind, evidence, evidence_sha256, decided_at)
         SELECT it.job, it.kind, it.evidence, it.digest, $5
         FROM UNNEST($1::uuid[], $2::text[], $3::jsonb[], $4::bytea[]) AS it (job, kind, evidence, digest)",
        &judged.iter().map(|(case, _)| case.job.0).collect::<Vec<_>>(),
        &kinds.collect::<Vec<_>>(),
        &evidence,
        &digests.iter().map(|it| it.0.to_vec()).collect::<Vec<_>>(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(digests)
}

async fn mark(tx: &mut PgTransaction<'_>, judged: &[Judged<'_>]) -> sqlx::Result<()> {
    let (mut attempts, mut replicas, mut accepted, mut unlooked) = (vec![], vec![], vec![], vec![]);
    for (case, verdict) in judged {
        for (result, is_accepted) in case.results.iter().zip(&verdict.accepted) {
            attempts.push(result.attempt.0);
            replicas.push(result.replica.0);
            accepted.push(*is_accepted);
        }
        // A result that nobody looks at makes one fault good, too; what a comparison says is written by `judge`.
        if case.tier == Tier::None {
            unlooked.extend(case.results.iter().map(|result| result.worker.0));
        }
    }
    sqlx::query!(
        "WITH told AS (
             SELECT attempt, replica, CASE WHEN accepted THEN 'accepted' ELSE 'rejected' END AS state
             FROM UNNEST($1::uuid[], $2::uuid[], $3::boolean[]) AS it (attempt, replica, accepted)
         ), marked AS (
             UPDATE attempts SET state = told.state FROM told WHERE attempts.attempt_id = told.attempt
         )
         UPDATE replicas SET state = told.state FROM told WHERE replicas.replica_id = told.replica",
        &attempts,
        &replicas,
        &accepted,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE worker_records SET strikes = greatest(0, strikes - it.results)
         FROM (SELECT worker, count(*)::integer AS results FROM UNNEST($1::uuid[]) AS told (worker) GROUP BY worker) it
         WHERE worker_records.worker_id = it.worker AND strikes > 0",
        &unlooked,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Gives the jobs' owners their outputs; those that wait for the seller of a dataset are withheld.
async fn deliver(
    tx: &mut PgTransaction<'_>,
    judged: &[Judged<'_>],
    now: OffsetDateTime,
) -> Result<(), VerdictError> {
    let (mut jobs, mut accounts, mut names, mut blobs) = (vec![], vec![], vec![], vec![]);
    let (mut given, mut withheld) = (vec![], vec![]);
    for (case, verdict) in judged {
        let data = case.data.as_ref().filter(|it| it.is_released_by_seller);
        withheld.extend(data.map(|data| (*case, data)));
        let result = case.results.get(verdict.reference);
        for (name, sha256) in &result.ok_or(VerdictError::Moved)?.outputs {
            jobs.push(case.job.0);
            accounts.push(case.account.0);
            names.push(name.clone());
            blobs.push(sha256.0.to_vec());
            given.push(data.is_none());
        }
    }
    sqlx::query!(
        "WITH output AS (
             SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $6::boolean[]) AS it (job, account, name, sha256, given)
         ), listed AS (
             INSERT INTO job_outputs (job_id, name, sha256) SELECT job, name, sha256 FROM output
         )
         INSERT INTO blob_owners (account_id, sha256, created_at)
         SELECT DISTINCT account, sha256, $5::timestamptz FROM output WHERE given
         ON CONFLICT (account_id, sha256) DO NOTHING",
        &jobs,
        &accounts,
        &names,
        &blobs,
        now,
        &given,
    )
    .execute(&mut **tx)
    .await?;
    Ok(withheld_results::withhold(tx, &withheld, now).await?)
}

/// Moves the jobs to `completed`, takes them off what is due, and tells their owners.
async fn finish(
    tx: &mut PgTransaction<'_>,
    judged: &[Judged<'_>],
    receipts: &[ReceiptId],
    now: OffsetDateTime,
) -> Result<(), VerdictError> {
    let completed = JobState::Verifying.complete()?;
    let told = judged.iter().zip(receipts).map(|((_, verdict), receipt)| {
        json!({ "state": completed, "verdict": verdict.kind, "receipt_id": receipt })
    });
    sqlx::query!(
        "WITH done AS (
             UPDATE jobs SET state = $3, finished_at = $4, event_seq = event_seq + 1
             FROM UNNEST($1::uuid[], $2::jsonb[]) AS it (job, data)
             WHERE jobs.job_id = it.job
             RETURNING jobs.job_id, jobs.event_seq, it.data
         ), due AS (
             DELETE FROM verdicts_due WHERE job_id = ANY ($1)
         )
         INSERT INTO job_events (job_id, seq, kind, data, created_at)
         SELECT job_id, event_seq, $5, data, $4 FROM done",
        &judged
            .iter()
            .map(|(case, _)| case.job.0)
            .collect::<Vec<_>>(),
        &told.collect::<Vec<_>>(),
        completed.as_str(),
        now,
        events::kind::COMPLETED,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
