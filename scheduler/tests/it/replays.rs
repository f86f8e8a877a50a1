//! Audits of training: a piece between two checkpoints is run again, and what follows when it differs.

use std::collections::BTreeMap;

use comptoir_domain::{
    digest::Sha256,
    job::{JobState, Tier},
};
use comptoir_scheduler::stub::{StubResult, StubWorker, tensor_file};
use comptoir_wire::{
    OUTPUT_WEIGHTS,
    attempt::SegmentRequest,
    work::{Lease, WorkRequest},
};
use sqlx::PgPool;

use crate::harness::{Bench, Client, ask, held, lease, outcome, reveal, training};

/// What the three pieces of an honest run end with: two checkpoints, and the weights.
const HONEST: [f32; 3] = [1.0, 2.0, 3.0];

/// Runs all of a training: two checkpoints and the weights, of these values.
async fn run(worker: &StubWorker, lease: &Lease, ends: [f32; 3]) {
    assert_eq!(lease.until_step, None);
    for (segment, end) in ends.into_iter().take(2).enumerate() {
        let checkpoint = worker
            .upload(held(lease), tensor_file(&[end]))
            .await
            .unwrap();
        let segment = u32::try_from(segment).unwrap();
        let request = SegmentRequest {
            segment,
            checkpoint,
        };
        worker.checkpoint(held(lease), &request).await.unwrap();
    }
    show(worker, lease, ends[2], OUTPUT_WEIGHTS).await;
}

/// Replays a piece with this end; which one, and what it goes on from.
async fn replay(worker: &StubWorker, lease: &Lease, ends: [f32; 3]) -> (usize, Option<Sha256>) {
    // Pieces are 4, 4 and 2 of 10 steps.
    let (piece, name) = match lease.until_step.unwrap() {
        4 => (0, "checkpoint"),
        8 => (1, "checkpoint"),
        10 => (2, OUTPUT_WEIGHTS),
        other => panic!("no piece ends at step {other}"),
    };
    if let Some(resume) = lease.resume {
        let bytes = worker.download(held(lease), resume.sha256).await.unwrap();
        assert_eq!(Sha256::of(&bytes), resume.sha256);
        assert_eq!(resume.step, 4 * piece as u64);
    }
    show(worker, lease, ends[piece], name).await;
    (piece, lease.resume.map(|resume| resume.sha256))
}

async fn show(worker: &StubWorker, lease: &Lease, end: f32, name: &str) {
    let output = worker
        .upload(held(lease), tensor_file(&[end]))
        .await
        .unwrap();
    let mut result = StubResult::of(lease, output);
    result.outputs = BTreeMap::from([(name.to_owned(), output)]);
    let request = WorkRequest {
        seals: vec![result.seal(worker.id)],
        ..WorkRequest::default()
    };
    outcome(&worker.work(&request).await.unwrap());
    reveal(worker, &result).await;
}

async fn verdict(bench: &Bench, client: Client, job: comptoir_domain::id::JobId) -> Option<String> {
    bench.job(client, job).await.verdict
}

async fn is_barred(bench: &Bench, worker: &StubWorker) -> bool {
    sqlx::query_scalar("SELECT barred_at IS NOT NULL FROM worker_records WHERE worker_id = $1")
        .bind(worker.id.0)
        .fetch_optional(&bench.owner)
        .await
        .unwrap()
        .unwrap_or(false)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_audit_of_training_replays_one_piece_from_its_checkpoint(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (worker, auditor) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    let job = bench.submit(client, &training(), Tier::Sampled).await;
    run(&worker, &lease(&worker).await, HONEST).await;
    assert_eq!(bench.rule().await, 1);
    let audit = lease(&auditor).await;
    let (piece, from) = replay(&auditor, &audit, HONEST).await;
    let starts = [None, Some(1.0), Some(2.0)];
    assert_eq!(
        from,
        starts[piece].map(|start| Sha256::of(&tensor_file(&[start])))
    );
    assert_eq!(bench.rule().await, 1);
    let done = bench.job(client, job).await;
    assert_eq!(
        (done.state, done.verdict.as_deref()),
        (JobState::Completed, Some("bitwise"))
    );
    let output: Vec<u8> = sqlx::query_scalar("SELECT sha256 FROM job_outputs")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(
        output,
        Sha256::of(&tensor_file(&[3.0])).0,
        "the weights of the run"
    );
    // The house owes for the steps that were replayed, and not for all of them.
    let earned = bench.earned(job).await[&0xa1];
    let owed: String = sqlx::query_scalar("SELECT amount_base::text FROM audit_pays")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    let steps = [4, 4, 2][piece];
    assert_eq!(owed.parse::<u128>().unwrap(), earned * steps / 10);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_forged_run_is_found_where_it_parts_from_an_honest_one(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let forger = bench.worker(0xa1).await;
    let job = bench.submit(client, &training(), Tier::Sampled).await;
    run(&forger, &lease(&forger).await, [7.0, 8.0, 9.0]).await;
    assert_eq!(bench.rule().await, 1);
    let auditor = bench.worker(0xb0).await;
    // What honest steps make of forged checkpoints is neither the forger's nor the honest run's.
    let audit = lease(&auditor).await;
    let (piece, _) = replay(&auditor, &audit, [1.0, 5.0, 6.0]).await;
    assert_eq!(bench.rule().await, 1);
    let second = bench.worker(0xca).await;
    run(&second, &lease(&second).await, HONEST).await;
    assert_eq!(bench.rule().await, 1);
    if piece > 0 {
        // They part at the first piece: somebody else replays that from the start.
        let decider = bench.worker(0xd2).await;
        let decision = lease(&decider).await;
        assert_eq!((decision.until_step, decision.resume), (Some(4), None));
        replay(&decider, &decision, HONEST).await;
        assert_eq!(bench.rule().await, 1);
    }
    assert_eq!(
        verdict(&bench, client, job).await.as_deref(),
        Some("bitwise")
    );
    assert!(is_barred(&bench, &forger).await);
    assert!(!is_barred(&bench, &auditor).await && !is_barred(&bench, &second).await);
    let paid: Vec<u8> = bench.earned(job).await.into_keys().collect();
    assert_eq!(paid, [0xca], "the honest run, and not the forged one");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_false_auditor_is_found_by_a_second_run(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (worker, liar) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    let job = bench.submit(client, &training(), Tier::Sampled).await;
    run(&worker, &lease(&worker).await, HONEST).await;
    assert_eq!(bench.rule().await, 1);
    let audit = lease(&liar).await;
    replay(&liar, &audit, [9.0; 3]).await;
    assert_eq!(bench.rule().await, 1);
    let second = bench.worker(0xca).await;
    assert_eq!(ask(&worker, 9).await.leases, []);
    run(&second, &lease(&second).await, HONEST).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(
        verdict(&bench, client, job).await.as_deref(),
        Some("bitwise")
    );
    assert!(is_barred(&bench, &liar).await && !is_barred(&bench, &worker).await);
    assert_eq!(bench.earned(job).await.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_run_that_left_no_checkpoints_is_run_again_as_a_whole(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (worker, auditor) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    let job = bench.submit(client, &training(), Tier::Sampled).await;
    let first = lease(&worker).await;
    show(&worker, &first, 3.0, OUTPUT_WEIGHTS).await;
    assert_eq!(bench.rule().await, 1);
    let audit = lease(&auditor).await;
    assert_eq!((audit.until_step, audit.resume), (None, None));
    run(&auditor, &audit, HONEST).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(
        verdict(&bench, client, job).await.as_deref(),
        Some("bitwise")
    );
}
