//! Quotes, jobs, and what comes out of them.

use std::{ops::ControlFlow, path::Path, time::Duration};

use anyhow::Context as _;
use comptoir_domain::{digest::Sha256, job::JobState};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{
    Context, blobs,
    events::{self, Event},
    http::{Api, ApiError},
    idempotency_key, money, spec,
};
use crate::{
    args::{Job, ListArgs, SpecArgs},
    exit::{Exit, coded},
    output::{self, Output},
};

/// How often a waiting job says why it waits.
const HINT_EVERY: Duration = Duration::from_secs(10);

const JOB: &[&str] = &[
    "id",
    "name",
    "kind",
    "tier",
    "state",
    "status_reason",
    "quoted",
    "charged",
    "failure.code",
    "failure.detail",
    "receipt_id",
    "created_at",
    "finished_at",
];
const VERDICT: &[&str] = &[
    "job_id",
    "kind",
    "evidence.tier",
    "evidence_sha256",
    "draw.audited",
    "draw.rate_ppm",
    "draw.drawn_ppm",
    "draw.seed_commitment",
    "draw.seed",
    "decided_at",
];
const VERDICT_RESULT: &[&str] = &[
    "replica",
    "worker_id",
    "numeric_class",
    "result_sha256",
    "seal",
    "replayed",
    "accepted",
];
const VERDICT_COMPARISON: &[&str] = &["replicas", "agreement", "rel_l2", "max_ref"];
const VERDICT_HOLDBACK: &[&str] = &["payee", "amount", "state"];
const TIER_PRICE: &[&str] = &["tier", "price", "replicas", "audit_ppm"];
const JOB_ROW: &[&str] = &[
    "id",
    "name",
    "kind",
    "tier",
    "state",
    "quoted",
    "charged",
    "created_at",
];

/// What a job costs.
pub async fn quote(context: &Context, args: &SpecArgs) -> anyhow::Result<()> {
    let api = context.api().await?;
    let quote = create_quote(&api, args).await?;
    let terms = [
        "id",
        "price",
        "meter.kind",
        "meter.madds_per_row",
        "meter.rows",
        "meter.epochs",
        "meter.factor",
        "meter.replicas",
        "meter.audit_ppm",
        "price_version.rate_nano",
        "price_version.minimum_base",
        "expires_at",
    ];
    context.output.object(&quote, &terms);
    parts(context.output, &quote["tiers"], TIER_PRICE);
    Ok(())
}

/// Prints what a verdict rests on.
fn verdict(output: Output, verdict: &Value) {
    output.object(verdict, VERDICT);
    parts(output, &verdict["evidence"]["results"], VERDICT_RESULT);
    parts(
        output,
        &verdict["evidence"]["comparisons"],
        VERDICT_COMPARISON,
    );
    parts(output, &verdict["holdbacks"], VERDICT_HOLDBACK);
}

/// A list within an object that was just printed; in JSON the object has it already.
fn parts(output: Output, list: &Value, fields: &[&str]) {
    let is_empty = list.as_array().is_none_or(Vec::is_empty);
    match output {
        Output::Table if !is_empty => output.list(&json!({ "data": list }), fields),
        Output::Table | Output::Json => {}
    }
}

async fn create_quote(api: &Api, args: &SpecArgs) -> anyhow::Result<Value> {
    let spec = spec::of(api, args).await?;
    let body = json!({ "spec": spec, "tier": args.tier, "device": args.device });
    Ok(api.post("/v1/quotes", &body).await?)
}

/// The job verbs.
pub async fn run(context: &Context, verb: &Job) -> anyhow::Result<()> {
    let api = context.api().await?;
    let output = context.output;
    match verb {
        Job::Submit {
            spec,
            max_cost,
            name,
            idempotency_key,
            wait,
        } => {
            let max_cost = max_cost.as_deref();
            let job = submit(
                &api,
                spec,
                max_cost,
                name.as_deref(),
                idempotency_key.clone(),
            )
            .await?;
            if *wait {
                wait_for(&api, &job, output).await
            } else {
                print(output, &job);
                Ok(())
            }
        }
        Job::Get { id } => {
            print(output, &api.get(&format!("/v1/jobs/{id}")).await?);
            Ok(())
        }
        Job::List(page) => {
            output.list(&api.get(&list_path("/v1/jobs", page)).await?, JOB_ROW);
            Ok(())
        }
        Job::Cancel { id } => {
            print(
                output,
                &api.post(&format!("/v1/jobs/{id}/cancel"), &json!({}))
                    .await?,
            );
            Ok(())
        }
        Job::Events { id, after } => {
            events::follow(&api, id, *after, |event| {
                print_event(output, event);
                ControlFlow::Continue(())
            })
            .await
        }
        Job::Result { id, out } => results(context, &api, id, out).await,
        Job::Explain { id } => {
            explain(output, &api.get(&format!("/v1/jobs/{id}/explain")).await?);
            Ok(())
        }
        Job::Verdict { id } => {
            verdict(output, &api.get(&format!("/v1/jobs/{id}/verdict")).await?);
            Ok(())
        }
    }
}

async fn submit(
    api: &Api,
    args: &SpecArgs,
    max_cost: Option<&str>,
    name: Option<&str>,
    key: Option<String>,
) -> anyhow::Result<Value> {
    let spec = spec::of(api, args).await?;
    let order = json!({ "spec": spec, "tier": args.tier, "device": args.device });
    let mut body = order.clone();
    body["max_cost"] = match max_cost {
        Some(tokens) => money::parse(tokens, &api.get("/v1/balance").await?["available"])?.into(),
        None => api.post("/v1/quotes", &order).await?["hold"].take(),
    };
    body["name"] = name.into();
    Ok(api
        .create("/v1/jobs", &key.unwrap_or_else(idempotency_key), &body)
        .await?)
}

