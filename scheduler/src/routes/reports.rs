//! What a worker reports in an exchange: checked, then taken, each kind in its own transaction.

use std::collections::BTreeSet;

use comptoir_domain::{
    id::{AttemptId, LeaseToken, WorkerId},
    job::Cause,
};
use comptoir_http::Problem;
use comptoir_store::{
    attempts::{self, HeldError},
    faults::{self, Condition, Fault, FaultError},
    work::{self, Outcome},
    workers::{self, Worker},
};
use comptoir_wire::work::{
    Ack, AckOutcome, Failure, FailureCause, Report, Reveal, Seal, WorkRequest,
};
use time::OffsetDateTime;

use crate::{
    SchedulerState,
    groups::Reports,
    metrics::REPORTS,
    steps::faults::{announce, settle_one},
};

/// What became of the reports of one exchange.
pub(super) struct TakenReports {
    /// One per report.
    pub acks: Vec<Ack>,
    /// Attempts that the worker still has: those it named or has just sealed, without those it has just ended.
    pub open: Vec<(AttemptId, LeaseToken)>,
}

/// Takes everything that was reported.
pub(super) async fn take(
    state: SchedulerState,
    worker: Worker,
    request: WorkRequest,
) -> Result<TakenReports, Problem> {
    let now = state.now();
    if worker.is_seen_anew(now) {
        note_seen(&state, worker.id, now).await?;
    }
    let worker = worker.id;
    let ended = request
        .reveals
        .iter()
        .map(|it| it.attempt_id)
        .chain(request.failures.iter().map(|it| it.attempt_id));
    let ended: BTreeSet<AttemptId> = ended.collect();
    let named = request
        .held
        .iter()
        .map(|it| (it.attempt_id, it.lease_token));
    let sealed = request
        .seals
        .iter()
        .map(|it| (it.attempt_id, it.lease_token));
    let open: BTreeSet<_> = named
        .chain(sealed)
        .filter(|(attempt, _)| !ended.contains(attempt))
        .collect();
    let mut acks = take_results(&state, worker, (request.seals, request.reveals), now).await?;
    for failure in request.failures {
        acks.push(take_failure(&state, worker, failure, now).await?);
    }
    for ack in &acks {
        count(ack);
    }
    // The ack of a stale seal says it all.
    let lost: BTreeSet<_> = acks
        .iter()
        .filter(|ack| ack.outcome == AckOutcome::StaleLease)
        .map(|ack| ack.attempt_id)
        .collect();
    let open = open
        .into_iter()
        .filter(|(attempt, _)| !lost.contains(attempt))
        .collect();
    Ok(TakenReports { acks, open })
}

async fn note_seen(
    state: &SchedulerState,
    worker: WorkerId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut tx = state.db.begin().await?;
    workers::forgo_durability(&mut tx).await?;
    workers::note_seen(&mut tx, worker, now).await?;
    tx.commit().await
}

async fn take_results(
    state: &SchedulerState,
    worker: WorkerId,
    (seals, reveals): (Vec<Seal>, Vec<Reveal>),
    now: OffsetDateTime,
) -> Result<Vec<Ack>, Problem> {
    let sealed: Vec<_> = seals.iter().map(|seal| seal.attempt_id).collect();
    let shown: Vec<_> = reveals.iter().map(|reveal| reveal.attempt_id).collect();
    let seals = seals.into_iter().map(|seal| work::Seal {
        worker,
        attempt: seal.attempt_id,
        token: seal.lease_token,
        seal: seal.seal,
        compute_ms: seal.compute_ms,
    });
    let reveals = reveals.into_iter().map(|reveal| work::Reveal {
        worker,
        attempt: reveal.attempt_id,
        token: reveal.lease_token,
        salt: reveal.salt.0,
        result: reveal.result_sha256,
        outputs: reveal.outputs,
    });
    let reports = Reports {
        seals: seals.collect(),
        reveals: reveals.collect(),
        now,
    };
    let taken = state.groups.take(reports).await?;
    for (attempt, outcome) in shown.iter().zip(&taken.reveals) {
        let (code, detail) = match outcome {
            Outcome::SealMismatch => ("seal_mismatch", "the result shown is not the one sealed"),
            Outcome::OutputMissing => ("output_missing", "the result lacks the output of its kind"),
            Outcome::Accepted | Outcome::Stale | Outcome::NotOrdered | Outcome::BlobMissing => {
                continue;
            }
        };
        let fault = worker_fault(code, detail);
        settle_one(state, *attempt, &fault, now)
            .await
            .map_err(|error| Problem::internal(&error))?;
    }
    let mut acks = acks(&sealed, Report::Seal, &taken.seals);
    acks.extend(self::acks(&shown, Report::Reveal, &taken.reveals));
    Ok(acks)
}

