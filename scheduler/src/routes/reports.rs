//! What a worker reports in an exchange: checked, then taken, each kind in its own transaction.

use std::collections::BTreeSet;

use comptoir_domain::{
    id::{AttemptId, LeaseToken, WorkerId},
    job::Cause,
};
use comptoir_http::{FieldError, Problem};
use comptoir_store::{
    attempts::{self, HeldError},
    faults::{self, Condition, Fault, FaultError},
    work::{self, Outcome},
    workers::{self, Worker},
};
use comptoir_wire::{
    CODE_CHARS_MAX, DETAIL_CHARS_MAX, LEASES_MAX, NAME_CHARS_MAX, OUTPUTS_MAX, REPORTS_MAX,
    WAIT_MS_MAX,
    work::{Ack, AckOutcome, Failure, FailureCause, Report, Reveal, Seal, WorkRequest},
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

/// Checks an exchange against the limits of the protocol.
pub(super) fn validate(request: &WorkRequest) -> Result<(), Problem> {
    let mut refused = Vec::new();
    let mut require = |pointer: String, fits: bool, detail: String| {
        if !fits {
            refused.push(FieldError::new(pointer, detail));
        }
    };
    require(
        "/wanted".into(),
        usize::from(request.wanted) <= LEASES_MAX,
        format!("at most {LEASES_MAX}"),
    );
    require(
        "/wait_ms".into(),
        request.wait_ms <= WAIT_MS_MAX,
        format!("at most {WAIT_MS_MAX}"),
    );
    let lists = [
        ("/held", request.held.len()),
        ("/seals", request.seals.len()),
        ("/reveals", request.reveals.len()),
        ("/failures", request.failures.len()),
    ];
    for (pointer, length) in lists {
        require(
            pointer.into(),
            length <= REPORTS_MAX,
            format!("at most {REPORTS_MAX}"),
        );
    }
    for (place, reveal) in request.reveals.iter().enumerate() {
        let names = |name: &String| (1..=NAME_CHARS_MAX).contains(&name.chars().count());
        let fits =
            (1..=OUTPUTS_MAX).contains(&reveal.outputs.len()) && reveal.outputs.keys().all(names);
        let detail =
            format!("1 to {OUTPUTS_MAX} outputs, names of 1 to {NAME_CHARS_MAX} characters");
        require(format!("/reveals/{place}/outputs"), fits, detail);
    }
    for (place, failure) in request.failures.iter().enumerate() {
        let detail = format!("1 to {CODE_CHARS_MAX} lower-case letters, digits and `_`");
        require(
            format!("/failures/{place}/code"),
            is_code(&failure.code),
            detail,
        );
        let short = failure.detail.chars().count() <= DETAIL_CHARS_MAX;
        require(
            format!("/failures/{place}/detail"),
            short,
            format!("at most {DETAIL_CHARS_MAX} characters"),
        );
    }
    if refused.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid_fields(refused))
    }
}

fn is_code(code: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=CODE_CHARS_MAX).contains(&code.len())
        && code.as_bytes()[0].is_ascii_lowercase()
        && code.bytes().all(inside)
}
