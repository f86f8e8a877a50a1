//! The guardian as a process of its own: it needs a node, the published leaf files and its key, and vetoes what is false.

use std::fs;

use alloy::primitives::{Address, B256, keccak256};
use comptoir_domain::settlement::Account;

use crate::guardian_world::{TOKEN, Watching, World, reseal, stranger};

/// What somebody who deposits and asks for a release makes of an idle service: batch 1.
pub async fn with_a_batch() -> (World, Vec<u8>) {
    let world = World::start().await;
    let client = world.person("client", 10 * TOKEN).await;
    world.withdraw(&client, TOKEN).await;
    world.until_batch(1).await;
    let leaves = world.leaves(1).await;
    (world, leaves)
}

fn guardian(world: &World, options: &[&str]) -> Watching {
    fs::create_dir_all(world.path("mirror")).unwrap();
    let leaves = format!("{}v1/batches/{{id}}/leaves", world.api.base());
    let mut command = world.command(&["guardian", "--poll-ms", "100", "--leaves", &leaves]);
    command
        .arg("--key-file")
        .arg(world.key_file("guardian"))
        .arg("--leaves")
        .arg(world.path("mirror/{data_hash}.jsonl"))
        .arg("--leaves")
        .arg(world.path("mirror/{id}.jsonl"))
        .arg("--keep")
        .arg(world.path("kept"))
        .args(options);
    Watching::start(command, &world.path("guardian.log"))
}

pub async fn vetoed(world: &World, generation: u32) {
    world
        .until(&format!("veto {generation}"), async || {
            world.settlement().generation().call().await.unwrap() == generation
        })
        .await;
    // In time: while the window lasted, nothing could be claimed, and nothing was.
    assert_eq!(world.settlement().lastBatch().call().await.unwrap(), 1);
}

/// A batch of the thief's: the service never heard of it.
pub enum Theft {
    /// One bit of one leaf is another than in the published file.
    FlippedLeaf,
    /// The file moves money to the thief.
    MovedMoney,
    /// Nobody has the file.
    NoFile,
    /// The file that is published for the number has another hash.
    AnotherFile,
}

impl Theft {
    pub async fn commit(&self, world: &World, honest: &[u8], thief: Address) {
        let opening = world.next_opening(honest).await;
        let (sealed, bytes) = match self {
            Self::FlippedLeaf | Self::NoFile | Self::AnotherFile => {
                reseal(honest, &opening, |_| {})
            }
            Self::MovedMoney => reseal(honest, &opening, |leaves| {
                let victim = leaves
                    .accounts
                    .iter_mut()
                    .find(|it| it.available > TOKEN)
                    .unwrap();
                victim.available -= TOKEN;
                leaves.accounts.push(Account {
                    account: thief,
                    payable: TOKEN,
                    available: 0,
                    deposits_seen: 0,
                });
            }),
        };
        let mut header = sealed.header;
        match self {
            Self::FlippedLeaf | Self::MovedMoney => {
                let name = format!("mirror/{}.jsonl", alloy::hex::encode(header.data_hash));
                fs::write(world.path(&name), bytes).unwrap();
            }
            Self::NoFile => header.data_hash = keccak256("nowhere"),
            Self::AnotherFile => {
                fs::write(world.path(&format!("mirror/{}.jsonl", header.id)), bytes).unwrap();
                header.data_hash = keccak256("another");
            }
        }
        if matches!(self, Self::FlippedLeaf) {
            header.accounts_root ^= B256::with_last_byte(1);
        }
        world.commit(&header).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_root_of_the_settlers_key_is_vetoed_and_the_service_goes_on() {
    let (world, honest) = with_a_batch().await;
    let _guardian = guardian(
        &world,
        &["--unavailable-after-s", "2", "--pause-after-vetoes", "0"],
    );
    let thief = stranger().address();
    let thefts = [
        Theft::FlippedLeaf,
        Theft::MovedMoney,
        Theft::NoFile,
        Theft::AnotherFile,
    ];
    for (theft, veto) in thefts.into_iter().zip(1..) {
        theft.commit(&world, &honest, thief).await;
        vetoed(&world, veto).await;
    }
    let name = format!("kept/{}.jsonl", honest_hash(&honest));
    world
        .until("a copy of the honest file", async || {
            world.path(&name).is_file()
        })
        .await;
    let another = world.person("another", TOKEN).await;
    world.withdraw(&another, TOKEN).await;
    // The service halts over batches and transactions that it never made, each time until a person has looked.
    let mut resumed = 0;
    world
        .until("batch 2", async || {
            resumed += u32::from(world.admin(&["resume-settling"]).code == Some(0));
            world.settlement().lastBatch().call().await.unwrap() == 2
        })
        .await;
    assert!(resumed > 0, "the service never halted");

    let audited = world.comptoir(&["audit", "--batch", "2", "--url", world.api.base().as_str()]);
    assert_eq!(audited.code, Some(0), "{audited:?}");
    assert_eq!(audited.said["verdict"], "right");
    let settlement = world.settlement();
    assert_eq!(settlement.generation().call().await.unwrap(), 4);
    let hash = settlement.batchHash(2).call().await.unwrap();
    assert_eq!(audited.said["hash"], hash.to_string());
    world.stop().await;
}

fn honest_hash(bytes: &[u8]) -> String {
    comptoir_audit::hash::sha256(bytes).digits()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settler_that_goes_on_after_vetoes_is_paused() {
    let (world, honest) = with_a_batch().await;
    let _guardian = guardian(&world, &["--pause-after-vetoes", "1"]);
    let thief = stranger().address();
    Theft::MovedMoney.commit(&world, &honest, thief).await;
    vetoed(&world, 1).await;
    Theft::MovedMoney.commit(&world, &honest, thief).await;
    vetoed(&world, 2).await;
    let commits = world.settlement().PAUSE_COMMITS().call().await.unwrap();
    let paused = world.settlement().paused().call().await.unwrap();
    assert_eq!(paused.bits & commits, commits);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_names_what_is_false_and_what_it_cannot_prove() {
    let (world, honest) = with_a_batch().await;
    let file = world.path("leaves.jsonl");
    fs::write(&file, &honest).unwrap();
    let leaves = file.to_str().unwrap();
    let audit = ["audit", "--batch", "1", "--leaves", leaves];
    let right = world.comptoir(&audit);
    assert_eq!(
        (right.code, right.said["verdict"].as_str()),
        (Some(0), Some("right")),
        "{right:?}"
    );

    let mut alone = world.command(&audit);
    let alone = alone.env_remove("ETH_RPC_URL").output().unwrap();
    assert_eq!(alone.status.code(), Some(10), "{alone:?}");

    let text = String::from_utf8(honest).unwrap();
    let lied = text.replacen("\"total_payable\":\"1", "\"total_payable\":\"2", 1);
    assert_ne!(text, lied);
    fs::write(&file, lied).unwrap();
    let wrong = world.comptoir(&audit);
    assert_eq!(
        (wrong.code, wrong.said["verdict"].as_str()),
        (Some(7), Some("false")),
        "{wrong:?}"
    );
    assert!(
        wrong.trouble.contains("data_hash") && wrong.trouble.contains("totals"),
        "{wrong:?}"
    );
    world.stop().await;
}
