//! Jobs whose results are all shown are compared, ruled on, and paid for.

use std::collections::BTreeSet;

use comptoir_domain::{
    id::JobId,
    replay::{Next, Piece},
    verdict::{Agreement, MAX_REF_MAX, REL_L2_MAX, Ruling, VerdictKind, rule},
};
use comptoir_store::{
    PgTransaction,
    draws::MadeDraw,
    verdicts::{self, Accepted, Case, Reason, VerdictError},
    wake::Channel,
};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Progress, ROUND_MAX, StepError, chain};
use crate::{
    SchedulerState, compare,
    metrics::{STEP_ERRORS, VERDICTS},
    replay,
};

/// Jobs that are ruled on at once; each holds a connection, and they wait for each other at the platform's account.
const AT_ONCE: usize = 4;

/// Rules on jobs that wait for it: those that get a result together, the others one by one. One that cannot be ruled on now is
/// tried again in a minute.
pub async fn rule_due(state: &SchedulerState, now: OffsetDateTime) -> Result<Progress, StepError> {
    let mut conn = state.groups.db.acquire().await?;
    let due = verdicts::take_due(&mut conn, ROUND_MAX).await?;
    let found = due.len();
    if found < 2 {
        drop(conn);
        let ruled = rule_one_by_one(state, due, now).await;
        return Ok(Progress::of(found, ruled));
    }
    let cases = verdicts::find_cases(&mut conn, &due).await;
    drop(conn);
    let (done, left) = match cases {
        Ok(cases) => rule_together(state, cases, &due, now).await,
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                "a group of jobs is ruled on one by one"
            );
            (0, due)
        }
    };
    Ok(Progress::of(
        found,
        done + rule_one_by_one(state, left, now).await,
    ))
}

/// How many were ruled on.
async fn rule_one_by_one(state: &SchedulerState, jobs: Vec<JobId>, now: OffsetDateTime) -> usize {
    let rulings = jobs.into_iter().map(|job| try_to_rule(state, job, now));
    let ruled: Vec<bool> = stream::iter(rulings)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    ruled.into_iter().filter(|ruled| *ruled).count()
}

/// Completes, in one transaction, the jobs that get a result. How many those are, and which jobs are left.
async fn rule_together(
    state: &SchedulerState,
    cases: Vec<Case>,
    due: &[JobId],
    now: OffsetDateTime,
) -> (usize, Vec<JobId>) {
    let compared = cases.into_iter().map(|case| compared(state, case));
    let compared: Vec<Option<Compared>> = stream::iter(compared)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    // What could not be compared is left, and says why when its turn comes.
    let compared: Vec<Compared> = compared.into_iter().flatten().collect();
    let completed = match complete(state, &compared, now).await {
        Ok(completed) => completed,
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                "a group of jobs is ruled on one by one"
            );
            BTreeSet::new()
        }
    };
    let left = due.iter().filter(|job| !completed.contains(job));
    (completed.len(), left.copied().collect())
}

/// A case, and how its results compare.
type Compared = (Case, Vec<(usize, usize, Agreement)>);

async fn compared(state: &SchedulerState, case: Case) -> Option<Compared> {
    let pairs = compare::all_pairs(&state.objects, &case).await.ok()?;
    Some((case, pairs))
}

