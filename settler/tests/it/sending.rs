//! What was signed is stored first, and sent again as the same bytes.

use alloy::{eips::BlockId, primitives::B256, providers::Provider as _};
use comptoir_contracts_bindings::Settlement::lastBatchCall;
use comptoir_domain::settlement::BatchState;
use comptoir_settler::{StepError, alert::Alert};
use comptoir_store::leader::FenceError;
use sqlx::PgPool;

use crate::{
    batches::funded,
    contradictions::halt,
    harness::{DEPTH, Key, NOW, World},
};

/// Hash and bytes of every attempt ever stored.
async fn attempts(world: &World) -> Vec<(B256, Vec<u8>)> {
    let rows: Vec<(Vec<u8>, Vec<u8>)> =
        sqlx::query_as("SELECT tx_hash, raw_tx FROM eth_attempts ORDER BY created_at")
            .fetch_all(&world.owner)
            .await
            .unwrap();
    rows.into_iter()
        .map(|(hash, raw)| (B256::from_slice(&hash), raw))
        .collect()
}

pub async fn with_a_receipt(db: PgPool) -> (World, comptoir_settler::Settler) {
    let (world, settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    (world, settler)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_transaction_that_the_node_lost_is_sent_again_as_the_same_bytes(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    world.anvil.hold_back().await;
    settler.step(NOW).await.unwrap();
    assert_eq!(world.states().await, [(1, 0, BatchState::Broadcast)]);
    let first = attempts(&world).await;
    assert_eq!(first.len(), 1);
    world.anvil.drop_transaction(first[0].0).await;
    world.anvil.mine(1).await;
    assert!(
        world
            .anvil
            .node
            .get_transaction_by_hash(first[0].0)
            .await
            .unwrap()
            .is_none()
    );

    // Another process finds the bytes in the database.
    let mut settler = world.lead_after(settler, world.config()).await;
    assert_eq!(settler.step(NOW).await.unwrap().sent, 1);
    assert_eq!(attempts(&world).await, first);
    world.anvil.mine(1).await;
    let receipt = world
        .anvil
        .node
        .get_transaction_receipt(first[0].0)
        .await
        .unwrap()
        .unwrap();
    assert!(receipt.status());
    settler.step(NOW).await.unwrap();
    assert_eq!(world.states().await, [(1, 0, BatchState::Mined)]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_commit_that_a_reorganisation_dropped_comes_back(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    settler.step(NOW).await.unwrap();
    settler.step(NOW).await.unwrap();
    assert_eq!(world.states().await, [(1, 0, BatchState::Mined)]);
    world.anvil.reorganise(1).await;
    assert_eq!(world.contract().lastBatch().call().await.unwrap(), 0);
    settler.step(NOW).await.unwrap();
    assert_eq!(world.states().await, [(1, 0, BatchState::Broadcast)]);
    world.until_claimable(&mut settler).await;
    assert_eq!(attempts(&world).await.len(), 1);
    assert_eq!(world.contract().lastBatch().call().await.unwrap(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_stuck_transaction_offers_more_under_the_same_nonce(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    world.anvil.hold_back().await;
    settler.step(NOW).await.unwrap();
    let first = attempts(&world).await;
    for _ in 0..4 {
        world.anvil.drop_transaction(first[0].0).await;
        world.anvil.mine(1).await;
    }
    settler.step(NOW).await.unwrap();
    let both = attempts(&world).await;
    assert_eq!(both.len(), 2);
    let nonces: Vec<i64> = sqlx::query_scalar("SELECT nonce FROM eth_intents")
        .fetch_all(&world.owner)
        .await
        .unwrap();
    assert_eq!(nonces, [0]);
    world.anvil.mine(1).await;
    assert!(
        world
            .anvil
            .node
            .get_transaction_receipt(both[1].0)
            .await
            .unwrap()
            .unwrap()
            .status()
    );
    settler.step(NOW).await.unwrap();
    assert_eq!(world.states().await, [(1, 0, BatchState::Mined)]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn two_settlers_cannot_both_write(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    assert!(world.lead().await.is_none());
    // The first is paused, its lock is gone, and a second has taken over; then the first wakes up.
    sqlx::query("UPDATE settler_leases SET epoch = epoch + 1")
        .execute(&world.owner)
        .await
        .unwrap();
    let refused = settler.step(NOW).await;
    assert!(
        matches!(refused, Err(StepError::Fence(FenceError::Deposed))),
        "{refused:?}"
    );
    assert!(world.states().await.is_empty());
    assert!(attempts(&world).await.is_empty());
    let mut second = world.lead_after(settler, world.config()).await;
    world.until_claimable(&mut second).await;
    let nonce = world
        .anvil
        .node
        .get_transaction_count(Key::Settler.address())
        .block_id(BlockId::latest())
        .await
        .unwrap();
    assert_eq!(nonce, 1);
    world.anvil.mine(DEPTH).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_nonce_that_somebody_else_used_halts_settling_until_a_person_accepts_it(db: PgPool) {
    let (world, mut settler) = with_a_receipt(db).await;
    world.anvil.hold_back().await;
    settler.step(NOW).await.unwrap();
    world
        .anvil
        .drop_transaction(attempts(&world).await[0].0)
        .await;
    world.anvil.mine_by_itself().await;
    // The key is used outside: a call that changes nothing takes nonce 0.
    world.call(Key::Settler, lastBatchCall {}).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(halt(&world).await, None, "what is not final is not judged");
    world.anvil.mine(DEPTH).await;
    assert!(settler.step(NOW).await.unwrap().halted);
    let (reason, detail) = halt(&world).await.unwrap();
    assert_eq!(reason, "nonce_used_outside");
    assert!(detail.starts_with("nonce 0 of "), "{detail}");
    assert!(settler.step(NOW).await.unwrap().halted);
    assert_eq!(world.health.alerts.raised(Alert::SettlingHalted), 1);
    assert_eq!(attempts(&world).await.len(), 1);

    world.resume().await;
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!(batch.header.id, 1);
    let states: Vec<(i64, String)> =
        sqlx::query_as("SELECT nonce, state FROM eth_intents ORDER BY nonce")
            .fetch_all(&world.owner)
            .await
            .unwrap();
    assert_eq!(states, [(0, "failed".to_owned()), (1, "done".to_owned())]);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nonces_that_ran_ahead_halt_settling_before_anything_is_signed(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    world
        .anvil
        .ask(
            "anvil_setNonce",
            serde_json::json!([Key::Settler.address(), "0x5"]),
        )
        .await;
    let alice = world.bind(Key::Alice.address()).await;
    world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    assert!(settler.step(NOW).await.unwrap().halted);
    assert_eq!(halt(&world).await.unwrap().0, "nonce_used_outside");
    assert!(attempts(&world).await.is_empty());
    // Whoever resumes accepts it, and the stream goes on behind it.
    world.resume().await;
    world.until_claimable(&mut settler).await;
    let nonces: Vec<i64> = sqlx::query_scalar("SELECT nonce FROM eth_intents")
        .fetch_all(&world.owner)
        .await
        .unwrap();
    assert_eq!(nonces, [5]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_gap_in_the_nonces_is_filled_with_a_transfer_of_nothing(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    world.call(Key::Settler, lastBatchCall {}).await;
    settler.step(NOW).await.unwrap();
    world.resume().await;
    // What used the nonce is dropped by a reorganisation, after the settler went on behind it.
    world.anvil.reorganise(1).await;
    let alice = world.bind(Key::Alice.address()).await;
    world
        .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
        .await;
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!(batch.header.receipt_count, 1);
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    let intents: Vec<(i64, String, String)> =
        sqlx::query_as("SELECT nonce, kind, state FROM eth_intents ORDER BY nonce")
            .fetch_all(&world.owner)
            .await
            .unwrap();
    let done = |nonce, kind: &str| (nonce, kind.to_owned(), "done".to_owned());
    assert_eq!(intents, [done(0, "fill"), done(1, "commit")]);
    world.audit().await;
}
