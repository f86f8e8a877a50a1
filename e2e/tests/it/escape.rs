//! Leaving without the operator: whatever it does or does not do, every account takes what is its own, to the base unit.

use std::{collections::BTreeMap, fs};

use alloy::primitives::Address;
use comptoir_cli::{
    client::wallet::Wallet,
    demo::{
        people::{Person, WorkerProcess},
        work::{Digits, complete, submit},
    },
};
use comptoir_domain::settlement::{AccountDocument, Header, file};
use serde_json::{Value, json};

use crate::{
    guardian_world::{TOKEN, World, amount, reseal, stranger},
    harness::{binary, checkout},
};

/// From a commit until its batch can be claimed from.
const WINDOW_S: u64 = 20;
/// Silence, or an exit, after which anyone may freeze.
const DEADLINE_S: u64 = 3_600;

/// Everybody who has money in the service, in every way that there is.
struct Town {
    world: World,
    /// Bound, deposited, paid for a job, claimed what was released, deposited again after the last batch.
    client: Person,
    /// Bound, never deposited, earned.
    owner: Person,
    /// Deposited to an address that no account is bound to.
    unbound: Wallet,
    /// Deposited after the last batch: it has no leaf.
    latecomer: Wallet,
    /// Nothing in the service; sends other people's transactions.
    relayer: Wallet,
    /// The published leaf file of the last batch.
    leaves: Vec<u8>,
    last: u64,
}

impl Town {
    async fn build() -> Self {
        let world = World::start().await;
        let (unbound, latecomer, relayer) = (stranger(), stranger(), stranger());
        // Before the client's, which is waited for: deposits are credited in their order.
        world.deposit(&unbound, 3 * TOKEN + 1).await;
        let client = world.person("client", 10 * TOKEN).await;
        let owner = world.person("owner", 0).await;
        world.endow(&relayer, 0).await;
        work(&world, &client, &owner).await;
        world.withdraw(&client, TOKEN).await;
        world.until_batch(1).await;
        let people = [&client, &owner].map(|it| it.wallet.address());
        let last = until_released(&world, people).await;
        let leaves = world.leaves(last).await;
        claim(&world, &client, &leaves, last).await;
        world.deposit(&latecomer, 2 * TOKEN + 7).await;
        world.deposit(&client.wallet, TOKEN + 5).await;
        Self {
            world,
            client,
            owner,
            unbound,
            latecomer,
            relayer,
            leaves,
            last,
        }
    }

    /// What everybody should have at the end, beside what they have in their wallets already.
    async fn owed(&self, leaves: &[u8]) -> BTreeMap<Address, u128> {
        let (_, sealed) = file::read(leaves).unwrap();
        let settlement = self.world.settlement();
        let mut owed = BTreeMap::new();
        for leaf in &sealed.accounts {
            let depositor = settlement.depositors(leaf.account).call().await.unwrap();
            let paid: u128 = settlement.claimed(leaf.account).call().await.unwrap().to();
            let unseen = depositor.deposited - leaf.deposits_seen;
            owed.insert(leaf.account, leaf.payable + leaf.available + unseen - paid);
        }
        let late = self.latecomer.address();
        assert_eq!(owed.insert(late, 2 * TOKEN + 7), None, "it has a leaf");
        owed.retain(|_, owed| *owed > 0);
        owed
    }

    async fn wallets(&self, owed: &BTreeMap<Address, u128>) -> BTreeMap<Address, u128> {
        let mut wallets = BTreeMap::new();
        for account in owed.keys() {
            wallets.insert(*account, self.world.tokens_of(*account).await);
        }
        wallets
    }

    /// Everybody leaves, sent by somebody who has nothing there, from nothing but the chain and the file.
    async fn all_escape(&self, leaves: &[u8]) {
        let world = &self.world;
        let file = world.path("published.jsonl");
        fs::write(&file, leaves).unwrap();
        let owed = self.owed(leaves).await;
        for person in [&self.client.wallet, &self.owner.wallet, &self.unbound] {
            assert!(owed.contains_key(&person.address()), "{owed:?}");
        }
        let before = self.wallets(&owed).await;
        let held = world.tokens_of(world.contract).await;
        let key = world.write_key(&self.relayer);
        let leaves = file.to_str().unwrap();
        let escaped = world.comptoir(&["escape", "--all", "--leaves", leaves, "--key-file", &key]);
        assert_eq!(escaped.code, Some(0), "{escaped:?}");
        assert_eq!(amount(&escaped.said["total"]), held);
        assert_eq!(amount(&escaped.said["left_in_contract"]), 0);
        assert_eq!(world.tokens_of(world.contract).await, 0);
        assert_eq!(owed.values().sum::<u128>(), held);
        for (account, owed) in &owed {
            let got = world.tokens_of(*account).await - before[account];
            assert_eq!(got, *owed, "{account}");
        }
        let again = world.comptoir(&["escape", "--all", "--leaves", leaves, "--key-file", &key]);
        assert_eq!(again.code, Some(5), "{again:?}");
    }

    fn freeze(&self) -> crate::guardian_world::Ended {
        let key = self.world.write_key(&self.relayer);
        self.world.comptoir(&["freeze", "--key-file", &key])
    }

