//! Which results are accepted, and who is paid when they differ.

use std::collections::BTreeMap;

use comptoir_domain::{
    digest::Sha256,
    job::{Cause, JobState, Tier},
};
use comptoir_scheduler::stub::tensor_file;
use sqlx::PgPool;

use crate::harness::{BUDGET, Bench, ask, compute, inference, training};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn results_that_differ_get_a_third_owner_and_the_minority_gets_nothing(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (honest, liar, third) = (
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
        bench.worker(0xca).await,
    );
    let job = bench.submit(client, &training(), Tier::Replicated).await;
    let first = compute(&[(&liar, &[9.0]), (&honest, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(bench.job(client, job).await.state, JobState::Queued);
    assert_eq!(ask(&honest, 9).await.leases, []);
    assert_eq!(ask(&liar, 9).await.leases, []);
    let last = compute(&[(&third, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);

    let done = bench.job(client, job).await;
    assert_eq!(
        (done.state, done.verdict.as_deref()),
        (JobState::Completed, Some("bitwise"))
    );
    // The third run is the operator's cost: the client pays for two.
    assert_eq!(bench.available(client.address).await, BUDGET - 480_000);
    assert_eq!(
        bench.earned(job).await,
        BTreeMap::from([(0xa1, 216_000), (0xca, 216_000)])
    );
    assert_eq!(bench.attempt(first[0].attempt_id).await.0, "rejected");
    assert_eq!(bench.attempt(first[1].attempt_id).await.0, "accepted");
    assert_eq!(bench.attempt(last[0].attempt_id).await.0, "accepted");
    let output: Vec<u8> = sqlx::query_scalar("SELECT sha256 FROM job_outputs")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(output, Sha256::of(&tensor_file(&[1.0])).0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn three_results_that_all_differ_cost_nothing_and_blame_nobody(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let workers = [
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
        bench.worker(0xca).await,
    ];
    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    compute(&[(&workers[0], &[1.0]), (&workers[1], &[2.0])]).await;
    assert_eq!(bench.rule().await, 1);
    compute(&[(&workers[2], &[3.0])]).await;
    assert_eq!(bench.rule().await, 1);
    bench.assert_refunded(client, job, JobState::Failed).await;
    let found = bench.job(client, job).await;
    let failure = found.failure.unwrap();
    assert_eq!(
        (failure.cause, failure.code.as_str()),
        (Cause::Operator, "unstable_result")
    );
    assert_eq!(found.verdict.as_deref(), Some("unstable"));
    let blamed: i64 =
        sqlx::query_scalar("SELECT count(*) FROM attempts WHERE state IN ('rejected', 'failed')")
            .fetch_one(&bench.owner)
            .await
            .unwrap();
    assert_eq!(blamed, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn inference_of_two_classes_may_deviate_within_the_tolerance(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (one, two) = (
        bench.worker_of_class(0xa1, "x").await,
        bench.worker_of_class(0xb0, "y").await,
    );
    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    compute(&[(&one, &[1.0, 2.0]), (&two, &[1.0, 2.000_000_2])]).await;
    assert_eq!(bench.rule().await, 1);
    let done = bench.job(client, job).await;
    assert_eq!(
        (done.state, done.verdict.as_deref()),
        (JobState::Completed, Some("tolerance"))
    );
    let evidence: serde_json::Value = sqlx::query_scalar("SELECT evidence FROM verdicts")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    let found = &evidence["comparisons"][0];
    assert_eq!(found["agreement"], "tolerance");
    assert!(
        (0.0..1e-5).contains(&found["rel_l2"].as_f64().unwrap()),
        "{found}"
    );
    assert_eq!(
        bench.receipt(job).await.verdict_sha256,
        Sha256::of_document(&evidence).unwrap()
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn inference_of_two_classes_that_deviates_more_is_a_mismatch(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (one, two) = (
        bench.worker_of_class(0xa1, "x").await,
        bench.worker_of_class(0xb0, "y").await,
    );
    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    compute(&[(&one, &[1.0, 2.0]), (&two, &[1.001, 2.0])]).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(bench.job(client, job).await.state, JobState::Queued);
    let third = bench.worker_of_class(0xca, "y").await;
    compute(&[(&third, &[1.001, 2.0])]).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(
        bench.earned(job).await,
        BTreeMap::from([(0xb0, 36_000), (0xca, 36_000)])
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn one_class_has_no_tolerance(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (one, two) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    compute(&[(&one, &[1.0, 2.0]), (&two, &[1.0, 2.000_000_2])]).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(bench.job(client, job).await.state, JobState::Queued);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_that_is_cancelled_before_its_verdict_costs_nothing(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    let job = bench.submit(client, &inference(), Tier::None).await;
    compute(&[(&worker, &[1.0])]).await;
    bench.cancel(client, job).await;
    bench.rule().await;
    bench
        .assert_refunded(client, job, JobState::Cancelled)
        .await;
    let due: i64 = sqlx::query_scalar("SELECT count(*) FROM verdicts_due")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(due, 0);
}
