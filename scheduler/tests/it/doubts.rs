//! One owner's word or work, taken for what it is: a bad checkpoint or a false report ends no job alone.

use std::collections::BTreeMap;

use comptoir_domain::{
    id::JobId,
    job::{Cause, JobState, Tier},
};
use comptoir_scheduler::stub::StubWorker;
use comptoir_wire::work::{AckOutcome, FailureCause};
use sqlx::PgPool;

use crate::{
    faults::{checkpoint, fail},
    harness::{Bench, Client, ask, inference, lease, reveal, seal, training},
};

/// The worker makes these segments of the job, one lease, and is not heard of again.
async fn leave(bench: &Bench, worker: &StubWorker, segments: std::ops::Range<u32>) {
    bench.pass_backoff().await;
    let leased = lease(worker).await;
    for segment in segments {
        checkpoint(worker, &leased, segment).await;
    }
    bench.lose_lease(leased.attempt_id).await;
}

/// The worker takes the job and fails it; the segments that this voided.
async fn doubt(
    bench: &Bench,
    worker: &StubWorker,
    job: JobId,
    (cause, code): (FailureCause, &str),
) -> u64 {
    bench.pass_backoff().await;
    fail(worker, &lease(worker).await, cause, code).await;
    bench.event(job, "attempt_failed").await["segments_voided"]
        .as_u64()
        .unwrap()
}

/// The segment that the next attempt goes on from.
async fn resumed(bench: &Bench, worker: &StubWorker) -> Option<u32> {
    bench.pass_backoff().await;
    lease(worker).await.resume.map(|resume| resume.segment)
}

