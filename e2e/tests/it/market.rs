//! Selling and buying by the command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use comptoir_domain::digest::Sha256;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    harness::binary,
    node::{Node, reachable_folder},
};

/// How long a deposit, or a batch, may take.
const PATIENCE: Duration = Duration::from_secs(90);

struct World {
    node: Node,
    folder: TempDir,
}

impl World {
    fn start() -> Self {
        let folder = reachable_folder();
        let node = Node::start(&folder.path().join("node"));
        Self { node, folder }
    }

    /// Somebody who signed up, bound an address, and deposited so many tokens.
    fn person(&self, name: &str, tokens: &str) -> Person<'_> {
        let person = Person {
            world: self,
            home: self.folder.path().join(name),
        };
        fs::create_dir(&person.home).unwrap();
        let email = format!("{name}@example.com");
        person.does(&["signup", "--email", &email]);
        person.does(&["wallet"]);
        person.does(&["bind"]);
        if tokens != "0" {
            person.does(&["faucet", "--tokens", tokens]);
            person.does(&["deposit", tokens]);
            wait("the deposit", || (person.available() != "0").then_some(()));
        }
        person
    }
}

struct Person<'w> {
    world: &'w World,
    home: PathBuf,
}

impl Person<'_> {
    fn comptoir(&self, arguments: &[&str]) -> Output {
        Command::new(binary("comptoir"))
            .args(arguments)
            .current_dir(&self.home)
            .env("COMPTOIR_URL", &self.world.node.api)
            .env("COMPTOIR_PROFILE", self.home.join("profile.json"))
            .env("COMPTOIR_PASSWORD", "at least twelve characters")
            .env("COMPTOIR_FOLDER", self.world.folder.path().join("node"))
            .env("ETH_RPC_URL", &self.world.node.chain)
            .env_remove("COMPTOIR_CONTRACT")
            .env_remove("COMPTOIR_API_KEY")
            .output()
            .unwrap()
    }

    /// A command that succeeds; what it prints.
    fn does(&self, arguments: &[&str]) -> Value {
        let output = self.comptoir(arguments);
        let trouble = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {trouble}");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn dataset(&self, arguments: &[&str]) -> Value {
        self.does(&[&["dataset"], arguments].concat())
    }

    /// A command that ends with that code, and says why.
    fn is_refused(&self, arguments: &[&str], code: i32, says: &str) {
        let output = self.comptoir(arguments);
        let trouble = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {trouble}");
        assert!(trouble.contains(says), "{arguments:?}: {trouble}");
    }

    fn available(&self) -> String {
        tokens(&self.does(&["balance"])["available"])
    }

    /// Publishes a folder as a dataset that is listed; its id.
    fn lists(&self, name: &str, folder: &Path) -> String {
        let title = ["--title", "Rows", "--licence", "CC-BY-4.0"];
        let made = self.dataset(&[&["create", "--name", name], &title[..]].concat());
        let id = text(&made, "id");
        self.dataset(&["publish", folder.to_str().unwrap(), "--dataset", &id]);
        self.dataset(&["announce", &id]);
        id
    }
}

fn text(value: &Value, field: &str) -> String {
    let found = value[field].as_str();
    found
        .unwrap_or_else(|| panic!("no {field} in {value}"))
        .to_owned()
}

