//! The official client of `OpenAI`, from `PyPI`, against a service and a worker that run: a program that was written for it needs another base URL,
//! and nothing else.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use comptoir_cli::{
    client::{blobs, http::Api, idempotency_key},
    demo::{
        books::wait,
        people::{Person, WorkerProcess},
    },
    embedded::{Embedded, Provided, open_to_others},
    up::{Node, NodeOptions},
};
use comptoir_domain::{digest::Sha256, fit::ProgramFacts, program::Archive};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{
    calls::Replica,
    harness::{binary, checkout},
    redis::redis,
};

const DEPOSIT_BASE: u128 = 10_u128.pow(18);
/// What `scripts/clients` exits with where `PyPI` cannot be reached.
const NO_PACKAGES: i32 = 69;

/// The suite: so many of its classes, with these settings.
fn suite(classes: &[&str], settings: &[(&str, &str)]) -> Child {
    let mut command = Command::new(checkout().join("scripts/clients"));
    command.arg("openai").args(classes).stdin(Stdio::null());
    command.envs(settings.iter().copied()).kill_on_drop(true);
    command.spawn().unwrap()
}

async fn end(mut suite: Child) -> ExitStatus {
    suite.wait().await.unwrap()
}

#[track_caller]
fn assert_passed(classes: &[&str], ended: ExitStatus) {
    assert!(ended.success(), "{classes:?}: {ended}");
}

/// Everything, and who takes part. Fields end in this order.
struct World {
    limited: Replica,
    worker: Option<WorkerProcess>,
    owner: Person,
    creator: Person,
    caller: Person,
    poor: Person,
    node: Node,
    _redis: Embedded,
    folder: TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        open_to_others(folder.path()).unwrap();
        let (redis, redis_url, _) = redis(&folder.path().join("redis")).await;
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = NodeOptions {
            folder: folder.path().join("node"),
            api: any_port,
            scheduler: any_port,
            reset: false,
            guardian: false,
            provided: Provided {
                redis: Some(redis_url.clone()),
                ..Provided::default()
            },
        };
        let node = Box::pin(Node::start(options)).await.unwrap();
        let api = Api::new(node.api_url.clone(), None).unwrap();
        let arrive = async |name| Person::arrive(name, &api).await.unwrap();
        let caller = arrive("caller").await;
        node.deposit_for(&caller, DEPOSIT_BASE).await.unwrap();
        let few = [("COMPTOIR_API_CALL_RATE_LIMIT", "30")];
        let mut world = Self {
            limited: Replica::start(&node, folder.path(), &redis_url, &few).await,
            worker: None,
            owner: arrive("owner").await,
            creator: arrive("creator").await,
            caller,
            poor: arrive("poor").await,
            node,
            _redis: redis,
            folder,
        };
        world.start_worker().await;
        world
    }

    /// A worker that never was there before.
    async fn start_worker(&mut self) {
        let home = idempotency_key();
        let (home, program) = (self.folder.path().join(home), binary("comptoir-worker"));
        let scheduler = self.node.scheduler_url.as_str();
        let started = WorkerProcess::start(&self.owner, scheduler, &program, &home);
        self.worker = Some(started.await.unwrap());
    }

    /// Publishes a model that everybody may call, for a base unit for each token that is read and ten for each that is written; its id.
    async fn publish(&self, name: &str, manifest: Value) -> String {
        let api = &self.creator.api;
        let create = async |path: &str, body: Value| {
            let made = api.create(path, &idempotency_key(), &body).await;
            made.unwrap()
        };
        let card = json!({ "name": name, "title": name, "licence": "MIT" });
        let model = create("/v1/models", card).await;
        let model = model["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/models/{model}");
        create(&format!("{path}/versions"), json!({ "manifest": manifest })).await;
        let tariff =
            json!({ "input_token_nano": "1000000000", "output_token_nano": "10000000000" });
        let price = json!({ "tariff": tariff });
        create(&format!("{path}/prices"), price).await;
        let public = json!({ "visibility": "public" });
        let visibility = format!("{path}/visibility");
        api.post(&visibility, &public).await.unwrap();
        model
    }

    async fn upload(&self, file: &Path) -> Sha256 {
        let uploaded = blobs::upload(&self.creator.api, file).await;
        uploaded.unwrap()
    }

    /// A model of words.
    async fn publish_words(&self) -> String {
        let file = self.folder.path().join("words.json");
        let vocabulary = (0..17).map(|it| (format!("w{it}"), json!(it)));
        let vocabulary: serde_json::Map<_, _> = vocabulary.collect();
        let words = json!({ "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" });
        let cutter = json!({ "type": "Whitespace" });
        let tokenizer = json!({ "pre_tokenizer": cutter, "model": words });
        std::fs::write(&file, tokenizer.to_string()).unwrap();
        let program = checkout().join("examples/digits/vectors/encoder_still.pt2");
        let archive = Archive::open(File::open(&program).unwrap()).unwrap();
        let facts = ProgramFacts::of(archive.program()).unwrap();
        let manifest = json!({
            "programs": { "infer": self.upload(&program).await },
            "text": { "tokenizer": self.upload(&file).await, "ids": "tokens", "pad_id": 0 },
            "result": { "output": facts.outputs[0].name, "pooling": "mean", "normalise": true },
        });
        self.publish("words", manifest).await
    }

    /// The model that writes.
    async fn publish_gpt(&self) -> String {
        let folder = checkout().join("examples/gpt");
        for file in [
            "gpt.pt2",
            "generate.pt2",
            "weights.safetensors",
            "tokenizer.json",
        ] {
            self.upload(&folder.join(file)).await;
        }
        let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
        let manifest = serde_json::from_slice(&manifest).unwrap();
        self.publish("playwright", manifest).await
    }

    /// What the command line says as JSON.
    async fn by_hand(&self, key: &str, args: &[&str]) -> Value {
        let mut command = Command::new(binary("comptoir"));
        let command = command
            .args(args)
            .env("COMPTOIR_URL", self.node.api_url.as_str())
            .env("COMPTOIR_API_KEY", key);
        let said = command.output().await.unwrap();
        assert!(said.status.success(), "{said:?}");
        serde_json::from_slice(&said.stdout).unwrap()
    }

    /// What `make minilm` made, where it was run.
    async fn publish_minilm(&self) -> Option<String> {
        let folder: PathBuf = checkout().join("target/minilm");
        let manifest = std::fs::read(folder.join("manifest.json")).ok()?;
        for file in ["minilm.pt2", "tokenizer.json"] {
            self.upload(&folder.join(file)).await;
        }
        let manifest = serde_json::from_slice(&manifest).unwrap();
        Some(self.publish("minilm", manifest).await)
    }
}

