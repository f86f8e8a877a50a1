//! The tier `sampled`: who is audited, who pays for it, whose pay is held back, and what becomes of it.

use std::collections::BTreeMap;

use comptoir_domain::{
    id::JobId,
    job::{JobState, Tier},
    policy::{
        Draw,
        audit::{POLICY, commitment},
    },
};
use comptoir_scheduler::{steps, stub::StubWorker};
use comptoir_store::{draws, ledger, verdicts};
use sqlx::PgPool;
use time::Duration;

use crate::harness::{
    BUDGET, Bench, Client, ask, base, compute, inference, lease, now, reveal, seal,
};

/// What the worker of one sampled inference job earns: 40,000 less the fee of a tenth, by weights in millionths.
pub const EARNED: u128 = 35_999;
/// What the client pays for it.
pub const PAID: u128 = 44_000;

/// Gives a worker the record of one with as many confirmed results as bring the rate to its floor.
pub async fn trust(bench: &Bench, worker: &StubWorker) {
    sqlx::query(
        "INSERT INTO worker_records (worker_id, trusted, public_key, numeric_class, worked_at)
         SELECT worker_id, 39, public_key, numeric_class, now() FROM workers WHERE worker_id = $1
         ON CONFLICT (worker_id) DO UPDATE SET trusted = 39",
    )
    .bind(worker.id.0)
    .execute(&bench.owner)
    .await
    .unwrap();
}

pub async fn change_record(bench: &Bench, worker: &StubWorker, change: &'static str) {
    let changed = sqlx::query(change)
        .bind(worker.id.0)
        .execute(&bench.owner)
        .await
        .unwrap();
    assert_eq!(changed.rows_affected(), 1);
}

/// `(trusted, strikes, barred)` of a worker.
pub async fn record(bench: &Bench, worker: &StubWorker) -> (i32, i32, bool) {
    sqlx::query_as(
        "SELECT trusted, strikes, barred_at IS NOT NULL FROM worker_records WHERE worker_id = $1",
    )
    .bind(worker.id.0)
    .fetch_one(&bench.owner)
    .await
    .unwrap()
}

/// Submits sampled jobs, which `worker` computes and `auditor` confirms where drawn, until one is not drawn.
pub async fn undrawn(
    bench: &Bench,
    client: Client,
    worker: &StubWorker,
    auditor: &StubWorker,
) -> JobId {
    for _ in 0..100 {
        let job = bench.submit(client, &inference(), Tier::Sampled).await;
        compute(&[(worker, &[1.0])]).await;
        assert_eq!(bench.rule().await, 1);
        if bench.job(client, job).await.state == JobState::Completed {
            return job;
        }
        compute(&[(auditor, &[1.0])]).await;
        assert_eq!(bench.rule().await, 1);
    }
    panic!("a rate of a twentieth drew a hundred times in a row");
}

/// The settler sealed a batch in this moment.
async fn seal_a_batch(bench: &Bench) {
    sqlx::query(
        "INSERT INTO settlement_batches (batch_id, asset_id, number, generation, state, hash, prev_hash, receipts_root,
             accounts_root, data_hash, data_bytes, receipt_count, account_count, deposit_seq_seen, total_payable_base,
             total_available_base, deposits_seen_base, sealed_at)
         SELECT gen_random_uuid(), asset_id, 1, 0, 'sealed', hash, hash, hash, hash, hash, 1, 0, 0, 0, 0, 0, 0, $1
         FROM assets, sha256('batch') AS it (hash)",
    )
    .bind(now())
    .execute(&bench.owner)
    .await
    .unwrap();
}

pub async fn held_back(bench: &Bench, byte: u8) -> u128 {
    let address = alloy_primitives::Address::repeat_byte(byte);
    bench.balances(address).await.held_back.base()
}

