//! From a charge to tokens in the hands of whoever earned them.

use std::time::Duration;

use alloy::primitives::B256;
use comptoir_contracts_bindings::Settlement::{cancelBatchCall, pauseCall};
use comptoir_domain::settlement::{BatchState, ReceiptDocument, merkle};
use comptoir_settler::{
    BatchPolicy, Config,
    verify::{self, VerifyError},
};
use comptoir_store::{batches, releases};
use sqlx::PgPool;

use crate::harness::{DEPTH, Key, NOW, PLATFORM, World, amount, tokens};

/// Alice has deposited so many tokens, and they are credited.
pub async fn funded(db: PgPool, count: u128) -> (World, comptoir_settler::Settler) {
    let world = World::new(db).await;
    let mut settler = world.settler().await;
    world.deposit(Key::Alice.address(), tokens(count)).await;
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(world.available(Key::Alice.address()).await, tokens(count));
    (world, settler)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn earnings_are_claimed_to_the_base_unit(db: PgPool) {
    let (world, mut settler) = funded(db, 1_000).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    let receipt = world
        .pay_job(
            alice,
            Key::Alice.address(),
            tokens(10) + 7,
            Key::Bob.address(),
        )
        .await;

    assert!(settler.step(NOW).await.unwrap().sealed);
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!((batch.header.id, batch.header.receipt_count), (1, 1));
    // Nine tenths, rounded down; the platform's tenth; what is not divisible waits as dust in the platform's leaf.
    let (worker, fees) = (tokens(9) + 6, tokens(1));
    assert_eq!(batch.header.total_payable, worker + fees);
    assert_eq!(
        world.balances(Key::Bob.address()).await.payable.base(),
        worker
    );

    for (owner, earned) in [(Key::Bob.address(), worker), (PLATFORM, fees)] {
        let document = world.account_document(&batch, owner).await;
        verify::account(world.anvil.url.clone(), &document)
            .await
            .unwrap();
        world.claim(&document).await;
        assert_eq!(world.tokens_of(owner).await, earned);
    }
    assert_eq!(
        world.tokens_of(world.deployed.settlement).await,
        tokens(1_000) - worker - fees
    );
    let alices = world
        .account_document(&batch, Key::Alice.address())
        .await
        .account;
    assert_eq!(
        (alices.available, alices.deposits_seen),
        (tokens(990) - 7, tokens(1_000))
    );

    let document = world.receipt_document(receipt).await;
    let found = verify::receipt(world.anvil.url.clone(), &document)
        .await
        .unwrap();
    assert!(found.in_ring && found.active);
    let mut forged = document.clone();
    forged.header.data_hash = B256::repeat_byte(1);
    let refused = verify::receipt(world.anvil.url.clone(), &forged).await;
    assert!(matches!(
        refused,
        Err(VerifyError::NotOnChain { batch: 1, .. })
    ));

    // The claims are seen, and everything still adds up when they are final.
    world.anvil.mine(DEPTH).await;
    let progress = settler.step(NOW).await.unwrap();
    assert!(!progress.halted && !progress.sealed);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_receipt_file_with_one_byte_changed_is_refused(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    let receipt = world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    world.until_claimable(&mut settler).await;
    let text = serde_json::to_string(&world.receipt_document(receipt).await).unwrap();
    let read = |text: &str| serde_json::from_str::<ReceiptDocument>(text).ok();
    verify::receipt(world.anvil.url.clone(), &read(&text).unwrap())
        .await
        .unwrap();
    let place = text.find("\"gross\":\"1000\"").unwrap() + "\"gross\":\"".len();
    let mut changed = text.clone();
    changed.replace_range(place..=place, "2");
    assert!(
        verify::receipt(world.anvil.url.clone(), &read(&changed).unwrap())
            .await
            .is_err()
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_seal_releases_oldest_first_and_no_more_than_the_caps(db: PgPool) {
    let (world, mut settler) = funded(db, 1_000).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    world.bind(Key::Carol.address()).await;
    // 108 and 90 tokens of earnings, 22 of fees; a batch may release 100, a day 150.
    world
        .pay_job(alice, Key::Alice.address(), tokens(120), Key::Bob.address())
        .await;
    world
        .pay_job(
            alice,
            Key::Alice.address(),
            tokens(100),
            Key::Carol.address(),
        )
        .await;
    let second = world.until_claimable(&mut settler).await;
    let first = world.batches().await[1];
    assert_eq!(first.header.total_payable, tokens(100));
    assert_eq!(
        (second.header.id, second.header.total_payable),
        (2, tokens(150))
    );
    // Before her come Bob's 108 and the platform's 12 and 10.
    assert_eq!(
        world.balances(Key::Carol.address()).await.payable.base(),
        tokens(20)
    );
    // Today's bucket is empty: the rest waits for tomorrow, and no batch is sealed for it meanwhile.
    assert!(!settler.step(NOW).await.unwrap().sealed);
    world.anvil.pass(86_400).await;
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    let third = world.until_claimable(&mut settler).await;
    assert_eq!(third.header.total_payable, tokens(220));
    assert_eq!(
        world.balances(Key::Carol.address()).await.payable.base(),
        tokens(90)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_vetoed_batch_is_sealed_again_with_the_same_receipts(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    let receipt = world
        .pay_job(alice, Key::Alice.address(), tokens(1), Key::Bob.address())
        .await;
    settler.step(NOW).await.unwrap();
    settler.step(NOW).await.unwrap();
    assert_eq!(world.states().await, [(1, 0, BatchState::Mined)]);

    world.call(Key::Guardian, cancelBatchCall { id: 1 }).await;
    // A veto that could still leave the chain is no reason to seal again.
    assert!(!settler.step(NOW).await.unwrap().sealed);
    world.anvil.mine(DEPTH).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    assert_eq!(world.states().await[1], (1, 0, BatchState::Cancelled));
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!(
        (
            batch.header.id,
            batch.header.generation,
            batch.header.receipt_count
        ),
        (1, 1, 1)
    );
    let document = world.receipt_document(receipt).await;
    verify::receipt(world.anvil.url.clone(), &document)
        .await
        .unwrap();
    world
        .claim(&world.account_document(&batch, Key::Bob.address()).await)
        .await;
    assert_eq!(world.tokens_of(Key::Bob.address()).await, tokens(9) / 10);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_idle_service_commits_before_it_could_be_frozen(db: PgPool) {
    let world = World::new(db).await;
    let mut settler = world.settler().await;
    world.anvil.mine(DEPTH).await;
    assert!(!settler.step(NOW).await.unwrap().sealed);
    world.anvil.pass(3_600 / 4).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!(batch.header.receipt_count, 0);
    assert_eq!(batch.header.receipts_root, merkle::empty_root());
    assert!(!settler.step(NOW).await.unwrap().sealed);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_pause_delays_and_loses_nothing(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    world.call(Key::Guardian, pauseCall { bits: 2 }).await;
    let progress = settler.step(NOW).await.unwrap();
    assert!(!progress.sealed && !progress.halted);
    world.anvil.pass(7 * 86_400).await;
    world.until_claimable(&mut settler).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_batch_closes_by_time_by_number_or_by_value(db: PgPool) {
    let (world, settler) = funded(db, 100).await;
    let policy = BatchPolicy {
        interval: Duration::from_hours(1),
        receipts: 2,
        value_base: tokens(5),
    };
    let config = Config {
        batches: policy,
        ..world.config()
    };
    let mut settler = world.lead_after(settler, config).await;
    let alice = world.bind(Key::Alice.address()).await;
    let pay = async |base| {
        world
            .pay_job(alice, Key::Alice.address(), base, Key::Bob.address())
            .await
    };
    // The first has nothing to wait for.
    pay(10).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    settler.step(NOW).await.unwrap();
    pay(10).await;
    assert!(!settler.step(NOW).await.unwrap().sealed);
    let later = NOW + policy.interval;
    assert!(settler.step(later).await.unwrap().sealed, "by time");
    settler.step(later).await.unwrap();
    pay(10).await;
    assert!(!settler.step(later).await.unwrap().sealed);
    pay(10).await;
    assert!(settler.step(later).await.unwrap().sealed, "by number");
    settler.step(later).await.unwrap();
    pay(tokens(5)).await;
    assert!(settler.step(later).await.unwrap().sealed, "by value");
    let counts: Vec<u64> = world
        .batches()
        .await
        .iter()
        .map(|it| it.header.receipt_count)
        .collect();
    assert_eq!(counts, [1, 2, 1, 1]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_seal_that_was_cut_short_released_counts_against_the_caps(db: PgPool) {
    let (world, mut settler) = funded(db, 1_000).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    world
        .pay_job(alice, Key::Alice.address(), tokens(200), Key::Bob.address())
        .await;
    // A settler was killed between its releases and its batch.
    let mut tx = world.db.begin().await.unwrap();
    releases::release_queued(
        &mut tx,
        world.asset.id,
        "cut short",
        amount(tokens(60)),
        NOW,
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    assert!(settler.step(NOW).await.unwrap().sealed);
    assert_eq!(world.batches().await[0].header.total_payable, tokens(100));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_batch_that_is_claimable_keeps_its_receipts_whatever_is_said_of_it(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    let receipt = world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    let batch = world.until_claimable(&mut settler).await;
    let mut tx = world.db.begin().await.unwrap();
    batches::advance(&mut tx, batch.id, BatchState::Cancelled, None, NOW)
        .await
        .unwrap();
    let kept = batches::of_receipt(&mut tx, receipt).await.unwrap();
    assert_eq!(
        kept.map(|(batch, _)| batch.state),
        Some(BatchState::Claimable)
    );
    let demand = batches::demand(&mut tx, world.asset.id).await.unwrap();
    assert_eq!(demand.receipts, 0);
}
