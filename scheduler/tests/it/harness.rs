//! A scheduler on a listener over one test database, in the rights that it has in production. Its timed steps are run
//! by the tests, one round at a time.

use std::{collections::BTreeMap, net::SocketAddr};

use alloy_primitives::Address;
use bytes::Bytes;
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{AccountId, AttemptId, JobId, JoinTokenId},
    job::{
        Device, InferenceSpec, JobSpec, JobState, Loss, Optimizer, Schedule, TensorRef, Tier,
        TrainingSpec,
    },
    join_token::JoinToken,
    price::{self, Meter, PriceVersion, Rate},
    root_keys::RootKeys,
};
use comptoir_http::{jwt::SigningKey, key_ring::KeyRing, server::Limits};
use comptoir_scheduler::{
    Calls, SchedulerState, app,
    keys::Keys,
    steps,
    stub::{StubResult, StubWorker, facts, tensor_file},
};
use comptoir_store::{
    assets::{self, NewAsset},
    blobs,
    data_keys::RootKeyRing,
    dataset_inputs::QuotedData,
    jobs::{self, CancelError, CreateError, Job, NewJob},
    join_tokens::{self, NewJoinToken},
    ledger::{self, Balances},
    objects::Objects,
    pool::{self, ServiceRole},
    prices::{self, NewPrice},
    quotes::{self, NewQuote},
    receipts::{self, Receipt},
    relay::Relay,
    wake::Wake,
};
use comptoir_wire::{
    heartbeat::Held,
    join::WorkerFacts,
    work::{Ack, AckOutcome, Lease, WorkReply, WorkRequest},
};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What clients have before they submit anything.
pub const BUDGET: u128 = 1_000_000_000;
/// Rows of every test job.
pub const ROWS: u64 = 40;
/// The platform's share, in millionths.
const PLATFORM_PPM: u32 = 100_000;
pub const PLATFORM: Address = Address::repeat_byte(0xff);

/// One scheduler, and whatever tests need beside.
pub struct Bench {
    /// The database with the rights of its owner, to arrange what other services do.
    pub owner: PgPool,
    pub api: PgPool,
    pub state: SchedulerState,
    /// What its calls travel through.
    pub relay: Relay,
    /// The scheduler's URL.
    pub base: String,
    pub asset: i32,
    price: PriceVersion,
    blobs: tempfile::TempDir,
    _serving: DropGuard,
}

/// Somebody who pays for jobs.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    pub account: AccountId,
    pub address: Address,
}

/// What time it is. Token requests are signed with it, so it is the real one.
#[expect(
    clippy::disallowed_methods,
    reason = "the clock of the service under test"
)]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// How long a request may wait for a connection, however busy the machine is.
const PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);

impl Bench {
    pub async fn new(owner: PgPool) -> Self {
        let blobs = tempfile::tempdir().unwrap();
        let (asset, price) = publish(&owner).await;
        let options = owner.connect_options().as_ref().clone();
        let api = pool::connect(options, ServiceRole::Api, 2).await.unwrap();
        let mut state = state(&owner, &blobs, Wake::local()).await;
        let relay = Relay::local();
        state.calls = Calls::new(relay.clone());
        let (base, serving) = listen(app(state.clone()).0).await;
        Self {
            owner,
            api,
            state,
            relay,
            base,
            asset,
            price,
            blobs,
            _serving: serving,
        }
    }

    /// Where objects are.
    pub fn objects(&self) -> &std::path::Path {
        self.blobs.path()
    }

    /// Another scheduler's state over the same database and blobs.
    pub async fn another(&self, wake: Wake) -> SchedulerState {
        state(&self.owner, &self.blobs, wake).await
    }

