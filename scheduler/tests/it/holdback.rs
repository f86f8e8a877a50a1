//! What is held back of a worker's pay: when it is released, and to whom it goes where the worker was refuted.

use std::collections::BTreeMap;

use comptoir_domain::job::Tier;
use comptoir_scheduler::steps;
use comptoir_store::{admin_workers, holdback, ledger, verdicts};
use comptoir_wire::work::{Failure, FailureCause, WorkRequest};
use sqlx::PgPool;
use time::Duration;

use crate::{
    harness::{Bench, base, compute, inference, lease, now},
    sampled::{EARNED, PAID, available, change_record, held_back, record, trust, undrawn},
};

async fn move_pay(bench: &Bench) -> usize {
    steps::holdback::move_pay(&bench.state, now())
        .await
        .unwrap()
        .done
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn pay_that_is_held_back_is_released_by_fifty_later_results(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (worker, auditor) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    trust(&bench, &worker).await;
    let job = undrawn(&bench, client, &worker, &auditor).await;
    assert_eq!(
        bench.job(client, job).await.verdict.as_deref(),
        Some("sampled")
    );
    let held = held_back(&bench, 0xa1).await;
    assert!(held >= EARNED);
    let later = "UPDATE worker_records SET results = results + 49 WHERE worker_id = $1";
    change_record(&bench, &worker, later).await;
    let last: i64 = sqlx::query_scalar("SELECT max(number) FROM holdbacks")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    let before = usize::try_from(last - 1).unwrap();
    assert_eq!(
        move_pay(&bench).await,
        before,
        "those of earlier jobs alone"
    );
    let later = "UPDATE worker_records SET results = results + 1 WHERE worker_id = $1";
    change_record(&bench, &worker, later).await;
    assert_eq!((move_pay(&bench).await, move_pay(&bench).await), (1, 0));
    assert_eq!(held_back(&bench, 0xa1).await, 0);
    assert_eq!(available(&bench, 0xa1).await, held);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_is_taken_out_is_paid_once_the_dispute_window_has_passed(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (worker, auditor) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    trust(&bench, &worker).await;
    undrawn(&bench, client, &worker, &auditor).await;
    change_record(
        &bench,
        &worker,
        "UPDATE workers SET revoked_at = now() WHERE worker_id = $1",
    )
    .await;
    assert_eq!(move_pay(&bench).await, 0);
    let later = now() + Duration::HOUR + Duration::MINUTE;
    let moved = steps::holdback::move_pay(&bench.state, later)
        .await
        .unwrap();
    assert!(moved.done >= 1);
    assert_eq!(held_back(&bench, 0xa1).await, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn large_pay_waits_for_a_longer_dispute_window(db: PgPool) {
    let mut bench = Bench::new(db).await;
    let client = bench.client().await;
    let (worker, auditor) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    trust(&bench, &worker).await;
    undrawn(&bench, client, &worker, &auditor).await;
    let taken_out = "UPDATE workers SET revoked_at = now() WHERE worker_id = $1";
    change_record(&bench, &worker, taken_out).await;
    let moved = async |bench: &Bench, after: Duration| {
        let at = now() + after + Duration::MINUTE;
        steps::holdback::move_pay(&bench.state, at)
            .await
            .unwrap()
            .done
    };
    bench.state.dispute_windows.large_from = base(EARNED);
    assert_eq!(moved(&bench, Duration::HOUR).await, 0);
    assert_eq!(moved(&bench, Duration::hours(23)).await, 0);
    bench.state.dispute_windows.large_from = base(EARNED + 10);
    assert!(moved(&bench, Duration::HOUR).await >= 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_refuted_worker_is_barred_and_what_is_held_back_of_it_returns_to_the_clients(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (liar, honest, third) = (
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
        bench.worker(0xca).await,
    );
    trust(&bench, &liar).await;
    let earlier = undrawn(&bench, client, &liar, &honest).await;
    let held = held_back(&bench, 0xa1).await;
    let doubt = "UPDATE worker_records SET trusted = 0 WHERE worker_id = $1";
    change_record(&bench, &liar, doubt).await;

    let before = bench.available(client.address).await;
    let job = bench.submit(client, &inference(), Tier::Sampled).await;
    let lie = compute(&[(&liar, &[9.0])]).await;
    assert_eq!(bench.rule().await, 1);
    compute(&[(&honest, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);
    compute(&[(&third, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(bench.attempt(lie[0].attempt_id).await.0, "rejected");
    // The first of the two that agree is paid by the client, the other by the house; neither waits.
    assert_eq!(bench.earned(job).await, BTreeMap::from([(0xb0, EARNED)]));
    assert_eq!(record(&bench, &liar).await, (0, 0, true));

    assert_eq!(
        move_pay(&bench).await,
        usize::try_from(held / EARNED).unwrap()
    );
    assert_eq!(held_back(&bench, 0xa1).await, 0);
    assert_eq!(available(&bench, 0xa1).await, 0);
    assert_eq!(bench.available(client.address).await, before - PAID + held);
    // The house owes the clients its own part, behind the runs that it owes for, and gains nothing by a cheat.
    let jobs = u32::try_from(held / EARNED).unwrap();
    let mut tx = bench.owner.begin().await.unwrap();
    let (platform, money) = (crate::harness::PLATFORM, base(10_000_000));
    ledger::deposit(&mut tx, 1, platform, money, "own money", now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    while steps::holdback::pay_audits(&bench.state, now())
        .await
        .unwrap()
        .done
        > 0
    {}
    let whole = before - PAID + u128::from(jobs) * PAID;
    assert_eq!(bench.available(client.address).await, whole);
    let mut conn = bench.owner.acquire().await.unwrap();
    let fates = holdback::of_job(&mut conn, earlier).await.unwrap();
    assert_eq!(fates[0].state, "forfeited");
    // It is told so, and what it computed says why.
    bench.submit(client, &inference(), Tier::None).await;
    let wants = WorkRequest {
        wanted: 9,
        ..WorkRequest::default()
    };
    let refused = liar.work(&wants).await.unwrap_err();
    assert_eq!(refused.code(), "worker_barred");
    // What it has still to report is taken.
    let reports = WorkRequest {
        failures: vec![Failure {
            attempt_id: lie[0].attempt_id,
            lease_token: lie[0].lease_token,
            cause: FailureCause::Worker,
            code: "late".to_owned(),
            detail: String::new(),
        }],
        ..wants.clone()
    };
    assert_eq!(liar.work(&reports).await.unwrap().acks.len(), 1);
    // An operator lifts it: it starts anew.
    let mut tx = bench.owner.begin().await.unwrap();
    admin_workers::lift_bar(&mut tx, liar.id).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(record(&bench, &liar).await, (0, 0, false));
    assert_eq!(lease(&liar).await.job.kind(), "inference");
    let verdict = verdicts::find_decided(&mut conn, client.account, job)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(verdict.evidence["results"][0]["accepted"], false);
    assert_eq!(verdict.evidence["draw"]["audited"], true);
}
