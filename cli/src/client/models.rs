//! Models: their cards, versions and prices.

use std::path::Path;

use anyhow::Context as _;
use reqwest::{
    Method,
    header::{ACCEPT, CONTENT_TYPE},
};
use serde_json::{Value, json};

use super::{
    Context, admissions,
    blobs::upload,
    card, generate,
    http::{self, Api},
    idempotency_key,
    jobs::list_path,
    search,
};
use crate::args::models::{CallArgs, Model, PriceArgs, PublishArgs};

const MODEL: &[&str] = &[
    "id",
    "name",
    "title",
    "visibility",
    "gated",
    "licence",
    "owned_by",
    "created_at",
];
const SHOWN: &[&str] = &["tags", "provenance", "description", "versions", "prices"];
const VERSION: &[&str] = &[
    "id",
    "number",
    "digest",
    "manifest",
    "job",
    "licence",
    "notes",
    "deprecation",
    "retires_at",
    "created_at",
];
const PRICE: &[&str] = &[
    "number",
    "tariff",
    "platform_ppm",
    "worker_ppm",
    "payees",
    "effective_at",
];
const CALL: &[&str] = &["id", "model", "version", "outputs", "results", "usage"];
const SAFETENSORS: &str = "application/x-safetensors";

/// The model verbs.
///
/// # Errors
/// When the service refuses, or a file cannot be read.
pub async fn run(context: &Context, verb: &Model) -> anyhow::Result<()> {
    let api = context.api().await?;
    let output = context.output;
    let post = async |path: &str, body: Value| api.post(path, &body).await;
    match verb {
        Model::Create { name, card } => {
            let mut body = card::fields(card).await?;
            body.insert("name".to_owned(), json!(name));
            let key = idempotency_key();
            output.object(&api.create("/v1/models", &key, &body.into()).await?, MODEL);
        }
        Model::Publish(args) => output.object(&publish(&api, args).await?, VERSION),
        Model::List { own, page } => {
            let path = format!("{}&own={own}", list_path("/v1/models", page));
            output.list(&api.get(&path).await?, MODEL);
        }
        Model::Search(args) => {
            output.list(&api.get(&search::models(args)).await?, search::MODEL);
        }
        Model::Show { id } => {
            output.object(&show(&api, id).await?, &[MODEL, SHOWN].concat());
        }
        Model::Edit { id, card } => {
            let path = format!("/v1/models/{id}");
            output.object(&card::edit(&api, &path, card).await?, MODEL);
        }
        Model::Price(args) => output.object(&set_price(&api, args).await?, PRICE),
        Model::Call(args) => output.object(&call(&api, args).await?, CALL),
        Model::Generate(args) => generate::run(&api, output, args).await?,
        Model::Visibility {
            id,
            visibility,
            gated,
        } => {
            let path = format!("/v1/models/{id}/visibility");
            let body = json!({ "visibility": visibility, "gated": gated });
            output.object(&post(&path, body).await?, MODEL);
        }
        Model::Admission(verb) => admissions::run(context, &api, verb).await?,
        Model::Deprecate {
            id,
            version,
            message,
            retires_at,
        } => {
            let mut body = json!({ "message": message });
            if let Some(at) = retires_at {
                body["retires_at"] = json!(at);
            }
            let path = format!("/v1/models/{id}/versions/{version}/deprecate");
            output.object(&post(&path, body).await?, VERSION);
        }
        Model::Undeprecate { id, version } => {
            let path = format!("/v1/models/{id}/versions/{version}/undeprecate");
            output.object(&post(&path, json!({})).await?, VERSION);
        }
    }
    Ok(())
}

/// A model, with its newest versions and prices.
async fn show(api: &Api, id: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/models/{id}");
    let mut model = api.get(&path).await?;
    for part in ["versions", "prices"] {
        let found = api.get(&format!("{path}/{part}?limit=100")).await?;
        model[part] = found["data"].clone();
    }
    Ok(model)
}

async fn publish(api: &Api, args: &PublishArgs) -> anyhow::Result<Value> {
    let mut body = json!({ "notes": args.notes });
    match &args.job {
        Some(job) => body["job"] = json!(job),
        None => body["manifest"] = manifest(api, args).await?,
    }
    let path = format!("/v1/models/{}/versions", args.model);
    Ok(api.create(&path, &idempotency_key(), &body).await?)
}

