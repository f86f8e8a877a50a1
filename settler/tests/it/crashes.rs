//! kill -9 after each write of the settler, by the real process: what it left is taken up by the next, byte for byte.

use alloy::providers::Provider as _;
use comptoir_contracts_bindings::Settlement::{cancelBatchCall, lastBatchCall, requestExitCall};
use comptoir_domain::settlement::BatchState;
use comptoir_store::reconciliation;
use sqlx::PgPool;

use crate::harness::{DEPTH, Key, NOW, World, audit::Attempt, process::Beat, tokens};

/// Points that are passed before there is anything to settle, in their order.
pub const BEFORE_A_JOB: [&str; 7] = [
    "settler.lead_taken",
    "settler.following_begun",
    "settler.range_stored",
    "settler.final_stored",
    "settler.deposits_credited",
    "settler.accounts_compared",
    "settler.floor_raised",
];
/// Alice has deposited and owes for a job; no settler has run yet.
async fn owing(db: PgPool) -> World {
    let world = World::new(db).await;
    let mut settler = world.settler().await;
    world.deposit(Key::Alice.address(), tokens(10)).await;
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    world
        .pay_job(alice, Key::Alice.address(), tokens(1), Key::Bob.address())
        .await;
    world
}

/// All that is settled, is, and nothing is under way.
pub async fn is_settled(world: &World) -> bool {
    let newest = world.batches().await.into_iter().next();
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM eth_intents WHERE state = 'open'")
        .fetch_one(&world.owner)
        .await
        .unwrap();
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM unbatched_receipts")
        .fetch_one(&world.owner)
        .await
        .unwrap();
    open == 0 && waiting == 0 && newest.is_some_and(|it| it.state == BatchState::Claimable)
}

/// The process is killed at a point; the next one finishes what it began, with the bytes that it had signed.
async fn killed_at(world: &World, point: &str) -> Vec<Attempt> {
    world.serve(Some(&format!("{point}:1"))).dies(world).await;
    let before = world.attempts().await;
    let mut next = world.serve(None);
    next.until(world, is_settled).await;
    next.kill().await;
    let after = world.attempts().await;
    for attempt in &before {
        assert!(after.contains(attempt), "bytes that were signed are kept");
    }
    world.audit().await;
    before
}

/// Deposit, job, settlement: killed at the point, settled by the next process with one transaction.
async fn settles_once(db: PgPool, point: &str) {
    let world = World::new(db).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    world.deposit(Key::Alice.address(), tokens(10)).await;
    world.anvil.mine(2 * DEPTH).await;
    let early = BEFORE_A_JOB.contains(&point);
    if early {
        world.serve(Some(&format!("{point}:1"))).dies(&world).await;
    }
    let mut process = world.serve(None);
    let credited = async |world: &World| world.available(Key::Alice.address()).await == tokens(10);
    process.until(&world, credited).await;
    process.kill().await;
    let receipt = world
        .pay_job(alice, Key::Alice.address(), tokens(1), Key::Bob.address())
        .await;
    let before = if early {
        let mut next = world.serve(None);
        next.until(&world, is_settled).await;
        next.kill().await;
        Vec::new()
    } else {
        killed_at(&world, point).await
    };
    let signed = world.attempts().await;
    for attempt in &signed {
        let mined = world
            .anvil
            .node
            .get_raw_transaction_by_hash(attempt.hash)
            .await;
        assert_eq!(mined.unwrap().unwrap().as_ref(), attempt.raw);
    }
    assert_eq!(signed.len(), 1, "one transaction, under one nonce");
    assert!(before.is_empty() || before == signed);
    let batch = world.batches().await[0];
    assert_eq!((batch.header.id, batch.header.receipt_count), (1, 1));
    world.receipt_document(receipt).await.verify().unwrap();
    world
        .claim(&world.account_document(&batch, Key::Bob.address()).await)
        .await;
    assert_eq!(world.tokens_of(Key::Bob.address()).await, tokens(9) / 10);
    world.audit().await;
}

macro_rules! killed_on_the_main_way {
    ($($name:ident at $point:literal;)*) => {
        $(
            #[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
            async fn $name(db: PgPool) {
                settles_once(db, $point).await;
            }
        )*
    };
}

