//! Webhook endpoints, what was sent to them, and what happened.

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use reqwest::{Method, header};
use serde_json::{Map, Value, json};

use super::{Context, http, idempotency_key, jobs::list_path, webhook_listen::ListenArgs};
use crate::{
    args::ListArgs,
    output::{self, Output},
};

const ENDPOINT: &[&str] = &[
    "id",
    "url",
    "description",
    "event_types",
    "enabled",
    "disabled_reason",
    "failing_since",
    "previous_secret_until",
];
const CREATED: &[&str] = &["id", "url", "secret"];
const LISTED: &[&str] = &["id", "url", "enabled", "disabled_reason", "failing_since"];
const DELIVERY: &[&str] = &[
    "id",
    "event_type",
    "event_id",
    "state",
    "attempts",
    "last_attempt.status",
    "last_attempt.error",
    "next_attempt_at",
];
const ATTEMPT: &[&str] = &[
    "number",
    "started_at",
    "latency_ms",
    "status",
    "error",
    "answer",
];
const EVENT: &[&str] = &["id", "type", "created_at", "data"];

#[derive(Debug, Subcommand)]
pub enum Webhook {
    /// Has events sent to a URL; prints the secret that they are signed with, once.
    Create(CreateArgs),
    /// Your endpoints.
    List(ListArgs),
    /// One endpoint.
    Show {
        /// Its id.
        id: String,
    },
    /// Changes an endpoint.
    Update(UpdateArgs),
    /// Deletes an endpoint with its log.
    Delete {
        /// Its id.
        id: String,
    },
    /// Replaces the secret of an endpoint; the one before signs too for a while.
    Rotate {
        /// Its id.
        id: String,
        /// For how many seconds it does [default: 24 hours].
        #[arg(long)]
        previous_valid_s: Option<u32>,
    },
    /// Sends a test to an endpoint.
    Test {
        /// Its id.
        id: String,
    },
    /// What was sent to an endpoint, and what it answered.
    Deliveries(DeliveriesArgs),
    /// One delivery, with what came of each attempt.
    Delivery {
        /// The endpoint's id.
        id: String,
        /// Its own.
        delivery: String,
    },
    /// Sends one event again, or all that the endpoint did not take.
    Redeliver(RedeliverArgs),
    /// What happened, newest first.
    Events {
        /// Only events of this type.
        #[arg(long = "type")]
        kind: Option<String>,
        #[command(flatten)]
        page: ListArgs,
    },
    /// Below which available balance you are told, by `balance.low`.
    Alert {
        /// How many tokens, such as 12.5; `off`: not to be told [default: prints what is set].
        tokens: Option<String>,
    },
    /// Receives events on this machine, checks their signatures and prints them.
    Listen(ListenArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Where events are sent.
    // `url` is the service's.
    #[arg(value_name = "URL")]
    to: String,
    /// A type of events, such as `job.completed`; may be repeated [default: all].
    #[arg(long = "event")]
    events: Vec<String>,
    /// What you call it.
    #[arg(long)]
    description: Option<String>,
    /// Send nothing yet.
    #[arg(long)]
    disabled: bool,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Its id.
    id: String,
    /// Where events are sent from now on.
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// A type of events, such as `job.completed`; may be repeated.
    #[arg(long = "event", conflicts_with = "all_events")]
    events: Vec<String>,
    /// Send events of all types.
    #[arg(long)]
    all_events: bool,
    /// What you call it.
    #[arg(long)]
    description: Option<String>,
    /// Send what happens from now on.
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Send nothing.
    #[arg(long)]
    disable: bool,
}

impl UpdateArgs {
    fn patch(&self) -> anyhow::Result<Map<String, Value>> {
        let mut patch = Map::new();
        let mut set = |name: &str, value: Value| patch.insert(name.to_owned(), value);
        if let Some(url) = &self.to {
            set("url", json!(url));
        }
        if self.all_events {
            set("event_types", Value::Null);
        } else if !self.events.is_empty() {
            set("event_types", json!(self.events));
        }
        if let Some(description) = &self.description {
            let is_none = description.is_empty();
            set(
                "description",
                if is_none {
                    Value::Null
                } else {
                    json!(description)
                },
            );
        }
        if self.enable || self.disable {
            set("enabled", json!(self.enable));
        }
        if patch.is_empty() {
            bail!("nothing to change: see `comptoir webhook update --help`");
        }
        Ok(patch)
    }
}

#[derive(Debug, Args)]
pub struct DeliveriesArgs {
    /// The endpoint's id.
    id: String,
    /// Only those in this state: `pending`, `delivered`, `failed`, `cancelled`.
    #[arg(long)]
    state: Option<String>,
    /// Only those of this event.
    #[arg(long)]
    event_id: Option<String>,
    #[command(flatten)]
    page: ListArgs,
}

#[derive(Debug, Args)]
pub struct RedeliverArgs {
    /// The endpoint's id.
    id: String,
    /// The delivery's [default: all that the endpoint did not take].
    delivery: Option<String>,
    /// Only what happened since then, such as `2026-11-22T09:00:00Z` [default: 30 days back].
    #[arg(long, conflicts_with = "delivery")]
    since: Option<String>,
}

/// The webhook verbs.
pub async fn run(context: &Context, verb: Webhook) -> anyhow::Result<()> {
    let output = context.output;
    match verb {
        Webhook::Create(args) => create(context, &args).await,
        Webhook::List(page) => {
            let path = list_path("/v1/webhook-endpoints", &page);
            output.list(&context.api().await?.get(&path).await?, LISTED);
            Ok(())
        }
        Webhook::Show { id } => {
            output.object(&context.api().await?.get(&endpoint(&id)).await?, ENDPOINT);
            Ok(())
        }
        Webhook::Update(args) => update(context, &args).await,
        Webhook::Delete { id } => delete(context, &id).await,
        Webhook::Rotate {
            id,
            previous_valid_s,
        } => {
            let body = json!({ "previous_valid_s": previous_valid_s });
            let path = format!("{}/rotate", endpoint(&id));
            let rotated = context.api().await?;
            let rotated = rotated.create(&path, &idempotency_key(), &body).await?;
            output.object(&rotated, &["id", "secret", "previous_secret_until"]);
            Ok(())
        }
        Webhook::Test { id } => {
            let path = format!("{}/test", endpoint(&id));
            let api = context.api().await?;
            let event = api.create(&path, &idempotency_key(), &json!({})).await?;
            output.object(&event, EVENT);
            Ok(())
        }
        Webhook::Deliveries(args) => deliveries(context, &args).await,
        Webhook::Delivery { id, delivery } => show_delivery(context, &id, &delivery).await,
        Webhook::Redeliver(args) => redeliver(context, &args).await,
        Webhook::Events { kind, page } => {
            let path = filtered(
                &list_path("/v1/events", &page),
                &[("type", kind.as_deref())],
            );
            output.list(&context.api().await?.get(&path).await?, EVENT);
            Ok(())
        }
        Webhook::Alert { tokens } => alert(context, tokens.as_deref()).await,
        Webhook::Listen(args) => super::webhook_listen::run(context, args).await,
    }
}

fn endpoint(id: &str) -> String {
    format!("/v1/webhook-endpoints/{id}")
}

/// The path of a list with those filters that have a value.
fn filtered(path: &str, filters: &[(&str, Option<&str>)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in filters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    match (query.as_str(), path.contains('?')) {
        ("", _) => path.to_owned(),
        (query, true) => format!("{path}&{query}"),
        (query, false) => format!("{path}?{query}"),
    }
}

async fn create(context: &Context, args: &CreateArgs) -> anyhow::Result<()> {
    let types = (!args.events.is_empty()).then_some(&args.events);
    let body = json!({
        "url": args.to,
        "event_types": types,
        "description": args.description,
        "enabled": !args.disabled,
    });
    let api = context.api().await?;
    let created = api
        .create("/v1/webhook-endpoints", &idempotency_key(), &body)
        .await?;
    context.output.object(&created, CREATED);
    Ok(())
}

async fn update(context: &Context, args: &UpdateArgs) -> anyhow::Result<()> {
    let changes = args.patch()?;
    let (api, path) = (context.api().await?, endpoint(&args.id));
    let read = api.send(api.request(Method::GET, &path)).await?;
    let tag = read.headers().get(header::ETAG).cloned();
    let tag = tag.context("the service says no ETag")?;
    let request = api
        .request(Method::PATCH, &path)
        .header(header::IF_MATCH, tag)
        .json(&changes)
        .header(header::CONTENT_TYPE, "application/merge-patch+json");
    let shown = http::json(api.send(request).await?).await?;
    context.output.object(&shown, ENDPOINT);
    Ok(())
}

async fn delete(context: &Context, id: &str) -> anyhow::Result<()> {
    let api = context.api().await?;
    api.send(api.request(Method::DELETE, &endpoint(id))).await?;
    match context.output {
        Output::Json => output::say(format_args!("{:#}", json!({ "id": id, "deleted": true }))),
        Output::Table => output::say(format_args!("{id} is deleted")),
    }
    Ok(())
}

async fn deliveries(context: &Context, args: &DeliveriesArgs) -> anyhow::Result<()> {
    let path = list_path(&format!("{}/deliveries", endpoint(&args.id)), &args.page);
    let filters = [
        ("state", args.state.as_deref()),
        ("event_id", args.event_id.as_deref()),
    ];
    let list = context.api().await?.get(&filtered(&path, &filters)).await?;
    context.output.list(&list, DELIVERY);
    Ok(())
}

async fn show_delivery(context: &Context, id: &str, delivery: &str) -> anyhow::Result<()> {
    let path = format!("{}/deliveries/{delivery}", endpoint(id));
    let shown = context.api().await?.get(&path).await?;
    context.output.object(&shown, DELIVERY);
    // JSON has the log already.
    if context.output == Output::Table {
        context
            .output
            .list(&json!({ "data": shown["log"] }), ATTEMPT);
    }
    Ok(())
}

async fn redeliver(context: &Context, args: &RedeliverArgs) -> anyhow::Result<()> {
    let (api, path) = (context.api().await?, endpoint(&args.id));
    if let Some(delivery) = &args.delivery {
        let path = format!("{path}/deliveries/{delivery}/redeliver");
        context
            .output
            .object(&api.post(&path, &json!({})).await?, DELIVERY);
        return Ok(());
    }
    let body = json!({ "since": args.since });
    let begun = api.post(&format!("{path}/redeliver"), &body).await?;
    context.output.object(&begun, &["redelivered", "has_more"]);
    Ok(())
}

async fn alert(context: &Context, tokens: Option<&str>) -> anyhow::Result<()> {
    const PATH: &str = "/v1/balance/alert";
    let api = context.api().await?;
    let shown = match tokens {
        None => api.get(PATH).await?,
        Some(tokens) => {
            let threshold = match tokens {
                "off" => Value::Null,
                tokens => {
                    let mut money = api.get("/v1/balance").await?["available"].take();
                    money["amount"] = super::money::parse(tokens, &money)?.into();
                    money
                }
            };
            let request = api.request(Method::PUT, PATH);
            let request = request.json(&json!({ "threshold": threshold }));
            http::json(api.send(request).await?).await?
        }
    };
    context.output.object(&shown, &["threshold", "is_low"]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn update_args(args: &[&str]) -> UpdateArgs {
        let args = ["comptoir", "webhook", "update", "we_1"].iter().chain(args);
        match Cli::try_parse_from(args).unwrap().command {
            Command::Webhook(Webhook::Update(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    /// `--url` is the service's, for each verb.
    #[test]
    fn an_endpoint_has_a_url_beside_the_services() {
        let args = "comptoir --url http://127.0.0.1:1 webhook create https://example.org/";
        let cli = Cli::try_parse_from(args.split(' ')).unwrap();
        let Command::Webhook(Webhook::Create(created)) = cli.command else {
            panic!("{:?}", cli.command)
        };
        let service = cli.client.url.unwrap();
        assert_eq!(
            (created.to.as_str(), service.as_str()),
            ("https://example.org/", "http://127.0.0.1:1/")
        );
        assert_eq!(
            update_args(&["--to", "https://example.org/b"])
                .patch()
                .unwrap()["url"],
            "https://example.org/b"
        );
    }

    #[test]
    fn an_update_says_what_changes_and_nothing_else() {
        let patch = |args: &[&str]| update_args(args).patch().map(Value::Object).ok();
        assert_eq!(patch(&[]), None);
        assert_eq!(patch(&["--disable"]), Some(json!({ "enabled": false })));
        assert_eq!(
            patch(&[
                "--enable",
                "--event",
                "job.failed",
                "--event",
                "job.expired"
            ]),
            Some(json!({ "enabled": true, "event_types": ["job.failed", "job.expired"] }))
        );
        assert_eq!(
            patch(&["--all-events", "--description", ""]),
            Some(json!({ "event_types": null, "description": null }))
        );
    }

    #[test]
    fn filters_are_escaped_and_left_out_when_absent() {
        assert_eq!(filtered("/v1/events", &[("type", None)]), "/v1/events");
        assert_eq!(
            filtered("/v1/events?limit=2", &[("type", Some("a&b"))]),
            "/v1/events?limit=2&type=a%26b"
        );
    }
}