/// Uploads the files, and says what they are.
async fn manifest(api: &Api, args: &PublishArgs) -> anyhow::Result<Value> {
    let mut manifest = match &args.manifest {
        Some(file) => {
            let text = read(file).await?;
            let document: Value = serde_json::from_str(&text)
                .with_context(|| format!("{} is no JSON", file.display()))?;
            let is_object = document.is_object();
            anyhow::ensure!(is_object, "{} is no manifest", file.display());
            document
        }
        None => json!({}),
    };
    let files = [
        (&args.infer, "/programs/infer"),
        (&args.train, "/programs/train"),
        (&args.generate, "/programs/generate"),
        (&args.weights, "/weights"),
        (&args.tokenizer, "/text/tokenizer"),
    ];
    for (file, place) in files {
        let Some(file) = file else { continue };
        let sha256 = json!(upload(api, file).await?);
        match place[1..].split_once('/') {
            Some((part, name)) => {
                let part = &mut manifest[part];
                if part.is_null() {
                    *part = json!({});
                }
                anyhow::ensure!(part.is_object(), "the manifest has no place for {place}");
                part[name] = sha256;
            }
            None => manifest[&place[1..]] = sha256,
        }
    }
    if let (Some(file), Some(output)) = (&args.labels, &args.labelled) {
        let text = read(file).await?;
        let names: Vec<_> = text.lines().collect();
        manifest["labels"] = json!({ "output": output, "names": names });
    }
    Ok(manifest)
}

/// Calls a model with JSON or a file; the outputs go to a file where one is named.
async fn call(api: &Api, args: &CallArgs) -> anyhow::Result<Value> {
    let version = args.version.as_ref();
    let query = version.map_or_else(String::new, |it| format!("?version={it}"));
    let path = format!("/v1/models/{}/infer{query}", args.model);
    let request = api.request(Method::POST, &path);
    let request = match &args.tensors {
        Some(file) => {
            let bytes = tokio::fs::read(file).await;
            let bytes = bytes.with_context(|| format!("read {}", file.display()))?;
            request.header(CONTENT_TYPE, SAFETENSORS).body(bytes)
        }
        None if args.texts.is_empty() => request.json(&json!({ "inputs": inputs(args).await? })),
        None => request.json(&json!({ "texts": args.texts, "truncate": args.truncate })),
    };
    let Some(out) = &args.out else {
        let request = request.header(ACCEPT, "application/json");
        return Ok(http::json(api.send(request).await?).await?);
    };
    let response = api.send(request.header(ACCEPT, SAFETENSORS)).await?;
    let told = |name: &str| {
        response
            .headers()
            .get(name)?
            .to_str()
            .ok()
            .map(str::to_owned)
    };
    let answer = json!({
        "id": told("comptoir-call"),
        "outputs": out,
        "usage": { "cost": told("comptoir-cost"), "receipt": told("comptoir-receipt") },
    });
    let bytes = response.bytes().await?;
    let written = tokio::fs::write(out, bytes).await;
    written.with_context(|| format!("write {}", out.display()))?;
    Ok(answer)
}

async fn inputs(args: &CallArgs) -> anyhow::Result<Value> {
    let text = match args.inputs.as_deref() {
        Some("-") => {
            tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin())).await??
        }
        Some(text) => text.to_owned(),
        None => anyhow::bail!("name --inputs, --tensors or --text"),
    };
    serde_json::from_str(&text).context("--inputs is no JSON")
}

async fn read(file: &Path) -> anyhow::Result<String> {
    let text = tokio::fs::read_to_string(file).await;
    text.with_context(|| format!("read {}", file.display()))
}

async fn set_price(api: &Api, args: &PriceArgs) -> anyhow::Result<Value> {
    let mut body = json!({ "tariff": {
        "call_nano": args.call_nano,
        "row_nano": args.row_nano,
        "input_token_nano": args.input_token_nano,
        "output_token_nano": args.output_token_nano,
        "giga_madds_nano": args.giga_madds_nano,
        "free_calls_per_day": args.free_calls_per_day,
    }});
    if !args.payees.is_empty() {
        let payees = args.payees.iter();
        let payees =
            payees.map(|(address, weight)| json!({ "address": address, "weight": weight }));
        body["shares"] =
            json!({ "worker_ppm": args.worker_ppm, "payees": payees.collect::<Vec<_>>() });
    }
    let path = format!("/v1/models/{}/prices", args.model);
    Ok(api.create(&path, &idempotency_key(), &body).await?)
}
