//! Calls of a real worker through a replica of the API that is killed again and again: whoever was answered has paid, once.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use comptoir_cli::{
    client::{blobs, http::Api, idempotency_key},
    demo::{
        books::{conserved, wait},
        people::{Person, WorkerProcess},
    },
    embedded::{Embedded, Provided, open_to_others},
    up::{Node, NodeOptions},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use url::Url;

use crate::{
    harness::{binary, checkout},
    redis::redis,
};

const DEPOSIT_BASE: u128 = 10_u128.pow(18);
/// What a call costs, in nano base units: sums of calls leave a part of a unit open.
const CALL_NANO: u128 = 7_300_000_001;
const NANO: u128 = 10_u128.pow(9);
/// Who calls at once.
const CALLERS: usize = 8;
/// A replica serves for so long between two kills, in milliseconds: from right after its first answers to well within its calls.
const LIVES_MS: [u64; 5] = [90, 410, 20, 250, 140];

/// How long a replica takes to answer, on a machine that is busy.
const READY_MAX: Duration = Duration::from_mins(1);

/// How often it is killed: two hundred times were run once.
fn kills() -> usize {
    let kills = std::env::var("CALL_KILLS").ok();
    kills.map_or(5, |it| it.parse().unwrap())
}

/// A replica of the API, in a process of its own.
pub struct Replica {
    command: Command,
    process: Child,
    api: Api,
    log: PathBuf,
}

impl Replica {
    /// Serves beside the node, with these settings of its own.
    pub async fn start(node: &Node, folder: &Path, redis: &str, settings: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let place = folder.join("replica.log");
        let log = File::create(&place).unwrap();
        let mut command = Command::new(binary("comptoir"));
        command
            .args(["serve", "api", "--listen", &address.to_string()])
            .env("DATABASE_URL", node.database_url())
            .env("REDIS_URL", redis)
            .env("ETH_RPC_URL", node.embedded_ethereum())
            .env("COMPTOIR_KEYS", folder.join("node/keys"))
            .env("COMPTOIR_PUBLIC_URL", node.api_url.as_str())
            .env("COMPTOIR_SCHEDULER_URL", node.scheduler_url.as_str())
            .env(
                "COMPTOIR_OBJECTS_URL",
                Url::from_directory_path(folder.join("node/objects"))
                    .unwrap()
                    .as_str(),
            )
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let url = format!("http://{address}/").parse().unwrap();
        let replica = Self {
            process: command.spawn().unwrap(),
            command,
            api: Api::new(url, None).unwrap(),
            log: place,
        };
        replica.is_ready().await;
        replica
    }

    /// Where it serves this.
    pub fn url(&self, path: &str) -> Url {
        self.api.base().join(path).unwrap()
    }

