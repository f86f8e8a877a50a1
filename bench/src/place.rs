//! Where the measurement takes place: a database, both services on it, a client with money, two workers.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use alloy_primitives::Address;
use anyhow::{Context as _, ensure};
use comptoir_api::{
    AppState, Config, Purchases, Rereads, RootKeyRing, Submissions, Uploads,
    auth::{
        callers::Callers,
        keys::{Keys, Secrets, random},
        password::Hasher,
        sign_ins::SignIns,
    },
    calls::{Calls, Terms},
    webhooks::{Webhooks, guard::Guard},
};
use comptoir_checker::Checker;
use comptoir_domain::{
    amount::Amount,
    credential::Environment,
    digest::Sha256,
    id::{AccountId, ChallengeId, JoinTokenId},
    job::{Device, InferenceSpec, JobSpec, TensorRef},
    join_token::JoinToken,
    price::Rate,
    root_keys::RootKeys,
};
use comptoir_http::{
    Edge,
    jwt::SigningKey,
    key_ring::KeyRing,
    server::{self, Limits},
};
use comptoir_scheduler::{
    SchedulerState,
    stub::{StubWorker, facts},
};
use comptoir_store::{
    MIGRATOR,
    accounts::{self, Challenge},
    assets::{self, NewAsset},
    join_tokens::{self, NewJoinToken},
    ledger,
    objects::Objects,
    pool::{self, ServiceRole},
    prices::{self, NewPrice},
    relay::Relay,
    sessions,
    wake::Wake,
};
use sqlx::{Connection as _, PgConnection, PgPool, postgres::PgConnectOptions};
use time::{Duration, OffsetDateTime};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const ISSUER: &str = "http://127.0.0.1";
const DEPOSIT: u128 = 1 << 90;
const CONNECTIONS: u32 = 24;

/// A database of our own, with a token and a price.
pub struct Books {
    admin: PgConnectOptions,
    database: String,
    /// How to connect to it.
    pub options: PgConnectOptions,
    /// Connections with the rights of its owner.
    pub owner: PgPool,
    /// Row of `assets`.
    pub asset: i32,
}

/// Both services on a database of their own.
pub struct Place {
    books: Books,
    /// Where both services keep bytes.
    pub objects: Objects,
    /// What opens the keys of sellers.
    pub roots: RootKeyRing,
    /// Connections with the rights of the database's owner.
    pub owner: PgPool,
    /// The API's URL.
    pub api: String,
    /// Where it listens.
    pub api_address: SocketAddr,
    /// The `Authorization` of each client.
    pub bearers: Vec<String>,
    /// Workers of different owners.
    pub workers: Vec<StubWorker>,
    stop: CancellationToken,
    serving: Vec<JoinHandle<std::io::Result<()>>>,
    _blobs: tempfile::TempDir,
}

/// The time of the machine.
#[expect(clippy::disallowed_methods, reason = "the clock of this process")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// A text that was never used before.
pub fn nonce() -> String {
    ChallengeId::generate().to_string()
}

/// Creates a database beside the one that the options name.
pub async fn create_database(admin: &PgConnectOptions, purpose: &str) -> anyhow::Result<String> {
    let name = format!("comptoir_{purpose}_{}", std::process::id());
    let mut connection = PgConnection::connect_with(admin).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut connection)
        .await?;
    Ok(name)
}

/// Drops what [`create_database`] made.
pub async fn drop_database(admin: &PgConnectOptions, name: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect_with(admin).await?;
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop))
        .execute(&mut connection)
        .await?;
    Ok(())
}

impl Books {
    /// Makes the database, and publishes a price.
    pub async fn make(admin: &PgConnectOptions, purpose: &str) -> anyhow::Result<Self> {
        let database = create_database(admin, purpose).await?;
        let options = admin.clone().database(&database);
        let owner = PgPool::connect_with(options.clone()).await?;
        MIGRATOR.run(&owner).await?;
        let asset = publish(&owner).await?;
        Ok(Self {
            admin: admin.clone(),
            database,
            options,
            owner,
            asset,
        })
    }

    /// Gives an owner more than it can spend.
    pub async fn deposit(&self, owner: Address) -> anyhow::Result<()> {
        let amount = Amount::from_base(DEPOSIT).context("within the bounds")?;
        let mut tx = self.owner.begin().await?;
        ledger::deposit(&mut tx, self.asset, owner, amount, &nonce(), now()).await?;
        Ok(tx.commit().await?)
    }

    /// Drops the database.
    pub async fn clear(self) -> anyhow::Result<()> {
        self.owner.close().await;
        drop_database(&self.admin, &self.database).await
    }
}

