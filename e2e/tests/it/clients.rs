//! What clients of others are tried against: a service and a worker that run, with models that are published.

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
/// Is the client there? `false` where it cannot be had.
pub async fn is_installed(client: &str) -> bool {
    let installed = end(suite(client, &["--install"], &[])).await;
    let is_there = installed.code() != Some(NO_PACKAGES);
    assert!(!is_there || installed.success(), "{installed}");
    is_there
}

/// What `scripts/clients` exits with where `PyPI` cannot be reached.
const NO_PACKAGES: i32 = 69;

/// Somebody's suite: so many of its classes, with these settings.
pub fn suite(client: &str, classes: &[&str], settings: &[(&str, &str)]) -> Child {
    let mut command = Command::new(checkout().join("scripts/clients"));
    command.arg(client).args(classes).stdin(Stdio::null());
    command.envs(settings.iter().copied()).kill_on_drop(true);
    command.spawn().unwrap()
}

pub async fn end(mut suite: Child) -> ExitStatus {
    suite.wait().await.unwrap()
}

#[track_caller]
pub fn assert_passed(classes: &[&str], ended: ExitStatus) {
    assert!(ended.success(), "{classes:?}: {ended}");
}

/// Everything, and who takes part. Fields end in this order.
pub struct World {
    pub limited: Replica,
    worker: Option<WorkerProcess>,
    owner: Person,
    creator: Person,
    pub caller: Person,
    pub poor: Person,
    pub node: Node,
    _redis: Embedded,
    folder: TempDir,
}

impl World {
    pub async fn start() -> Self {
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
    pub async fn start_worker(&mut self) {
        let home = idempotency_key();
        let (home, program) = (self.folder.path().join(home), binary("comptoir-worker"));
        let scheduler = self.node.scheduler_url.as_str();
        let started = WorkerProcess::start(&self.owner, scheduler, &program, &home);
        self.worker = Some(started.await.unwrap());
    }

    /// Publishes a model that everybody may call, for a base unit for each token that is read and ten for each that is written; its id.
    async fn publish(&self, name: &str, manifest: Value) -> String {
        let tariff =
            json!({ "input_token_nano": "1000000000", "output_token_nano": "10000000000" });
        self.publish_at(name, manifest, tariff).await
    }

    /// Publishes a model that everybody may call, at a price; its id.
    pub async fn publish_at(&self, name: &str, manifest: Value, tariff: Value) -> String {
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
        let price = json!({ "tariff": tariff });
        create(&format!("{path}/prices"), price).await;
        let public = json!({ "visibility": "public" });
        let visibility = format!("{path}/visibility");
        api.post(&visibility, &public).await.unwrap();
        model
    }

    pub async fn upload(&self, file: &Path) -> Sha256 {
        let uploaded = blobs::upload(&self.creator.api, file).await;
        uploaded.unwrap()
    }

    /// The worker goes, and one comes once the suite's class `Away` says, by its file AWAY, that none is there.
    pub async fn answers_late(&mut self, client: &str, settings: &[(&str, &str)]) {
        self.stop_worker().await;
        let away = self.away();
        let waiting = suite(client, &["Away"], settings);
        let told = wait("nobody is told that no worker is there", async || {
            Ok(away.exists().then_some(()))
        });
        told.await.unwrap();
        self.start_worker().await;
        assert_passed(&["Away"], end(waiting).await);
    }

    /// The file AWAY.
    pub fn away(&self) -> PathBuf {
        self.folder.path().join("away")
    }

    async fn stop_worker(&mut self) {
        self.worker.take().unwrap().stop().await.unwrap();
    }

    /// Everything ends.
    pub async fn stop(mut self) {
        self.stop_worker().await;
        self.node.stop().await.unwrap();
    }

    /// A model of words.
    pub async fn publish_words(&self) -> String {
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
    pub async fn publish_gpt(&self) -> String {
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
    pub async fn by_hand(&self, key: &str, args: &[&str]) -> Value {
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
    pub async fn publish_minilm(&self) -> Option<String> {
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
pub async fn key(of: &Person, scopes: &[&str]) -> String {
    let body = json!({ "name": "client", "scopes": scopes });
    let made = of.api.create("/v1/keys", &idempotency_key(), &body).await;
    made.unwrap()["key"].as_str().unwrap().to_owned()
}
