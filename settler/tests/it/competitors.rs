//! Others send too: without the role, with it, the same batch or another. What the contract holds decides.

use alloy::sol_types::SolCall as _;
use comptoir_contracts_bindings::Settlement::{cancelBatchCall, commitBatchCall, grantRoleCall};
use comptoir_domain::settlement::{BatchState, Header};
use comptoir_settler::chain::to_contract;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use sqlx::PgPool;

use crate::{
    batches::funded,
    contradictions::halt,
    harness::{DEPTH, Key, NOW, World, process::Beat, tokens},
    sending::with_a_receipt,
};

fn commit(header: &Header) -> Vec<u8> {
    commitBatchCall {
        header: to_contract(header),
    }
    .abi_encode()
}

/// A batch is signed and sent, and no block has taken it; Carol has the SETTLER role too.
async fn sent_beside_carol(db: PgPool) -> (World, comptoir_settler::Settler) {
    let (world, mut settler) = with_a_receipt(db).await;
    let role = world.contract().SETTLER().call().await.unwrap();
    let account = Key::Carol.address();
    world.as_admin(grantRoleCall { role, account }).await;
    world.anvil.hold_back().await;
    settler.step(NOW).await.unwrap();
    assert_eq!(world.states().await, [(1, 0, BatchState::Broadcast)]);
    world.anvil.drop_transactions().await;
    world.anvil.mine_by_itself().await;
    (world, settler)
}