async fn complete(
    state: &SchedulerState,
    compared: &[Compared],
    now: OffsetDateTime,
) -> Result<BTreeSet<JobId>, VerdictError> {
    let cases: Vec<&Case> = compared.iter().map(|(case, _)| case).collect();
    let mut tx = state.groups.db.begin().await?;
    verdicts::lock_all(&mut tx, &cases, now).await?;
    let mut accepted = Vec::with_capacity(cases.len());
    // What was computed on a dataset may be refused for its size, which is ruled on alone.
    for (case, pairs) in compared.iter().filter(|(case, _)| case.data.is_none()) {
        let draw = match verdicts::draw(&mut tx, case, now).await {
            Err(VerdictError::Moved) => continue,
            draw => draw?,
        };
        let (ruling, _) = ruling((case, draw.as_ref()), pairs);
        if let Some(verdict) = accepting((case, draw.as_ref()), &ruling, pairs) {
            accepted.push((case, verdict, ruling));
        }
    }
    let judged: Vec<_> = accepted
        .iter()
        .map(|(case, verdict, _)| (*case, verdict))
        .collect();
    let receipts = verdicts::accept_all(&mut tx, &judged, now).await?;
    tx.commit().await?;
    let mut completed = BTreeSet::new();
    for ((case, _, ruling), receipt) in accepted.iter().zip(receipts) {
        if receipt.is_ok() {
            announce(state, case, ruling);
            completed.insert(case.job);
        }
    }
    Ok(completed)
}

/// What follows from the results so far, and the piece that is run again.
fn ruling(
    (case, draw): (&Case, Option<&MadeDraw>),
    pairs: &[(usize, usize, Agreement)],
) -> (Ruling, Option<Piece>) {
    let agreement = |left, right| {
        let found = pairs.iter().find(|(a, b, _)| (*a, *b) == (left, right));
        found.map_or(Agreement::None(None), |(_, _, agreement)| *agreement)
    };
    let audited = draw.is_some_and(|made| made.draw.is_audited());
    match replay::next(case, draw) {
        None => (
            rule(case.tier, audited, case.results.len(), agreement),
            None,
        ),
        Some(Next::Ruled(ruling)) => (ruling, None),
        Some(Next::Whole) => (Ruling::Another, None),
        Some(Next::Replay(number)) => (Ruling::Another, replay::piece(case, number)),
    }
}

/// The verdict that gives the job a result, if the ruling does.
fn accepting(
    of: (&Case, Option<&MadeDraw>),
    ruling: &Ruling,
    pairs: &[(usize, usize, Agreement)],
) -> Option<Accepted> {
    let Ruling::Accept {
        kind,
        reference,
        accepted,
    } = ruling
    else {
        return None;
    };
    Some(Accepted {
        kind: *kind,
        reference: *reference,
        accepted: accepted.clone(),
        evidence: evidence(of, *kind, accepted, pairs),
    })
}

async fn try_to_rule(state: &SchedulerState, job: JobId, now: OffsetDateTime) -> bool {
    let ruled = rule_on(state, job, now).await;
    if let Err(error) = &ruled {
        metrics::counter!(STEP_ERRORS, "step" => "verdict").increment(1);
        tracing::error!(%job, error = chain(error), "no verdict yet");
    }
    ruled.is_ok()
}

