//! A scheduler with its clockwork on a listener, people who pay and people who earn, and daemons to run.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{AccountId, JobId, JoinTokenId},
    job::{
        Device, InferenceSpec, JobSpec, JobState, Loss, Optimizer, Schedule, TensorRef, Tier,
        TrainingSpec,
    },
    join_token::JoinToken,
    price::{self, Meter, PriceVersion, Rate},
    root_keys::RootKeys,
};
use comptoir_http::{jwt::SigningKey, key_ring::KeyRing, server::Limits};
use comptoir_scheduler::{SchedulerState, app, keys::Keys, steps};
use comptoir_store::{
    assets::{self, NewAsset},
    blobs,
    data_keys::RootKeyRing,
    dataset_inputs::QuotedData,
    jobs::{self, Job, NewJob},
    join_tokens::{self, NewJoinToken},
    ledger,
    objects::Objects,
    pool::{self, ServiceRole},
    prices::{self, NewPrice},
    quotes::{self, NewQuote},
    wake::{Channel, Wake},
};
use comptoir_worker::{
    daemon::{
        display::Display,
        folder::Identity,
        join::{self, JoinError, JoinOptions},
        run::{self, RunError, RunOptions},
    },
    engine::Launcher,
};
use sqlx::PgPool;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{net::TcpListener, process::Command, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::proxy::Proxy;

/// Images of the training split.
const ROWS: u64 = 1_437;
/// Steps of an epoch, and of a segment: one checkpoint each epoch.
const BATCH_SIZE: u32 = 256;
const STEPS: u32 = 6;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// What time it is. Token requests are signed with it, so it is the real one.
#[expect(
    clippy::disallowed_methods,
    reason = "the clock of the service under test"
)]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// One scheduler behind a proxy.
pub struct Bench {
    pub owner: PgPool,
    pub proxy: Proxy,
    pub base: String,
    pub state: SchedulerState,
    api: PgPool,
    pub asset: i32,
    price: PriceVersion,
    client: AccountId,
    folder: TempDir,
    _serving: DropGuard,
}

/// A worker that runs in this process.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Asks it to stop, and waits.
    pub async fn stop(self) -> Result<(), RunError> {
        self.stop.cancel();
        self.end().await
    }

    /// Waits until it ends.
    pub async fn end(self) -> Result<(), RunError> {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
    }
}