fn worker_fault(code: &str, detail: &str) -> Fault {
    Fault {
        cause: Cause::Worker,
        code: code.to_owned(),
        detail: detail.to_owned(),
        condition: Condition::Open,
    }
}

async fn take_failure(
    state: &SchedulerState,
    worker: WorkerId,
    failure: Failure,
    now: OffsetDateTime,
) -> Result<Ack, Problem> {
    let attempt = failure.attempt_id;
    let fault = Fault {
        cause: match failure.cause {
            FailureCause::Client => Cause::Client,
            FailureCause::Worker => Cause::Worker,
        },
        ..worker_fault(&failure.code, &failure.detail)
    };
    let mut tx = state.db.begin().await?;
    let outcome =
        match attempts::lock_held(&mut tx, worker, attempt, Some(failure.lease_token)).await {
            Ok(_) => {
                let settled = faults::settle(&mut tx, attempt, &fault, now)
                    .await
                    .map_err(fault_problem)?;
                tx.commit().await?;
                match settled {
                    Some(settled) => {
                        announce(state, attempt, &fault, &settled);
                        AckOutcome::Accepted
                    }
                    None => AckOutcome::StaleLease,
                }
            }
            Err(HeldError::Stale)
                if attempts::failed_with(&mut tx, worker, attempt, &fault.code).await? =>
            {
                AckOutcome::Accepted
            }
            Err(HeldError::Unknown | HeldError::Stale) => AckOutcome::StaleLease,
            Err(HeldError::Database(error)) => return Err(error.into()),
        };
    Ok(Ack {
        attempt_id: attempt,
        report: Report::Failure,
        outcome,
    })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that `map_err` calls"
)]
fn fault_problem(error: FaultError) -> Problem {
    Problem::internal(&error)
}

fn acks(attempts: &[AttemptId], report: Report, outcomes: &[Outcome]) -> Vec<Ack> {
    let acks = attempts.iter().zip(outcomes);
    acks.map(|(attempt_id, outcome)| Ack {
        attempt_id: *attempt_id,
        report,
        outcome: match outcome {
            Outcome::Accepted => AckOutcome::Accepted,
            Outcome::Stale => AckOutcome::StaleLease,
            Outcome::NotOrdered => AckOutcome::NotOrdered,
            Outcome::BlobMissing => AckOutcome::BlobMissing,
            Outcome::SealMismatch => AckOutcome::SealMismatch,
            Outcome::OutputMissing => AckOutcome::OutputMissing,
        },
    })
    .collect()
}

fn count(ack: &Ack) {
    let report = match ack.report {
        Report::Seal => "seal",
        Report::Reveal => "reveal",
        Report::Failure => "failure",
    };
    let outcome = match ack.outcome {
        AckOutcome::Accepted => "accepted",
        AckOutcome::StaleLease => "stale_lease",
        AckOutcome::NotOrdered => "not_ordered",
        AckOutcome::BlobMissing => "blob_missing",
        AckOutcome::SealMismatch => "seal_mismatch",
        AckOutcome::OutputMissing => "output_missing",
    };
    metrics::counter!(REPORTS, "report" => report, "outcome" => outcome).increment(1);
    if ack.outcome != AckOutcome::Accepted {
        tracing::info!(attempt = %ack.attempt_id, report, outcome, "report refused");
    }
}
