//! Datasets: their cards, publishing a folder, pulling one, and the market.

mod patience;
mod publish;
mod pull;
mod sell;
mod take;

pub use pull::find_file;

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, card, contributions, http, idempotency_key, jobs::list_path, search, takedowns,
};
use crate::{
    args::{ListArgs, datasets::Dataset, market::PurchasesArgs},
    exit::{Exit, coded},
};

/// What is shown of one dataset beside that.
const SHOWN: &[&str] = &[
    "tags",
    "deprecation",
    "blocked_by",
    "provenance",
    "description",
    "versions",
];
const DATASET: &[&str] = &["id", "name", "title", "state", "licence", "created_at"];
const PURCHASE: &[&str] = &[
    "id",
    "state",
    "kind",
    "dataset",
    "version",
    "offer",
    "allows",
    "subscription",
    "minimum_seconds",
    "price",
    "charged",
    "final_because",
    "receipt",
    "note",
    "reason",
    "created_at",
    "answer_due_at",
    "starts_at",
    "ends_at",
    "final_at",
    "ended_at",
];
const VERSION: &[&str] = &["id", "number", "state", "files", "bytes", "manifest_root"];

/// The dataset verbs.
///
/// # Errors
/// When the service refuses, or a file cannot be read or written.
pub async fn run(context: &Context, verb: &Dataset) -> anyhow::Result<()> {
    let api = context.api().await?;
    let output = context.output;
    let act = async |id: &str, action: &str, body: Value| {
        let dataset = api
            .post(&format!("/v1/datasets/{id}/{action}"), &body)
            .await?;
        output.object(&dataset, DATASET);
        anyhow::Ok(())
    };
    match verb {
        Dataset::Create { name, card } => {
            let mut body = card::fields(card).await?;
            body.insert("name".to_owned(), json!(name));
            let key = idempotency_key();
            let made = api.create("/v1/datasets", &key, &body.into()).await?;
            output.object(&made, DATASET);
        }
        Dataset::Publish(args) => {
            let version = publish::publish(&api, args).await?;
            output.object(&version, VERSION);
        }
        Dataset::List(page) => {
            output.list(&api.get(&list_path("/v1/datasets", page)).await?, DATASET);
        }
        Dataset::Search(args) => {
            output.list(&api.get(&search::datasets(args)).await?, search::DATASET);
        }
        Dataset::Show { id } => {
            let fields = [DATASET, SHOWN].concat();
            output.object(&show(&api, id).await?, &fields);
        }
        Dataset::Edit { id, card } => {
            let path = format!("/v1/datasets/{id}");
            output.object(&card::edit(&api, &path, card).await?, DATASET);
        }
        Dataset::Announce { id } => act(id, "list", json!({})).await?,
        Dataset::Withdraw { id } => act(id, "withdraw", json!({})).await?,
        Dataset::Deprecate { id, message } => {
            act(id, "deprecate", json!({ "message": message })).await?;
        }
        Dataset::Undeprecate { id } => act(id, "undeprecate", json!({})).await?,
        Dataset::Delete { id, version } => {
            let path = format!("/v1/datasets/{id}/versions/{version}");
            let gone = api.send(api.request(Method::DELETE, &path)).await?;
            output.object(&http::json(gone).await?, VERSION);
        }
        Dataset::Contribution(verb) => contributions::run(context, &api, verb).await?,
        Dataset::Takedown(verb) => takedowns::run(context, &api, verb).await?,
        Dataset::Pull(args) => {
            let pulled = pull::pull(&api, args).await?;
            output.object(
                &pulled,
                &["version", "files", "bytes", "manifest_root", "folder"],
            );
        }
        Dataset::Sell(verb) => sell::run(context, &api, verb).await?,
        Dataset::Take(verb) => take::run(context, &api, verb).await?,
    }
    Ok(())
}

/// A dataset, with its newest versions.
async fn show(api: &http::Api, id: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/datasets/{id}");
    let mut dataset = api.get(&path).await?;
    let versions = api.get(&format!("{path}/versions?limit=100")).await?;
    dataset["versions"] = versions["data"].clone();
    Ok(dataset)
}

/// A version that is ready: the one with that number, or the newest.
async fn ready(api: &http::Api, dataset: &str, number: Option<u32>) -> anyhow::Result<Value> {
    let wanted = |version: &Value| {
        version["state"] == "ready" && number.is_none_or(|number| version["number"] == number)
    };
    let found = all(api, &format!("/v1/datasets/{dataset}/versions")).await?;
    let newest = found
        .into_iter()
        .filter(wanted)
        .max_by_key(|it| it["number"].as_u64());
    newest.ok_or_else(|| {
        coded(
            Exit::NotFound,
            "the dataset has no such version that is ready".to_owned(),
        )
    })
}

/// A page of a list, of what is in one state where that is named.
async fn list_in_state(
    api: &http::Api,
    path: &str,
    (page, state): (&ListArgs, Option<&String>),
) -> anyhow::Result<Value> {
    let mut path = list_path(path, page);
    if let Some(state) = state {
        path = format!("{path}&state={state}");
    }
    Ok(api.get(&path).await?)
}

/// Purchases, of one side: `path` says which.
async fn list_purchases(
    api: &http::Api,
    path: &str,
    args: &PurchasesArgs,
) -> anyhow::Result<Value> {
    let mut path = list_path(path, &args.page);
    for (name, wanted) in [("state", &args.state), ("dataset", &args.dataset)] {
        if let Some(wanted) = wanted {
            path = format!("{path}&{name}={wanted}");
        }
    }
    Ok(api.get(&path).await?)
}

/// Every row of a list.
async fn all(api: &http::Api, path: &str) -> anyhow::Result<Vec<Value>> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let mut page = api.get(&format!("{path}?limit=100{cursor}")).await?;
        if let Some(data) = page["data"].as_array_mut() {
            rows.append(data);
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(rows),
        }
    }
}

/// A field that the API promises to be text.
fn text<'v>(value: &'v Value, field: &str) -> anyhow::Result<&'v str> {
    let found = value[field].as_str();
    found.with_context(|| format!("the service told no `{field}`"))
}
