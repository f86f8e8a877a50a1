//! What is forfeited of a charge that was refunded in part: nobody gets back more than was paid, and the platform loses no more than its own part.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{AccountId, AttemptId, JobId, RefundId, WorkerId},
    job::Tier,
    policy::holdback::DisputeWindows,
    price::{self, Meter},
    refund::Caps,
};
use comptoir_store::{
    PgTransaction,
    charges::{self, JobCharge},
    holdback::{self, Fate},
    holds::HoldSource,
    ledger,
    refunds::{self, NewRefund, RefundError},
    worker_records,
};
use sqlx::PgPool;

use crate::{
    deposits::until_one_waits,
    harness::{ALICE, BOB, Money, NOW, PLATFORM, amount},
};

const NO_CAPS: Caps = Caps {
    per_refund: Amount::MAX,
    per_day: Amount::MAX,
};

/// A job that Alice paid 100 base units for: 90 are held back of Bob's worker, 10 are the platform's, which has 1,000 beside.
struct Paid {
    money: Money,
    job: JobId,
    worker: WorkerId,
    attempt: AttemptId,
}

async fn paid(db: PgPool) -> Paid {
    let money = Money::with_price(db, 1_000_000_000_000_000_000, 100_000).await;
    let alice = money.bind(ALICE, false).await;
    let bob = money.bind(BOB, false).await;
    money.bind(PLATFORM, false).await;
    money.deposit(ALICE, 1_000).await;
    money.deposit(PLATFORM, 1_000).await;
    money.hire().await;
    let worker = money.worker(bob).await;
    let (attempt, job) = money.attempt(worker, alice).await;
    money.hold(HoldSource::Job(job), ALICE, 100).await.unwrap();
    charge(&money, alice, job, worker).await;
    Paid {
        money,
        job,
        worker,
        attempt,
    }
}

async fn charge(money: &Money, account: AccountId, job: JobId, worker: WorkerId) {
    let meter = Meter::inference(100, 1, Tier::None).unwrap();
    let charge = JobCharge {
        job,
        account,
        payer: ALICE,
        asset_id: money.asset,
        meter,
        price: money.price,
        amount: price::amount(&meter, &money.price).unwrap(),
        shares: vec![(BOB, 1)],
        data: None,
        input: Sha256::of(b"input"),
        result: Sha256::of(b"result"),
        verdict: Sha256::of(b"verdict"),
    };
    let mut tx = money.scheduler.begin().await.unwrap();
    worker_records::lock(&mut tx, worker, NOW).await.unwrap();
    let number = worker_records::number_result(&mut tx, worker)
        .await
        .unwrap();
    let earners = BTreeMap::from([(BOB, (worker, number))]);
    charges::settle_holding_back(&mut tx, &charge, &earners, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

impl Paid {
    async fn propose(&self, base: u128) -> RefundId {
        let mut tx = self.money.admin.begin().await.unwrap();
        let new = NewRefund {
            job: self.job,
            amount: Some(amount(base)),
            reason: "of no use",
            proposed_by: self.money.admins[0],
        };
        let proposed = refunds::propose(&mut tx, &new, NO_CAPS, NOW).await;
        tx.commit().await.unwrap();
        proposed.unwrap().id
    }

    async fn approve(&self, id: RefundId) -> Result<(), RefundError> {
        let mut tx = self.money.admin.begin().await?;
        refunds::approve(&mut tx, id, self.money.admins[1], NO_CAPS, NOW).await?;
        Ok(tx.commit().await?)
    }

    /// Bob's worker is barred, and what is held back of it is forfeited.
    async fn forfeit(&self) -> PgTransaction<'static> {
        let mut tx = self.money.scheduler.begin().await.unwrap();
        worker_records::lock(&mut tx, self.worker, NOW)
            .await
            .unwrap();
        worker_records::bar(&mut tx, self.worker, self.attempt, NOW)
            .await
            .unwrap();
        let fate = (Fate::Forfeited, DisputeWindows::default());
        let moved = holdback::move_due(&mut tx, self.worker, fate, NOW).await;
        assert_eq!(moved.unwrap(), 1);
        tx
    }

    /// Pays what the house owes; how many times.
    async fn pay_owed(&self) -> usize {
        let mut tx = self.money.scheduler.begin().await.unwrap();
        let paid = holdback::pay_owed(&mut tx, NOW).await.unwrap();
        tx.commit().await.unwrap();
        paid
    }

    /// What Alice has, and what the platform has with its fees.
    async fn has(&self) -> (u128, u128) {
        let available = async |owner: Address| self.money.balances(owner).await.available.base();
        let mut conn = self.money.admin.acquire().await.unwrap();
        let house = ledger::house_balances(&mut conn, self.money.asset).await;
        let fees = house.unwrap().fees.base();
        (available(ALICE).await, available(PLATFORM).await + fees)
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_exceeds_the_rest_of_a_charge_goes_to_the_platform_that_refunded_it(db: PgPool) {
    let paid = paid(db).await;
    assert_eq!(paid.has().await, (900, 1_010));
    let id = paid.propose(95).await;
    paid.approve(id).await.unwrap();
    assert_eq!(paid.has().await, (995, 915));
    paid.forfeit().await.commit().await.unwrap();
    assert_eq!(paid.has().await, (1_000, 1_000));
    assert_eq!(paid.pay_owed().await, 0, "it gave its part before");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_house_owes_of_its_own_part_what_it_did_not_refund(db: PgPool) {
    let paid = paid(db).await;
    let id = paid.propose(4).await;
    paid.approve(id).await.unwrap();
    paid.forfeit().await.commit().await.unwrap();
    assert_eq!(paid.has().await, (994, 1_006));
    assert_eq!(paid.pay_owed().await, 1);
    assert_eq!(paid.has().await, (1_000, 1_000));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_refund_in_the_moment_of_a_forfeit_gives_no_more_than_that_leaves(db: PgPool) {
    let paid = paid(db).await;
    let id = paid.propose(95).await;
    let forfeit = paid.forfeit().await;
    let commit = async {
        until_one_waits(&paid.money).await;
        forfeit.commit().await.unwrap();
    };
    let (approved, ()) = futures::join!(paid.approve(id), commit);
    assert!(
        matches!(approved, Err(RefundError::AboveCharge { left }) if left.is_zero()),
        "{approved:?}"
    );
    assert_eq!(paid.pay_owed().await, 1);
    assert_eq!(paid.has().await, (1_000, 1_000));
}
