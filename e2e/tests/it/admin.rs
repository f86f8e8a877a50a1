//! Administrators, wallets and rotated keys, by the command line against a service that runs.

use std::process::Command;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use comptoir_cli::{
    client::{account, blobs, idempotency_key},
    demo::{
        people::WorkerProcess,
        work::{complete, submit},
    },
};
use serde_json::{Value, json};

use crate::{
    guardian_world::{TOKEN, World},
    harness::{binary, checkout},
    terminal::{CREDENTIALS, REFUSED, Terminal},
};

/// An administrator, made by whoever has the database.
fn administrator<'a>(world: &'a World, name: &'static str) -> Terminal<'a> {
    let email = format!("{name}@example.org");
    let token = world.admin(&["bootstrap", "--email", &email]);
    assert_eq!(token.code, Some(0), "{token:?}");
    let terminal = Terminal { world, name };
    let setup = token.said["token"].as_str().unwrap();
    terminal.done(&["login", "--email", &email, "--setup", setup]);
    terminal
}

/// The batch inference of the example, with the weights that the program came with.
async fn inference(api: &comptoir_cli::client::http::Api) -> Value {
    let folder = checkout().join("examples/digits");
    let program = blobs::upload(api, &folder.join("convnet.pt2"))
        .await
        .unwrap();
    let rows = blobs::upload(api, &folder.join("test.safetensors"))
        .await
        .unwrap();
    json!({
        "kind": "inference", "program": program, "batch_size": 64,
        "inputs": { "x": { "blob": rows, "tensor": "images" } },
    })
}

/// With the reason that every action wants.
fn act(by: &Terminal, arguments: &[&str]) -> Value {
    by.done(&[arguments, &["--reason", "because"]].concat())
}

/// Freezing ends sessions and lets nobody sign in, until it is taken back.
fn freeze(world: &World, admin: &Terminal) {
    let user = Terminal {
        world,
        name: "user",
    };
    let signed_up = user.done(&["signup", "--email", "user@example.org"]);
    let id = signed_up["id"].as_str().unwrap();
    act(admin, &["admin", "accounts", "freeze", id]);
    user.refused(&["account"], CREDENTIALS, "");
    let login = ["login", "--email", "user@example.org"];
    user.refused(&login, CREDENTIALS, "frozen");
    act(admin, &["admin", "accounts", "unfreeze", id]);
    user.done(&login);
    let own = ["admin", "accounts", "get", id];
    user.refused(&own, CREDENTIALS, "administrator");
}

/// A refund takes two people, and the platform's money.
async fn refund(world: &World, [first, second]: [&Terminal<'_>; 2]) {
    let client = world.person("client", 100 * TOKEN).await;
    let job = submit(&client, inference(&client.api).await, "none").await;
    let done = complete(&client, &job.unwrap()).await.unwrap();
    world.deposit(&world.key("platform"), TOKEN).await;
    let job = done.job["id"].as_str().unwrap();
    let one = ["--tokens", "0.000000000000000001"];
    let propose = [&["admin", "refunds", "propose", job], &one[..]].concat();
    let proposed = act(first, &propose);
    let approve = [
        "admin",
        "refunds",
        "approve",
        proposed["id"].as_str().unwrap(),
    ];
    first.refused(&approve, CREDENTIALS, "Another administrator");
    let approved = async || second.run(&approve).code == Some(0);
    world.until("the refund", approved).await;
    let shown = client.api.get(&format!("/v1/jobs/{job}")).await.unwrap();
    assert_eq!(shown["refunded"]["amount"], "1");
}

/// A dataset is blocked, its seller contests that, and it is back.
fn take_down(world: &World, admin: &Terminal) {
    let [seller, claimant] = ["seller", "claimant"].map(|name| Terminal { world, name });
    for user in [&seller, &claimant] {
        user.done(&["signup", "--email", &format!("{}@example.org", user.name)]);
    }
    let folder = world.path("rows");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("rows.csv"), "x,y\n1,2\n").unwrap();
    let card = ["--name", "rows", "--title", "Rows", "--licence", "MIT"];
    let made = seller.done(&[&["dataset", "create"], &card[..]].concat());
    let dataset = made["id"].as_str().unwrap();
    let folder = folder.to_str().unwrap();
    seller.done(&["dataset", "publish", folder, "--dataset", dataset]);
    seller.done(&["dataset", "announce", dataset]);

    let words = ["--ground", "personal-data", "--statement", "my address"];
    let filed = claimant.done(&[&["dataset", "take-down", dataset], &words[..]].concat());
    let takedown = filed["id"].as_str().unwrap();
    let waiting = admin.done(&["admin", "takedowns", "list", "--state", "filed"]);
    assert_eq!(waiting["data"][0]["ground"], "personal_data");
    act(admin, &["admin", "takedowns", "freeze", takedown]);
    let out = world.path("pulled");
    let pull = ["dataset", "pull", dataset, "--out", out.to_str().unwrap()];
    seller.refused(&pull, REFUSED, "dataset_blocked");
    let received = seller.done(&["dataset", "takedowns", "--received", "--state", "frozen"]);
    assert_eq!(received["data"][0]["id"], takedown);
    let contest = ["dataset", "contest", takedown, "--statement", "it is mine"];
    assert_eq!(seller.done(&contest)["state"], "contested");
    let shown = admin.done(&["admin", "takedowns", "get", takedown]);
    assert_eq!(shown["answer"], "it is mine");
    let rejected = act(admin, &["admin", "takedowns", "reject", takedown]);
    assert_eq!(rejected["state"], "rejected");
    let shown = seller.done(&["dataset", "show", dataset]);
    assert_eq!(shown["blocked_by"], Value::Null);
    seller.done(&pull);
    let late = ["dataset", "retract", takedown];
    claimant.refused(&late, REFUSED, "takedown_state");
    claimant.done(&[&["dataset", "take-down", dataset], &words[..]].concat());
    let again = claimant.done(&["dataset", "takedowns"]);
    let second = again["data"][0]["id"].as_str().unwrap();
    let retracted = claimant.done(&["dataset", "retract", second]);
    assert_eq!(retracted["state"], "withdrawn");
}

