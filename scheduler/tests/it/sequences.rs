//! Random sequences of protocol calls, in and out of order, repeated and with stale leases: only legal transitions
//! happen, and the money adds up after each.

use std::collections::BTreeMap;

use comptoir_domain::{
    digest::Sha256,
    id::{JobId, LeaseToken},
    job::{JobState, Tier},
};
use comptoir_scheduler::{
    steps,
    stub::{StubResult, StubWorker, tensor_file},
};
use comptoir_wire::{
    attempt::SegmentRequest,
    work::{Failure, FailureCause, Lease, WorkRequest},
};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy},
    prop_oneof,
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use sqlx::PgPool;

use crate::harness::{BUDGET, Bench, Client, held, inference, now, training};

/// Sequences of one run.
const CASES: usize = 12;

#[derive(Debug, Clone)]
enum Call {
    Ask,
    /// Of the newest lease, or of the one before it.
    Seal {
        newest: bool,
        value: u8,
    },
    Reveal {
        newest: bool,
    },
    /// Under a token that was never given out.
    Forge,
    Checkpoint {
        segment: u32,
    },
    Fail {
        client: bool,
    },
    Beat,
    LoseLeases,
    MissReveals,
    PassBackoff,
    Rule,
    Cancel,
}

fn calls() -> impl Strategy<Value = Vec<(usize, Call)>> {
    let one_in = |sides: u8| (0..sides).prop_map(|dice| dice == 0);
    let call = prop_oneof![
        8 => Just(Call::Ask),
        12 => (one_in(5), one_in(8)).prop_map(|(older, wrong)| Call::Seal { newest: !older, value: wrong.into() }),
        12 => one_in(5).prop_map(|older| Call::Reveal { newest: !older }),
        1 => Just(Call::Forge),
        3 => (0..3_u32).prop_map(|segment| Call::Checkpoint { segment }),
        1 => one_in(8).prop_map(|client| Call::Fail { client }),
        2 => Just(Call::Beat),
        1 => Just(Call::LoseLeases),
        1 => Just(Call::MissReveals),
        6 => Just(Call::PassBackoff),
        6 => Just(Call::Rule),
        1 => one_in(16).prop_map(|cancel| if cancel { Call::Cancel } else { Call::Rule }),
    ];
    vec((0..3_usize, call), 10..60)
}

/// What a worker remembers.
#[derive(Default)]
struct Memory {
    leases: Vec<Lease>,
    results: BTreeMap<uuid::Uuid, StubResult>,
}

