//! Jobs on datasets that takedowns block: what is not computed, who is not paid, and where the data's part of a charge goes.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, JobId, TakedownId},
    job::{Cause, JobState, Tier},
    refund::Caps,
    takedown::{Act, Ground},
};
use comptoir_scheduler::steps;
use comptoir_store::{
    jobs::CreateError,
    ledger,
    refunds::{self, NewRefund},
    releases,
    takedowns::{self, NewTakedown},
};
use comptoir_wire::work::AckOutcome;
use sqlx::PgPool;

use crate::{
    datasets::{SELLER, code, offered, reading},
    harness::{BUDGET, Bench, Client, PLATFORM, base, held, inference, lease, now, reveal, seal},
    sealing::Sealed,
};

const NO_CAPS: Caps = Caps {
    per_refund: Amount::MAX,
    per_day: Amount::MAX,
};

/// Blocks the dataset, as the api and an operator do.
async fn freeze(bench: &Bench, dataset: &Sealed) -> TakedownId {
    let claimant = bench.account(0xc2).await.account;
    let mut tx = bench.owner.begin().await.unwrap();
    let new = NewTakedown {
        account: claimant,
        dataset: dataset.dataset,
        seller: dataset.seller,
        ground: Ground::Other,
        statement: "mine",
    };
    let filed = takedowns::file(&mut tx, &new, now()).await.unwrap();
    tx.commit().await.unwrap();
    decide(bench, filed, Act::Freeze).await;
    filed
}

async fn decide(bench: &Bench, takedown: TakedownId, act: Act) {
    let mut tx = bench.owner.begin().await.unwrap();
    let by = (AccountId::generate(), takedown);
    let decided = takedowns::decide(&mut tx, by, (act, "looked at"), now()).await;
    assert_eq!(decided.unwrap().state, act.leads_to());
    tx.commit().await.unwrap();
}

/// What is on its way to the chain for the seller.
async fn queued(bench: &Bench) -> u128 {
    let seller = Address::repeat_byte(SELLER);
    let mut connection = bench.owner.acquire().await.unwrap();
    let queued = releases::queued_of(&mut connection, bench.asset, seller).await;
    queued.unwrap().base()
}

async fn move_proceeds(bench: &Bench) -> usize {
    let moved = steps::holdback::move_proceeds(&bench.state, now()).await;
    moved.unwrap().done
}

