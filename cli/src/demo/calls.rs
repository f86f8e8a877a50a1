//! The calls: the client publishes the net that it trained, and another calls it ten thousand times, with one key and from eight clients at once.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use comptoir_domain::id::ReceiptId;
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};

use super::{
    books,
    cast::Cast,
    shell::{Shell, field},
    stage::Stage,
    story::{ACCURACY_MIN, DECIMALS, available},
    work::{Done, largest},
};
use crate::{
    client::{http::Api, idempotency_key},
    output::whole_tokens,
};

/// Who calls at once.
const CLIENTS: usize = 8;
/// Calls of each of them,
const CALLS_EACH: usize = 1_250;
/// and how many it waits for at a time.
const IN_FLIGHT: usize = 4;
/// What a call costs: 0.001 tokens, in nano base units,
const CALL_NANO: &str = "1000000000000000000000000";
/// and in base units.
const CALL_BASE: u128 = 10_u128.pow(15);
/// What the owner of the worker that runs it gets of that, in millionths.
const WORKER_PPM: &str = "200000";
/// Shares are of a million.
const WHOLE_PPM: u128 = 1_000_000;

/// A model that may be called.
pub struct Published {
    model: String,
    /// What its creator gets of a charge, in millionths.
    creator_ppm: u128,
}

/// Calls that were charged.
pub struct Called {
    /// The receipts of the charges.
    pub receipts: Vec<String>,
    /// What the creator is due of them, in base units.
    pub to_creator: u128,
}

/// What a call says of itself.
struct Answer {
    is_right: bool,
    receipt: String,
}

/// The client makes its training job a model that everybody may call.
pub async fn publish(stage: &mut Stage, cast: &Cast, trained: &Done) -> anyhow::Result<Published> {
    stage
        .step(
            "the client publishes the trained net as a model, for 0.001 tokens a call",
            async {
                let creator = Shell::of(cast, &cast.client);
                let does = async |verb: &[&str], rest: &[&str]| {
                    let verb: Vec<_> = ["model"].iter().chain(verb).map(OsStr::new).collect();
                    creator.told(&verb, rest).await
                };
                let card = [
                    "--name",
                    "digits",
                    "--title",
                    "Handwritten digits",
                    "--licence",
                    "CC-BY-4.0",
                ];
                let model = field(&does(&["create"], &card).await?, "id")?;
                let job = field(&trained.job, "id")?;
                let version = does(&["publish", &model], &["--job", &job]).await?;
                let payee = format!("{}=1", cast.client.wallet.address());
                let terms = [
                    "--call-nano",
                    CALL_NANO,
                    "--worker-ppm",
                    WORKER_PPM,
                    "--payee",
                    &payee,
                ];
                let price = does(&["price", &model], &terms).await?;
                does(&["visibility", &model], &["public"]).await?;
                let ppm = |name: &str| {
                    price[name]
                        .as_u64()
                        .with_context(|| format!("a price without {name}"))
                };
                let others = ppm("platform_ppm")? + ppm("worker_ppm")?;
                let figures = format!(
                    "{model}: version {}, pinned by its digest {}",
                    version["number"],
                    field(&version, "digest")?
                );
                let creator_ppm = WHOLE_PPM - u128::from(others);
                Ok((Published { model, creator_ppm }, figures))
            },
        )
        .await
}

