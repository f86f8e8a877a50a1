//! What the documents tell people to type, typed: each block of commands between two headings, one after the other in one shell.

use std::{
    path::Path,
    process::{Command, Output},
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use comptoir_cli::{client::idempotency_key, demo::people::Person};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    guardian_world::{TOKEN, World},
    harness::{binary, checkout},
};

/// A hundred tokens in base units: that of the endpoints' owner moves.
const RICH: u128 = 100_000_000_000_000_000_000;

/// The shell commands of a document from one heading up to another.
fn commands(document: &str, from: &str, to: &str) -> String {
    let text = std::fs::read_to_string(checkout().join(document)).unwrap();
    let start = text.find(from).unwrap();
    let end = text.find(to).unwrap();
    let (mut found, mut is_inside) = (String::new(), false);
    for line in text[start..end].lines() {
        match line {
            "```sh" => is_inside = true,
            "```" => is_inside = false,
            line if is_inside => found.extend([line, "\n"]),
            _ => {}
        }
    }
    found
}

/// A key of a person, as the documents ask for it.
async fn key(person: &Person, scopes: &[&str]) -> String {
    let body = json!({ "name": "documents", "scopes": scopes });
    let once = idempotency_key();
    let made = person.api.create("/v1/keys", &once, &body).await.unwrap();
    made["key"].as_str().unwrap().to_owned()
}

/// Runs commands in a folder, and ends with the first that fails.
fn run(commands: &str, folder: &Path, variables: &[(&str, &str)]) -> Output {
    let programs = binary("comptoir");
    let programs = programs.parent().unwrap().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    Command::new("bash")
        .args(["-c", &format!("set -euo pipefail\n{commands}")])
        .current_dir(folder)
        .env("PATH", path)
        .env("COMPTOIR_PROFILE", folder.join("profile.json"))
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// What was told, where nothing failed.
#[track_caller]
fn told(output: &Output) -> String {
    let trouble = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}\n{trouble}");
    told
}