    async fn is_ready(&self) {
        let give_up = Instant::now() + READY_MAX;
        while self.api.get("/readyz").await.is_err() {
            let log = || std::fs::read_to_string(&self.log).unwrap();
            assert!(Instant::now() < give_up, "{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self) {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap());
        kill(pid, Signal::SIGKILL).unwrap();
        self.process.wait().unwrap();
    }

    async fn again(&mut self) {
        self.process = self.command.spawn().unwrap();
        self.is_ready().await;
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

/// A model that everybody may call, of the net for digits.
async fn publish(creator: &Person) -> String {
    let program = checkout().join("examples/digits/mlp.pt2");
    let program = blobs::upload(&creator.api, &program).await.unwrap();
    let create = async |path: &str, body: Value| {
        let made = creator.api.create(path, &idempotency_key(), &body).await;
        made.unwrap()
    };
    let card = json!({ "name": "digits", "title": "Digits", "licence": "MIT" });
    let model = create("/v1/models", card).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/models/{model}");
    let version = json!({ "manifest": { "programs": { "infer": program } } });
    create(&format!("{path}/versions"), version).await;
    let price = json!({ "tariff": { "call_nano": CALL_NANO.to_string() } });
    create(&format!("{path}/prices"), price).await;
    let public = json!({ "visibility": "public" });
    let visibility = format!("{path}/visibility");
    creator.api.post(&visibility, &public).await.unwrap();
    format!("{path}/infer")
}

/// Calls until told to stop, whatever happens; the calls that were answered.
async fn call(api: Api, path: String, stop: Arc<AtomicBool>, answered: Arc<Mutex<Vec<String>>>) {
    let body = json!({ "inputs": { "x": [[vec![vec![0.5; 8]; 8]]] } });
    while !stop.load(Ordering::Relaxed) {
        let request = api.request(Method::POST, &path).json(&body);
        let answer = async { api.send(request).await.ok()?.json::<Value>().await.ok() };
        match answer.await {
            Some(answer) => answered
                .lock()
                .unwrap()
                .push(answer["id"].as_str().unwrap().to_owned()),
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Everything, and who takes part. Fields end in this order.
struct World {
    replica: Replica,
    worker: WorkerProcess,
    caller: Person,
    path: String,
    database: PgPool,
    node: Node,
    _redis: Embedded,
    _folder: TempDir,
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
        let creator = Person::arrive("creator", &api).await.unwrap();
        let owner = Person::arrive("owner", &api).await.unwrap();
        let caller = Person::arrive("caller", &api).await.unwrap();
        let (home, program) = (folder.path().join("worker"), binary("comptoir-worker"));
        let worker = WorkerProcess::start(&owner, node.scheduler_url.as_str(), &program, &home);
        let worker = worker.await.unwrap();
        node.deposit_for(&caller, DEPOSIT_BASE).await.unwrap();
        Self {
            replica: Replica::start(&node, folder.path(), &redis_url, &[]).await,
            worker,
            caller,
            path: publish(&creator).await,
            database: node.database().await.unwrap(),
            node,
            _redis: redis,
            _folder: folder,
        }
    }

    /// Has the replica called and killed, again and again, and not started after the last time; the calls that were answered.
    async fn call_and_kill(&mut self) -> Vec<String> {
        let (stop, answered) = (Arc::default(), Arc::<Mutex<Vec<String>>>::default());
        let through = self.replica.api.with_bearer(&self.caller.token);
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
                tokio::spawn(call(through.clone(), self.path.clone(), stop, answered))
            })
            .collect();
        for life in (0..kills()).map(|round| LIVES_MS[round % LIVES_MS.len()]) {
            let before = answered.lock().unwrap().len();
            let served = wait("nobody is answered", async || {
                Ok((answered.lock().unwrap().len() > before).then_some(()))
            });
            served.await.unwrap();
            tokio::time::sleep(Duration::from_millis(life)).await;
            self.replica.kill();
            self.replica.again().await;
        }
        self.replica.kill();
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.await.unwrap();
        }
        Arc::into_inner(answered).unwrap().into_inner().unwrap()
    }

    /// The minute is over after which others close what a process left open, and they did.
    async fn close(&self) {
        let later = "UPDATE allowances SET kept_until = now() WHERE closed_at IS NULL";
        sqlx::query(later).execute(&self.database).await.unwrap();
        let closed = wait("what was left open is not closed", async || {
            let open = "SELECT count(*) FROM allowances WHERE closed_at IS NULL";
            let open: i64 = sqlx::query_scalar(open).fetch_one(&self.database).await?;
            Ok((open == 0).then_some(()))
        });
        closed.await.unwrap();
    }

    /// The caller's usage file: a head, and a line for each call that was recorded.
    async fn usage(&self) -> String {
        let api = &self.caller.api;
        let file = api.request(Method::GET, "/v1/usage/events");
        let file = api.send(file.header("accept", "text/csv")).await.unwrap();
        file.text().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_charged_once_however_often_a_replica_is_killed() {
    let mut world = World::start().await;
    let answered = world.call_and_kill().await;
    world.close().await;
    let usage = world.usage().await;
    let recorded = u128::try_from(usage.lines().count() - 1).unwrap();
    println!(
        "{} calls were answered, {recorded} recorded",
        answered.len()
    );
    for id in &answered {
        assert!(
            usage.contains(id.as_str()),
            "{id} was answered and is not recorded"
        );
    }
    let balance = world.caller.api.get("/v1/balance").await.unwrap();
    let left = DEPOSIT_BASE - recorded * CALL_NANO / NANO;
    assert_eq!(balance["available"]["amount"], left.to_string());
    assert!(conserved(&world.database).await.unwrap().held.is_zero());
    world.worker.stop().await.unwrap();
    world.node.stop().await.unwrap();
}
