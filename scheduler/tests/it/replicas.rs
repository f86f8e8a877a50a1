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

async fn all_completed(bench: &Bench) {
    loop {
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE state <> 'completed'")
            .fetch_one(&bench.owner)
            .await
            .unwrap();
        if open == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