impl Place {
    /// Makes everything, with so many clients and workers.
    pub async fn make(admin: &PgConnectOptions, payers: u8, workers: u8) -> anyhow::Result<Self> {
        let books = Books::make(admin, "place").await?;
        let (options, owner) = (books.options.clone(), books.owner.clone());
        let mut clients = Vec::new();
        for byte in 1..=payers {
            clients.push(sign_up(&owner, byte).await?);
            books.deposit(address(byte)).await?;
        }

        let blobs = tempfile::tempdir()?;
        let url = url::Url::from_directory_path(blobs.path())
            .map_err(|()| anyhow::anyhow!("a folder of our own"))?;
        let objects = Objects::open(&url)?;
        let wake = Wake::local();
        let pem = SigningKey::generate_pem();
        let stop = CancellationToken::new();

        let db = pool::connect(options.clone(), ServiceRole::Scheduler, CONNECTIONS).await?;
        let keys =
            comptoir_scheduler::keys::Keys::new(KeyRing::of(SigningKey::from_pem(&pem)?), ISSUER);
        let roots = RootKeyRing::new(RootKeys::generate());
        let secrets = (keys, roots.clone());
        let scheduler = SchedulerState::new(db, now, objects.clone(), wake.clone(), secrets);
        let fingerprint = scheduler.keys.fingerprint();
        let (scheduler_listener, scheduler_address) = listen().await?;
        let scheduler_url = format!("http://{scheduler_address}");
        let serving_scheduler = comptoir_scheduler::serve(
            scheduler_listener,
            scheduler,
            Limits::default(),
            stop.clone().cancelled_owned(),
        );

        let db = pool::connect(options, ServiceRole::Api, CONNECTIONS).await?;
        let state = AppState {
            root_keys: roots.clone(),
            ..api_state(db, objects.clone(), wake, &pem, &scheduler_url)?
        };
        let bearers = sign_in(&state, &clients).await?;
        let (api_listener, api_address) = listen().await?;
        let (router, _) = comptoir_api::app(state);
        let serving_api = server::serve(
            api_listener,
            router,
            Limits::default(),
            stop.clone().cancelled_owned(),
        );
        let serving = vec![tokio::spawn(serving_scheduler), tokio::spawn(serving_api)];

        let mut joined = Vec::new();
        for byte in (0..workers).map(|number| u8::MAX - number) {
            joined.push(join(&owner, byte, fingerprint, &scheduler_url).await?);
        }
        Ok(Self {
            books,
            objects,
            roots,
            owner,
            api: format!("http://{api_address}"),
            api_address,
            bearers,
            workers: joined,
            stop,
            serving,
            _blobs: blobs,
        })
    }

    /// Puts a program and its rows where a job finds them; the job.
    pub async fn upload(&self, folder: &Path) -> anyhow::Result<serde_json::Value> {
        let mut digests = Vec::new();
        for bearer in &self.bearers {
            digests = self.upload_for(bearer, folder).await?;
        }
        self.objects.check().await?;
        let images = TensorRef {
            blob: digests[1],
            dataset_version: None,
            tensor: "images".to_owned(),
        };
        Ok(serde_json::to_value(JobSpec::Inference(InferenceSpec {
            program: digests[0],
            weights: None,
            inputs: BTreeMap::from([("x".to_owned(), images)]),
            batch_size: 64,
        }))?)
    }

    async fn upload_for(&self, bearer: &str, folder: &Path) -> anyhow::Result<Vec<Sha256>> {
        let mut digests = Vec::new();
        for file in ["mlp.pt2", "test.safetensors"] {
            let path = folder.join(file);
            let content = tokio::fs::read(&path)
                .await
                .with_context(|| path.display().to_string())?;
            let sha256 = Sha256::of(&content);
            let reply = reqwest::Client::new()
                .put(format!("{}/v1/blobs/{sha256}", self.api))
                .header("authorization", bearer)
                .header("content-type", "application/octet-stream")
                .body(content)
                .send()
                .await?;
            ensure!(
                reply.status().is_success(),
                "upload {file}: {}",
                reply.text().await?
            );
            digests.push(sha256);
        }
        Ok(digests)
    }

    /// Jobs completed so far: each has a receipt.
    pub async fn completed(&self) -> anyhow::Result<i64> {
        let count = sqlx::query_scalar("SELECT count(*) FROM receipts");
        Ok(count.fetch_one(&self.owner).await?)
    }

    /// Jobs submitted so far.
    pub async fn submitted(&self) -> anyhow::Result<i64> {
        let count = sqlx::query_scalar("SELECT count(*) FROM jobs");
        Ok(count.fetch_one(&self.owner).await?)
    }

    /// Ends the services and drops the database.
    pub async fn clear(self) -> anyhow::Result<()> {
        self.stop.cancel();
        for serving in self.serving {
            serving.await??;
        }
        self.books.clear().await
    }
}