/// Goes through the quickstart as somebody with this one of the chain's own addresses; what it told, and the key it ends with.
fn quickstart(world: &World, email: &str, account: usize) -> (String, String) {
    let commands = commands("docs/quickstart.md", "You need", "Go on with");
    // As its comment says.
    let mine = commands.replace(".[0]", &format!(".[{account}]"));
    let mine = mine + r#"echo "key $KEY""#;
    let api = world.api.base().as_str().trim_end_matches('/').to_owned();
    let variables = [
        ("API", api.as_str()),
        ("EMAIL", email),
        ("WALLET", world.rpc.as_str()),
    ];
    let output = tokio::task::block_in_place(|| run(&mine, checkout(), &variables));
    let told = told(&output) + &String::from_utf8_lossy(&output.stderr);
    let key = told.lines().find_map(|line| line.strip_prefix("key "));
    let key = key.unwrap().to_owned();
    (told, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_strangers_sell_and_buy_a_dataset_with_the_commands_of_the_documents_alone() {
    let world = World::start().await;
    let keys = [("seller@example.com", 0), ("buyer@example.com", 1)].map(|(email, account)| {
        let (told, key) = quickstart(&world, email, account);
        for line in [
            format!(r#"{{"object":"account","email":"{email}"}}"#),
            r#""name":"quickstart""#.to_owned(),
            format!(r#""amount":"{TOKEN}""#),
        ] {
            assert!(told.contains(&line), "{line} in {told}");
        }
        key
    });
    let [seller, buyer] = keys;
    let document = |from, to| commands("docs/datasets.md", from, to);
    let commands = [
        document("## Publishing with curl alone", "## Contributions"),
        document("With curl, going on from above", "- **What counts.**"),
        document("\nWith curl:\n", "| state | what it means"),
    ];
    let commands = commands.concat();
    let folder = world.path("documents");
    std::fs::create_dir(&folder).unwrap();
    let api = world.api.base().as_str().trim_end_matches('/').to_owned();
    let variables = [
        ("API", api.as_str()),
        ("KEY", seller.as_str()),
        ("BUYER", buyer.as_str()),
        ("ETH_RPC_URL", world.rpc.as_str()),
        ("CONTRACT", &world.contract.to_string()),
    ];
    let output = tokio::task::block_in_place(|| run(&commands, &folder, &variables));
    let told = told(&output);
    for line in [
        r#"{"price":"200000000000000000","number":2}"#,
        r#"{"state":"settled","held":"600000","charged":"#,
        r#"{"state":"denied","reason":"not for theses"}"#,
        r#"{"state":"refunded","reason":"given back by the buyer"}"#,
        "whole",
        r#""final_because":"served","charged":"200000000000000000""#,
        r#"{"state":"accepted","rows":2,"#,
        r#""state": "filed""#,
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
    let rows = std::fs::read_to_string(folder.join("bought.csv")).unwrap();
    assert_eq!(rows, "x,y\n1,2\n3,4\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_is_told_so_and_waits_for_nothing() {
    let world = World::start().await;
    let (told, _) = quickstart(&world, "poor@example.com", 2);
    assert!(told.contains("the chain refused to deposit"), "{told}");
    assert!(told.contains(r#""amount":"0""#), "{told}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_published_and_shown_with_the_commands_of_its_document_alone() {
    let world = World::start().await;
    let creator = world.person("creator", 0).await;
    let scopes = ["models:read", "models:write", "blobs:write"];
    let commands = commands(
        "docs/models.md",
        "## With curl alone",
        "## What a version consists of",
    );
    let variables = [
        (
            "API",
            world.api.base().as_str().trim_end_matches('/').to_owned(),
        ),
        ("KEY", key(&creator, &scopes).await),
    ];
    let variables = variables
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let output = tokio::task::block_in_place(|| run(&commands, checkout(), &variables));
    let told = told(&output);
    for line in ["\"number\": 1", "\"worker_ppm\": 100000", "\"public\""] {
        assert!(told.contains(line), "{line} in {told}");
    }
    world.stop().await;
}

/// Takes what is posted to it; the last message's headers and body are in files of the folder.
async fn receiver(folder: &Path) -> String {
    let folder = folder.to_owned();
    let hook = async move |headers: HeaderMap, body: Bytes| {
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let value = headers[name].to_str().unwrap();
            std::fs::write(folder.join(name), value).unwrap();
        }
        std::fs::write(folder.join("body"), body).unwrap();
        StatusCode::NO_CONTENT
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let router = Router::new().route("/hook", post(hook));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_made_tested_verified_and_mended_with_the_commands_of_its_document_alone() {
    let world = World::start().await;
    let owner = world.person("owner", RICH).await;
    let folder = world.path("documents");
    std::fs::create_dir(&folder).unwrap();
    let document = |from, to| commands("docs/webhooks.md", from, to);
    let commands = [
        document("## Make an endpoint", "## What comes"),
        document("The threshold of `balance.low`", "## Answer"),
        // What a receiver has of a message.
        "ID=$(cat webhook-id) TIMESTAMP=$(cat webhook-timestamp)\n".to_owned(),
        document("## Verify", "## Replace"),
        document("## Replace", "## On your own machine"),
    ];
    let api = world.api.base().as_str().trim_end_matches('/').to_owned();
    let hook = receiver(&folder).await;
    let variables = [
        ("API", api.as_str()),
        ("KEY", owner.token.as_str()),
        ("HOOK", hook.as_str()),
    ];
    let output = tokio::task::block_in_place(|| run(&commands.concat(), &folder, &variables));
    let told = told(&output);
    let signature = std::fs::read_to_string(folder.join("webhook-signature")).unwrap();
    for line in [
        r#"{"event_type":"webhook.test","state":"delivered"}"#,
        signature
            .split(' ')
            .next_back()
            .unwrap()
            .strip_prefix("v1,")
            .unwrap(),
        "5000000000000000000",
        "new: whsec_",
        r#"{"enabled":true}"#,
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
    world.stop().await;
}