/// A key of somebody's that may do this.
async fn key(of: &Person, scopes: &[&str]) -> String {
    let body = json!({ "name": "client", "scopes": scopes });
    let made = of.api.create("/v1/keys", &idempotency_key(), &body).await;
    made.unwrap()["key"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_needs_another_base_url_and_nothing_else() {
    let installed = end(suite(&["--install"], &[])).await;
    if installed.code() == Some(NO_PACKAGES) {
        return;
    }
    assert!(installed.success(), "{installed}");
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
    let away = world.folder.path().join("away");
    let settings = [
        ("OPENAI_BASE_URL", base.as_str()),
        ("OPENAI_API_KEY", &caller),
        ("MODEL", &words),
        ("POOR_KEY", &poor),
        ("READER_KEY", &reader),
        ("AWAY", away.to_str().unwrap()),
    ];
    let all = ["Models", "Embeddings", "Errors"];
    assert_passed(&all, end(suite(&all, &settings)).await);

    let call = ["model", "call", &words, "--text", "w1 w2", "--text", "w3"];
    let by_hand = world.by_hand(&caller, &call).await;
    assert_eq!(by_hand["usage"]["input_tokens"], 3);
    assert_eq!(by_hand["results"].as_array().unwrap().len(), 2);

    let writer = world.publish_gpt().await;
    let written = checkout().join("examples/gpt/vectors/vectors.json");
    let of_chat = [
        &settings[..],
        &[
            ("WRITER", writer.as_str()),
            ("WRITTEN", written.to_str().unwrap()),
        ],
    ]
    .concat();
    assert_passed(&["Chat"], end(suite(&["Chat"], &of_chat)).await);
    let says = ["--message", "Who comes here?", "--temperature", "0"];
    let generate = [&["model", "generate", writer.as_str()][..], &says].concat();
    let by_hand = world.by_hand(&caller, &generate).await;
    let vectors: Value = serde_json::from_slice(&std::fs::read(&written).unwrap()).unwrap();
    let begins = vectors["cases"][0]["text"].as_str().unwrap();
    assert!(
        by_hand["text"].as_str().unwrap().starts_with(begins),
        "{by_hand}"
    );

    let elsewhere = world.limited.url("v1");
    let few = [
        ("OPENAI_BASE_URL", elsewhere.as_str()),
        ("OPENAI_API_KEY", &limited),
        ("MODEL", &words),
    ];
    assert_passed(&["Limited"], end(suite(&["Limited"], &few)).await);

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
        let reference = suite(&["Reference"], &of_minilm);
        assert_passed(&["Reference"], end(reference).await);
    }

    world.worker.take().unwrap().stop().await.unwrap();
    let waiting = suite(&["Away"], &settings);
    let told = wait("nobody is told that no worker is there", async || {
        Ok(away.exists().then_some(()))
    });
    told.await.unwrap();
    world.start_worker().await;
    assert_passed(&["Away"], end(waiting).await);
    world.worker.take().unwrap().stop().await.unwrap();
    world.node.stop().await.unwrap();
}
