//! A sealed batch that outgrows the contract's caps waits for tomorrow where that helps, and halts where nothing does.

use alloy::primitives::B256;
use comptoir_contracts_bindings::Settlement::{Caps, cancelBatchCall, lowerCapsCall, setCapsCall};
use comptoir_domain::settlement::BatchState;
use comptoir_settler::Settler;
use sqlx::PgPool;

use crate::{
    batches::funded,
    contradictions::halt,
    harness::{DEPTH, Key, NOW, World, tokens},
};

const fn caps(per_batch: u128, per_day: u128) -> Caps {
    Caps {
        perBatch: tokens(per_batch),
        perDay: tokens(per_day),
    }
}

/// The first batch, which releases a hundred tokens, is committed; fifty more are earned.
async fn with_a_hundred_released(db: PgPool) -> (World, Settler) {
    let (world, mut settler) = funded(db, 1_000).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    let pay = async |count| {
        world
            .pay_job(
                alice,
                Key::Alice.address(),
                tokens(count),
                Key::Bob.address(),
            )
            .await
    };
    pay(100).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    pay(50).await;
    (world, settler)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn vetoed_batches_give_back_what_they_released_so_that_the_next_one_fits_the_caps(
    db: PgPool,
) {
    let (world, mut settler) = with_a_hundred_released(db).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    for id in [2, 1] {
        world.call(Key::Guardian, cancelBatchCall { id }).await;
    }
    world.anvil.mine(DEPTH).await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    // A hundred of the hundred and fifty, as the cap of a batch wants it, under the next generation.
    let again = world.batches().await[0];
    assert_eq!((again.header.id, again.header.generation), (1, 2));
    assert_eq!(again.header.total_payable, tokens(100));
    assert_eq!(again.header.receipt_count, 2);
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!(
        (batch.header.id, batch.header.total_payable),
        (2, tokens(150))
    );
    assert_eq!(halt(&world).await, None);
    let earned = world.balances(Key::Bob.address()).await;
    assert_eq!(earned.payable.base(), tokens(135));
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn caps_lowered_after_a_seal_delay_its_commit_or_halt(db: PgPool) {
    let (world, mut settler) = with_a_hundred_released(db).await;
    world.anvil.hold_back().await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    let newest =
        "SELECT tx_hash FROM eth_attempts ORDER BY created_at DESC, first_sent_block DESC LIMIT 1";
    let hash: Vec<u8> = sqlx::query_scalar(newest)
        .fetch_one(&world.owner)
        .await
        .unwrap();
    world.anvil.drop_transaction(B256::from_slice(&hash)).await;
    world.anvil.mine_by_itself().await;

    // Batch 1 took today's hundred; fifty fit into tomorrow's.
    let lower = async |caps_| world.call(Key::Guardian, lowerCapsCall { caps_ }).await;
    lower(caps(100, 100)).await;
    for _ in 0..3 {
        assert!(!settler.step(NOW).await.unwrap().halted);
        world.anvil.mine(DEPTH).await;
    }
    assert_eq!(world.states().await[0], (2, 0, BatchState::Broadcast));
    assert_eq!(world.contract().lastBatch().call().await.unwrap(), 1);
    assert_eq!(halt(&world).await, None);

    // They will never fit into ten.
    lower(caps(10, 100)).await;
    for _ in 0..3 {
        world.anvil.mine(DEPTH).await;
        settler.step(NOW).await.unwrap();
    }
    let (reason, detail) = halt(&world).await.expect("settling is halted");
    assert_eq!(reason, "caps_too_low");
    let raise = format!("ADMIN has to raise both caps to {} or more", tokens(50));
    assert!(detail.contains(&raise), "{detail}");

    // Resuming alone does not help, and tomorrow would not either.
    world.resume().await;
    world.anvil.pass(86_400).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(halt(&world).await.unwrap().0, "caps_too_low");

    world
        .as_admin(setCapsCall {
            caps_: caps(50, 100),
        })
        .await;
    world.resume().await;
    world.anvil.mine(DEPTH).await;
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!(
        (batch.header.id, batch.header.total_payable),
        (2, tokens(150))
    );
}