killed_on_the_main_way! {
    killed_after_the_lead_was_taken at "settler.lead_taken";
    killed_after_following_began at "settler.following_begun";
    killed_after_a_range_was_stored at "settler.range_stored";
    killed_after_a_block_was_stored at "settler.block_stored";
    killed_after_a_block_was_made_final at "settler.final_stored";
    killed_after_deposits_were_credited at "settler.deposits_credited";
    killed_after_accounts_were_compared at "settler.accounts_compared";
    killed_after_the_first_nonce_was_noted at "settler.floor_raised";
    killed_after_exits_were_released at "settler.exits_released";
    killed_after_earnings_were_released at "settler.released";
    killed_after_the_items_were_selected at "settler.items_selected";
    killed_after_the_leaves_were_published at "settler.leaves_published";
    killed_after_the_batch_was_stored at "settler.batch_stored";
    killed_after_nonce_and_bytes_were_stored at "settler.bytes_stored";
    killed_after_the_broadcast at "settler.broadcast";
    killed_after_the_broadcast_was_noted at "settler.broadcast_seen";
    killed_after_the_receipt_was_seen at "settler.receipt_seen";
    killed_after_the_batch_was_safe at "settler.safe_seen";
    killed_after_the_batch_was_final at "settler.finalized_seen";
    killed_after_the_transaction_was_done at "settler.intent_ended";
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn killed_after_a_replacement_was_stored(db: PgPool) {
    let world = owing(db).await;
    world.anvil.hold_back().await;
    let mut process = world.serve(None);
    let sent = async |world: &World| {
        world
            .states()
            .await
            .first()
            .is_some_and(|it| it.2 == BatchState::Broadcast)
    };
    process.until_while(&world, Beat::Nothing, sent).await;
    process.kill().await;
    world.anvil.drop_transactions().await;
    let process = world.serve(Some("settler.replacement_stored:1"));
    process.dies_while(&world, Beat::ExpensiveBlock).await;
    let both = world.attempts().await;
    assert_eq!(both.len(), 2);
    world.anvil.mine_by_itself().await;
    let mut next = world.serve(None);
    next.until(&world, is_settled).await;
    next.kill().await;
    assert_eq!(world.attempts().await, both);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn killed_while_a_reorganisation_is_taken_in(db: PgPool) {
    let world = owing(db).await;
    for point in ["settler.blocks_given_back", "settler.reorganisation_seen"] {
        let mut process = world.serve(None);
        let mined = async |world: &World| {
            world
                .states()
                .await
                .first()
                .is_some_and(|it| it.2 == BatchState::Mined)
        };
        process.until(&world, mined).await;
        process.kill().await;
        world.anvil.reorganise(DEPTH - 1).await;
        let before = world.attempts().await;
        world.serve(Some(&format!("{point}:1"))).dies(&world).await;
        assert_eq!(world.attempts().await, before);
    }
    let mut next = world.serve(None);
    next.until(&world, is_settled).await;
    next.kill().await;
    assert_eq!(world.attempts().await.len(), 1);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn killed_after_a_veto_was_taken_in(db: PgPool) {
    let world = owing(db).await;
    let mut first = world.serve(None);
    let committed = async |world: &World| world.contract().lastBatch().call().await.unwrap() == 1;
    first.until(&world, committed).await;
    world.call(Key::Guardian, cancelBatchCall { id: 1 }).await;
    first.kill().await;
    killed_at(&world, "settler.veto_seen").await;
    let batch = world.batches().await[0];
    assert_eq!((batch.header.id, batch.header.generation), (1, 1));
    assert_eq!(batch.header.receipt_count, 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn killed_after_it_halted(db: PgPool) {
    let world = owing(db).await;
    world.call(Key::Settler, lastBatchCall {}).await;
    world.serve(Some("settler.halted:1")).dies(&world).await;
    assert!(world.attempts().await.is_empty());
    let mut conn = world.owner.acquire().await.unwrap();
    let halt = reconciliation::open_halt(&mut conn, world.asset.id)
        .await
        .unwrap();
    assert_eq!(halt.unwrap().reason, "nonce_used_outside");
    reconciliation::clear_halt(&mut conn, world.asset.id, NOW)
        .await
        .unwrap();
    let mut next = world.serve(None);
    next.until(&world, is_settled).await;
    next.kill().await;
    assert_eq!(world.attempts().await[0].nonce, 1);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn killed_while_an_exit_is_served(db: PgPool) {
    let world = owing(db).await;
    world.anvil.pass(1).await;
    world.call(Key::Alice, requestExitCall {}).await;
    for point in ["settler.exits_released:1", "settler.bytes_stored:2"] {
        world.serve(Some(point)).dies(&world).await;
    }
    let mut next = world.serve(None);
    let answered = async |world: &World| {
        let depositor = world
            .contract()
            .depositors(Key::Alice.address())
            .call()
            .await
            .unwrap();
        depositor.exitRequestedAt.is_zero() && is_settled(world).await
    };
    next.until(&world, answered).await;
    next.kill().await;
    assert_eq!(world.available(Key::Alice.address()).await, 0);
    world.audit().await;
}
