//! Paying for jobs.

use comptoir_domain::{
    bill::BillMismatch,
    digest::Sha256,
    id::JobId,
    job::{Device, Tier},
    price::Meter,
    split::InvalidSplit,
};
use comptoir_store::{
    charges::ChargeError,
    holds::{self, HoldError, HoldSource},
    ledger, prices,
    receipts::{self, Reader, Receipt},
    splits, statement,
};
use futures::future::join_all;
use sqlx::PgPool;
use time::Duration;

use crate::harness::{ALICE, BOB, CAROL, Money, NOW, PLATFORM, amount};

async fn receipt(money: &Money, job: JobId) -> Receipt {
    let mut conn = money.api.acquire().await.unwrap();
    receipts::find_of_job(&mut conn, job)
        .await
        .unwrap()
        .expect("a receipt")
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_settled_job_pays_everybody_and_gives_the_rest_back(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.bind(BOB, true).await;
    money.deposit(ALICE, 1_000).await;
    // 1000 multiply-adds at 0.37: 370 base units, of which 5 % are the platform's.
    let charge = money
        .held_job(alice, ALICE, 1_000, &[(BOB, 3), (CAROL, 1)])
        .await;
    assert_eq!(money.bases(ALICE).await, (630, 370, 0));
    let id = money.settle(&charge).await.unwrap();

    assert_eq!(money.bases(ALICE).await, (630, 0, 0));
    // 370 * 0.95 * 3/4 = 263.625, 370 * 0.95 / 4 = 87.875, 370 * 0.05 = 18.5.
    assert_eq!(money.bases(BOB).await, (263, 0, 0));
    assert_eq!(money.bases(CAROL).await, (87, 0, 0));
    let mut conn = money.api.acquire().await.unwrap();
    let house = ledger::house_balances(&mut conn, money.asset)
        .await
        .unwrap();
    assert_eq!(
        (house.fees, house.split_dust, house.deposits),
        (amount(18), amount(2), amount(1_000))
    );

    let receipt = receipt(&money, charge.job).await;
    assert_eq!(
        (receipt.id, receipt.gross, receipt.payer),
        (id, amount(370), ALICE)
    );
    let shares: Vec<_> = receipt
        .shares
        .iter()
        .map(|share| (share.payee, share.amount.base()))
        .collect();
    assert_eq!(shares, [(PLATFORM, 18), (BOB, 263), (CAROL, 87)]);
    assert_ne!(receipt.input_salt, receipt.result_salt);
    assert_eq!(
        receipt.bill.digest(),
        receipt.bill_sha256,
        "the stored document is the one that was hashed"
    );
    assert_eq!(
        receipt
            .job_bill()
            .unwrap()
            .recompute(&charge.meter, &charge.price),
        Ok(())
    );
    let other = Meter::inference(999, 1, Tier::None).unwrap();
    assert_eq!(
        receipt.job_bill().unwrap().recompute(&other, &charge.price),
        Err(BillMismatch::Meter)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_earned_is_queued_for_those_who_want_it_released(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.bind(BOB, true).await;
    money.bind(CAROL, false).await;
    money.deposit(ALICE, 1_000).await;
    let charge = money
        .held_job(alice, ALICE, 1_000, &[(BOB, 3), (CAROL, 1)])
        .await;
    money.settle(&charge).await.unwrap();
    let mut conn = money.settler.acquire().await.unwrap();
    let queued = comptoir_store::releases::queued(&mut conn, money.asset, 10)
        .await
        .unwrap();
    let queued: Vec<_> = queued
        .iter()
        .map(|it| (it.kind.as_str(), it.owner, it.amount.base()))
        .collect();
    assert_eq!(queued, [("fees", PLATFORM, 18), ("earning", BOB, 263)]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn fifty_replays_at_once_settle_a_job_once(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 1_000).await;
    let charge = money.held_job(alice, ALICE, 1_000, &[(BOB, 1)]).await;
    let replays = join_all((0..50).map(|_| money.settle(&charge))).await;
    let receipts: Vec<_> = replays.into_iter().map(Result::unwrap).collect();
    assert!(receipts.iter().all(|id| *id == receipts[0]));
    assert_eq!(money.bases(ALICE).await, (630, 0, 0));
    assert_eq!(money.bases(BOB).await, (351, 0, 0));
    let counts: (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM receipts), (SELECT count(*) FROM journal_entries WHERE kind = 'charge'),
             (SELECT count(*) FROM releases)",
    )
    .fetch_one(&money.owner)
    .await
    .unwrap();
    assert_eq!(counts, (1, 1, 1));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_is_not_settled_twice_with_different_contents(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 1_000).await;
    let charge = money.held_job(alice, ALICE, 1_000, &[(BOB, 1)]).await;
    let id = money.settle(&charge).await.unwrap();
    let mut other_result = charge.clone();
    other_result.result = Sha256::of(b"another result");
    let mut other_worker = charge.clone();
    other_worker.shares = vec![(CAROL, 1)];
    for changed in [other_result, other_worker] {
        let refused = money.settle(&changed).await;
        assert!(
            matches!(refused, Err(ChargeError::SettledOtherwise(first)) if first == id),
            "{refused:?}"
        );
    }
    assert_eq!(money.bases(CAROL).await, (0, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_charge_needs_its_own_hold_its_own_price_and_somebody_to_pay(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 1_000).await;
    money.deposit(BOB, 1_000).await;
    let charge = money.held_job(alice, ALICE, 1_000, &[(CAROL, 1)]).await;
    let mut changed = charge.clone();
    changed.payer = BOB;
    assert!(matches!(
        money.settle(&changed).await,
        Err(ChargeError::NotHeld)
    ));
    let mut changed = charge.clone();
    changed.job = JobId::generate();
    assert!(matches!(
        money.settle(&changed).await,
        Err(ChargeError::NotHeld)
    ));
    let mut changed = charge.clone();
    changed.meter = Meter::inference(999, 1, Tier::None).unwrap();
    assert!(matches!(
        money.settle(&changed).await,
        Err(ChargeError::AmountMismatch)
    ));
    let mut changed = charge.clone();
    changed.shares.clear();
    let refused = money.settle(&changed).await;
    assert!(
        matches!(refused, Err(ChargeError::Split(InvalidSplit::NoWeight))),
        "{refused:?}"
    );
    assert_eq!(money.bases(ALICE).await, (630, 370, 0));

    let mut tx = money.scheduler.begin().await.unwrap();
    holds::release(&mut tx, HoldSource::Job(charge.job), NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(money.bases(ALICE).await, (1_000, 0, 0));
    assert!(
        matches!(money.settle(&charge).await, Err(ChargeError::NotHeld)),
        "its hold was released"
    );
    let mut tx = money.scheduler.begin().await.unwrap();
    let again = holds::release(&mut tx, HoldSource::Job(charge.job), NOW).await;
    assert!(matches!(again, Err(HoldError::NotHeld)), "{again:?}");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn fractions_of_a_payer_add_up_instead_of_being_rounded_away(db: PgPool) {
    // 1.25 base units per multiply-add: a hold of 2 each time, and charges of 1, 1, 1, 2.
    let money = Money::with_price(db, 1_250_000_000_000_000_000, 0).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    let mut charged = Vec::new();
    for _ in 0..4 {
        let charge = money.held_job(alice, ALICE, 1, &[(BOB, 1)]).await;
        assert_eq!(money.balances(ALICE).await.held, amount(2));
        money.settle(&charge).await.unwrap();
        charged.push(receipt(&money, charge.job).await.gross.base());
    }
    assert_eq!(charged, [1, 1, 1, 2]);
    assert_eq!(money.bases(ALICE).await, (95, 0, 0));
    assert_eq!(money.bases(BOB).await, (5, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn closing_a_split_version_hands_out_its_dust(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 1_000).await;
    let charge = money
        .held_job(alice, ALICE, 1_000, &[(BOB, 3), (CAROL, 1)])
        .await;
    money.settle(&charge).await.unwrap();
    let version = receipt(&money, charge.job).await.split_version;
    let close = async || {
        let mut tx = money.scheduler.begin().await.unwrap();
        let entry = splits::close(&mut tx, version, NOW).await?;
        tx.commit().await.unwrap();
        Ok::<_, splits::CloseError>(entry)
    };
    // Carried: 0.5 by the platform, 0.625 by Bob, 0.875 by Carol; two base units in all.
    assert!(close().await.unwrap().is_some());
    assert_eq!(money.bases(BOB).await, (264, 0, 0));
    assert_eq!(money.bases(CAROL).await, (88, 0, 0));
    let mut conn = money.api.acquire().await.unwrap();
    let house = ledger::house_balances(&mut conn, money.asset)
        .await
        .unwrap();
    assert_eq!((house.fees, house.split_dust), (amount(18), amount(0)));
    assert!(matches!(close().await, Err(splits::CloseError::NotOpen)));
    // The same parties go on with a new version.
    let charge = money
        .held_job(alice, ALICE, 1_000, &[(BOB, 3), (CAROL, 1)])
        .await;
    money.settle(&charge).await.unwrap();
    assert_ne!(receipt(&money, charge.job).await.split_version, version);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_receipt_is_seen_by_its_payer_and_its_payees_alone(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    let bob = money.bind(BOB, true).await;
    let carol = money.bind(CAROL, true).await;
    money.deposit(ALICE, 1_000).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let charge = money.held_job(alice, ALICE, 100, &[(BOB, 1)]).await;
        ids.insert(0, money.settle(&charge).await.unwrap());
    }
    let mut conn = money.api.acquire().await.unwrap();
    for (account, address, sees) in [
        (alice, ALICE, true),
        (bob, BOB, true),
        (carol, CAROL, false),
    ] {
        let reader = Reader {
            account,
            address: Some(address),
        };
        let found = receipts::find_for(&mut conn, reader, ids[0]).await.unwrap();
        assert_eq!(found.is_some(), sees);
        let listed = receipts::list_for(&mut conn, reader, None, 2)
            .await
            .unwrap();
        let listed: Vec<_> = listed.into_iter().map(|it| it.id).collect();
        assert_eq!(listed, if sees { &ids[..2] } else { &[] });
        let rest = receipts::list_for(&mut conn, reader, Some(ids[1]), 2)
            .await
            .unwrap();
        assert_eq!(rest.len(), usize::from(sees));
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_statement_page_follows_another_without_gap_or_repeat(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 1_000).await;
    for _ in 0..5 {
        let charge = money.held_job(alice, ALICE, 100, &[(BOB, 1)]).await;
        money.settle(&charge).await.unwrap();
    }
    let mut conn = money.api.acquire().await.unwrap();
    let all = statement::page(&mut conn, ALICE, money.asset, None, 100)
        .await
        .unwrap();
    // A deposit, five holds of two lines, five charges of one line: 37 held, 37 charged, nothing back.
    assert_eq!(all.len(), 1 + 5 * 2 + 5);
    let mut paged = Vec::new();
    while let Some(next) = Some(
        statement::page(
            &mut conn,
            ALICE,
            money.asset,
            paged
                .last()
                .map(|it: &statement::StatementLine| it.position),
            3,
        )
        .await
        .unwrap(),
    )
    .filter(|it| !it.is_empty())
    {
        paged.extend(next);
    }
    assert_eq!(paged, all);
    let newest = &all[0];
    assert_eq!(
        (
            newest.kind.as_str(),
            newest.code.as_str(),
            newest.change.base()
        ),
        ("charge", "held", -37)
    );
    assert_eq!(newest.source_kind, "job_charge");
    let oldest = all.last().unwrap();
    assert_eq!(
        (
            oldest.kind.as_str(),
            oldest.change.base(),
            oldest.balance_after
        ),
        ("deposit", 1_000, amount(1_000))
    );
    assert!(
        statement::page(&mut conn, CAROL, money.asset, None, 3)
            .await
            .unwrap()
            .is_empty()
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_quote_uses_the_price_of_its_moment(db: PgPool) {
    let money = Money::new(db).await;
    let mut conn = money.owner.acquire().await.unwrap();
    let later = NOW + Duration::hours(1);
    let new = prices::NewPrice {
        device: Device::Cpu,
        rate_nano: money.price.rate_nano,
        minimum: amount(9),
        platform_ppm: 0,
        effective_at: later,
    };
    let next = prices::publish(&mut conn, money.asset, new).await.unwrap();
    let mut conn = money.api.acquire().await.unwrap();
    let at = async |conn: &mut sqlx::PgConnection, device, now| {
        prices::current(conn, money.asset, device, now).await
    };
    assert_eq!(at(&mut conn, Device::Cpu, NOW).await.unwrap(), money.price);
    assert_eq!(at(&mut conn, Device::Cpu, later).await.unwrap(), next);
    let none = at(&mut conn, Device::Cuda, later).await;
    assert!(
        matches!(none, Err(prices::PriceError::NotPublished)),
        "{none:?}"
    );
    assert_eq!(
        prices::find(&mut conn, money.price.id).await.unwrap(),
        money.price
    );
    let listed = prices::list_current(&mut conn, money.asset, later)
        .await
        .unwrap();
    assert_eq!(listed, [(next, later)]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_snapshot_shows_every_owner_that_ever_had_an_account(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 370).await;
    let charge = money.held_job(alice, ALICE, 1_000, &[(BOB, 1)]).await;
    money.settle(&charge).await.unwrap();
    let mut conn = money.settler.acquire().await.unwrap();
    let owners = ledger::all_owner_balances(&mut conn, money.asset)
        .await
        .unwrap();
    let owners: Vec<_> = owners
        .into_iter()
        .map(|(owner, it)| (owner, it.available.base()))
        .collect();
    assert_eq!(owners, [(ALICE, 0), (BOB, 351)]);
}