impl Bench {
    pub async fn new(owner: PgPool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("objects")).unwrap();
        let options = owner.connect_options().as_ref().clone();
        let api = pool::connect(options.clone(), ServiceRole::Api, 2)
            .await
            .unwrap();
        let db = pool::connect(options, ServiceRole::Scheduler, 12)
            .await
            .unwrap();
        let objects = url::Url::from_directory_path(folder.path().join("objects")).unwrap();
        let objects = Objects::open(&objects).unwrap();
        let signing = SigningKey::from_pem(&SigningKey::generate_pem()).unwrap();
        let keys = Keys::new(KeyRing::of(signing), "https://comptoir.test");
        let roots = RootKeyRing::new(RootKeys::generate());
        let state = SchedulerState::new(db, now, objects, Wake::local(), (keys, roots));
        let proxy = Proxy::default();
        let (base, serving) = listen(proxy.before(app(state.clone()).0), &state).await;
        let (asset, price) = publish(&owner).await;
        let client = account(&owner, 0xc1).await;
        let mut tx = owner.begin().await.unwrap();
        let (amount, source) = (
            Amount::from_base(1_000_000_000).unwrap(),
            JobId::generate().to_string(),
        );
        ledger::deposit(
            &mut tx,
            asset,
            Address::repeat_byte(0xc1),
            amount,
            &source,
            now(),
        )
        .await
        .unwrap();
        tx.commit().await.unwrap();
        Self {
            owner,
            proxy,
            base,
            state,
            api,
            asset,
            price,
            client,
            folder,
            _serving: serving,
        }
    }

    /// A folder for a worker.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A join token of a new owner, whose address is this byte, repeated.
    pub async fn token(&self, byte: u8) -> JoinToken {
        let account = account(&self.owner, byte).await;
        let token = JoinToken::new(
            self.state.keys.fingerprint(),
            JoinTokenId::generate(),
            [byte; 32],
        );
        let new = NewJoinToken {
            id: token.id,
            account,
            name: "test",
            secret: token.secret_sha256(),
            max_uses: 1,
            expires_at: now() + time::Duration::HOUR,
        };
        let mut tx = self.api.begin().await.unwrap();
        join_tokens::create(&mut tx, &new, now()).await.unwrap();
        tx.commit().await.unwrap();
        token
    }

    pub async fn join(&self, folder: &Path, token: JoinToken) -> Result<Identity, JoinError> {
        self.join_with(folder, token, &launcher()).await
    }

    /// Joins a worker with other children.
    pub async fn join_with(
        &self,
        folder: &Path,
        token: JoinToken,
        launcher: &Launcher,
    ) -> Result<Identity, JoinError> {
        let options = JoinOptions {
            url: self.base.parse().unwrap(),
            token,
            name: "bench".to_owned(),
            folder: folder.to_owned(),
            device: Device::Cpu,
            threads: 1,
            memory_bytes: None,
            price_floor_nano: Amount::ZERO,
        };
        join::join(&options, launcher).await
    }

    /// A worker that has joined and runs.
    pub async fn worker(&self, name: &str, owner: u8) -> Running {
        let folder = self.folder(name);
        self.join(&folder, self.token(owner).await).await.unwrap();
        start(&folder)
    }

    /// Submits a job of tier `none`, its blobs included.
    pub async fn submit(&self, spec: &JobSpec) -> JobId {
        self.submit_under(spec, Tier::None).await
    }

    /// Submits a job of this tier, its blobs included.
    pub async fn submit_under(&self, spec: &JobSpec, tier: Tier) -> JobId {
        let blobs = ["mlp.pt2", "train.safetensors"];
        self.submit_with(spec, tier, &blobs, None).await
    }

    /// Submits a job that reads a dataset; of the example's files it uploads the program alone.
    pub async fn submit_on(&self, spec: &JobSpec, tier: Tier, data: QuotedData) -> JobId {
        self.submit_with(spec, tier, &["mlp.pt2"], Some(data)).await
    }

    async fn submit_with(
        &self,
        spec: &JobSpec,
        tier: Tier,
        blobs: &[&str],
        data: Option<QuotedData>,
    ) -> JobId {
        let mut tx = self.api.begin().await.unwrap();
        for file in blobs {
            let stored = self.state.objects.put(example(file).into()).await.unwrap();
            blobs::register(&mut tx, stored, now()).await.unwrap();
            blobs::grant(&mut tx, self.client, stored.sha256, now())
                .await
                .unwrap();
        }
        let meter = match spec {
            JobSpec::Training(training) => Meter::training(1_000, ROWS, training.epochs, tier),
            JobSpec::Inference(_) => Meter::inference(1_000, ROWS, tier),
        }
        .unwrap();
        let amount = price::amount(&meter, &self.price).unwrap();
        let quote = NewQuote {
            account: self.client,
            asset_id: self.asset,
            spec: spec.clone(),
            tier,
            device: Device::Cpu,
            meter,
            price_version: self.price.id,
            amount,
            data,
            min_memory_bytes: 1 << 28,
            expires_at: now() + time::Duration::HOUR,
        };
        let quote = quotes::create(&mut tx, quote, now()).await.unwrap();
        let new = NewJob {
            account: self.client,
            quote: quote.id,
            payer: Address::repeat_byte(0xc1),
            spender: None,
            name: None,
            max_cost: quote.hold,
            deadline_at: now() + time::Duration::HOUR,
        };
        let job = jobs::create(&mut tx, &new, now()).await.unwrap();
        tx.commit().await.unwrap();
        self.state.wake.publish(Channel::Work);
        job
    }

    /// Cancels a job, as the API would.
    pub async fn cancel(&self, job: JobId) {
        let mut tx = self.api.begin().await.unwrap();
        let ended = jobs::cancel(&mut tx, self.client, job, now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        for worker in ended.workers {
            self.state.wake.publish(Channel::Worker(worker));
        }
    }

    /// Waits until a job has ended; it did so as expected.
    pub async fn ends(&self, job: JobId, state: JobState) -> Job {
        let ended = async {
            loop {
                let mut conn = self.api.acquire().await.unwrap();
                let found: Job = jobs::find(&mut conn, self.client, job)
                    .await
                    .unwrap()
                    .unwrap();
                drop(conn);
                if found.state.is_final() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("the job ends");
        assert_eq!(found.state, state, "{:?}", found.failure);
        found
    }

    /// State and fault of each attempt, in order.
    pub async fn attempts(&self) -> Vec<(String, Option<String>)> {
        let attempts = sqlx::query_as("SELECT state, code FROM attempts ORDER BY attempt_id");
        attempts.fetch_all(&self.owner).await.unwrap()
    }

    /// By which attempt, counted from 0, each segment was reached first.
    pub async fn segments(&self) -> Vec<i64> {
        let segments = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM attempts WHERE attempt_id < segments.attempt_id) FROM segments ORDER BY segment",
        );
        segments.fetch_all(&self.owner).await.unwrap()
    }

    /// Time passes for all leases: they run out, and are taken back. Pauses before a retry are over too.
    pub async fn lose_leases(&self) {
        sqlx::query("UPDATE queue SET lease_expires_at = clock_timestamp() - interval '1 ms' WHERE lease_token IS NOT NULL")
            .execute(&self.owner)
            .await
            .unwrap();
        steps::faults::expire_leases(&self.state, now())
            .await
            .unwrap();
        self.pass_pauses().await;
    }

    /// Pauses before a retry are over.
    pub async fn pass_pauses(&self) {
        sqlx::query("UPDATE queue SET ready_at = clock_timestamp() - interval '2 min' WHERE lease_token IS NULL")
            .execute(&self.owner)
            .await
            .unwrap();
    }
}

/// Starts the worker of a folder.
pub fn start(folder: &Path) -> Running {
    start_with(folder, launcher())
}