/// Why a job waits: the reason, then what keeps each class of workers from it.
fn explain(output: Output, explained: &Value) {
    let fields = [
        "state",
        "status_reason",
        "hint",
        "queue_position",
        "eligible_workers",
    ];
    output.object(explained, &fields);
    if output == Output::Table {
        let rows: Vec<_> = explained["classes"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(obstacles)
            .collect();
        let columns = ["numeric_class", "eligible_workers", "obstacle", "workers"];
        output.list(&json!({ "data": rows }), &columns);
    }
}

fn obstacles(class: &Value) -> Vec<Value> {
    let row = |obstacle: &Value, workers: &Value| {
        json!({
            "numeric_class": class["numeric_class"],
            "eligible_workers": class["eligible_workers"],
            "obstacle": obstacle,
            "workers": workers,
        })
    };
    match class["obstacles"].as_array().map(Vec::as_slice) {
        None | Some([]) => vec![row(&Value::Null, &Value::Null)],
        Some(found) => found
            .iter()
            .map(|it| row(&it["obstacle"], &it["workers"]))
            .collect(),
    }
}

/// Watches a job until it ends; a failed one is a failure.
async fn wait_for(api: &Api, job: &Value, output: Output) -> anyhow::Result<()> {
    let id = job["id"].as_str().context("no id in the job")?;
    let spinner = output::spinner(id);
    let watching = events::follow(api, id, 0, |event| {
        show_progress(&spinner, event);
        ControlFlow::Continue(())
    });
    tokio::select! {
        watched = watching => watched?,
        refused = hint_while_waiting(api, id, &spinner) => return Err(refused.into()),
    }
    spinner.finish_and_clear();
    let job = api.get(&format!("/v1/jobs/{id}")).await?;
    print(output, &job);
    if job["state"] == JobState::Completed.as_str() {
        return Ok(());
    }
    let state = job["state"].as_str().unwrap_or("gone");
    let reason = job["failure"]["detail"].as_str().unwrap_or(state);
    Err(coded(
        Exit::JobNotCompleted,
        format!("{id} {state}: {reason}"),
    ))
}

/// Says now and then why a queued job waits. Ends only with a failure.
async fn hint_while_waiting(api: &Api, id: &str, spinner: &ProgressBar) -> ApiError {
    loop {
        tokio::time::sleep(HINT_EVERY).await;
        match api.get(&format!("/v1/jobs/{id}/explain")).await {
            Ok(explained) if explained["state"] == "queued" => {
                if let Some(hint) = explained["hint"].as_str() {
                    spinner.println(output::printable(&format!("{id} waits: {hint}")));
                }
            }
            Ok(_) | Err(ApiError::Unreachable { .. }) => {}
            Err(error) => return error,
        }
    }
}

fn show_progress(spinner: &ProgressBar, event: &Event) {
    let data = &event.data;
    match (data["epoch"].as_u64(), data["values"]["loss"].as_f64()) {
        (Some(epoch), Some(loss)) => spinner.set_message(format!("epoch {epoch}: loss {loss:.4}")),
        _ => spinner.set_message(output::printable(&event.kind).into_owned()),
    }
}

fn print_event(output: Output, event: &Event) {
    match output {
        Output::Json => {
            output::say(json!({ "id": event.seq, "event": event.kind, "data": event.data }));
        }
        Output::Table => output::say(format_args!(
            "{:>5}  {:<12} {}",
            event.seq, event.kind, event.data
        )),
    }
}

async fn results(context: &Context, api: &Api, id: &str, out: &Path) -> anyhow::Result<()> {
    let results = api.get(&format!("/v1/jobs/{id}/results")).await?;
    std::fs::create_dir_all(out)?;
    for output in results["data"].as_array().into_iter().flatten() {
        let name = output["name"]
            .as_str()
            .context("an output without a name")?;
        let digest: Sha256 = output["sha256"].as_str().unwrap_or_default().parse()?;
        blobs::download(api, digest, &out.join(file_name(name)?)).await?;
    }
    context.output.list(&results, &["name", "sha256", "bytes"]);
    Ok(())
}

/// Names come from the service; only a plain word becomes a file name.
fn file_name(name: &str) -> anyhow::Result<String> {
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    anyhow::ensure!(
        plain && !name.is_empty(),
        "an output is called {name:?}, which is no file name"
    );
    Ok(format!("{name}.safetensors"))
}

fn print(output: Output, job: &Value) {
    output.object(job, JOB);
}

/// The path of one page of a list.
#[must_use]
pub fn list_path(path: &str, page: &ListArgs) -> String {
    match &page.cursor {
        Some(cursor) => format!("{path}?limit={}&cursor={cursor}", page.limit),
        None => format!("{path}?limit={}", page.limit),
    }
}

/// The path of a page of a list with filters.
#[must_use]
pub fn filtered(path: &str, page: &ListArgs, filters: &[(&str, &Option<String>)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in filters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    let path = list_path(path, page);
    if query.is_empty() {
        path
    } else {
        format!("{path}&{query}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_cannot_add_another() {
        let page = ListArgs {
            limit: 5,
            cursor: None,
        };
        let email = Some("a&role=platform".to_owned());
        let path = filtered("/v1/admin/accounts", &page, &[("email", &email)]);
        assert_eq!(path, "/v1/admin/accounts?limit=5&email=a%26role%3Dplatform");
    }

    #[test]
    fn an_output_cannot_name_a_path() {
        assert_eq!(file_name("weights").unwrap(), "weights.safetensors");
        for name in ["", "../x", "a/b", ".hidden", "a\0"] {
            assert!(file_name(name).is_err(), "{name:?}");
        }
    }
}
