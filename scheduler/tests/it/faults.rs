//! Leases that are lost, workers that fail, lie or fall silent, and jobs that nobody can run.

use std::collections::BTreeMap;

use comptoir_domain::{
    digest::Sha256,
    job::{Cause, JobState, Tier},
    lease::ATTEMPTS_MAX,
};
use comptoir_scheduler::{
    steps,
    stub::{StubResult, StubWorker, tensor_file},
};
use comptoir_wire::{
    attempt::{AttemptEvent, EventKind, EventsRequest, SegmentRequest},
    heartbeat::LeaseState,
    work::{AckOutcome, Failure, FailureCause, Lease, WorkReply, WorkRequest},
};
use sqlx::PgPool;

use crate::harness::{
    Bench, ask, compute, held, inference, lease, now, outcome, reveal, seal, training,
};

pub async fn fail(
    worker: &StubWorker,
    lease: &Lease,
    cause: FailureCause,
    code: &str,
) -> WorkReply {
    let failure = Failure {
        attempt_id: lease.attempt_id,
        lease_token: lease.lease_token,
        cause,
        code: code.into(),
        detail: "told by the test".into(),
    };
    worker
        .work(&WorkRequest {
            failures: vec![failure],
            ..WorkRequest::default()
        })
        .await
        .unwrap()
}

