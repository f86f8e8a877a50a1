//! The official client of `OpenAI`, from `PyPI`, against a service and a worker that run: a program that was written for it needs another base URL,
//! and nothing else.

use serde_json::Value;

use crate::{
    clients::{World, assert_passed, end, is_installed, key, suite},
    harness::checkout,
};

const OPENAI: &str = "openai";

/// With a model that writes, and the same from the command line.
async fn talk(world: &World, settings: &[(&str, &str)], caller: &str) {
    let writer = world.publish_gpt().await;
    let written = checkout().join("examples/gpt/vectors/vectors.json");
    let of_chat = [
        settings,
        &[
            ("WRITER", writer.as_str()),
            ("WRITTEN", written.to_str().unwrap()),
        ],
    ]
    .concat();
    assert_passed(&["Chat"], end(suite(OPENAI, &["Chat"], &of_chat)).await);
    let says = ["--message", "Who comes here?", "--temperature", "0"];
    let generate = [&["model", "generate", writer.as_str()][..], &says].concat();
    let by_hand = world.by_hand(caller, &generate).await;
    let vectors: Value = serde_json::from_slice(&std::fs::read(&written).unwrap()).unwrap();
    let begins = vectors["cases"][0]["text"].as_str().unwrap();
    assert!(
        by_hand["text"].as_str().unwrap().starts_with(begins),
        "{by_hand}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_needs_another_base_url_and_nothing_else() {
    if !is_installed(OPENAI).await {
        return;
    }
    let mut world = World::start().await;
    let scopes = ["models:read", "models:call"];
    let words = world.publish_words().await;
    let base = world.node.api_url.join("v1").unwrap();
    let (caller, limited) = (
        key(&world.caller, &scopes).await,
        key(&world.caller, &scopes).await,
    );
    let poor = key(&world.poor, &scopes).await;
    let reader = key(&world.caller, &scopes[..1]).await;
    let away = world.away();
    let settings = [
        ("OPENAI_BASE_URL", base.as_str()),
        ("OPENAI_API_KEY", &caller),
        ("MODEL", &words),
        ("POOR_KEY", &poor),
        ("READER_KEY", &reader),
        ("AWAY", away.to_str().unwrap()),
    ];
    let all = ["Models", "Embeddings", "Errors"];
    assert_passed(&all, end(suite(OPENAI, &all, &settings)).await);

    let call = ["model", "call", &words, "--text", "w1 w2", "--text", "w3"];
    let by_hand = world.by_hand(&caller, &call).await;
    assert_eq!(by_hand["usage"]["input_tokens"], 3);
    assert_eq!(by_hand["results"].as_array().unwrap().len(), 2);

    talk(&world, &settings, &caller).await;

    let elsewhere = world.limited.url("v1");
    let few = [
        ("OPENAI_BASE_URL", elsewhere.as_str()),
        ("OPENAI_API_KEY", &limited),
        ("MODEL", &words),
    ];
    assert_passed(&["Limited"], end(suite(OPENAI, &["Limited"], &few)).await);

    if let Some(minilm) = world.publish_minilm().await {
        let vectors = checkout().join("examples/minilm/vectors.json");
        let of_minilm = [
            &settings[..2],
            &[
                ("MODEL", minilm.as_str()),
                ("VECTORS", vectors.to_str().unwrap()),
            ],
        ]
        .concat();
        let reference = suite(OPENAI, &["Reference"], &of_minilm);
        assert_passed(&["Reference"], end(reference).await);
    }

    world.answers_late(OPENAI, &settings).await;
    world.stop().await;
}