/// Starts the worker of a folder with other children.
pub fn start_with(folder: &Path, launcher: Launcher) -> Running {
    let options = RunOptions {
        folder: folder.to_owned(),
        slots: 1,
        memory_bytes: None,
        cache_bytes: 1 << 30,
        host_memory_bytes: Some(0),
    };
    let stop = CancellationToken::new();
    let asked = stop.clone();
    let run = async move { run::run(&options, launcher, Display::hidden(), asked).await };
    Running {
        stop,
        task: tokio::spawn(run),
    }
}

/// Children of the real binary.
pub fn launcher() -> Launcher {
    Launcher::new(env!("CARGO_BIN_EXE_comptoir-worker").into())
}

/// The real binary, on a folder; it ends with the test.
pub fn process(folder: &Path, verb: &str) -> Command {
    let mut process = Command::new(env!("CARGO_BIN_EXE_comptoir-worker"));
    process
        .arg(verb)
        .arg("--folder")
        .arg(folder)
        .kill_on_drop(true);
    process
}

/// How many children have a folder in a worker's scratch folder. Of a child no more can be seen from outside than the
/// command that started it.
pub fn children(folder: &Path) -> usize {
    let scratch = folder.canonicalize().unwrap().join("scratch");
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let commands = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    commands
        .filter(|command| {
            let mut arguments = command.split(|byte| *byte == 0);
            arguments.any(|argument| argument.starts_with(scratch.as_os_str().as_encoded_bytes()))
        })
        .count()
}

/// Waits until nothing works in a worker's scratch folder and nothing is left there.
pub async fn scratch_is_empty(folder: &Path) {
    let empty = async {
        while children(folder) > 0 || fs::read_dir(folder.join("scratch")).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty)
        .await
        .expect("the child ends and its folder goes");
}

async fn listen(router: axum::Router, state: &SchedulerState) -> (String, DropGuard) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let closing = state.closing.clone();
    tokio::spawn(steps::run(state.clone()));
    let ended = closing.clone();
    tokio::spawn(async move {
        let closed = ended.cancelled_owned();
        comptoir_http::server::serve(listener, router, Limits::default(), closed)
            .await
            .unwrap();
    });
    (base, closing.drop_guard())
}

/// Signs somebody up; the address is this byte, repeated.
pub async fn account(owner: &PgPool, byte: u8) -> AccountId {
    let account = AccountId::generate();
    sqlx::query(
        "INSERT INTO accounts (account_id, email, password_hash, address, address_bound_at, auto_release, created_at)
         VALUES ($1, $2, 'x', $3, now(), false, now())",
    )
    .bind(account.0)
    .bind(format!("{byte}@example.org"))
    .bind(Address::repeat_byte(byte).as_slice())
    .execute(owner)
    .await
    .unwrap();
    account
}

async fn publish(owner: &PgPool) -> (i32, PriceVersion) {
    let mut conn = owner.acquire().await.unwrap();
    let asset = NewAsset {
        chain_id: 1,
        token: Address::repeat_byte(1),
        contract: Address::repeat_byte(2),
        symbol: "CPT".into(),
        decimals: 18,
        platform: Address::repeat_byte(0xff),
    };
    let asset = assets::register(&mut conn, &asset, now()).await.unwrap().id;
    let price = NewPrice {
        device: Device::Cpu,
        rate_nano: Rate::from_nano(1_000_000_000_000).unwrap(),
        minimum: Amount::from_base(1).unwrap(),
        platform_ppm: 100_000,
        effective_at: now(),
    };
    (
        asset,
        prices::publish(&mut conn, asset, price).await.unwrap(),
    )
}

pub fn example(file: &str) -> Vec<u8> {
    fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples/digits")
            .join(file),
    )
    .unwrap()
}

fn digits(tensor: &str) -> TensorRef {
    TensorRef {
        blob: Sha256::of(&example("train.safetensors")),
        dataset_version: None,
        tensor: tensor.to_owned(),
    }
}

/// Trains the small net; a checkpoint each epoch.
pub fn training(epochs: u32) -> JobSpec {
    JobSpec::Training(TrainingSpec {
        program: Sha256::of(&example("mlp.pt2")),
        weights: None,
        inputs: BTreeMap::from([("x".to_owned(), digits("images"))]),
        target: digits("labels"),
        output: 0,
        loss: Loss::CrossEntropy,
        optimizer: Optimizer::Sgd {
            learning_rate: 0.05,
            momentum: 0.9,
            weight_decay: 0.0,
            nesterov: false,
        },
        schedule: Schedule::Constant,
        epochs,
        batch_size: BATCH_SIZE,
        seed: 7,
        segment_steps: STEPS,
    })
}

/// Runs the small net over all images.
pub fn inference() -> JobSpec {
    JobSpec::Inference(InferenceSpec {
        program: Sha256::of(&example("mlp.pt2")),
        weights: None,
        inputs: BTreeMap::from([("x".to_owned(), digits("images"))]),
        batch_size: BATCH_SIZE,
    })
}
