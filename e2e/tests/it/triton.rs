//! The client of Triton, from `PyPI`, against a service and a worker that run: a program that was written for it needs another address and a
//! header with a key, and nothing else.

use serde_json::json;

use crate::{
    clients::{World, assert_passed, end, is_installed, key, suite},
    harness::checkout,
};

const TRITON: &str = "tritonclient";

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_triton_needs_another_address_and_a_key_and_nothing_else() {
    if !is_installed(TRITON).await {
        return;
    }
    let mut world = World::start().await;
    let scopes = ["models:read", "models:call"];
    let caller = key(&world.caller, &scopes).await;
    let poor = key(&world.poor, &scopes).await;
    let reader = key(&world.caller, &scopes[..1]).await;
    let examples = checkout().join("examples/digits");
    let program = world.upload(&examples.join("mlp.pt2")).await;
    let manifest = json!({ "programs": { "infer": program } });
    let tariff = json!({ "call_nano": "7000000000" });
    let digits = world.publish_at("digits", manifest, tariff).await;
    let address = world.node.api_url.to_string();
    let address = address.trim_start_matches("http://").trim_end_matches('/');
    let away = world.away();
    let settings = [
        ("ADDRESS", address),
        ("KEY", &caller),
        ("POOR_KEY", &poor),
        ("READER_KEY", &reader),
        ("MODEL", &digits),
        ("DIGITS", examples.to_str().unwrap()),
        ("AWAY", away.to_str().unwrap()),
    ];
    let all = ["Server", "Infer", "Errors"];
    assert_passed(&all, end(suite(TRITON, &all, &settings)).await);

    world.answers_late(TRITON, &settings).await;
    world.stop().await;
}