/// Kinds of the attempts at each nonce: does it fill?
async fn fills(world: &World) -> Vec<(i64, bool)> {
    let attempts = world.attempts().await;
    attempts.iter().map(|it| (it.nonce, it.fills)).collect()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_sender_without_the_role_reverts_and_changes_nothing(db: PgPool) {
    let (world, mut settler) = sent_beside_carol(db).await;
    let batch = world.batches().await[0];
    assert!(
        !world
            .send_unchecked(Key::Bob.address(), commit(&batch.header))
            .await
    );
    assert_eq!(world.contract().lastBatch().call().await.unwrap(), 0);
    world.until_claimable(&mut settler).await;
    assert_eq!(fills(&world).await, [(0, false)]);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_batch_that_another_key_committed_is_reconciled_and_its_nonce_filled(db: PgPool) {
    let (world, mut settler) = sent_beside_carol(db).await;
    let batch = world.batches().await[0];
    assert!(
        world
            .send_unchecked(Key::Carol.address(), commit(&batch.header))
            .await
    );
    // Sending our own would be out of order now.
    assert_eq!(settler.step(NOW).await.unwrap().sent, 0);
    assert_eq!(world.states().await, [(1, 0, BatchState::Mined)]);
    assert_eq!(fills(&world).await, [(0, false)]);
    world.until_claimable(&mut settler).await;
    settler.step(NOW).await.unwrap();
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(fills(&world).await, [(0, false), (0, true)]);
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM eth_intents WHERE state = 'open'")
        .fetch_one(&world.owner)
        .await
        .unwrap();
    assert_eq!((open, halt(&world).await), (0, None));
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_reorganisation_in_favour_of_anothers_identical_batch_is_confirmed_by_state(db: PgPool) {
    let (world, mut settler) = sent_beside_carol(db).await;
    world.anvil.mine(1).await;
    settler.step(NOW).await.unwrap();
    settler.step(NOW).await.unwrap();
    assert_eq!(world.states().await, [(1, 0, BatchState::Mined)]);
    let batch = world.batches().await[0];
    let theirs = world.unchecked(Key::Carol.address(), commit(&batch.header));
    world
        .anvil
        .ask("anvil_reorg", json!([1, [[theirs, 0]]]))
        .await;
    let ours = world.anvil.nonce_of(Key::Settler.address()).await;
    assert_eq!(ours, 0, "our transaction has left the chain");
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!((batch.header.id, halt(&world).await), (1, None));
    assert_eq!(world.contract().lastBatch().call().await.unwrap(), 1);
    world.audit().await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn another_batch_under_our_number_halts_once_it_is_final(db: PgPool) {
    let (world, mut settler) = sent_beside_carol(db).await;
    let mut header = world.batches().await[0].header;
    header.data_hash = alloy::primitives::B256::repeat_byte(9);
    assert!(
        world
            .send_unchecked(Key::Carol.address(), commit(&header))
            .await
    );
    settler.step(NOW).await.unwrap();
    assert_eq!(halt(&world).await, None);
    world.anvil.mine(DEPTH).await;
    settler.step(NOW).await.unwrap();
    assert_eq!(halt(&world).await.unwrap().0, "batch_contradicted");
    assert!(settler.step(NOW).await.unwrap().halted);
    assert_eq!(world.attempts().await.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_commit_that_a_veto_overtook_makes_room_for_the_next(db: PgPool) {
    let (world, mut settler) = funded(db, 10).await;
    let alice = world.bind(Key::Alice.address()).await;
    let pay = async || {
        world
            .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
            .await
    };
    pay().await;
    settler.step(NOW).await.unwrap();
    settler.step(NOW).await.unwrap();
    pay().await;
    world.anvil.hold_back().await;
    assert!(settler.step(NOW).await.unwrap().sealed);
    world.anvil.drop_transactions().await;
    world.anvil.mine_by_itself().await;
    world.call(Key::Guardian, cancelBatchCall { id: 1 }).await;
    world.anvil.mine(DEPTH).await;
    let batch = world.until_claimable(&mut settler).await;
    assert_eq!((batch.header.id, batch.header.generation), (1, 1));
    assert_eq!(batch.header.receipt_count, 2);
    assert_eq!(
        fills(&world).await,
        [(0, false), (1, false), (1, true), (2, false)]
    );
    world.audit().await;
}

async fn lastly_settled(world: &World, batches: u64) -> bool {
    let newest = world.batches().await.into_iter().next();
    newest.is_some_and(|it| it.header.id == batches && it.state == BatchState::Claimable)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_two_processes_one_settles_and_the_other_takes_over_whether_the_first_is_dead_or_asleep(
    db: PgPool,
) {
    let world = World::new(db).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.deposit(Key::Alice.address(), tokens(10)).await;
    world.anvil.mine(DEPTH).await;
    let mut first = world.serve(None);
    let credited = async |world: &World| world.available(Key::Alice.address()).await > 0;
    first.until(&world, credited).await;
    let mut second = world.serve(None);
    let pay = async || {
        world
            .pay_job(alice, Key::Alice.address(), 1_000, Key::Bob.address())
            .await
    };
    pay().await;
    second
        .until(&world, async |world| lastly_settled(world, 1).await)
        .await;
    assert_eq!(world.attempts().await.len(), 1);

    // The first falls asleep and loses its lock; the second leads; the first wakes up.
    let asleep = Pid::from_raw(first.id().cast_signed());
    kill(asleep, Signal::SIGSTOP).unwrap();
    sqlx::query(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
         WHERE l.locktype = 'advisory' AND d.datname = current_database() AND l.granted",
    )
    .execute(&world.owner)
    .await
    .unwrap();
    pay().await;
    let leads = async |world: &World| {
        let newest = world.batches().await[0];
        newest.header.id == 2 && newest.state == BatchState::Mined
    };
    second.until(&world, leads).await;
    kill(asleep, Signal::SIGCONT).unwrap();
    second
        .until(&world, async |world| lastly_settled(world, 2).await)
        .await;
    first
        .until_while(&world, Beat::Nothing, async |_| true)
        .await;
    assert_eq!(world.attempts().await.len(), 2);

    second.kill().await;
    pay().await;
    first
        .until(&world, async |world| lastly_settled(world, 3).await)
        .await;
    first.kill().await;
    assert_eq!(world.attempts().await.len(), 3);
    world.audit().await;
}
