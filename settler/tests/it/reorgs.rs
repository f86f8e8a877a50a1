//! Reorganisations of 7 and of 64 blocks under the settler's process, alive or dead: nothing is settled or credited twice,
//! and nothing is lost. What was final stays, or settling halts.

use alloy::providers::Provider as _;
use comptoir_domain::settlement::BatchState;
use sqlx::PgPool;

use crate::{
    contradictions::halt,
    crashes::is_settled,
    harness::{
        DEPTH, Key, World,
        process::{Beat, Serve},
        tokens,
    },
};

/// Is the process there for the reorganisation?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settler {
    Alive,
    Killed,
}

async fn mined(world: &World) -> bool {
    let states = world.states().await;
    states.first().is_some_and(|it| it.2 == BatchState::Mined)
}

/// Mines until the block with the first attempt is so deep that a reorganisation of this depth replaces it and no more.
async fn bury(world: &World, depth: u64) {
    let hash = world.attempts().await[0].hash;
    let receipt = world.anvil.node.get_transaction_receipt(hash).await;
    let committed = receipt.unwrap().unwrap().block_number.unwrap();
    let head = world.anvil.node.get_block_number().await.unwrap();
    world.anvil.mine(committed + depth - 1 - head).await;
}

/// A batch is committed, and Alice deposits again; the chain loses both.
async fn loses_a_commit_and_a_deposit(db: PgPool, depth: u64, settler: Settler) {
    let world = World::new(db).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    world.deposit(Key::Alice.address(), tokens(10)).await;
    let how = Serve {
        depth: depth + 1,
        ..world.usual()
    };
    world.anvil.mine(2 * how.depth).await;
    let mut process = world.serve_as(&how);
    let has = async |world: &World, base| world.available(Key::Alice.address()).await == base;
    process
        .until(&world, async |world| has(world, tokens(10)).await)
        .await;
    let receipt = world
        .pay_job(alice, Key::Alice.address(), tokens(1), Key::Bob.address())
        .await;
    process.until_while(&world, Beat::Nothing, mined).await;
    world.deposit(Key::Alice.address(), tokens(5)).await;
    bury(&world, depth).await;
    process
        .until_while(&world, Beat::Nothing, World::is_followed)
        .await;
    let signed = world.attempts().await;
    if settler == Settler::Killed {
        process.kill().await;
        world.anvil.reorganise(depth).await;
        process = world.serve_as(&how);
    } else {
        world.anvil.reorganise(depth).await;
    }
    let deposited = world.contract().totalDeposited().call().await.unwrap();
    assert_eq!(
        deposited,
        tokens(10),
        "the second deposit has left the chain"
    );

    process.until(&world, is_settled).await;
    assert_eq!(world.attempts().await, signed, "the same bytes, once");
    assert_eq!(world.contract().lastBatch().call().await.unwrap(), 1);
    assert!(has(&world, tokens(9)).await);
    // It is made again, and is another deposit than the one that never was.
    world.deposit(Key::Alice.address(), tokens(5)).await;
    process
        .until(&world, async |world| has(world, tokens(14)).await)
        .await;
    process.kill().await;
    world.receipt_document(receipt).await.verify().unwrap();
    let batch = world.batches().await[0];
    world
        .claim(&world.account_document(&batch, Key::Bob.address()).await)
        .await;
    assert_eq!(world.tokens_of(Key::Bob.address()).await, tokens(9) / 10);
    assert_eq!(halt(&world).await, None);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn seven_blocks_are_replaced_under_a_running_settler(db: PgPool) {
    loses_a_commit_and_a_deposit(db, 7, Settler::Alive).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn seven_blocks_are_replaced_while_the_settler_is_dead(db: PgPool) {
    loses_a_commit_and_a_deposit(db, 7, Settler::Killed).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn sixty_four_blocks_are_replaced_under_a_running_settler(db: PgPool) {
    loses_a_commit_and_a_deposit(db, 64, Settler::Alive).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn sixty_four_blocks_are_replaced_while_the_settler_is_dead(db: PgPool) {
    loses_a_commit_and_a_deposit(db, 64, Settler::Killed).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_reorganisation_of_what_was_final_halts_and_settles_nothing_more(db: PgPool) {
    let world = World::new(db).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.anvil.mine(2 * DEPTH).await;
    world.deposit(Key::Alice.address(), tokens(10)).await;
    world.anvil.mine(DEPTH).await;
    let mut process = world.serve(None);
    let credited = async |world: &World| world.available(Key::Alice.address()).await > 0;
    process.until_while(&world, Beat::Nothing, credited).await;
    world.anvil.reorganise(DEPTH + 3).await;
    let deposited = world.contract().totalDeposited().call().await.unwrap();
    assert_eq!(deposited, 0);
    let halted = async |world: &World| halt(world).await.is_some();
    process.until_while(&world, Beat::Nothing, halted).await;
    assert_eq!(halt(&world).await.unwrap().0, "final_reorganised");
    world
        .pay_job(alice, Key::Alice.address(), tokens(1), Key::Bob.address())
        .await;
    world.anvil.mine(2 * DEPTH).await;
    process.kill().await;
    // Another process finds the halt.
    let mut next = world.serve(None);
    next.alive_for(&world, 3).await;
    next.kill().await;
    assert!(world.batches().await.is_empty() && world.attempts().await.is_empty());
}