async fn start(bench: &Bench, tier: Tier) -> (Client, JobId, [StubWorker; 3]) {
    let client = bench.client().await;
    let workers = [
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
        bench.worker(0xca).await,
    ];
    (
        client,
        bench.submit(client, &training(), tier).await,
        workers,
    )
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_checkpoint_costs_its_maker_the_pay_and_the_job_nothing(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (bad, heir) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    for doubted in [
        (FailureCause::Worker, "invalid_checkpoint"),
        (FailureCause::Client, "diverged"),
    ] {
        let job = bench.submit(client, &training(), Tier::None).await;
        leave(&bench, &bad, 0..1).await;
        assert_eq!(doubt(&bench, &heir, job, doubted).await, 1);
        bench.pass_backoff().await;
        let anew = lease(&heir).await;
        assert_eq!(anew.resume, None);
        checkpoint(&heir, &anew, 0).await;
        let (result, _) = seal(&heir, &anew, &[1.0]).await;
        assert_eq!(reveal(&heir, &result).await, AckOutcome::Accepted);
        assert_eq!(bench.rule().await, 1);
        assert_eq!(bench.job(client, job).await.state, JobState::Completed);
        assert_eq!(bench.earned(job).await, BTreeMap::from([(0xb0, 216_000)]));
    }
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM segments_voided")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(kept, 2, "the evidence stays");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn segments_before_the_doubted_one_stay_and_those_on_top_of_it_go(db: PgPool) {
    let bench = Bench::new(db).await;
    let invalid = (FailureCause::Worker, "invalid_checkpoint");
    let (client, job, [bad, heir, _]) = start(&bench, Tier::None).await;
    leave(&bench, &heir, 0..1).await;
    leave(&bench, &bad, 1..2).await;
    assert_eq!(doubt(&bench, &heir, job, invalid).await, 1);
    assert_eq!(resumed(&bench, &heir).await, Some(0));
    bench.cancel(client, job).await;

    let job = bench.submit(client, &training(), Tier::None).await;
    leave(&bench, &bad, 0..1).await;
    leave(&bench, &heir, 1..2).await;
    assert_eq!(doubt(&bench, &heir, job, invalid).await, 2);
    assert_eq!(resumed(&bench, &heir).await, None);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_owner_s_own_checkpoint_excuses_nothing_and_other_faults_void_nothing(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, job, [one, two, _]) = start(&bench, Tier::None).await;
    leave(&bench, &one, 0..1).await;
    let crashed = (FailureCause::Worker, "child_crashed");
    assert_eq!(doubt(&bench, &two, job, crashed).await, 0);
    let diverged = (FailureCause::Client, "diverged");
    assert_eq!(doubt(&bench, &one, job, diverged).await, 0);
    bench.assert_refunded(client, job, JobState::Failed).await;
    let failure = bench.job(client, job).await.failure.unwrap();
    assert_eq!(
        (failure.cause, failure.code.as_str()),
        (Cause::Client, "diverged")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn one_owner_s_word_neither_ends_a_replicated_job_nor_undoes_the_other_s_work(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, liar, honest) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    let (sibling, heir) = (bench.sibling(&liar).await, bench.worker(0xca).await);
    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    let (of_liar, of_honest) = (lease(&liar).await, lease(&honest).await);
    let (sealed, _) = seal(&honest, &of_honest, &[1.0]).await;
    fail(
        &liar,
        &of_liar,
        FailureCause::Client,
        "operator_not_allowed",
    )
    .await;
    assert_eq!(bench.event(job, "attempt_failed").await["retried"], true);
    assert_eq!(bench.attempt(of_honest.attempt_id).await.0, "sealed");

    bench.pass_backoff().await;
    for same_owner in [&liar, &sibling] {
        assert_eq!(ask(same_owner, 1).await.leases, [], "another owner's turn");
    }
    let of_heir = lease(&heir).await;
    let (result, _) = seal(&heir, &of_heir, &[1.0]).await;
    assert_eq!(reveal(&honest, &sealed).await, AckOutcome::Accepted);
    assert_eq!(reveal(&heir, &result).await, AckOutcome::Accepted);
    assert_eq!(bench.rule().await, 1);
    assert_eq!(
        bench.earned(job).await,
        BTreeMap::from([(0xb0, 36_000), (0xca, 36_000)])
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_diverged_on_another_s_checkpoint_is_no_word_against_the_client(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, job, [bad, heir, other]) = start(&bench, Tier::Replicated).await;
    leave(&bench, &bad, 0..1).await;
    let diverged = (FailureCause::Client, "diverged");
    assert_eq!(doubt(&bench, &heir, job, diverged).await, 1);
    assert_eq!(doubt(&bench, &other, job, diverged).await, 0);
    assert_eq!(bench.job(client, job).await.state, JobState::Queued);
    assert_eq!(doubt(&bench, &heir, job, diverged).await, 0);
    bench.assert_refunded(client, job, JobState::Failed).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn ending_a_job_locks_its_queue_rows_by_replica(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let job = bench.submit(client, &inference(), Tier::Replicated).await;
    // Rewritten, the first row lies behind the second.
    let first: uuid::Uuid = sqlx::query_scalar(
        "UPDATE queue SET priority = 1 WHERE replica_id = (SELECT replica_id FROM queue ORDER BY replica_id LIMIT 1)
         RETURNING replica_id",
    )
    .fetch_one(&bench.owner)
    .await
    .unwrap();
    let mut holder = bench.owner.begin().await.unwrap();
    sqlx::query("SELECT FROM queue WHERE replica_id = $1 FOR UPDATE")
        .bind(first)
        .execute(&mut *holder)
        .await
        .unwrap();
    let looking = async {
        let waits = "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
             WHERE datname = current_database() AND NOT granted)";
        while !sqlx::query_scalar::<_, bool>(waits)
            .fetch_one(&bench.owner)
            .await
            .unwrap()
        {
            tokio::task::yield_now().await;
        }
        let free = sqlx::query("SELECT FROM queue WHERE replica_id > $1 FOR UPDATE SKIP LOCKED")
            .bind(first)
            .execute(&bench.owner)
            .await
            .unwrap();
        holder.rollback().await.unwrap();
        free.rows_affected()
    };
    let ((), free) = tokio::join!(bench.cancel(client, job), looking);
    assert_eq!(free, 1, "it took the second row before the first");
    assert_eq!(bench.job(client, job).await.state, JobState::Cancelled);
}