pub async fn available(bench: &Bench, byte: u8) -> u128 {
    bench
        .available(alloy_primitives::Address::repeat_byte(byte))
        .await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_new_worker_s_result_is_confirmed_by_another_owner_whom_the_house_pays(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (new, auditor) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    let job = bench.submit(client, &inference(), Tier::Sampled).await;
    compute(&[(&new, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(bench.job(client, job).await.state, JobState::Queued);
    assert_eq!(bench.event(job, "queued").await["reason"], "audit");
    // The owner that has done it does not confirm itself.
    assert_eq!(ask(&new, 9).await.leases, []);
    compute(&[(&auditor, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);

    let done = bench.job(client, job).await;
    assert_eq!(
        (done.state, done.verdict.as_deref()),
        (JobState::Completed, Some("bitwise"))
    );
    // One run and a tenth, whether it is audited or not.
    assert_eq!(bench.available(client.address).await, BUDGET - PAID);
    assert_eq!(bench.earned(job).await, BTreeMap::from([(0xa1, EARNED)]));
    assert_eq!(held_back(&bench, 0xa1).await, EARNED);
    assert_eq!(available(&bench, 0xa1).await, 0);
    assert_eq!(record(&bench, &new).await, (1, 0, false));
    assert_eq!(record(&bench, &auditor).await, (1, 0, false));

    // The fees of one job do not pay a run: the house owes it until it has the money.
    let pay = async || {
        let paid = steps::holdback::pay_audits(&bench.state, now()).await;
        paid.unwrap().done
    };
    assert_eq!(pay().await, 0);
    let mut tx = bench.owner.begin().await.unwrap();
    ledger::deposit(
        &mut tx,
        1,
        crate::harness::PLATFORM,
        base(40_000),
        "own money",
        now(),
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    assert_eq!((pay().await, pay().await), (1, 0));
    assert_eq!(available(&bench, 0xb0).await, EARNED);
    let platform = bench.available(crate::harness::PLATFORM).await;
    assert_eq!(
        platform,
        40_000 + (PAID - EARNED) - 1 - EARNED,
        "one base unit is carried as dust"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn trust_from_another_network_does_not_count(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (mut worker, auditor) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    trust(&bench, &worker).await;
    let draw = async |worker: &StubWorker| {
        let job = bench.submit(client, &inference(), Tier::Sampled).await;
        compute(&[(worker, &[1.0])]).await;
        assert_eq!(bench.rule().await, 1);
        let made = draws::find(&mut bench.owner.acquire().await.unwrap(), job).await;
        if bench.job(client, job).await.state != JobState::Completed {
            compute(&[(&auditor, &[1.0])]).await;
            assert_eq!(bench.rule().await, 1);
        }
        made.unwrap().unwrap().draw.trusted
    };
    // Where it asks from becomes known, and is where its trust was earned.
    worker.refresh(now() + Duration::SECOND).await.unwrap();
    let known: String = sqlx::query_scalar("SELECT network FROM workers WHERE worker_id = $1")
        .bind(worker.id.0)
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(known, "127.0.0.0/24");
    assert_eq!(draw(&worker).await, 39);
    let moved = "UPDATE workers SET network = '192.0.2.0/24' WHERE worker_id = $1";
    change_record(&bench, &worker, moved).await;
    assert_eq!(draw(&worker).await, 0);
    assert_eq!(record(&bench, &worker).await.0, 1, "it earns trust there");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn three_results_that_all_differ_mark_the_class_and_slash_nobody(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let workers = [
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
        bench.worker_of_class(0xca, "y").await,
    ];
    let job = bench.submit(client, &inference(), Tier::Sampled).await;
    for (worker, value) in workers.iter().zip([1.0, 2.0, 3.0]) {
        compute(&[(worker, &[value])]).await;
        assert_eq!(bench.rule().await, 1);
    }
    bench.assert_refunded(client, job, JobState::Failed).await;
    let marked: Vec<String> = sqlx::query_scalar(
        "SELECT numeric_class FROM unstable_classes WHERE job_id = $1 ORDER BY numeric_class",
    )
    .bind(job.0)
    .fetch_all(&bench.owner)
    .await
    .unwrap();
    assert_eq!(marked, ["x", "y"]);
    let barred: i64 =
        sqlx::query_scalar("SELECT count(*) FROM worker_records WHERE barred_at IS NOT NULL")
            .fetch_one(&bench.owner)
            .await
            .unwrap();
    assert_eq!(barred, 0);
    bench.submit(client, &inference(), Tier::None).await;
    assert_eq!(ask(&workers[0], 9).await.leases.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_quorum_is_three_owners_of_whom_two_agree(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (one, two, odd) = (
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
        bench.worker(0xca).await,
    );
    let job = bench.submit(client, &inference(), Tier::Quorum).await;
    compute(&[(&one, &[1.0]), (&odd, &[9.0]), (&two, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);
    assert_eq!(
        bench.job(client, job).await.verdict.as_deref(),
        Some("bitwise")
    );
    assert_eq!(bench.available(client.address).await, BUDGET - 120_000);
    // The price of three runs goes to the two that were right, at once.
    assert_eq!(
        bench.earned(job).await,
        BTreeMap::from([(0xa1, 54_000), (0xb0, 54_000)])
    );
    assert_eq!(available(&bench, 0xa1).await, 54_000);
    assert_eq!(record(&bench, &odd).await, (0, 0, true));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_missing_reveal_costs_trust_and_gives_others_a_head_start(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (silent, other) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    trust(&bench, &silent).await;
    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&silent).await;
    seal(&silent, &leased, &[1.0]).await;
    sqlx::query("UPDATE attempts SET reveal_by = clock_timestamp() - interval '1 ms'")
        .execute(&bench.owner)
        .await
        .unwrap();
    let failed = steps::faults::fail_missing_reveals(&bench.state, now())
        .await
        .unwrap();
    assert_eq!(failed.done, 1);
    assert_eq!(record(&bench, &silent).await, (0, 5, false));

    bench.submit(client, &inference(), Tier::None).await;
    assert_eq!(ask(&silent, 1).await.leases, []);
    let taken = lease(&other).await;
    let (result, _) = seal(&other, &taken, &[1.0]).await;
    reveal(&other, &result).await;
    assert_eq!(bench.rule().await, 1);
    // What others have left for a while is offered to it again, and each accepted result makes a fault good.
    bench.pass_backoff().await;
    compute(&[(&silent, &[1.0])]).await;
    bench.rule().await;
    assert_eq!(record(&bench, &silent).await.1, 4);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_draw_can_be_repeated_once_its_seed_is_shown(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (worker, auditor) = (bench.worker(0xa1).await, bench.worker(0xb0).await);
    trust(&bench, &worker).await;
    let job = undrawn(&bench, client, &worker, &auditor).await;
    let mut conn = bench.owner.acquire().await.unwrap();
    let hidden = draws::find(&mut conn, job).await.unwrap().unwrap();
    assert_eq!(hidden.shown, None);
    let show = async |at| {
        steps::holdback::show_seed(&bench.state, at)
            .await
            .unwrap()
            .done
    };
    assert_eq!(show(now()).await, 0);
    seal_a_batch(&bench).await;
    assert_eq!(show(now()).await, 1);
    let made = draws::find(&mut conn, job).await.unwrap().unwrap();
    let seed = made.shown.unwrap().0;
    assert_eq!(commitment(&seed), hidden.commitment);
    let decided = verdicts::find_decided(&mut conn, client.account, job)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let sealed: comptoir_domain::digest::Sha256 =
        serde_json::from_value(decided.evidence["results"][0]["seal"].clone()).unwrap();
    let again = Draw::of(&POLICY, made.draw.trusted, &seed, (made.attempt, &sealed.0));
    assert_eq!(again, made.draw);
    assert!(!again.is_audited());
    // The next draw is from another seed.
    let next = undrawn(&bench, client, &worker, &auditor).await;
    let next = draws::find(&mut conn, next).await.unwrap().unwrap();
    assert_ne!(next.commitment, made.commitment);
    // Without a batch, a seed is shown after a day.
    assert_eq!(show(now()).await, 0);
    assert_eq!(show(now() + Duration::days(1)).await, 1);
}
