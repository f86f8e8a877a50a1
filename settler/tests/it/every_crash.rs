//! One receipt, and a settler that is killed at each of its crash points in turn on the way to its claim.

use std::{collections::BTreeSet, path::PathBuf};

use comptoir_contracts_bindings::Settlement::{cancelBatchCall, lastBatchCall};
use comptoir_domain::settlement::BatchState;
use sqlx::PgPool;

use crate::{
    contradictions::halt,
    crashes::{BEFORE_A_JOB, is_settled},
    harness::{DEPTH, Key, World, process::Beat, tokens},
};

/// Every crash point that the settler's source names.
fn named() -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let mut paths = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(path.read_dir().unwrap().map(|it| it.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let points = text.split("\"settler.").skip(1);
        named.extend(points.map(|rest| format!("settler.{}", rest.split('"').next().unwrap())));
    }
    named
}

/// Where a settler was killed by its own hand.
#[derive(Default)]
struct Killed(BTreeSet<String>);

impl Killed {
    /// Starts a settler, and lets the chain go on until it has died at the point.
    async fn at(&mut self, world: &World, point: &str, beat: Beat) {
        let process = world.serve(Some(&format!("{point}:1")));
        process.dies_while(world, beat).await;
        self.0.insert(point.to_owned());
    }

    async fn at_each(&mut self, world: &World, points: &[&str], beat: Beat) {
        for point in points {
            self.at(world, point, beat).await;
        }
    }
}

/// A settler does its work until its newest batch has come to a state, and is killed then.
async fn runs_until(world: &World, state: BatchState) {
    let mut process = world.serve(None);
    let there = async |world: &World| world.states().await.first().is_some_and(|it| it.2 == state);
    process.until_while(world, Beat::Nothing, there).await;
    process.kill().await;
}

/// From the seal to a commit that was replaced, mined, and lost again.
async fn until_reorganised(world: &World, killed: &mut Killed) {
    let sealing = [
        "settler.block_stored",
        "settler.exits_released",
        "settler.released",
        "settler.items_selected",
        "settler.leaves_published",
        "settler.batch_stored",
        "settler.bytes_stored",
    ];
    killed.at_each(world, &sealing, Beat::Block).await;
    world.anvil.hold_back().await;
    let sending = ["settler.broadcast", "settler.broadcast_seen"];
    killed.at_each(world, &sending, Beat::Nothing).await;
    world.anvil.drop_transactions().await;
    let replaced = "settler.replacement_stored";
    killed.at(world, replaced, Beat::ExpensiveBlock).await;
    world.anvil.mine_by_itself().await;
    let mined = "settler.receipt_seen";
    killed.at(world, mined, Beat::Nothing).await;
    world.anvil.reorganise(1).await;
    let lost = ["settler.blocks_given_back", "settler.reorganisation_seen"];
    killed.at_each(world, &lost, Beat::Nothing).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn killed_at_every_crash_point_in_turn_a_receipt_is_settled_once(db: PgPool) {
    let world = World::new(db).await;
    let alice = world.bind(Key::Alice.address()).await;
    world.bind(Key::Bob.address()).await;
    world.deposit(Key::Alice.address(), tokens(10)).await;
    world.anvil.mine(2 * DEPTH).await;
    let mut killed = Killed::default();
    killed.at_each(&world, &BEFORE_A_JOB, Beat::Block).await;
    let receipt = world
        .pay_job(alice, Key::Alice.address(), tokens(1), Key::Bob.address())
        .await;
    until_reorganised(&world, &mut killed).await;

    runs_until(&world, BatchState::Mined).await;
    world.call(Key::Guardian, cancelBatchCall { id: 1 }).await;
    let after_the_veto = [
        "settler.veto_seen",
        "settler.safe_seen",
        "settler.finalized_seen",
        "settler.intent_ended",
    ];
    killed.at_each(&world, &after_the_veto, Beat::Block).await;
    world.call(Key::Settler, lastBatchCall {}).await;
    killed.at(&world, "settler.halted", Beat::Block).await;
    assert_eq!(halt(&world).await.unwrap().0, "nonce_used_outside");
    world.resume().await;
    let mut last = world.serve(None);
    last.until(&world, is_settled).await;
    last.kill().await;

    assert_eq!(killed.0, named(), "points that no process was killed at");
    let batch = world.batches().await[0];
    let header = batch.header;
    assert_eq!(
        (header.id, header.generation, header.receipt_count),
        (1, 1, 1)
    );
    world.receipt_document(receipt).await.verify().unwrap();
    world
        .claim(&world.account_document(&batch, Key::Bob.address()).await)
        .await;
    assert_eq!(world.tokens_of(Key::Bob.address()).await, tokens(9) / 10);
    world.audit().await;
}