pub async fn checkpoint(worker: &StubWorker, lease: &Lease, segment: u32) -> Sha256 {
    let content = tensor_file(&[f32::from(u16::try_from(segment).unwrap())]);
    let checkpoint = worker.upload(held(lease), content).await.unwrap();
    let reply = worker
        .checkpoint(
            held(lease),
            &SegmentRequest {
                segment,
                checkpoint,
            },
        )
        .await
        .unwrap();
    assert_eq!(reply.segment, segment);
    checkpoint
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_lost_job_resumes_elsewhere_and_each_segment_is_paid_once_to_who_ran_it(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, lost, heir) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    let job = bench.submit(client, &training(), Tier::None).await;
    let first = lease(&lost).await;
    let kept = checkpoint(&lost, &first, 0).await;
    bench.lose_lease(first.attempt_id).await;
    assert_eq!(
        bench.attempt(first.attempt_id).await,
        ("lost".into(), Some("lease_lost".into()))
    );
    assert_eq!(
        ask(&heir, 1).await.leases,
        [],
        "the replica rests before the second attempt"
    );
    bench.pass_backoff().await;

    let second = lease(&heir).await;
    let resume = second.resume.unwrap();
    assert_eq!((resume.segment, resume.step, resume.sha256), (0, 4, kept));
    assert_eq!(
        heir.download(held(&second), kept).await.unwrap(),
        tensor_file(&[0.0])
    );
    assert_eq!(bench.event(job, "leased").await["resumed_at_step"], 4);
    checkpoint(&heir, &second, 1).await;
    let (result, _) = seal(&heir, &second, &[1.0]).await;
    assert_eq!(reveal(&heir, &result).await, AckOutcome::Accepted);
    assert_eq!(bench.rule().await, 1);
    // 4 of 10 steps were the first worker's; of 240000 base units 10 % are the platform's.
    assert_eq!(
        bench.earned(job).await,
        BTreeMap::from([(0xa1, 86_400), (0xb0, 129_600)])
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_comes_back_after_its_lease_changes_nothing(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, zombie, heir) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    let job = bench.submit(client, &training(), Tier::None).await;
    let first = lease(&zombie).await;
    bench.pass_lease(first.attempt_id).await;
    assert_stale(&zombie, &first).await;
    steps::faults::expire_leases(&bench.state, now())
        .await
        .unwrap();
    assert_stale(&zombie, &first).await;
    bench.pass_backoff().await;
    let second = lease(&heir).await;
    assert_stale(&zombie, &first).await;
    let (result, _) = seal(&heir, &second, &[1.0]).await;
    assert_eq!(reveal(&heir, &result).await, AckOutcome::Accepted);
    assert_eq!(bench.rule().await, 1);
    assert_stale(&zombie, &first).await;
    assert_eq!(bench.earned(job).await, BTreeMap::from([(0xb0, 216_000)]));
    let uploaded: i64 =
        sqlx::query_scalar("SELECT count(*) FROM attempt_blobs WHERE attempt_id = $1")
            .bind(first.attempt_id.0)
            .fetch_one(&bench.owner)
            .await
            .unwrap();
    assert_eq!(uploaded, 0);
}

/// Whatever the holder of a lost lease tries is refused.
async fn assert_stale(worker: &StubWorker, lease: &Lease) {
    let beat = worker.heartbeat(vec![held(lease)]).await.unwrap();
    assert_eq!(beat.leases[0].status, LeaseState::Lost);
    let progress = AttemptEvent {
        seq: 1,
        event: EventKind::Progress { done: 1, of: 2 },
    };
    let events = EventsRequest {
        events: vec![progress],
    };
    assert_eq!(
        worker
            .report(held(lease), &events)
            .await
            .unwrap_err()
            .code(),
        "stale_lease"
    );
    let segment = SegmentRequest {
        segment: 0,
        checkpoint: Sha256::of(b""),
    };
    assert_eq!(
        worker
            .checkpoint(held(lease), &segment)
            .await
            .unwrap_err()
            .code(),
        "stale_lease"
    );
    let upload = worker.upload(held(lease), tensor_file(&[9.0])).await;
    assert_eq!(upload.unwrap_err().code(), "stale_lease");
    let result = StubResult::of(lease, Sha256::of(&tensor_file(&[9.0])));
    let request = WorkRequest {
        held: vec![held(lease)],
        seals: vec![result.seal(worker.id)],
        reveals: vec![result.reveal()],
        ..WorkRequest::default()
    };
    let reply = worker.work(&request).await.unwrap();
    assert!(
        reply
            .acks
            .iter()
            .all(|ack| ack.outcome == AckOutcome::StaleLease),
        "{reply:?}"
    );
    assert_eq!(
        outcome(&fail(worker, lease, FailureCause::Client, "x").await),
        AckOutcome::StaleLease
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_poison_job_fails_after_its_attempts_with_a_full_refund(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    for attempt in 1..=ATTEMPTS_MAX {
        bench.pass_backoff().await;
        let leased = lease(&worker).await;
        let reply = fail(&worker, &leased, FailureCause::Worker, "child_crashed").await;
        assert_eq!(outcome(&reply), AckOutcome::Accepted);
        let told = bench.event(job, "attempt_failed").await;
        assert_eq!(
            (&told["attempt"], &told["retried"]),
            (&attempt.into(), &(attempt < ATTEMPTS_MAX).into())
        );
    }
    bench.assert_refunded(client, job, JobState::Failed).await;
    let failure = bench.job(client, job).await.failure.unwrap();
    assert_eq!(
        (failure.cause, failure.code.as_str()),
        (Cause::Worker, "attempts_exhausted")
    );
    bench.pass_backoff().await;
    assert_eq!(ask(&worker, 9).await.leases, []);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_the_client_got_wrong_fails_the_job_free_once_the_owners_of_its_tier_say_so(
    db: PgPool,
) {
    let bench = Bench::new(db).await;
    let (client, one, two) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    let code = "operator_not_allowed";
    let job = bench.submit(client, &inference(), Tier::None).await;
    fail(&one, &lease(&one).await, FailureCause::Client, code).await;
    bench.assert_refunded(client, job, JobState::Failed).await;

    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    let of_one = lease(&one).await;
    fail(&one, &of_one, FailureCause::Client, code).await;
    assert_eq!(bench.job(client, job).await.state, JobState::Queued);
    bench.pass_backoff().await;
    let three = bench.worker(0xca).await;
    let (of_two, of_three) = (lease(&two).await, lease(&three).await);
    for _ in 0..2 {
        let reply = fail(&two, &of_two, FailureCause::Client, code).await;
        assert_eq!(outcome(&reply), AckOutcome::Accepted);
    }
    bench.assert_refunded(client, job, JobState::Failed).await;
    let failure = bench.job(client, job).await.failure.unwrap();
    assert_eq!(
        (failure.cause, failure.code.as_str()),
        (Cause::Client, code)
    );
    let reply = three
        .work(&WorkRequest {
            held: vec![held(&of_three)],
            ..WorkRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(reply.cancel, [of_three.attempt_id]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_does_not_get_at_once_what_it_has_just_failed(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker, other) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    fail(&worker, &leased, FailureCause::Worker, "out_of_memory").await;
    sqlx::query("UPDATE queue SET ready_at = clock_timestamp() - interval '10 s'")
        .execute(&bench.owner)
        .await
        .unwrap();
    assert_eq!(ask(&worker, 1).await.leases, []);
    assert_eq!(ask(&other, 1).await.leases.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_sealed_result_that_is_not_shown_in_time_is_a_fault(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, silent, honest) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    let heir = bench.worker(0xca).await;
    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    let (of_silent, of_honest) = (lease(&silent).await, lease(&honest).await);
    let (result_silent, _) = seal(&silent, &of_silent, &[1.0]).await;
    let (result, _) = seal(&honest, &of_honest, &[1.0]).await;
    assert_eq!(reveal(&honest, &result).await, AckOutcome::Accepted);
    let step = steps::faults::fail_missing_reveals;
    assert_eq!(step(&bench.state, now()).await.unwrap().done, 0);
    sqlx::query(
        "UPDATE attempts SET reveal_by = clock_timestamp() - interval '1 ms' WHERE attempt_id = $1",
    )
    .bind(of_silent.attempt_id.0)
    .execute(&bench.owner)
    .await
    .unwrap();
    assert_eq!(
        reveal(&silent, &result_silent).await,
        AckOutcome::StaleLease
    );
    assert_eq!(step(&bench.state, now()).await.unwrap().done, 1);
    let found = bench.attempt(of_silent.attempt_id).await;
    assert_eq!(found, ("failed".into(), Some("reveal_missing".into())));

    bench.pass_backoff().await;
    compute(&[(&heir, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(
        bench.earned(job).await,
        BTreeMap::from([(0xb0, 36_000), (0xca, 36_000)])
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_reveal_that_does_not_open_its_seal_fails_the_attempt(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, liar) = (bench.client().await, bench.worker(0xa1).await);
    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&liar).await;
    let (mut result, _) = seal(&liar, &leased, &[1.0]).await;
    let other = liar
        .upload(held(&leased), tensor_file(&[2.0]))
        .await
        .unwrap();
    result
        .outputs
        .values_mut()
        .for_each(|output| *output = other);
    assert_eq!(reveal(&liar, &result).await, AckOutcome::SealMismatch);
    let found = bench.attempt(leased.attempt_id).await;
    assert_eq!(found, ("failed".into(), Some("seal_mismatch".into())));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_result_is_made_of_what_the_attempt_uploaded_and_has_the_output_of_its_kind(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    // The job's own input is in the store, but this attempt did not make it.
    let foreign = StubResult::of(&leased, Sha256::of(&crate::harness::rows()));
    let request = WorkRequest {
        seals: vec![foreign.seal(worker.id)],
        ..WorkRequest::default()
    };
    worker.work(&request).await.unwrap();
    assert_eq!(reveal(&worker, &foreign).await, AckOutcome::BlobMissing);
    worker
        .upload(held(&leased), crate::harness::rows())
        .await
        .unwrap();
    assert_eq!(reveal(&worker, &foreign).await, AckOutcome::Accepted);

    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    let output = worker
        .upload(held(&leased), tensor_file(&[1.0]))
        .await
        .unwrap();
    let mut result = StubResult::of(&leased, output);
    result.outputs = BTreeMap::from([("weights".into(), output)]);
    let request = WorkRequest {
        seals: vec![result.seal(worker.id)],
        ..WorkRequest::default()
    };
    worker.work(&request).await.unwrap();
    assert_eq!(reveal(&worker, &result).await, AckOutcome::OutputMissing);
    assert_eq!(
        bench.attempt(leased.attempt_id).await.1.as_deref(),
        Some("output_missing")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn checkpoints_come_in_order_and_count_for_the_first_that_reached_them(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    bench.submit(client, &training(), Tier::None).await;
    let leased = lease(&worker).await;
    let refused = async |segment, checkpoint| {
        let request = SegmentRequest {
            segment,
            checkpoint,
        };
        worker
            .checkpoint(held(&leased), &request)
            .await
            .unwrap_err()
            .code()
            .to_owned()
    };
    assert_eq!(
        refused(0, Sha256::of(b"never uploaded")).await,
        "checkpoint_not_uploaded"
    );
    let content = worker
        .upload(held(&leased), tensor_file(&[7.0]))
        .await
        .unwrap();
    assert_eq!(refused(1, content).await, "segment_out_of_order");
    checkpoint(&worker, &leased, 0).await;
    checkpoint(&worker, &leased, 0).await;
    checkpoint(&worker, &leased, 1).await;
    // 10 steps hold two whole segments of 4.
    assert_eq!(refused(2, content).await, "segment_out_of_order");
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM segments")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(kept, 2);
    seal(&worker, &leased, &[1.0]).await;
    assert_eq!(refused(2, content).await, "segment_out_of_order");
}