/// A money body in tokens.
fn tokens(money: &Value) -> String {
    comptoir_cli::output::whole_tokens(&text(money, "amount"), 18)
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// As long as a name may be on common systems.
fn long_name() -> String {
    format!("{}.csv", "n".repeat(251))
}

/// Some files to sell; each has a name that leaves no room beside it.
fn rows(folder: &Path) -> PathBuf {
    let rows = folder.join("rows");
    fs::create_dir_all(rows.join("more")).unwrap();
    let table = format!("x,y\n{}", "1234,5678\n".repeat(20_000));
    fs::write(rows.join("rows.csv"), table).unwrap();
    fs::write(rows.join("more/lines.jsonl"), "{\"x\":1}\n{\"x\":2}\n").unwrap();
    fs::write(rows.join("more/lines.jsonl.partial"), "another").unwrap();
    fs::write(rows.join(long_name()), "x\n1\n").unwrap();
    rows
}

#[test]
fn what_is_bought_is_pulled_checked_and_receipted() {
    let world = World::start();
    let rows = rows(world.folder.path());
    let seller = world.person("seller", "0");
    let buyer = world.person("buyer", "10");
    let poor = world.person("poor", "0");
    let id = seller.lists("rows", &rows);
    let offer = seller.dataset(&[
        "offer",
        &id,
        "--kind",
        "buy",
        "--price",
        "2.5",
        "--refund-within",
        "1h",
    ]);

    let buy = ["dataset", "buy", &id];
    buyer.is_refused(&buy, 5, "say --yes or --max-price");
    let too_dear = [&buy[..], &["--max-price", "2.4"]].concat();
    buyer.is_refused(&too_dear, 5, "it costs 2.5 tokens, more than 2.4");
    poor.is_refused(&[&buy[..], &["--yes"]].concat(), 6, "insufficient_funds");
    poor.is_refused(&["dataset", "pull", &id], 11, "payment_required");

    let first = buyer.dataset(&["buy", &id, "--yes"]);
    buyer.dataset(&["refund", &text(&first, "id")]);
    assert_eq!(buyer.available(), "10", "all of it came back");
    let bought = buyer.dataset(&["buy", &text(&offer, "id"), "--max-price", "2.5"]);
    assert_eq!(
        (&bought["state"], tokens(&bought["price"])),
        (&"granted".into(), "2.5".into())
    );
    buyer.is_refused(&[&buy[..], &["--yes"]].concat(), 5, "already_owned");

    // What it goes on from is not what was published: so it did go on, and looked at the result.
    let root = buyer.dataset(&["pull", &id, "--out", "whole"])["manifest_root"].clone();
    let digest = Sha256::of(&fs::read(rows.join("rows.csv")).unwrap());
    let partial = format!("got/.{}-{digest}.partial", root.as_str().unwrap());
    let partial = buyer.home.join(partial);
    let half = vec![b'0'; 1_000];
    fs::create_dir(buyer.home.join("got")).unwrap();
    fs::write(&partial, half).unwrap();
    let pull = ["dataset", "pull", &id, "--out", "got"];
    buyer.is_refused(&pull, 7, "the bytes have the digest");
    assert!(!buyer.home.join("got/rows.csv").exists());
    let good = fs::read(rows.join("rows.csv")).unwrap();
    fs::write(&partial, &good[..1_000]).unwrap();
    let pulled = buyer.does(&pull);
    assert_eq!(pulled["files"], 4);
    assert!(!partial.exists());
    for file in [
        "rows.csv",
        "more/lines.jsonl",
        "more/lines.jsonl.partial",
        &long_name(),
    ] {
        let pulled = fs::read(buyer.home.join("got").join(file)).unwrap();
        assert_eq!(pulled, fs::read(rows.join(file)).unwrap(), "{file}");
    }

    let library = buyer.dataset(&["library", "--state", "active"]);
    assert_eq!(library["data"][0]["purchase"], bought["id"]);
    let settled = buyer.dataset(&["purchase", &text(&bought, "id")]);
    assert_eq!(settled["final_because"], "served");
    assert_eq!(buyer.available(), "7.5");
    let refund = ["dataset", "refund", &text(&bought, "id")];
    buyer.is_refused(&refund, 5, "purchase_final");
    let sales = seller.dataset(&["sales", "--state", "settled"]);
    assert_eq!(sales["data"][0]["id"], bought["id"]);
    holds(&buyer, &text(&settled, "receipt"));
}

/// The receipt of a sale is recomputed without a program, verifies, and does neither once it was changed.
fn holds(buyer: &Person<'_>, receipt: &str) {
    let document = wait("the batch", || {
        let told = buyer.comptoir(&["receipt", "get", receipt]);
        told.status.success().then_some(told.stdout)
    });
    let file = buyer.home.join("receipt.json");
    fs::write(&file, &document).unwrap();
    let bill = ["bill", "receipt.json", "--recompute"];
    let billed = buyer.does(&bill);
    assert_eq!(
        (&billed["kind"], &billed["time"]),
        (&"purchase".into(), &Value::Null)
    );
    let program = [&bill[..], &["--program", "receipt.json"]].concat();
    buyer.is_refused(&program, 5, "leave --program out");
    let verify = [
        "verify",
        "receipt.json",
        "--contract",
        &buyer.world.node.contract,
    ];
    assert_eq!(buyer.does(&verify)["kind"], "purchase");

    let whole: Value = serde_json::from_slice(&document).unwrap();
    let batch = whole["header"]["id"].to_string().replace('"', "");
    let audit = [
        "audit",
        "--batch",
        &batch,
        "--contract",
        &buyer.world.node.contract,
        "--receipt",
        "receipt.json",
    ];
    buyer.does(&audit);

    assert_eq!(whole["finality"]["because"], "served");
    assert_eq!(whole["right"]["allows"], "download");
    for (document, field) in [("finality", "because"), ("right", "buyer")] {
        let mut changed = whole.clone();
        changed[document][field] = "another".into();
        fs::write(&file, changed.to_string()).unwrap();
        buyer.is_refused(&verify, 7, "in the leaf");
        buyer.is_refused(&audit, 7, "the receipt names");
    }

    let mut changed = whole;
    changed["meter"]["price_base"] = "2500000000000000001".into();
    fs::write(&file, changed.to_string()).unwrap();
    buyer.is_refused(&bill, 7, "");
    buyer.is_refused(&verify, 7, "");
    buyer.is_refused(&audit, 7, "");
}

#[test]
fn what_lasts_is_paid_by_the_second_and_ended_when_its_buyer_wishes() {
    let world = World::start();
    let rows = rows(world.folder.path());
    let seller = world.person("seller", "0");
    let buyer = world.person("buyer", "10");
    let id = seller.lists("rows", &rows);
    let rent = [
        "--kind",
        "rent",
        "--price",
        "0.001",
        "--period",
        "1h",
        "--minimum",
        "0",
    ];
    let rent = seller.dataset(&[&["offer", &id], &rent[..]].concat());
    let subscribe = ["--kind", "subscribe", "--price", "1", "--period", "1d"];
    let subscribe = seller.dataset(&[&["offer", &id], &subscribe[..]].concat());

    let quote = buyer.dataset(&["quote", &text(&rent, "id"), "--for", "10m"]);
    assert_eq!(tokens(&quote["price"]), "0.6");
    let too_long = ["dataset", "rent", &id, "--for", "2h", "--yes"];
    buyer.is_refused(&too_long, 5, "/seconds expected 1 to 3600");
    let rented = buyer.dataset(&["rent", &id, "--for", "10m", "--max-price", "0.6"]);
    let ended = buyer.dataset(&["end", &text(&rented, "id")]);
    let charged: u128 = text(&ended["charged"], "amount").parse().unwrap();
    assert_eq!(ended["final_because"], "ended_by_buyer");
    assert_eq!(charged % 10_u128.pow(15), 0, "whole seconds");
    assert!(charged < 6 * 10_u128.pow(17), "{charged}");

    let first = buyer.dataset(&["subscribe", &id, "--yes", "--cap", "1.5"]);
    let subscription = text(&first, "subscription");
    let raised = seller.dataset(&["price", &text(&subscribe, "id"), "1.2"]);
    assert_eq!(tokens(&raised["price"]["price"]), "1", "its notice runs");
    assert_eq!(tokens(&raised["next_price"]["price"]), "1.2");
    let capped = buyer.dataset(&["cap", &subscription, "2"]);
    assert_eq!(tokens(&capped["cap"]), "2");
    let listed = buyer.dataset(&["subscriptions"]);
    assert_eq!(listed["data"][0]["state"], "active");
    assert_eq!(buyer.dataset(&["cancel", &subscription])["state"], "ending");
    let ended = buyer.dataset(&["end", &text(&first, "id")]);
    assert_eq!(ended["state"], "settled");
    assert_eq!(
        buyer.dataset(&["subscriptions"])["data"][0]["state"],
        "ended"
    );

    seller.dataset(&["close-offer", &text(&subscribe, "id")]);
    buyer.is_refused(&["dataset", "subscribe", &id, "--yes"], 5, "no offer of");
}

#[test]
fn a_gated_offer_is_asked_for_and_its_price_comes_back_when_denied() {
    let world = World::start();
    let rows = rows(world.folder.path());
    let seller = world.person("seller", "0");
    let buyer = world.person("buyer", "10");
    let id = seller.lists("rows", &rows);
    let terms = ["--kind", "buy", "--price", "4", "--answer-within", "2d"];
    let offer = text(
        &seller.dataset(&[&["offer", &id], &terms[..]].concat()),
        "id",
    );

    let buy = ["dataset", "buy", &offer, "--yes"];
    buyer.is_refused(&buy, 5, "comptoir dataset request");
    let request = ["request", &id, "--yes", "--note", "for a thesis"];
    let asked = text(&buyer.dataset(&request), "id");
    assert_eq!(buyer.available(), "6", "it is held");
    let waiting = seller.dataset(&["sales", "--state", "requested"]);
    assert_eq!(waiting["data"][0]["note"], "for a thesis");
    let denied = seller.dataset(&["deny", &asked, "--reason", "not for theses"]);
    assert_eq!(denied["state"], "denied");
    assert_eq!(buyer.available(), "10");

    let asked = text(&buyer.dataset(&request), "id");
    let approved = seller.dataset(&["approve", &asked]);
    assert_eq!(
        (&approved["state"], approved["charged"].is_null()),
        (&"granted".into(), true)
    );
    buyer.dataset(&["pull", &id, "--out", "got"]);
    let read = buyer.dataset(&["purchase", &asked]);
    assert_eq!(
        (&read["state"], &read["final_because"]),
        (&"settled".into(), &"served".into())
    );
    assert_eq!(
        buyer.dataset(&["purchases"])["data"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let late = ["dataset", "deny", &asked, "--reason", "too late"];
    seller.is_refused(&late, 5, "request_answered");
}