/// A job on the dataset whose worker has its bytes when the dataset is blocked; what of its charge is held back for the seller and the house, and
/// what the client has left.
async fn charged_while_blocked(bench: &Bench, client: &Client) -> (JobId, TakedownId, u128) {
    let (dataset, data) = offered(bench).await;
    sqlx::query("UPDATE accounts SET auto_release = true")
        .execute(&bench.owner)
        .await
        .unwrap();
    let spec = reading(&dataset, inference());
    let job = bench.submit_on(*client, &spec, Tier::None, data);
    let job = job.await.unwrap();
    let worker = bench.worker(1).await;
    let leased = lease(&worker).await;
    worker.open_dataset(held(&leased)).await.unwrap();
    let takedown = freeze(bench, &dataset).await;
    let (result, _) = seal(&worker, &leased, &[1.0]).await;
    assert_eq!(reveal(&worker, &result).await, AckOutcome::Accepted);
    assert_eq!(bench.rule().await, 1);
    let receipt = bench.receipt(job).await;
    let left = BUDGET - receipt.gross.base();
    assert_eq!(bench.available(client.address).await, left);
    let seller = bench.balances(Address::repeat_byte(SELLER)).await;
    assert_eq!((seller.available.base(), seller.held_back.base()), (0, 900));
    assert_eq!(queued(bench).await, 0, "nothing of it is on its way");
    let house = bench.balances(PLATFORM).await;
    assert_eq!(house.held_back.base(), 100);
    (job, takedown, left)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nothing_computes_on_what_is_blocked(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, data) = offered(&bench).await;
    let spec = reading(&dataset, inference());
    let job = bench.submit_on(client, &spec, Tier::None, data);
    let job = job.await.unwrap();
    freeze(&bench, &dataset).await;
    let refused = bench.submit_on(client, &spec, Tier::None, data).await;
    assert!(
        matches!(refused, Err(CreateError::DataRightEnded)),
        "{refused:?}"
    );
    let worker = bench.worker(1).await;
    let leased = lease(&worker).await;
    let opened = worker.open_dataset(held(&leased)).await;
    assert_eq!(code(opened), "stale_lease");
    bench.assert_refunded(client, job, JobState::Failed).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_data_s_part_of_a_job_is_held_back_while_blocked_and_forfeited_when_that_is_upheld(
    db: PgPool,
) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (_, takedown, left) = charged_while_blocked(&bench, &client).await;
    assert_eq!(move_proceeds(&bench).await, 0, "nothing is decided");
    decide(&bench, takedown, Act::Uphold).await;
    assert_eq!(move_proceeds(&bench).await, 2);
    assert_eq!(move_proceeds(&bench).await, 0);
    let seller = bench.balances(Address::repeat_byte(SELLER)).await;
    assert_eq!((seller.available.base(), seller.held_back.base()), (0, 0));
    // All of 1,001 but the fraction that is carried.
    assert_eq!(bench.available(client.address).await, left + 1_000);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_data_s_part_of_a_job_is_released_when_a_takedown_is_rejected(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (_, takedown, left) = charged_while_blocked(&bench, &client).await;
    decide(&bench, takedown, Act::Reject).await;
    assert_eq!(move_proceeds(&bench).await, 2);
    let seller = bench.balances(Address::repeat_byte(SELLER)).await;
    assert_eq!((seller.available.base(), seller.held_back.base()), (900, 0));
    assert_eq!(queued(&bench).await, 900);
    let house = bench.balances(PLATFORM).await;
    assert_eq!((house.available.base(), house.held_back.base()), (100, 0));
    assert_eq!(bench.available(client.address).await, left);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_ran_a_job_that_another_cannot_run_any_more_is_not_paid_and_not_blamed(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, data) = offered(&bench).await;
    let spec = reading(&dataset, inference());
    let job = bench.submit_on(client, &spec, Tier::Replicated, data);
    let job = job.await.unwrap();
    let (one, two) = (bench.worker(1).await, bench.worker(2).await);
    let (first, second) = (lease(&one).await, lease(&two).await);
    one.open_dataset(held(&first)).await.unwrap();
    seal(&one, &first, &[1.0]).await;
    freeze(&bench, &dataset).await;
    let opened = two.open_dataset(held(&second)).await;
    assert_eq!(code(opened), "stale_lease");
    // Nothing confirms what the first one computed, and nobody has it.
    bench.assert_refunded(client, job, JobState::Failed).await;
    assert_eq!(bench.attempt(first.attempt_id).await.0, "cancelled");
    let earned = bench.balances(Address::repeat_byte(1)).await;
    assert_eq!((earned.available, earned.held_back), (base(0), base(0)));
    let failure = bench.job(client, job).await.failure.unwrap();
    assert_eq!(failure.cause, Cause::Client);
}

/// Two administrators give back some of a job's charge, of the platform's own money.
async fn refund(bench: &Bench, job: JobId, amount: Amount) {
    let admins = [bench.account(0xad).await, bench.account(0xae).await];
    let [first, second] = admins.map(|it| it.account);
    sqlx::query("UPDATE accounts SET roles = '{user,platform}' WHERE account_id = ANY ($1)")
        .bind([first.0, second.0])
        .execute(&bench.owner)
        .await
        .unwrap();
    let mut tx = bench.owner.begin().await.unwrap();
    let source = format!("for the refund of {job}");
    ledger::deposit(&mut tx, bench.asset, PLATFORM, amount, &source, now())
        .await
        .unwrap();
    let new = NewRefund {
        job,
        amount: Some(amount),
        reason: "of no use",
        proposed_by: first,
    };
    let id = refunds::propose(&mut tx, &new, NO_CAPS, now()).await;
    let id = id.unwrap().id;
    let posted = refunds::approve(&mut tx, id, second, NO_CAPS, now()).await;
    posted.unwrap();
    tx.commit().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_refunded_before_a_takedown_was_upheld_does_not_come_back_twice(db: PgPool) {
    const LEFT: u128 = 300;
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (job, takedown, left) = charged_while_blocked(&bench, &client).await;
    refund(&bench, job, base(BUDGET - left - LEFT)).await;
    assert_eq!(bench.available(client.address).await, BUDGET - LEFT);
    let house = bench.balances(PLATFORM).await.available.base();
    decide(&bench, takedown, Act::Uphold).await;
    assert_eq!(move_proceeds(&bench).await, 2);
    // Of the 1,000 that are forfeited the client gets what it still had paid, and the platform what it had given for them.
    assert_eq!(bench.available(client.address).await, BUDGET);
    let back = bench.balances(PLATFORM).await.available.base() - house;
    assert_eq!(back, 1_000 - LEFT);
}