    async fn snapshot(&self) -> Value {
        self.world.ask("evm_snapshot", json!([])).await
    }

    async fn revert(&self, to: Value) {
        assert_eq!(self.world.ask("evm_revert", json!([to])).await, true);
    }
}

/// A worker of the owner's trains the net once, so that the owner, the platform and the dust account have something.
async fn work(world: &World, client: &Person, owner: &Person) {
    let program = binary("comptoir-worker");
    let home = world.path("worker");
    let worker = WorkerProcess::start(owner, world.scheduler.as_str(), &program, &home);
    let worker = worker.await.unwrap();
    let examples = checkout().join("examples/digits");
    let digits = Digits::upload(&client.api, &examples).await.unwrap();
    let job = submit(client, digits.training(1, 100), "none")
        .await
        .unwrap();
    complete(client, &job).await.unwrap();
    worker.stop().await.unwrap();
}

/// Waits until the last batch has released something to each: after it nothing is left to settle. Returns its number.
async fn until_released(world: &World, people: [Address; 2]) -> u64 {
    let mut number = 0;
    world
        .until("the batch of the releases", async || {
            number = world.settlement().lastBatch().call().await.unwrap();
            let (_, sealed) = file::read(&world.leaves(number).await).unwrap();
            let released = sealed.accounts.iter().filter(|it| it.payable > 0);
            let released: Vec<_> = released.map(|it| it.account).collect();
            people.iter().all(|person| released.contains(person))
        })
        .await;
    number
}

async fn claim(world: &World, person: &Person, leaves: &[u8], batch: u64) {
    world.pass(WINDOW_S + 1).await;
    let (opening, sealed) = file::read(leaves).unwrap();
    assert_eq!(opening.id, batch);
    let document: AccountDocument = sealed
        .account_document(&opening, person.wallet.address())
        .unwrap();
    let sent = comptoir_cli::client::money::send_claim(&document, &person.wallet, &world.rpc);
    sent.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_account_leaves_with_its_own_when_the_operator_is_silent_or_ignores_one_exit() {
    let mut town = Town::build().await;
    town.world.kill_service();
    let start = town.snapshot().await;
    silence(&town).await;
    town.revert(start).await;
    ignored_exit(&town).await;
    town.world.stop().await;
}

/// The operator is silent: nothing is committed any more.
async fn silence(town: &Town) {
    let world = &town.world;
    let early = town.freeze();
    assert_eq!(early.code, Some(5), "{early:?}");
    let key = world.write_key(&town.relayer);
    let early = world.comptoir(&["escape", "--all", "--leaves", "nowhere", "--key-file", &key]);
    assert_eq!(early.code, Some(5), "{early:?}");

    world.pass(DEADLINE_S + 1).await;
    let account = town.client.wallet.address().to_string();
    let status = world.comptoir(&["exit", "status", "--account", &account]);
    assert_eq!(status.said["may_freeze"], true, "{status:?}");
    let frozen = town.freeze();
    assert_eq!(frozen.code, Some(0), "{frozen:?}");
    assert_eq!(frozen.said["frozen_batch"], town.last);
    assert_eq!(frozen.said["unanswered"], Value::Null);

    let other = world.path("other.jsonl");
    let text = String::from_utf8(town.leaves.clone()).unwrap();
    let (lines, _) = text.trim_end().rsplit_once('\n').unwrap();
    fs::write(&other, format!("{lines}\n")).unwrap();
    let wrong = [
        "escape",
        "--leaves",
        other.to_str().unwrap(),
        "--key-file",
        &key,
    ];
    assert_eq!(world.comptoir(&wrong).code, Some(7));
    town.all_escape(&town.leaves).await;
}

/// The operator goes on committing, and never releases what one account asked to leave with.
async fn ignored_exit(town: &Town) {
    let world = &town.world;
    let key = world.write_key(&town.client.wallet);
    let asked = world.comptoir(&["exit", "request", "--key-file", &key]);
    assert_eq!(
        (asked.code, asked.said["exit"].as_str()),
        (Some(0), Some("open")),
        "{asked:?}"
    );
    let again = world.comptoir(&["exit", "request", "--key-file", &key]);
    assert_eq!(again.code, Some(5), "{again:?}");

    world.pass(DEADLINE_S / 2).await;
    let (header, leaves) = go_on(town).await;
    world.pass(DEADLINE_S / 2 + 2).await;
    let account = town.client.wallet.address().to_string();
    let status = world.comptoir(&["exit", "status", "--account", &account]);
    assert_eq!(status.said["exit"], "overdue", "{status:?}");
    let frozen = town.freeze();
    assert_eq!(frozen.code, Some(0), "{frozen:?}");
    assert_eq!(frozen.said["unanswered"], account);
    assert_eq!(frozen.said["frozen_batch"], header.id);
    town.all_escape(&leaves).await;
}

/// One more batch of the operator's: nobody is released anything.
async fn go_on(town: &Town) -> (Header, Vec<u8>) {
    let opening = town.world.next_opening(&town.leaves).await;
    let (sealed, bytes) = reseal(&town.leaves, &opening, |_| {});
    town.world.commit(&sealed.header).await;
    (sealed.header, bytes)
}
