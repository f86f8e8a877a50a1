//! Who gets which job.

use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::JobId,
    job::{Device, JobSpec, Tier},
};
use comptoir_scheduler::stub::facts;
use comptoir_wire::join::WorkerFacts;
use sqlx::PgPool;
use time::Duration;

use crate::harness::{Bench, ask, compute, held, inference, lease, now, program, rows, training};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_gets_only_what_it_can_run_and_is_paid_enough_for(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let owner = bench.account(0xa1).await.account;
    bench.submit(client, &inference(), Tier::None).await;
    let rate = 1_000_000_000_000_000_000;
    let cases = [
        (
            WorkerFacts {
                device: Device::Cuda,
                ..facts("x")
            },
            0,
        ),
        (
            WorkerFacts {
                memory_bytes: (1 << 20) - 1,
                ..facts("x")
            },
            0,
        ),
        (
            WorkerFacts {
                price_floor_nano: Amount::from_base(rate + 1).unwrap(),
                ..facts("x")
            },
            0,
        ),
        (
            WorkerFacts {
                memory_bytes: 1 << 20,
                price_floor_nano: Amount::from_base(rate).unwrap(),
                ..facts("x")
            },
            1,
        ),
    ];
    for (facts, leases) in cases {
        let worker = bench.join(owner, facts.clone()).await;
        assert_eq!(ask(&worker, 9).await.leases.len(), leases, "{facts:?}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn one_owner_never_gets_two_replicas_of_a_job(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let sibling = bench.sibling(&worker).await;
    bench.submit(client, &inference(), Tier::Replicated).await;
    assert_eq!(ask(&worker, 9).await.leases.len(), 1);
    assert_eq!(ask(&worker, 9).await.leases.len(), 0);
    assert_eq!(ask(&sibling, 9).await.leases.len(), 0);
    assert_eq!(ask(&bench.worker(0xb0).await, 9).await.leases.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn many_workers_at_once_never_share_a_replica(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    for _ in 0..10 {
        bench.submit(client, &inference(), Tier::Replicated).await;
    }
    let (one, two) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    let (three, four) = (bench.sibling(&one).await, bench.sibling(&two).await);
    let workers = [&one, &two, &three, &four];
    let mut leased = 0;
    while leased < 20 {
        let (a, b, c, d) = tokio::join!(ask(&one, 4), ask(&two, 4), ask(&three, 4), ask(&four, 4));
        leased += [a, b, c, d]
            .iter()
            .map(|reply| reply.leases.len())
            .sum::<usize>();
    }
    assert_eq!(leased, 20);
    let pairs: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT job_id FROM attempts JOIN workers USING (worker_id)
             GROUP BY job_id HAVING count(DISTINCT account_id) = 2 AND count(*) = 2) it",
    )
    .fetch_one(&bench.owner)
    .await
    .unwrap();
    assert_eq!((pairs, workers.len()), (10, 4));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn training_keeps_to_the_numeric_class_that_began_it(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (one, other) = (
        bench.worker(0xa1).await,
        bench.worker_of_class(0xb0, "y").await,
    );
    let job = bench.submit(client, &training(), Tier::Replicated).await;
    let first = lease(&one).await;
    assert_eq!(
        bench.job(client, job).await.numeric_class.as_deref(),
        Some("x")
    );
    assert_eq!(
        ask(&other, 9).await.leases,
        [],
        "no peer of the class but the owner of the first replica"
    );
    let peer = bench.worker_of_class(0xca, "x").await;
    let second = lease(&peer).await;

    // With checkpoints of the class, the job stays in it even when everyone is gone.
    let content = comptoir_scheduler::stub::tensor_file(&[1.0]);
    let checkpoint = peer.upload(held(&second), content).await.unwrap();
    let request = comptoir_wire::attempt::SegmentRequest {
        segment: 0,
        checkpoint,
    };
    peer.checkpoint(held(&second), &request).await.unwrap();
    bench.lose_lease(first.attempt_id).await;
    bench.lose_lease(second.attempt_id).await;
    bench.pass_backoff().await;
    assert_eq!(ask(&other, 9).await.leases, []);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn training_that_nobody_has_begun_may_settle_on_another_class(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (one, other) = (
        bench.worker(0xa1).await,
        bench.worker_of_class(0xb0, "y").await,
    );
    let job = bench.submit(client, &training(), Tier::Replicated).await;
    let first = lease(&one).await;
    bench.lose_lease(first.attempt_id).await;
    bench.pass_backoff().await;
    lease(&other).await;
    assert_eq!(
        bench.job(client, job).await.numeric_class.as_deref(),
        Some("y")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whose_checkpoint_another_replica_rests_on_does_not_also_check_it(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (begun, heir) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    bench.submit(client, &training(), Tier::Replicated).await;
    let first = lease(&begun).await;
    let content = comptoir_scheduler::stub::tensor_file(&[1.0]);
    let checkpoint = begun.upload(held(&first), content).await.unwrap();
    let request = comptoir_wire::attempt::SegmentRequest {
        segment: 0,
        checkpoint,
    };
    begun.checkpoint(held(&first), &request).await.unwrap();
    bench.lose_lease(first.attempt_id).await;
    bench.pass_backoff().await;
    assert_eq!(
        lease(&heir).await.resume.map(|resume| resume.segment),
        Some(0)
    );
    assert_eq!(ask(&begun, 9).await.leases, []);
    assert_eq!(ask(&bench.worker(0xca).await, 9).await.leases.len(), 1);
}

/// Marks a class as unstable for a program, because of a job.
async fn mark(bench: &Bench, job: JobId, class: &str, program: Sha256, ago: Duration) {
    sqlx::query("INSERT INTO unstable_classes VALUES ($1, $2, $3, $4)")
        .bind(job.0)
        .bind(class)
        .bind(&program.0[..])
        .bind(now() - ago)
        .execute(&bench.owner)
        .await
        .unwrap();
}

/// The same job of another program.
fn of_another_program() -> JobSpec {
    let JobSpec::Inference(mut spec) = inference() else {
        unreachable!("it is inference");
    };
    spec.program = Sha256::of(&rows());
    JobSpec::Inference(spec)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_class_that_is_marked_for_a_program_gets_none_of_its_verified_jobs(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let marked = bench.worker(0xa1).await;
    let others = [
        bench.worker_of_class(0xb0, "y").await,
        bench.worker_of_class(0xca, "y").await,
        bench.worker_of_class(0xda, "y").await,
    ];
    let job = bench.submit(client, &inference(), Tier::None).await;
    mark(&bench, job, "x", Sha256::of(&program()), Duration::DAY).await;
    lease(&marked).await; // nobody verifies that
    for (tier, replicas) in [(Tier::Sampled, 1), (Tier::Replicated, 2), (Tier::Quorum, 3)] {
        for spec in [inference(), training()] {
            bench.submit(client, &spec, tier).await;
            assert_eq!(ask(&marked, 9).await.leases, [], "{tier}");
            for other in &others[..replicas] {
                assert_eq!(lease(other).await.job, spec, "{tier}");
            }
        }
    }
    let another = of_another_program();
    bench.submit(client, &another, Tier::Sampled).await;
    assert_eq!(lease(&marked).await.job, another);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_mark_counts_for_thirty_days(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (worker, stranger) = (
        bench.worker(0xa1).await,
        bench.worker_of_class(0xb0, "y").await,
    );
    let job = bench.submit(client, &inference(), Tier::None).await;
    lease(&stranger).await;
    let of = Sha256::of(&program());
    mark(&bench, job, "x", of, Duration::days(31)).await;
    bench.submit(client, &inference(), Tier::Sampled).await;
    assert_eq!(ask(&worker, 9).await.leases.len(), 1);
    bench.submit(client, &inference(), Tier::Sampled).await;
    let again = "UPDATE unstable_classes SET marked_at = marked_at + interval '2 days'";
    sqlx::query(again).execute(&bench.owner).await.unwrap();
    assert_eq!(ask(&worker, 9).await.leases, []);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_class_that_was_marked_meanwhile_audits_nobody(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (first, marked, other) = (
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
        bench.worker_of_class(0xca, "y").await,
    );
    // The first results of a worker are all audited.
    let job = bench.submit(client, &inference(), Tier::Sampled).await;
    compute(&[(&first, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);
    mark(&bench, job, "x", Sha256::of(&program()), Duration::ZERO).await;
    assert_eq!(ask(&marked, 9).await.leases, []);
    lease(&other).await;
}