async fn rule_on(state: &SchedulerState, job: JobId, now: OffsetDateTime) -> Result<(), StepError> {
    let mut conn = state.db.acquire().await?;
    let Some(case) = verdicts::find_case(&mut conn, job).await? else {
        // Cancelled, expired, or ruled on before.
        verdicts::drop_due(&mut conn, job).await?;
        return Ok(());
    };
    drop(conn);
    let pairs = compare::all_pairs(&state.objects, &case).await?;
    let mut tx = state.db.begin().await?;
    let ruled = async {
        let draw = verdicts::draw(&mut tx, &case, now).await?;
        let (ruling, piece) = ruling((&case, draw.as_ref()), &pairs);
        apply(
            &mut tx,
            (&case, draw.as_ref()),
            (&ruling, piece),
            &pairs,
            now,
        )
        .await?;
        Ok::<_, VerdictError>(ruling)
    };
    let ruling = match ruled.await {
        Ok(ruling) => ruling,
        Err(VerdictError::Moved) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    tx.commit().await?;
    announce(state, &case, &ruling);
    Ok(())
}

async fn apply(
    tx: &mut PgTransaction<'_>,
    (case, draw): (&Case, Option<&MadeDraw>),
    (ruling, piece): (&Ruling, Option<Piece>),
    pairs: &[(usize, usize, Agreement)],
    now: OffsetDateTime,
) -> Result<(), VerdictError> {
    match ruling {
        Ruling::Accept { .. } => {
            let verdict = accepting((case, draw), ruling, pairs).ok_or(VerdictError::Moved)?;
            if verdicts::refuse_above_terms(tx, case, &verdict, now).await? {
                return Ok(());
            }
            verdicts::accept(tx, case, &verdict, now).await?;
        }
        Ruling::Another => {
            let reason = if case.results.len() == 1 {
                Reason::Audit
            } else {
                Reason::Differ
            };
            verdicts::add_replica(tx, case, (reason, piece), now).await?;
        }
        Ruling::Unstable => {
            let evidence = evidence((case, draw), VerdictKind::Unstable, &[], pairs);
            verdicts::give_up(tx, case, &evidence, now).await?;
        }
    }
    Ok(())
}

/// What the verdict rests on, in a form that anyone can check against the outputs.
fn evidence(
    (case, draw): (&Case, Option<&MadeDraw>),
    kind: VerdictKind,
    accepted: &[bool],
    pairs: &[(usize, usize, Agreement)],
) -> Value {
    let results = case.results.iter().enumerate().map(|(place, result)| {
        json!({
            "replica": result.ordinal,
            "attempt_id": result.attempt,
            "worker_id": result.worker,
            "numeric_class": result.class,
            "seal": result.seal,
            "salt": result.salt,
            "result_sha256": result.result,
            "outputs": result.outputs,
            "accepted": accepted.get(place),
            "replayed": result.replay.map(|piece| json!({
                "piece": piece.number, "from_step": piece.from, "until_step": piece.until,
            })),
        })
    });
    let ordinal = |place: usize| case.results.get(place).map(|result| result.ordinal);
    let comparisons = pairs.iter().map(|(left, right, agreement)| {
        let (word, deviation) = match agreement {
            Agreement::Bitwise => ("bitwise", None),
            Agreement::Tolerance(deviation) => ("tolerance", Some(deviation)),
            Agreement::None(deviation) => ("none", deviation.as_ref()),
        };
        // JSON has no infinity: a total deviation is told as `null`.
        let metric = |value: Option<f64>| value.filter(|value| value.is_finite());
        json!({
            "replicas": [ordinal(*left), ordinal(*right)],
            "agreement": word,
            "rel_l2": metric(deviation.map(|deviation| deviation.rel_l2)),
            "max_ref": metric(deviation.map(|deviation| deviation.max_ref)),
        })
    });
    let draw = draw.map(|made| {
        json!({
            "attempt_id": made.attempt,
            "trusted": made.draw.trusted,
            "rate_ppm": made.draw.rate_ppm,
            "drawn_ppm": made.draw.drawn_ppm,
            "audited": made.draw.is_audited(),
            "piece": made.piece,
            "seed_commitment": made.commitment,
        })
    });
    json!({
        "kind": kind,
        "tier": case.tier,
        "draw": draw,
        "results": results.collect::<Vec<_>>(),
        "comparisons": comparisons.collect::<Vec<_>>(),
        "thresholds": { "rel_l2": REL_L2_MAX, "max_ref": MAX_REF_MAX },
    })
}

fn announce(state: &SchedulerState, case: &Case, ruling: &Ruling) {
    let kind = match ruling {
        Ruling::Accept { kind, .. } => kind.as_str(),
        Ruling::Another => "another",
        Ruling::Unstable => VerdictKind::Unstable.as_str(),
    };
    tracing::info!(job = %case.job, verdict = kind, results = case.results.len(), "job judged");
    metrics::counter!(VERDICTS, "kind" => kind).increment(1);
    state.wake.publish(Channel::Job(case.job));
    if *ruling == Ruling::Another {
        state.wake.publish(Channel::Work);
    }
}