    /// Signs an account up; its address is this byte, repeated.
    pub async fn account(&self, byte: u8) -> Client {
        let client = Client {
            account: AccountId::generate(),
            address: Address::repeat_byte(byte),
        };
        sqlx::query(
            "INSERT INTO accounts (account_id, email, password_hash, address, address_bound_at, auto_release, created_at)
             VALUES ($1, $2, 'x', $3, now(), false, now())",
        )
        .bind(client.account.0)
        .bind(format!("{byte}@example.org"))
        .bind(client.address.as_slice())
        .execute(&self.owner)
        .await
        .unwrap();
        client
    }

    /// An account with money.
    pub async fn client(&self) -> Client {
        let client = self.account(0xc1).await;
        let mut tx = self.owner.begin().await.unwrap();
        let source = JobId::generate().to_string();
        ledger::deposit(
            &mut tx,
            self.asset,
            client.address,
            base(BUDGET),
            &source,
            now(),
        )
        .await
        .unwrap();
        tx.commit().await.unwrap();
        client
    }

    pub async fn join_token(
        &self,
        account: AccountId,
        max_uses: u16,
        expires_at: OffsetDateTime,
    ) -> JoinToken {
        let token = JoinToken::new(
            self.state.keys.fingerprint(),
            JoinTokenId::generate(),
            [9; 32],
        );
        let new = NewJoinToken {
            id: token.id,
            account,
            name: "test",
            secret: token.secret_sha256(),
            max_uses,
            expires_at,
        };
        let mut tx = self.api.begin().await.unwrap();
        join_tokens::create(&mut tx, &new, now()).await.unwrap();
        tx.commit().await.unwrap();
        token
    }

    /// A CPU worker of numeric class `x` of a new owner, whose address is this byte, repeated.
    pub async fn worker(&self, owner: u8) -> StubWorker {
        self.worker_of_class(owner, "x").await
    }

    pub async fn worker_of_class(&self, owner: u8, class: &str) -> StubWorker {
        let owner = self.account(owner).await;
        self.join(owner.account, facts(class)).await
    }

    pub async fn join(&self, owner: AccountId, facts: WorkerFacts) -> StubWorker {
        let token = self
            .join_token(owner, 1, now() + Duration::HOUR)
            .await
            .reveal();
        StubWorker::join(&self.base, &token, "bench", facts, now())
            .await
            .unwrap()
    }

    /// A worker of the owner that has this worker.
    pub async fn sibling(&self, worker: &StubWorker) -> StubWorker {
        let account: uuid::Uuid =
            sqlx::query_scalar("SELECT account_id FROM workers WHERE worker_id = $1")
                .bind(worker.id.0)
                .fetch_one(&self.owner)
                .await
                .unwrap();
        self.join(AccountId(account), facts("x")).await
    }

    /// Submits a job, its blobs included.
    pub async fn submit(&self, client: Client, spec: &JobSpec, tier: Tier) -> JobId {
        self.submit_until(client, spec, tier, now() + Duration::HOUR)
            .await
    }

    pub async fn submit_until(
        &self,
        client: Client,
        spec: &JobSpec,
        tier: Tier,
        deadline_at: OffsetDateTime,
    ) -> JobId {
        let made = self.try_submit(client, spec, tier, (deadline_at, None));
        made.await.unwrap()
    }

    /// Submits a job that was quoted so much for the dataset that it reads.
    pub async fn submit_on(
        &self,
        client: Client,
        spec: &JobSpec,
        tier: Tier,
        data: QuotedData,
    ) -> Result<JobId, CreateError> {
        let until = now() + Duration::HOUR;
        self.try_submit(client, spec, tier, (until, Some(data)))
            .await
    }