impl Memory {
    fn lease(&self, newest: bool) -> Option<&Lease> {
        let back = if newest { 1 } else { 2 };
        self.leases
            .len()
            .checked_sub(back)
            .and_then(|place| self.leases.get(place))
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whatever_workers_send_only_legal_transitions_happen(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let workers = [
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
        bench.worker(0xca).await,
    ];
    let mut runner = TestRunner::deterministic();
    let mut ends = BTreeMap::<&str, usize>::new();
    for case in 0..CASES {
        let calls = calls().new_tree(&mut runner).unwrap().current();
        let (spec, tier) = match case % 3 {
            0 => (inference(), Tier::Replicated),
            1 => (training(), Tier::Replicated),
            _ => (training(), Tier::None),
        };
        let before = bench.available(client.address).await;
        let job = bench.submit(client, &spec, tier).await;
        let mut memories: [Memory; 3] = Default::default();
        let mut state = JobState::Queued;
        for (place, (who, call)) in calls.iter().chain(&honest_end()).enumerate() {
            if state.is_final() && place >= calls.len() {
                break;
            }
            make(
                &bench,
                client,
                job,
                (&workers[*who], &mut memories[*who]),
                call,
            )
            .await;
            let next = bench.job(client, job).await.state;
            let told =
                format!("case {case}, call {place}: {call:?} moved {state} to {next} in {calls:?}");
            assert!(is_legal(state, next), "{told}");
            state = next;
            assert_consistent(&bench, client, job, before, &told).await;
        }
        *ends.entry(state.as_str()).or_default() += 1;
        if !state.is_final() {
            bench.cancel(client, job).await;
        }
    }
    let completed = ends.get("completed").copied().unwrap_or_default();
    assert!(
        completed >= CASES / 2,
        "honest workers end most jobs: {ends:?}"
    );
}

/// Everyone does what the protocol says, for some rounds.
fn honest_end() -> Vec<(usize, Call)> {
    let turn = |who| {
        let seal = Call::Seal {
            newest: true,
            value: 0,
        };
        [Call::Ask, seal, Call::Reveal { newest: true }].map(|call| (who, call))
    };
    let round = || {
        [(0, Call::PassBackoff)]
            .into_iter()
            .chain((0..3).flat_map(turn))
            .chain((0..3).flat_map(turn))
    };
    (0..4)
        .flat_map(|_| round().chain([(0, Call::Rule)]))
        .collect()
}

async fn make(
    bench: &Bench,
    client: Client,
    job: JobId,
    (worker, memory): (&StubWorker, &mut Memory),
    call: &Call,
) {
    match call {
        Call::Ask => {
            let held = memory.leases.iter().map(held).collect();
            let request = WorkRequest {
                wanted: 2,
                held,
                ..WorkRequest::default()
            };
            memory
                .leases
                .extend(worker.work(&request).await.unwrap().leases);
        }
        Call::Beat => {
            worker
                .heartbeat(memory.leases.iter().map(held).collect())
                .await
                .unwrap();
        }
        Call::Seal { newest, .. } | Call::Reveal { newest } => {
            let Some(lease) = memory.lease(*newest).cloned() else {
                return;
            };
            commit_or_show(worker, memory, &lease, call).await;
        }
        Call::Forge => {
            let Some(lease) = memory.lease(true) else {
                return;
            };
            forge(worker, lease).await;
        }
        Call::Checkpoint { segment } => {
            let Some(lease) = memory.lease(true) else {
                return;
            };
            let Ok(checkpoint) = worker.upload(held(lease), tensor_file(&[0.5])).await else {
                return;
            };
            let request = SegmentRequest {
                segment: *segment,
                checkpoint,
            };
            let _refused = worker.checkpoint(held(lease), &request).await;
        }
        Call::Fail { client } => {
            let Some(lease) = memory.lease(true) else {
                return;
            };
            let cause = if *client {
                FailureCause::Client
            } else {
                FailureCause::Worker
            };
            let request = WorkRequest {
                failures: vec![failure(lease, cause)],
                ..WorkRequest::default()
            };
            worker.work(&request).await.unwrap();
        }
        Call::LoseLeases | Call::MissReveals | Call::PassBackoff | Call::Rule | Call::Cancel => {
            happen(bench, client, job, call).await;
        }
    }
}

/// Reports under a lease token that was never given out.
async fn forge(worker: &StubWorker, lease: &Lease) {
    let forged = Lease {
        lease_token: LeaseToken::generate(),
        ..lease.clone()
    };
    let result = StubResult::of(&forged, Sha256::of(b"forged"));
    let request = WorkRequest {
        held: vec![held(&forged)],
        seals: vec![result.seal(worker.id)],
        failures: vec![failure(&forged, FailureCause::Client)],
        ..WorkRequest::default()
    };
    worker.work(&request).await.unwrap();
}

async fn commit_or_show(worker: &StubWorker, memory: &mut Memory, lease: &Lease, call: &Call) {
    let known = memory.results.get(&lease.attempt_id.0).cloned();
    let request = if let Call::Seal { value, .. } = call {
        let content = tensor_file(&[f32::from(*value)]);
        let _refused = worker.upload(held(lease), content.clone()).await;
        let result = StubResult::of(lease, Sha256::of(&content));
        // The first seal is the one that counts.
        memory
            .results
            .entry(lease.attempt_id.0)
            .or_insert_with(|| result.clone());
        WorkRequest {
            seals: vec![result.seal(worker.id)],
            ..WorkRequest::default()
        }
    } else {
        let result = known.unwrap_or_else(|| StubResult::of(lease, Sha256::of(b"unsealed")));
        WorkRequest {
            reveals: vec![result.reveal()],
            ..WorkRequest::default()
        }
    };
    worker.work(&request).await.unwrap();
}

/// What happens without the workers.
async fn happen(bench: &Bench, client: Client, job: JobId, call: &Call) {
    match call {
        Call::LoseLeases => {
            run(bench, "UPDATE queue SET lease_expires_at = clock_timestamp() WHERE lease_token IS NOT NULL").await;
            steps::faults::expire_leases(&bench.state, now())
                .await
                .unwrap();
        }
        Call::MissReveals => {
            run(
                bench,
                "UPDATE attempts SET reveal_by = clock_timestamp() WHERE state = 'sealed' AND reveal_by IS NOT NULL",
            )
            .await;
            steps::faults::fail_missing_reveals(&bench.state, now())
                .await
                .unwrap();
        }
        Call::PassBackoff => bench.pass_backoff().await,
        Call::Cancel if !bench.job(client, job).await.state.is_final() => {
            bench.cancel(client, job).await;
        }
        _ => {
            bench.rule().await;
        }
    }
}

async fn run(bench: &Bench, sql: &'static str) {
    sqlx::query(sql).execute(&bench.owner).await.unwrap();
}

fn failure(lease: &Lease, cause: FailureCause) -> Failure {
    Failure {
        attempt_id: lease.attempt_id,
        lease_token: lease.lease_token,
        cause,
        code: "told_by_test".into(),
        detail: String::new(),
    }
}

fn is_legal(from: JobState, to: JobState) -> bool {
    match from {
        JobState::Queued => matches!(
            to,
            JobState::Queued | JobState::Leased | JobState::Cancelled | JobState::Failed
        ),
        JobState::Leased => to != JobState::Completed && to != JobState::Expired,
        JobState::Verifying => to != JobState::Expired && to != JobState::Leased,
        JobState::Completed | JobState::Failed | JobState::Cancelled | JobState::Expired => {
            from == to
        }
    }
}

/// What must hold between any two calls.
async fn assert_consistent(bench: &Bench, client: Client, job: JobId, before: u128, told: &str) {
    let broken: Vec<String> = sqlx::query_scalar(
        "SELECT 'two open attempts of one replica' FROM attempts WHERE job_id = $1 AND ended_at IS NULL
             GROUP BY replica_id HAVING count(*) > 1
         UNION ALL
         SELECT 'an open attempt without a lease' FROM attempts LEFT JOIN queue USING (attempt_id)
             WHERE attempts.job_id = $1 AND ended_at IS NULL AND queue.lease_token IS NULL
         UNION ALL
         SELECT 'a lease without an open attempt' FROM queue LEFT JOIN attempts USING (attempt_id)
             WHERE queue.job_id = $1 AND queue.lease_token IS NOT NULL AND (ended_at IS NOT NULL OR attempts.state IS NULL)
         UNION ALL
         SELECT 'a queue row of a job that ended' FROM queue JOIN jobs USING (job_id)
             WHERE job_id = $1 AND finished_at IS NOT NULL
         UNION ALL
         SELECT 'a replica whose state is not its attempt''s' FROM replicas JOIN attempts USING (replica_id)
             WHERE replicas.job_id = $1 AND ended_at IS NULL
                 AND replicas.state <> CASE attempts.state WHEN 'running' THEN 'leased' ELSE attempts.state END
         UNION ALL
         SELECT 'too many attempts' FROM attempts WHERE job_id = $1 AND number > 5
         UNION ALL
         SELECT 'a receipt without completion, or completion without a receipt' FROM jobs LEFT JOIN receipts USING (job_id)
             WHERE job_id = $1 AND (jobs.state = 'completed') <> (receipt_id IS NOT NULL)
         UNION ALL
         SELECT 'money appeared or vanished' FROM ledger_accounts HAVING sum(balance_base) <> 0",
    )
    .bind(job.0)
    .fetch_all(&bench.owner)
    .await
    .unwrap();
    assert!(broken.is_empty(), "{broken:?} after {told}");
    let found = bench.job(client, job).await;
    let balances = bench.balances(client.address).await;
    let (open, charged) = (
        !found.state.is_final(),
        found.charge.map_or(0, |charge| charge.amount.base()),
    );
    let on_hold = if open { found.hold.base() } else { 0 };
    assert_eq!(balances.held.base(), on_hold, "{told}");
    assert_eq!(
        balances.available.base(),
        before - on_hold - charged,
        "{told}"
    );
    assert!(before <= BUDGET);
}
