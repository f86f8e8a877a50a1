//! Jobs whose results are all shown are compared, ruled on, and paid for.

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
    SchedulerState, compare, replay,
    metrics::{STEP_ERRORS, VERDICTS},
};

/// Jobs that are ruled on at once; each holds a connection, and they wait for each other at the platform's account.
const AT_ONCE: usize = 4;

/// Rules on jobs that wait for it. One that cannot be ruled on now is tried again in a minute.
pub async fn rule_due(state: &SchedulerState, now: OffsetDateTime) -> Result<Progress, StepError> {
    let due = verdicts::take_due(&mut *state.db.acquire().await?, ROUND_MAX).await?;
    let found = due.len();
    let rulings = due.into_iter().map(|job| try_to_rule(state, job, now));
    let ruled: Vec<bool> = stream::iter(rulings)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    Ok(Progress::of(
        found,
        ruled.into_iter().filter(|ruled| *ruled).count(),
    ))
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
    let agreement = |left, right| {
        let found = pairs.iter().find(|(a, b, _)| (*a, *b) == (left, right));
        found.map_or(Agreement::None(None), |(_, _, agreement)| *agreement)
    };
    let mut tx = state.db.begin().await?;
    let ruled = async {
        let draw = verdicts::draw(&mut tx, &case, now).await?;
        let audited = draw.as_ref().is_some_and(|made| made.draw.is_audited());
        let (ruling, piece) = match replay::next(&case, draw.as_ref()) {
            None => (rule(case.tier, audited, case.results.len(), agreement), None),
            Some(Next::Ruled(ruling)) => (ruling, None),
            Some(Next::Whole) => (Ruling::Another, None),
            Some(Next::Replay(number)) => (Ruling::Another, replay::piece(&case, number)),
        };
        apply(&mut tx, (&case, draw.as_ref()), (&ruling, piece), &pairs, now).await?;
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
        Ruling::Accept {
            kind,
            reference,
            accepted,
        } => {
            let verdict = Accepted {
                kind: *kind,
                reference: *reference,
                accepted: accepted.clone(),
                evidence: evidence((case, draw), *kind, accepted, pairs),
            };
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