    async fn try_submit(
        &self,
        client: Client,
        spec: &JobSpec,
        tier: Tier,
        (deadline_at, data): (OffsetDateTime, Option<QuotedData>),
    ) -> Result<JobId, CreateError> {
        self.store_inputs(client).await;
        let meter = match spec {
            JobSpec::Training(training) => Meter::training(1_000, ROWS, training.epochs, tier),
            JobSpec::Inference(_) => Meter::inference(1_000, ROWS, tier),
        }
        .unwrap();
        let amount = price::amount(&meter, &self.price).unwrap();
        let quote = NewQuote {
            account: client.account,
            asset_id: self.asset,
            spec: spec.clone(),
            tier,
            device: Device::Cpu,
            meter,
            price_version: self.price.id,
            amount,
            data,
            min_memory_bytes: 1 << 20,
            expires_at: now() + Duration::HOUR,
        };
        let mut tx = self.api.begin().await.unwrap();
        let quote = quotes::create(&mut tx, quote, now()).await.unwrap();
        let new = NewJob {
            account: client.account,
            quote: quote.id,
            payer: client.address,
            spender: None,
            name: None,
            max_cost: quote.hold,
            deadline_at,
        };
        let job = jobs::create(&mut tx, &new, now()).await?;
        tx.commit().await.unwrap();
        Ok(job)
    }

