//! The life of a job, from the lease to the receipt.

use std::collections::BTreeMap;

use comptoir_domain::{
    digest::Sha256,
    job::{JobState, Tier},
};
use comptoir_scheduler::stub::tensor_file;
use comptoir_store::wake::Channel;
use comptoir_wire::{
    OUTPUT_TENSORS, OUTPUT_WEIGHTS,
    attempt::{AttemptEvent, EventKind, EventsRequest, SegmentRequest},
    heartbeat::LeaseState,
    work::{AckOutcome, WorkRequest},
};
use sqlx::PgPool;

use crate::harness::{
    BUDGET, Bench, ask, compute, held, inference, lease, outcome, reveal, rows, seal, training,
};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_replicated_training_job_is_run_twice_verified_and_paid_to_both(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, one, two) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    let job = bench.submit(client, &training(), Tier::Replicated).await;

    let (of_one, of_two) = (lease(&one).await, lease(&two).await);
    assert_eq!(of_one.job, training());
    assert_eq!(of_one.resume, None);
    assert_eq!(bench.job(client, job).await.state, JobState::Leased);
    assert_eq!(
        one.download(held(&of_one), Sha256::of(&rows()))
            .await
            .unwrap(),
        rows()
    );
    let sizes: BTreeMap<_, _> = of_one
        .blobs
        .iter()
        .map(|blob| (blob.sha256, blob.bytes))
        .collect();
    assert_eq!(sizes[&Sha256::of(&rows())], rows().len() as u64);

    let metrics = EventKind::Metrics {
        epoch: 0,
        step: 5,
        values: BTreeMap::from([("loss".into(), Some(0.5))]),
    };
    let request = EventsRequest {
        events: vec![AttemptEvent {
            seq: 1,
            event: metrics,
        }],
    };
    assert_eq!(
        one.report(held(&of_one), &request).await.unwrap().last_seq,
        1
    );
    let checkpoint = one
        .upload(held(&of_one), tensor_file(&[0.25]))
        .await
        .unwrap();
    one.checkpoint(
        held(&of_one),
        &SegmentRequest {
            segment: 0,
            checkpoint,
        },
    )
    .await
    .unwrap();

    let (result_one, reply) = seal(&one, &of_one, &[0.5, 1.5]).await;
    assert_eq!(outcome(&reply), AckOutcome::Accepted);
    assert_eq!(reply.reveal, [], "the other has not sealed");
    assert_eq!(reveal(&one, &result_one).await, AckOutcome::NotOrdered);
    let (result_two, reply) = seal(&two, &of_two, &[0.5, 1.5]).await;
    assert_eq!(reply.reveal[0].attempt_id, of_two.attempt_id);
    let order = one
        .work(&WorkRequest {
            held: vec![held(&of_one)],
            ..WorkRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(order.reveal[0].attempt_id, of_one.attempt_id);
    assert_eq!(bench.job(client, job).await.state, JobState::Verifying);
    assert_eq!(reveal(&one, &result_one).await, AckOutcome::Accepted);
    assert_eq!(bench.rule().await, 0, "the other has not revealed");
    assert_eq!(reveal(&two, &result_two).await, AckOutcome::Accepted);
    assert_eq!(bench.rule().await, 1);

    let done = bench.job(client, job).await;
    assert_eq!(done.state, JobState::Completed);
    assert_eq!(done.verdict.as_deref(), Some("bitwise"));
    // 1000 multiply-adds × 40 rows × 2 epochs × 3 × 2 replicas, one base unit each; 10 % are the platform's.
    assert_eq!(bench.receipt(job).await.gross.base(), 480_000);
    assert_eq!(
        bench.earned(job).await,
        BTreeMap::from([(0xa1, 216_000), (0xb0, 216_000)])
    );
    let balances = bench.balances(client.address).await;
    assert_eq!(
        (balances.available.base(), balances.held.base()),
        (BUDGET - 480_000, 0)
    );
    assert_eq!(
        bench.events(job).await,
        [
            "queued",
            "leased",
            "leased",
            "metrics",
            "checkpoint",
            "sealed",
            "verifying",
            "completed"
        ]
    );
    assert_eq!(bench.rule().await, 0, "a verdict is final");
    assert_outputs(&bench, client.account.0, job.0, OUTPUT_WEIGHTS, &[0.5, 1.5]).await;
}

async fn assert_outputs(
    bench: &Bench,
    account: uuid::Uuid,
    job: uuid::Uuid,
    name: &str,
    values: &[f32],
) {
    let outputs: Vec<(String, Vec<u8>)> = sqlx::query_as(
        "SELECT name, sha256 FROM job_outputs JOIN blob_owners USING (sha256) WHERE job_id = $1 AND account_id = $2",
    )
    .bind(job)
    .bind(account)
    .fetch_all(&bench.owner)
    .await
    .unwrap();
    assert_eq!(
        outputs,
        [(name.to_owned(), Sha256::of(&tensor_file(values)).0.to_vec())]
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_unverified_job_is_told_to_reveal_with_the_ack_of_its_seal(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let job = bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    let (result, reply) = seal(&worker, &leased, &[1.0]).await;
    assert_eq!(outcome(&reply), AckOutcome::Accepted);
    assert_eq!(reply.reveal[0].attempt_id, leased.attempt_id);
    assert_eq!(reveal(&worker, &result).await, AckOutcome::Accepted);
    assert_eq!(bench.rule().await, 1);
    assert_eq!(
        bench.job(client, job).await.verdict.as_deref(),
        Some("unverified")
    );
    assert_eq!(bench.earned(job).await, BTreeMap::from([(0xa1, 36_000)]));
    assert_outputs(&bench, client.account.0, job.0, OUTPUT_TENSORS, &[1.0]).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn reports_that_are_repeated_are_accepted_and_count_once(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let job = bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    let (result, _) = seal(&worker, &leased, &[1.0]).await;
    let again = WorkRequest {
        seals: vec![result.seal(worker.id); 2],
        ..WorkRequest::default()
    };
    let reply = worker.work(&again).await.unwrap();
    assert!(
        reply
            .acks
            .iter()
            .all(|ack| ack.outcome == AckOutcome::Accepted)
    );
    for _ in 0..2 {
        assert_eq!(reveal(&worker, &result).await, AckOutcome::Accepted);
    }
    assert_eq!(bench.rule().await, 1);
    assert_eq!(reveal(&worker, &result).await, AckOutcome::Accepted);
    assert_eq!(bench.rule().await, 0);
    assert_eq!(
        bench.events(job).await,
        ["queued", "leased", "verifying", "completed"]
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn events_that_are_repeated_appear_once(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let job = bench.submit(client, &training(), Tier::None).await;
    let leased = lease(&worker).await;
    let progress = |seq| AttemptEvent {
        seq,
        event: EventKind::Progress { done: seq, of: 10 },
    };
    for (sent, last) in [(vec![1, 2], 2), (vec![1, 2], 2), (vec![2, 3], 3)] {
        let request = EventsRequest {
            events: sent.into_iter().map(progress).collect(),
        };
        assert_eq!(
            worker
                .report(held(&leased), &request)
                .await
                .unwrap()
                .last_seq,
            last
        );
    }
    assert_eq!(
        bench.events(job).await,
        ["queued", "leased", "progress", "progress", "progress"]
    );
    let falling = EventsRequest {
        events: vec![progress(5), progress(4)],
    };
    assert_eq!(
        worker
            .report(held(&leased), &falling)
            .await
            .unwrap_err()
            .code(),
        "invalid_request"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn cancelling_a_job_stops_its_worker(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let job = bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    let beat = worker.heartbeat(vec![held(&leased)]).await.unwrap();
    assert_eq!(beat.leases[0].status, LeaseState::Ok);
    assert!(beat.leases[0].expires_at.unwrap() >= leased.expires_at);

    let waiting = WorkRequest {
        wait_ms: 30_000,
        held: vec![held(&leased)],
        ..WorkRequest::default()
    };
    let (reply, ()) = tokio::join!(worker.work(&waiting), bench.cancel(client, job));
    assert_eq!(reply.unwrap().cancel, [leased.attempt_id]);
    let beat = worker.heartbeat(vec![held(&leased)]).await.unwrap();
    assert_eq!(beat.leases[0].status, LeaseState::Cancelled);
    let (_, reply) = (0, worker.upload(held(&leased), tensor_file(&[1.0])).await);
    assert_eq!(reply.unwrap_err().code(), "stale_lease");
    bench
        .assert_refunded(client, job, JobState::Cancelled)
        .await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_held_request_is_answered_when_work_appears(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let waiting = WorkRequest {
        wanted: 1,
        wait_ms: 30_000,
        ..WorkRequest::default()
    };
    let submitted = async {
        bench.submit(client, &inference(), Tier::None).await;
        bench.state.wake.publish(Channel::Work);
    };
    let (reply, ()) = tokio::join!(worker.work(&waiting), submitted);
    assert_eq!(reply.unwrap().leases.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_service_that_closes_answers_held_requests(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker(0xa1).await;
    bench.state.closing.cancel();
    let waiting = WorkRequest {
        wanted: 1,
        wait_ms: 30_000,
        ..WorkRequest::default()
    };
    let began = std::time::Instant::now();
    assert_eq!(worker.work(&waiting).await.unwrap().leases, []);
    assert!(began.elapsed() < std::time::Duration::from_secs(20));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn work_comes_in_batches_oldest_first(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    for _ in 0..5 {
        bench.submit(client, &inference(), Tier::None).await;
    }
    assert_eq!(ask(&worker, 3).await.leases.len(), 3);
    assert_eq!(ask(&worker, 9).await.leases.len(), 2);
    assert_eq!(ask(&worker, 9).await.leases.len(), 0);
    let first: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT row_number() OVER (ORDER BY replica_id) AS age,
             row_number() OVER (ORDER BY attempt_id) AS taken FROM attempts) it WHERE (age <= 3) = (taken <= 3)",
    )
    .fetch_one(&bench.owner)
    .await
    .unwrap();
    assert_eq!(first, 5);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_past_its_deadline_expires_with_a_full_refund(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let deadline = crate::harness::now() + time::Duration::minutes(5);
    let job = bench
        .submit_until(client, &inference(), Tier::None, deadline)
        .await;
    let leased = lease(&worker).await;
    let step = comptoir_scheduler::steps::deadlines::expire_jobs;
    let early = step(&bench.state, deadline - time::Duration::SECOND)
        .await
        .unwrap();
    assert_eq!(early.done, 0);
    assert_eq!(step(&bench.state, deadline).await.unwrap().done, 1);
    bench.assert_refunded(client, job, JobState::Expired).await;
    let beat = worker.heartbeat(vec![held(&leased)]).await.unwrap();
    assert_eq!(beat.leases[0].status, LeaseState::Cancelled);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_base_unit_is_still_there_after_many_jobs(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, one, two) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    for _ in 0..3 {
        bench.submit(client, &inference(), Tier::Replicated).await;
        compute(&[(&one, &[1.0]), (&two, &[1.0])]).await;
        assert_eq!(bench.rule().await, 1);
    }
    let (total, held): (String, String) = sqlx::query_as(
        "SELECT sum(balance_base)::text, sum(balance_base) FILTER (WHERE code = 'held')::text FROM ledger_accounts",
    )
    .fetch_one(&bench.owner)
    .await
    .unwrap();
    assert_eq!((total.as_str(), held.as_str()), ("0", "0"));
    assert_eq!(bench.available(client.address).await, BUDGET - 3 * 80_000);
    assert_eq!(
        bench
            .available(alloy_primitives::Address::repeat_byte(0xa1))
            .await,
        3 * 36_000
    );
}