fn publish(admin: &Terminal) {
    let terms = "--device cuda --rate-nano 5 --minimum-base 7 --platform-ppm 1000 --effective-at 2100-01-01T00:00:00Z";
    let verb = ["admin", "prices", "publish"].into_iter();
    let price = admin.done(&verb.chain(terms.split(' ')).collect::<Vec<_>>());
    assert_eq!(price["in_force"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_act_on_a_service_that_runs() {
    let world = World::start().await;
    let first = administrator(&world, "first");
    let second = administrator(&world, "second");
    freeze(&world, &first);

    // A worker is held and let go; a bar that is none is lifted without harm.
    let owner = world.person("owner", 0).await;
    let program = binary("comptoir-worker");
    let home = world.path("worker");
    let worker = WorkerProcess::start(&owner, world.scheduler.as_str(), &program, &home);
    let worker = worker.await.unwrap();
    for (verb, control) in [
        ("drain", "draining"),
        ("lift-bar", "draining"),
        ("restore", "active"),
    ] {
        let shown = act(&first, &["admin", "workers", verb, &worker.id]);
        assert_eq!(shown["control"], control, "{verb}");
    }
    refund(&world, [&first, &second]).await;
    worker.stop().await.unwrap();
    publish(&first);
    take_down(&world, &first);
    for what in ["wake-ups", "notices"] {
        let shown = act(&first, &["admin", "outbox", what]);
        assert_eq!(shown["open_jobs"], 0, "{what}");
    }

    let events = second.done(&["admin", "events", "--limit", "100"]);
    let events = events["data"].as_array().unwrap();
    let told = "account.frozen account.unfrozen worker.drained worker.bar_lifted worker.restored refund.proposed \
                refund.approved price.published outbox.replayed";
    for action in told.split(' ') {
        let is_told = events.iter().any(|it| it["action"] == action);
        assert!(is_told, "{action} in {events:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_signs_in_on_the_command_line() {
    let world = World::start().await;
    let person = world.person("person", 0).await;
    let key = world.write_key(&person.wallet);
    let terminal = Terminal {
        world: &world,
        name: "wallet",
    };
    let shown = terminal.done(&["login", "--wallet", "--key-file", &key]);
    assert_eq!(shown["email"], "person@example.com");
    assert_eq!(shown["address"], person.wallet.address().to_string());
    assert_eq!(terminal.done(&["account"])["id"], shown["id"]);
    // A service under another name than its own gets no signature.
    let port = world.api.base().port().unwrap();
    let elsewhere = format!("http://localhost:{port}");
    let other = ["--url", &elsewhere, "login", "--wallet", "--key-file", &key];
    terminal.refused(&other, 1, "calls itself http://127.0.0.1");
    world.stop().await;
}

/// The key that a token was signed with.
fn signed_by(token: &str) -> String {
    let head = BASE64_URL_SAFE_NO_PAD
        .decode(token.split('.').next().unwrap())
        .unwrap();
    let head: Value = serde_json::from_slice(&head).unwrap();
    head["kid"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_keys_ends_nothing_that_was_given_out_before() {
    let world = World::start().await;
    let (email, password) = ("person@example.org", "a long enough password");
    account::create(&world.api, email, password).await.unwrap();
    let sign_in = async || account::tokens(&world.api, email, password).await.unwrap();
    let token = |tokens: &Value| tokens["access_token"].as_str().unwrap().to_owned();
    let before = sign_in().await;
    let old = world.api.with_bearer(token(&before));
    account::bind(&old, &comptoir_cli::client::wallet::Wallet::random())
        .await
        .unwrap();
    let body = json!({ "name": "made before" });
    let join = old
        .create("/v1/join-tokens", &idempotency_key(), &body)
        .await;
    let join = join.unwrap()["token"].as_str().unwrap().to_owned();
    let body = json!({ "name": "made before", "scopes": ["account:read"] });
    let key = old
        .create("/v1/keys", &idempotency_key(), &body)
        .await
        .unwrap();

    let keys = world.path("node/keys");
    let rotated = world.admin(&["rotate-keys", "--keys", keys.to_str().unwrap()]);
    assert_eq!(rotated.said["rotated"], true, "{rotated:?}");
    let current = rotated.said["current"].as_str().unwrap().to_owned();
    assert_ne!(signed_by(&token(&before)), current);
    world
        .until("the next key", async || {
            signed_by(&token(&sign_in().await)) == current
        })
        .await;

    // The old token, what renews it, the API key and the join token hold as before.
    old.get("/v1/account").await.unwrap();
    let body = json!({ "refresh_token": before["refresh_token"] });
    let renewed = world.api.post("/v1/auth/refresh", &body).await.unwrap();
    assert_eq!(signed_by(&token(&renewed)), current);
    let by_key = world.api.with_bearer(key["key"].as_str().unwrap());
    by_key.get("/v1/account").await.unwrap();
    let joined = Command::new(binary("comptoir-worker"))
        .args([
            "join",
            "--url",
            world.scheduler.as_str(),
            "--token",
            &join,
            "--name",
            "late",
            "--folder",
        ])
        .arg(world.path("late"))
        .output()
        .unwrap();
    assert!(joined.status.success(), "{joined:?}");
    let workers = old.get("/v1/workers").await.unwrap();
    assert_eq!(workers["data"][0]["name"], "late");
    // Twice within the hour would end tokens early, and is refused.
    let again = world.admin(&["rotate-keys", "--keys", keys.to_str().unwrap()]);
    assert_eq!(again.code, Some(REFUSED), "{again:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_when_its_token_ends_early_and_says_when_its_session_has_ended() {
    let world = World::start().await;
    let terminal = Terminal {
        world: &world,
        name: "early",
    };
    terminal.done(&["signup", "--email", "early@example.org"]);
    let profile = || -> Value {
        let file = std::fs::read(world.path("early.json")).unwrap();
        serde_json::from_slice(&file).unwrap()
    };
    let before = profile();
    // Nothing that was signed with the keys of before is taken any more.
    let keys = world.path("node/keys");
    for _ in 0..2 {
        let rotated = world.admin(&["rotate-keys", "--keys", keys.to_str().unwrap(), "--force"]);
        assert_eq!(rotated.said["rotated"], true, "{rotated:?}");
    }
    let old = before["access_token"].as_str().unwrap();
    let refused = async || world.api.with_bearer(old).get("/v1/account").await.is_err();
    world.until("the end of the old keys", refused).await;

    // What is asked first has an answer without a body.
    let file = checkout().join("examples/digits/convnet.pt2");
    let put = ["blob", "put", file.to_str().unwrap()];
    terminal.done(&put);
    let renewed = profile();
    assert_ne!(renewed["access_token"], before["access_token"]);
    terminal.done(&put);
    assert_eq!(profile(), renewed, "a token that is taken is kept");

    let body = json!({ "refresh_token": renewed["refresh_token"] });
    world.api.post("/v1/auth/logout", &body).await.unwrap();
    for command in [&put[..], &["account"]] {
        terminal.refused(command, CREDENTIALS, "has ended: run `comptoir login`");
    }
    world.stop().await;
}
