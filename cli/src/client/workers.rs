//! Own workers, and tokens that join new ones.

use serde_json::json;

use super::{Context, idempotency_key, jobs::list_path};
use crate::{
    args::Worker,
    output::{self, Output},
};

const WORKER: &[&str] = &[
    "id",
    "name",
    "state",
    "device",
    "numeric_class",
    "price_floor_nano",
    "last_seen_at",
];

/// The worker verbs.
pub async fn run(context: &Context, verb: &Worker) -> anyhow::Result<()> {
    let api = context.api().await?;
    match verb {
        Worker::List(page) => {
            context
                .output
                .list(&api.get(&list_path("/v1/workers", page)).await?, WORKER);
        }
        Worker::Revoke { id } => {
            let worker = api
                .post(&format!("/v1/workers/{id}/revoke"), &json!({}))
                .await?;
            context.output.object(&worker, WORKER);
        }
        Worker::Token { name, max_uses } => {
            let token = {
                let body = json!({ "name": name, "max_uses": max_uses });
                api.create("/v1/join-tokens", &idempotency_key(), &body)
                    .await?
            };
            match (context.output, token["command"].as_str()) {
                (Output::Table, Some(command)) => output::say(command),
                _ => context
                    .output
                    .object(&token, &["id", "token", "expires_at"]),
            }
        }
    }
    Ok(())
}
