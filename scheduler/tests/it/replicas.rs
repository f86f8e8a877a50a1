//! Several schedulers at once, without Redis.

use std::time::Duration;

use comptoir_domain::job::Tier;
use comptoir_http::server::Limits;
use comptoir_scheduler::{SchedulerState, serve};
use comptoir_store::wake::Wake;
use sqlx::PgPool;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::harness::{BUDGET, Bench, inference};

/// Jobs of the test; each is run twice.
const JOBS: usize = 30;
/// Far longer than it takes.
const PATIENCE: Duration = Duration::from_mins(1);

async fn start(state: SchedulerState, ended: CancellationToken) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        serve(listener, state, Limits::default(), ended.cancelled_owned())
            .await
            .unwrap();
    });
    (base, serving)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn two_schedulers_without_redis_complete_every_job_once(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let ended = CancellationToken::new();
    let nobody = || Wake::start("redis://127.0.0.1:1", "test").unwrap();
    let (first, serving_first) = start(bench.another(nobody()).await, ended.clone()).await;
    let (second, serving_second) = start(bench.another(nobody()).await, ended.clone()).await;
    let mut one = bench.worker(0xa1).await;
    let mut two = bench.worker(0xb0).await;
    one.move_to(&first, crate::harness::now()).await.unwrap();
    two.move_to(&second, crate::harness::now()).await.unwrap();

    let working = {
        let ended = ended.clone();
        tokio::spawn(async move {
            let (one, two) = tokio::join!(one.run(8, &ended), two.run(8, &ended));
            (one.unwrap(), two.unwrap())
        })
    };
    for _ in 0..JOBS {
        bench.submit(client, &inference(), Tier::Replicated).await;
    }
    tokio::time::timeout(PATIENCE, all_completed(&bench))
        .await
        .unwrap();
    ended.cancel();
    assert_eq!(working.await.unwrap(), (30, 30));
    serving_first.await.unwrap();
    serving_second.await.unwrap();

    let attempts: i64 = sqlx::query_scalar("SELECT count(*) FROM attempts")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(attempts, 60);
    assert_eq!(bench.available(client.address).await, BUDGET - 30 * 80_000);
    for byte in [0xa1, 0xb0] {
        let address = alloy_primitives::Address::repeat_byte(byte);
        assert_eq!(bench.available(address).await, 30 * 36_000);
    }
}

/// Takes leases away and ends pauses, again and again, while everything else happens; locks in the services' order.
async fn lose_leases(bench: &Bench, ended: &CancellationToken) {
    let passes = "UPDATE queue SET ready_at = clock_timestamp() - interval '2 min',
             lease_expires_at = CASE WHEN lease_token IS NOT NULL AND attempt < 3 THEN clock_timestamp() ELSE lease_expires_at END
         WHERE replica_id IN (SELECT replica_id FROM queue ORDER BY replica_id FOR UPDATE SKIP LOCKED)";
    while !ended.is_cancelled() {
        sqlx::query(passes).execute(&bench.owner).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn cancelling_losing_leases_and_ruling_at_once_neither_deadlock_nor_lose_money(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let ended = CancellationToken::new();
    let (first, serving_first) = start(bench.another(Wake::local()).await, ended.clone()).await;
    let (second, serving_second) = start(bench.another(Wake::local()).await, ended.clone()).await;
    let (mut one, mut two) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    let (mut three, mut four) = (bench.sibling(&one).await, bench.sibling(&two).await);
    for (worker, base) in [
        (&mut one, &first),
        (&mut two, &second),
        (&mut three, &second),
        (&mut four, &first),
    ] {
        worker.move_to(base, crate::harness::now()).await.unwrap();
    }
    let working: Vec<_> = [one, two, three, four]
        .into_iter()
        .map(|worker| {
            let ended = ended.clone();
            tokio::spawn(async move { worker.run(5, &ended).await })
        })
        .collect();
    let submitting = async {
        let mut before = None;
        for number in 0..JOBS {
            let job = bench.submit(client, &inference(), Tier::Replicated).await;
            if let Some(before) = before.replace(job).filter(|_| number % 3 == 0) {
                bench.try_cancel(client, before).await;
            }
        }
        all_ended(&bench).await;
        ended.cancel();
    };
    let all = async { tokio::join!(submitting, lose_leases(&bench, &ended)) };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    for worker in working {
        worker.await.unwrap().unwrap();
    }
    serving_first.await.unwrap();
    serving_second.await.unwrap();

    let (completed, receipts, total, held, deadlocks): (i64, i64, String, String, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM jobs WHERE state = 'completed'), (SELECT count(*) FROM receipts),
             sum(balance_base)::text, sum(balance_base) FILTER (WHERE code = 'held')::text,
             (SELECT deadlocks FROM pg_stat_database WHERE datname = current_database())
         FROM ledger_accounts",
    )
    .fetch_one(&bench.owner)
    .await
    .unwrap();
    assert!(completed > 0);
    assert_eq!(completed, receipts);
    assert_eq!((total.as_str(), held.as_str(), deadlocks), ("0", "0", 0));
}

async fn all_ended(bench: &Bench) {
    while count(bench, "SELECT count(*) FROM jobs WHERE finished_at IS NULL").await > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn count(bench: &Bench, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql)
        .fetch_one(&bench.owner)
        .await
        .unwrap()
}

async fn all_completed(bench: &Bench) {
    while count(
        bench,
        "SELECT count(*) FROM jobs WHERE state <> 'completed'",
    )
    .await
        > 0
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