    async fn store_inputs(&self, client: Client) {
        let mut tx = self.api.begin().await.unwrap();
        for input in [program(), rows()] {
            let stored = self.state.objects.put(input).await.unwrap();
            blobs::register(&mut tx, stored, now()).await.unwrap();
            blobs::grant(&mut tx, client.account, stored.sha256, now())
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
    }

    /// Cancels a job, as the API would.
    pub async fn cancel(&self, client: Client, job: JobId) {
        assert!(self.try_cancel(client, job).await);
    }

    /// Cancels a job unless it has ended otherwise.
    pub async fn try_cancel(&self, client: Client, job: JobId) -> bool {
        let mut tx = self.api.begin().await.unwrap();
        let ended = match jobs::cancel(&mut tx, client.account, job, now()).await {
            Ok(ended) => ended,
            Err(CancelError::Ended(_)) => return false,
            Err(error) => panic!("{error:?}"),
        };
        tx.commit().await.unwrap();
        for worker in ended.workers {
            self.state
                .wake
                .publish(comptoir_store::wake::Channel::Worker(worker));
        }
        true
    }

    pub async fn job(&self, client: Client, job: JobId) -> Job {
        let mut conn = self.api.acquire().await.unwrap();
        jobs::find(&mut conn, client.account, job)
            .await
            .unwrap()
            .unwrap()
    }

    pub async fn balances(&self, address: Address) -> Balances {
        let mut conn = self.api.acquire().await.unwrap();
        ledger::balances(&mut conn, address, self.asset)
            .await
            .unwrap()
    }

    /// What an address can spend.
    pub async fn available(&self, address: Address) -> u128 {
        self.balances(address).await.available.base()
    }

    /// The job ended without a charge, and nothing is held.
    pub async fn assert_refunded(&self, client: Client, job: JobId, state: JobState) {
        let found = self.job(client, job).await;
        assert_eq!(found.state, state, "{:?}", found.failure);
        let balances = self.balances(client.address).await;
        assert_eq!(
            (balances.available.base(), balances.held.base()),
            (BUDGET, 0)
        );
        assert_eq!(found.charge, None);
    }

    pub async fn receipt(&self, job: JobId) -> Receipt {
        let mut conn = self.api.acquire().await.unwrap();
        receipts::find_of_job(&mut conn, job)
            .await
            .unwrap()
            .unwrap()
    }

    /// What a receipt gives to each payee but the platform, by the first byte of the address.
    pub async fn earned(&self, job: JobId) -> BTreeMap<u8, u128> {
        let shares = self.receipt(job).await.shares;
        let shares = shares.iter().filter(|share| share.payee != PLATFORM);
        shares
            .map(|share| (share.payee[0], share.amount.base()))
            .collect()
    }

    /// The kinds of a job's events, in order; their numbers have no gaps.
    pub async fn events(&self, job: JobId) -> Vec<String> {
        let mut conn = self.api.acquire().await.unwrap();
        let events = comptoir_store::events::after(&mut conn, job, 0, 1_000)
            .await
            .unwrap();
        for (place, event) in events.iter().enumerate() {
            assert_eq!(event.seq, i64::try_from(place).unwrap() + 1);
        }
        events.into_iter().map(|event| event.kind).collect()
    }

    /// The data of a job's last event of a kind.
    pub async fn event(&self, job: JobId, kind: &str) -> serde_json::Value {
        let mut conn = self.api.acquire().await.unwrap();
        let events = comptoir_store::events::after(&mut conn, job, 0, 1_000)
            .await
            .unwrap();
        events
            .into_iter()
            .rev()
            .find(|event| event.kind == kind)
            .unwrap()
            .data
    }

    /// The state of an attempt and the code of its fault.
    pub async fn attempt(&self, attempt: AttemptId) -> (String, Option<String>) {
        sqlx::query_as("SELECT state, code FROM attempts WHERE attempt_id = $1")
            .bind(attempt.0)
            .fetch_one(&self.owner)
            .await
            .unwrap()
    }

    /// Time passes for one lease: it runs out, and is taken back.
    pub async fn lose_lease(&self, attempt: AttemptId) {
        self.pass_lease(attempt).await;
        let progress = steps::faults::expire_leases(&self.state, now())
            .await
            .unwrap();
        assert_eq!(progress.done, 1);
    }

    /// Time passes for one lease: it runs out, and nobody has noticed yet.
    pub async fn pass_lease(&self, attempt: AttemptId) {
        let passed = sqlx::query(
            "UPDATE queue SET lease_expires_at = clock_timestamp() - interval '1 ms' WHERE attempt_id = $1",
        )
        .bind(attempt.0)
        .execute(&self.owner)
        .await
        .unwrap();
        assert_eq!(passed.rows_affected(), 1);
    }

    /// Time passes for all that waits in the queue: pauses before a retry are over, those for other workers too.
    pub async fn pass_backoff(&self) {
        sqlx::query("UPDATE queue SET ready_at = clock_timestamp() - interval '2 min' WHERE lease_token IS NULL")
            .execute(&self.owner)
            .await
            .unwrap();
    }

    /// Rules on every job whose results are all shown. How many there were.
    pub async fn rule(&self) -> usize {
        steps::verdicts::rule_due(&self.state, now())
            .await
            .unwrap()
            .done
    }
}

async fn publish(owner: &PgPool) -> (i32, PriceVersion) {
    let mut conn = owner.acquire().await.unwrap();
    let asset = NewAsset {
        chain_id: 1,
        token: Address::repeat_byte(1),
        contract: Address::repeat_byte(2),
        symbol: "CPT".into(),
        decimals: 18,
        platform: PLATFORM,
    };
    let asset = assets::register(&mut conn, &asset, now()).await.unwrap().id;
    let price = NewPrice {
        device: Device::Cpu,
        rate_nano: Rate::from_nano(1_000_000_000_000_000_000).unwrap(),
        minimum: base(1),
        platform_ppm: PLATFORM_PPM,
        effective_at: now(),
    };
    (
        asset,
        prices::publish(&mut conn, asset, price).await.unwrap(),
    )
}

async fn state(owner: &PgPool, blobs: &tempfile::TempDir, wake: Wake) -> SchedulerState {
    let options = owner.connect_options().as_ref().clone();
    let db = pool::connect_patiently(options, ServiceRole::Scheduler, 12, PATIENCE)
        .await
        .unwrap();
    let objects = Objects::open(&url::Url::from_directory_path(blobs.path()).unwrap()).unwrap();
    let signing = SigningKey::from_pem(&SigningKey::generate_pem()).unwrap();
    SchedulerState::new(
        db,
        now,
        objects,
        wake,
        (
            Keys::new(KeyRing::of(signing), "https://comptoir.test"),
            RootKeyRing::new(RootKeys::generate()),
        ),
    )
}

/// Serves a router on a free port until the guard is dropped.
pub async fn listen(router: axum::Router) -> (String, DropGuard) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    tokio::spawn(async move {
        comptoir_http::server::serve(listener, router, Limits::default(), ended.cancelled_owned())
            .await
            .unwrap();
    });
    (base, guard)
}