fn api_state(
    db: PgPool,
    objects: Objects,
    wake: Wake,
    pem: &str,
    scheduler_url: &str,
) -> anyhow::Result<AppState> {
    let secrets = Secrets {
        ring: KeyRing::of(SigningKey::from_pem(pem)?),
        pepper: &[7; 32],
    };
    Ok(AppState {
        // No administrator comes by.
        admin_db: db.clone().into(),
        db,
        clock: now,
        objects,
        wake,
        config: Arc::new(Config {
            public_origin: ISSUER.to_owned(),
            scheduler_url: scheduler_url.to_owned(),
            environment: Environment::Test,
            sign_in_chains: Vec::new(),
            limits: comptoir_domain::limits::Limits::NONE,
            refund_caps: comptoir_domain::refund::Caps {
                per_refund: Amount::ZERO,
                per_day: Amount::ZERO,
            },
            market_ppm: 50_000,
            edge: Edge::default(),
        }),
        keys: Arc::new(Keys::new(secrets, ISSUER)?),
        root_keys: RootKeyRing::new(RootKeys::generate()),
        // Nothing is published here.
        checker: Checker::new("comptoir".into(), &["check-file"]),
        passwords: Hasher::default(),
        sign_ins: SignIns::default(),
        mailer: None,
        contract_wallets: None,
        webhooks: Webhooks::new(Guard::new(Vec::new()))?,
        callers: Callers::default(),
        rereads: Rereads::default(),
        submissions: Submissions::default(),
        purchases: Purchases::default(),
        calls: Calls::new(Relay::local(), Terms::default()),
        uploads: Uploads::default(),
    })
}

async fn listen() -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// An asset and a price; the asset's row.
async fn publish(owner: &PgPool) -> anyhow::Result<i32> {
    let mut tx = owner.begin().await?;
    let asset = NewAsset {
        chain_id: 31_337,
        token: Address::repeat_byte(1),
        contract: Address::repeat_byte(2),
        symbol: "CPT".to_owned(),
        decimals: 18,
        platform: Address::repeat_byte(0xff),
    };
    let asset = assets::register(&mut tx, &asset, now()).await?;
    let price = NewPrice {
        device: Device::Cpu,
        rate_nano: Rate::from_nano(1_000_000_000).context("a small rate")?,
        minimum: Amount::from_base(1_000).context("a small amount")?,
        platform_ppm: 50_000,
        effective_at: now() - Duration::MINUTE,
    };
    prices::publish(&mut tx, asset.id, price).await?;
    tx.commit().await?;
    Ok(asset.id)
}

/// Addresses of clients and owners, apart from those of the token and the contract.
fn address(byte: u8) -> Address {
    Address::right_padding_from(&[0xc0, byte])
}

/// An account with an address of its own.
async fn sign_up(owner: &PgPool, byte: u8) -> anyhow::Result<AccountId> {
    let mut tx = owner.begin().await?;
    let email = format!("bench-{byte}@example.org").parse()?;
    let account = accounts::create(&mut tx, &email, "nobody signs in", now()).await?;
    let challenge = Challenge {
        id: ChallengeId::generate(),
        address: address(byte),
        message: "bench".to_owned(),
        expires_at: now() + Duration::MINUTE,
    };
    accounts::create_challenge(&mut tx, account.id, &challenge).await?;
    accounts::bind(&mut tx, account.id, &challenge, now()).await?;
    tx.commit().await?;
    Ok(account.id)
}

/// What each client sends as `Authorization`.
async fn sign_in(state: &AppState, clients: &[AccountId]) -> anyhow::Result<Vec<String>> {
    let mut bearers = Vec::new();
    for client in clients {
        let secret = sessions::Credential::RefreshToken(Sha256(random()));
        let expires_at = now() + Duration::DAY;
        let mut tx = state.db.begin().await?;
        let who = (*client, sessions::Method::Password);
        let session = sessions::start(&mut tx, who, secret, now(), expires_at).await?;
        tx.commit().await?;
        let token = state.keys.access_token(*client, session, now());
        bearers.push(format!("Bearer {token}"));
    }
    Ok(bearers)
}

async fn join(
    owner: &PgPool,
    byte: u8,
    fingerprint: Sha256,
    scheduler: &str,
) -> anyhow::Result<StubWorker> {
    let account = sign_up(owner, byte).await?;
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| anyhow::anyhow!("no randomness"))?;
    let token = JoinToken::new(fingerprint, JoinTokenId::generate(), secret);
    let new = NewJoinToken {
        id: token.id,
        account,
        name: "bench",
        secret: token.secret_sha256(),
        max_uses: 1,
        expires_at: now() + Duration::HOUR,
    };
    let mut tx = owner.begin().await?;
    join_tokens::create(&mut tx, &new, now()).await?;
    tx.commit().await?;
    Ok(StubWorker::join(scheduler, &token.reveal(), "bench", facts("bench"), now()).await?)
}