/// The buyer has every test image read by the model, many times over.
pub async fn call(stage: &mut Stage, cast: &Cast, of: &Published) -> anyhow::Result<Called> {
    let (receipts, before) = stage
        .step("the buyer calls it once, and then 10,000 times from eight clients with one key", async {
            let before = available(&cast.buyer).await?;
            let key = json!({ "name": "calls", "scopes": ["models:call"] });
            let key = cast.buyer.api.create("/v1/keys", &idempotency_key(), &key).await?;
            let api = cast.buyer.api.with_bearer(field(&key, "key")?);
            let bodies = cast.digits.bodies();
            let loaded = Instant::now();
            let first = call_once(&api, of, &bodies[0]).await.context("the first call")?;
            let (cold, from) = (loaded.elapsed(), Instant::now());
            let clients = (0..CLIENTS).map(|client| call_often(&api, of, &bodies, client));
            let others = try_join_all(clients).await?.into_iter().flatten();
            let answers: Vec<_> = others.chain([first]).collect();
            let took = from.elapsed().as_secs_f64();
            let right = answers.iter().filter(|it| it.is_right).count();
            let (right, calls) = (u32::try_from(right)?, u32::try_from(answers.len())?);
            let accuracy = f64::from(right) / f64::from(calls);
            ensure!(accuracy >= ACCURACY_MIN, "{accuracy:.4} of the answers are right");
            let figures = format!(
                "the first one loaded it, in {:.2} s; the others were answered in {took:.1} s, {:.0} a second\n{accuracy:.4} of the images were read right",
                cold.as_secs_f64(), f64::from(calls - 1) / took,
            );
            let receipts: BTreeSet<_> = answers.into_iter().map(|it| it.receipt).collect();
            Ok(((receipts, before), figures))
        })
        .await?;
    stage
        .step("every call is charged once, in the receipts that the answers named", async {
            let charged = charged(cast).await?;
            let named: BTreeSet<_> = charged.iter().map(|(receipt, _)| receipt.clone()).collect();
            ensure!(named == receipts, "charged are {named:?}, and the answers name {receipts:?}");
            let sum: u128 = charged.iter().map(|(_, base)| base).sum();
            let expected = CALL_BASE * u128::try_from(1 + CLIENTS * CALLS_EACH)?;
            let spent = before.checked_sub(available(&cast.buyer).await?);
            ensure!(sum == expected && spent == Some(expected), "{sum} base units are charged, {spent:?} spent, {expected} due");
            let tokens = whole_tokens(&sum.to_string(), DECIMALS);
            let figures = format!("{tokens} tokens were charged, in {} receipts; the rest of what was held came back", receipts.len());
            let to_creator = sum * of.creator_ppm / WHOLE_PPM;
            let receipts = receipts.into_iter().collect();
            Ok((Called { receipts, to_creator }, figures))
        })
        .await
}

async fn call_often(
    api: &Api,
    of: &Published,
    bodies: &[(String, i64)],
    client: usize,
) -> anyhow::Result<Vec<Answer>> {
    let from = client * CALLS_EACH % bodies.len();
    let calls = bodies.iter().cycle().skip(from).take(CALLS_EACH);
    stream::iter(calls.map(|body| call_once(api, of, body)))
        .buffer_unordered(IN_FLIGHT)
        .try_collect()
        .await
}

async fn call_once(
    api: &Api,
    of: &Published,
    (body, label): &(String, i64),
) -> anyhow::Result<Answer> {
    let path = format!("/v1/models/{}/infer", of.model);
    let request = api.request(Method::POST, &path);
    let request = request.header(CONTENT_TYPE, "application/json");
    let answer = api.send(request.body(body.clone())).await?;
    read(&answer.json().await?, *label)
}

fn read(answer: &Value, label: i64) -> anyhow::Result<Answer> {
    let outputs = answer["outputs"].as_object();
    let output = outputs.and_then(|it| it.values().next());
    let logits = output.and_then(|it| it[0].as_array());
    let logits = logits.context("an answer without a row of logits")?;
    let values = logits.iter().map(|it| it.as_f64().unwrap_or(f64::NAN));
    Ok(Answer {
        is_right: i64::try_from(largest(values)) == Ok(label),
        receipt: field(&answer["usage"], "receipt")?,
    })
}

/// The receipts of the buyer's calls, and what each charges, once nothing is open. Their usage files are written beside.
async fn charged(cast: &Cast) -> anyhow::Result<Vec<(String, u128)>> {
    let buyer = &cast.buyer.api;
    books::wait("calls are not charged", async || {
        let open = buyer.get("/v1/usage/windows?state=open").await?;
        Ok(open["data"]
            .as_array()
            .is_some_and(Vec::is_empty)
            .then_some(()))
    })
    .await?;
    let windows = buyer
        .get("/v1/usage/windows?state=charged&limit=100")
        .await?;
    let windows = windows["data"].as_array().context("no list of windows")?;
    let mut charged = Vec::new();
    for window in windows {
        let receipt = field(window, "receipt_id")?;
        let base = field(&window["charged"], "amount")?.parse()?;
        let file = usage_file(&cast.folder, receipt.parse()?);
        let csv = ["usage".as_ref(), "--csv".as_ref(), file.as_os_str()];
        let id = field(window, "id")?;
        let shell = Shell::of(cast, &cast.buyer);
        let (code, _, trouble) = shell.run(&csv, &["--of", &id]).await?;
        ensure!(code == 0, "`comptoir usage` ends with {code}: {trouble}");
        charged.push((receipt, base));
    }
    Ok(charged)
}

/// Where the calls of a receipt are.
pub fn usage_file(folder: &Path, receipt: ReceiptId) -> PathBuf {
    folder.join(format!("usage-{receipt}.csv"))
}