pub fn base(base: u128) -> Amount {
    Amount::from_base(base).unwrap()
}

/// A blob that stands for a program.
pub fn program() -> Bytes {
    Bytes::from_static(b"a program")
}

/// A blob that stands for rows.
pub fn rows() -> Bytes {
    Bytes::from_static(b"some rows")
}

pub fn inference() -> JobSpec {
    let blob = Sha256::of(&rows());
    JobSpec::Inference(InferenceSpec {
        program: Sha256::of(&program()),
        weights: None,
        inputs: BTreeMap::from([(
            "x".into(),
            TensorRef {
                blob,
                dataset_version: None,
                tensor: "x".into(),
            },
        )]),
        batch_size: 8,
    })
}

/// 2 epochs of 5 steps; a checkpoint every 4 steps: after 4 and after 8 of 10.
pub fn training() -> JobSpec {
    let blob = Sha256::of(&rows());
    JobSpec::Training(TrainingSpec {
        program: Sha256::of(&program()),
        weights: None,
        inputs: BTreeMap::from([(
            "x".into(),
            TensorRef {
                blob,
                dataset_version: None,
                tensor: "x".into(),
            },
        )]),
        target: TensorRef {
            blob,
            dataset_version: None,
            tensor: "y".into(),
        },
        output: 0,
        loss: Loss::CrossEntropy,
        optimizer: Optimizer::Sgd {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 0.0,
            nesterov: false,
        },
        schedule: Schedule::Constant,
        epochs: 2,
        batch_size: 8,
        seed: 1,
        segment_steps: 4,
    })
}

pub fn held(lease: &Lease) -> Held {
    Held {
        attempt_id: lease.attempt_id,
        lease_token: lease.lease_token,
    }
}

/// Asks once for work.
pub async fn ask(worker: &StubWorker, wanted: u16) -> WorkReply {
    worker
        .work(&WorkRequest {
            wanted,
            ..WorkRequest::default()
        })
        .await
        .unwrap()
}

/// Takes the one replica that the worker is given.
pub async fn lease(worker: &StubWorker) -> Lease {
    let mut leases = ask(worker, 1).await.leases;
    assert_eq!(leases.len(), 1);
    leases.pop().unwrap()
}

/// Uploads an output of these values, and seals it.
pub async fn seal(worker: &StubWorker, lease: &Lease, values: &[f32]) -> (StubResult, WorkReply) {
    let output = worker
        .upload(held(lease), tensor_file(values))
        .await
        .unwrap();
    let result = StubResult::of(lease, output);
    let request = WorkRequest {
        seals: vec![result.seal(worker.id)],
        ..WorkRequest::default()
    };
    let reply = worker.work(&request).await.unwrap();
    (result, reply)
}

pub async fn reveal(worker: &StubWorker, result: &StubResult) -> AckOutcome {
    let request = WorkRequest {
        reveals: vec![result.reveal()],
        ..WorkRequest::default()
    };
    outcome(&worker.work(&request).await.unwrap())
}

/// What became of the one report.
pub fn outcome(reply: &WorkReply) -> AckOutcome {
    let [Ack { outcome, .. }] = reply.acks.as_slice() else {
        panic!("{reply:?}")
    };
    *outcome
}

/// Leases, computes these values, seals and, once everyone has, reveals: for each worker in turn.
pub async fn compute(workers: &[(&StubWorker, &[f32])]) -> Vec<Lease> {
    let (mut leases, mut results) = (Vec::new(), Vec::new());
    for (worker, _) in workers {
        leases.push(lease(worker).await);
    }
    for ((worker, values), lease) in workers.iter().zip(&leases) {
        let (result, reply) = seal(worker, lease, values).await;
        assert_eq!(outcome(&reply), AckOutcome::Accepted);
        results.push(result);
    }
    for ((worker, _), result) in workers.iter().zip(&results) {
        assert_eq!(reveal(worker, result).await, AckOutcome::Accepted);
    }
    leases
}
