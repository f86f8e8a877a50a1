//! What the guardian does about a batch that it cannot judge, or finds false too late, seen on the chain; and a watcher
//! beside it, who has no key.

use std::fs;

use comptoir_audit::chain::{PAUSE_CLAIMS, PAUSE_COMMITS};

use crate::{
    guardian::{Theft, vetoed, with_a_batch},
    guardian_world::{Watching, World, reseal, stranger},
};

/// More than a window.
const LATER_S: u64 = 25;

/// Leaf files by their hash alone, and none but those that a test puts there.
fn guardian(world: &World, options: &[&str]) -> Watching {
    fs::create_dir_all(world.path("mirror")).unwrap();
    let mut command = world.command(&["guardian", "--poll-ms", "100"]);
    command
        .arg("--key-file")
        .arg(world.key_file("guardian"))
        .arg("--leaves")
        .arg(world.path("mirror/{data_hash}.jsonl"))
        .args(options);
    Watching::start(command, &world.path("guardian.log"))
}

/// Commits a batch that moves nothing, and publishes its file: without the file of the batch before nobody can judge it.
async fn commit_unjudgeable(world: &World, honest: &[u8]) {
    let (sealed, bytes) = reseal(honest, &world.next_opening(honest).await, |_| {});
    let mirror = world.path("mirror");
    drop(fs::remove_dir_all(&mirror));
    fs::create_dir_all(&mirror).unwrap();
    let name = format!("{}.jsonl", alloy::hex::encode(sealed.header.data_hash));
    fs::write(mirror.join(name), bytes).unwrap();
    world.commit(&sealed.header).await;
}

async fn paused(world: &World) -> u8 {
    world.settlement().paused().call().await.unwrap().bits
}

/// The newest batch, and how many were vetoed.
async fn standing(world: &World) -> (u64, u32) {
    let settlement = world.settlement();
    let last = settlement.lastBatch().call().await.unwrap();
    (last, settlement.generation().call().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_judged_is_told_vetoed_or_paused_as_the_guardian_was_told() {
    let (world, honest) = with_a_batch().await;
    world.pass(LATER_S).await;
    let undecided = |what| ["--margin-s", "18", "--when-undecided", what];

    commit_unjudgeable(&world, &honest).await;
    let telling = guardian(&world, &undecided("alert"));
    telling.tells(&world, "batch 2 cannot be judged").await;
    world.pass(LATER_S).await;
    drop(telling);
    assert_eq!((standing(&world).await, paused(&world).await), ((2, 0), 0));

    commit_unjudgeable(&world, &honest).await;
    let vetoing = guardian(&world, &undecided("veto"));
    world
        .until("a veto", async || standing(&world).await == (2, 1))
        .await;
    drop(vetoing);
    assert_eq!(paused(&world).await, 0);

    commit_unjudgeable(&world, &honest).await;
    let pausing = guardian(&world, &undecided("pause"));
    let both = PAUSE_COMMITS | PAUSE_CLAIMS;
    world
        .until("a pause", async || paused(&world).await == both)
        .await;
    drop(pausing);
    assert_eq!(standing(&world).await, (3, 1));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_batch_past_its_window_pauses_claims_unless_the_guardian_was_told_otherwise() {
    let (world, honest) = with_a_batch().await;
    fs::create_dir_all(world.path("mirror")).unwrap();
    let thief = stranger().address();
    Theft::MovedMoney.commit(&world, &honest, thief).await;
    let hash = comptoir_audit::hash::sha256(&honest).digits();
    fs::write(world.path(&format!("mirror/{hash}.jsonl")), &honest).unwrap();
    world.pass(LATER_S).await;

    let calm = guardian(&world, &["--no-pause-when-late"]);
    calm.tells(&world, "batch 2 is false, and past its window")
        .await;
    world.pass(1).await;
    drop(calm);
    assert_eq!(paused(&world).await, 0);

    let _strict = guardian(&world, &[]);
    let both = PAUSE_COMMITS | PAUSE_CLAIMS;
    world
        .until("a pause", async || paused(&world).await == both)
        .await;
    // It is too late for a veto, and claims stand still until people have looked.
    assert_eq!(standing(&world).await, (2, 0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_tells_of_a_false_root_of_the_settlers_key_and_sees_the_guardian_veto_it() {
    let (world, honest) = with_a_batch().await;
    fs::create_dir_all(world.path("mirror")).unwrap();
    let service = format!("{}v1/batches/{{id}}/leaves", world.api.base());
    let mut command = world.command(&["watcher", "--poll-ms", "100", "--leaves", &service]);
    command
        .arg("--leaves")
        .arg(world.path("mirror/{data_hash}.jsonl"));
    let watcher = Watching::start(command, &world.path("watcher.log"));
    watcher.tells(&world, "the batch is right").await;

    let thief = stranger().address();
    Theft::MovedMoney.commit(&world, &honest, thief).await;
    watcher.tells(&world, "the batch is false").await;
    assert_eq!(standing(&world).await, (2, 0), "a watcher has no key");

    let _guardian = guardian(&world, &["--leaves", &service]);
    vetoed(&world, 1).await;
    watcher.tells(&world, "a veto stands").await;
    world.stop().await;
}
