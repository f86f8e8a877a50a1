//! The whole API over one test database, in the rights that it has in production.

use std::{cell::Cell, net::SocketAddr, path::Path, sync::Arc};

use alloy_primitives::Address;
use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderMap, HeaderName, Method, Request, StatusCode, header, request::Builder},
};
use comptoir_api::{
    AppState, Config, Purchases, Rereads, RootKeyRing, Submissions, Uploads,
    auth::{
        callers::Callers,
        contract_wallets::ContractWallets,
        keys::{Keys, Secrets, random},
        password::Hasher,
        sign_ins::SignIns,
    },
    calls::{Calls, Terms},
    mail::Mailer,
    webhooks::Webhooks,
};
use comptoir_checker::Checker;
use comptoir_domain::{
    amount::Amount,
    credential::{ApiKey, Environment},
    digest::Sha256,
    id::{AccountId, ChallengeId, SessionId},
    ip_list::IpList,
    limits::Limits,
    refund::Caps,
    root_keys::RootKeys,
    scope::Scopes,
};
use comptoir_http::{Edge, jwt::SigningKey, key_ring::KeyRing, problem::PROBLEM};
use comptoir_store::{
    accounts::{self, Challenge},
    api_keys::{self, NewApiKey},
    objects::Objects,
    pool::{self, ServiceRole},
    relay::Relay,
    sessions,
    wake::Wake,
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime, macros::datetime};
use tower::ServiceExt as _;
use utoipa::openapi::OpenApi;

pub const NOW: OffsetDateTime = datetime!(2026-11-22 09:00 UTC);
pub const ORIGIN: &str = "https://comptoir.test";
/// How long a request may wait for a connection, however busy the machine is.
const PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);
/// What an account may have and do here.
pub const LIMITS: Limits = Limits {
    open_jobs: 1_000,
    jobs_per_day: 1_000,
    storage_bytes: 1 << 30,
};
/// The most that is given back here.
pub const REFUND_CAPS: Caps = Caps {
    per_refund: Amount::from_base(1_000).expect("below 2^120"),
    per_day: Amount::from_base(1_500).expect("below 2^120"),
};

thread_local! {
    /// Each test has its own thread, and with it its own clock.
    static PASSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The database, the service on it, and what tests need beside.
pub struct TestApp {
    /// The database with the rights of its owner, to arrange what other services do.
    pub owner: PgPool,
    pub state: AppState,
    pub openapi: OpenApi,
    pub signing_pem: String,
    router: Router,
    pub blobs: tempfile::TempDir,
    /// What calls of models travel through.
    pub relay: Relay,
}

/// Somebody who may call.
#[derive(Debug, Clone)]
pub struct Session {
    pub account: AccountId,
    /// An access token or an API key.
    pub token: String,
    /// What the access token ends with.
    pub id: SessionId,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
    /// The body when it is JSON, else null.
    pub json: Value,
}

impl Reply {
    pub fn header(&self, name: impl Into<HeaderName>) -> &str {
        self.headers
            .get(name.into())
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The `code` of a problem document or of what stands for one in another protocol, "" for anything else.
    pub fn code(&self) -> &str {
        if self.header(header::CONTENT_TYPE) != "application/problem+json" {
            return self.header(PROBLEM);
        }
        self.json["code"].as_str().unwrap()
    }

    /// The text at this JSON pointer.
    pub fn text(&self, pointer: &str) -> &str {
        let value = self.json.pointer(pointer);
        value
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no text at {pointer} in {self:?}"))
    }

    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Self {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.bytes)
        );
        self
    }

    #[track_caller]
    pub fn expect_problem(self, status: StatusCode, code: &str) -> Self {
        let reply = self.expect(status);
        assert_eq!(reply.code(), code);
        reply
    }
}

impl TestApp {
    pub async fn new(owner: PgPool) -> Self {
        PASSED.set(Duration::ZERO);
        let options = owner.connect_options().as_ref().clone();
        let connect = |role, most| pool::connect_patiently(options.clone(), role, most, PATIENCE);
        let db = connect(ServiceRole::Api, 8).await.unwrap();
        let admin_db = connect(ServiceRole::Admin, 4).await.unwrap();
        let blobs = tempfile::tempdir().unwrap();
        let blobs_url = url::Url::from_directory_path(blobs.path()).unwrap();
        let signing_pem = SigningKey::generate_pem();
        let secrets = Secrets {
            ring: KeyRing::of(SigningKey::from_pem(&signing_pem).unwrap()),
            pepper: &[7; 32],
        };
        let keys = Keys::new(secrets, ORIGIN).unwrap();
        let config = Config {
            public_origin: ORIGIN.to_owned(),
            scheduler_url: "https://workers.comptoir.test".to_owned(),
            environment: Environment::Test,
            sign_in_chains: Vec::new(),
            limits: LIMITS,
            refund_caps: REFUND_CAPS,
            market_ppm: 50_000,
            edge: Edge::default(),
        };
        let relay = Relay::local();
        let state = AppState {
            db,
            admin_db: admin_db.into(),
            clock: || NOW + PASSED.get(),
            objects: Objects::open(&blobs_url).unwrap(),
            wake: Wake::local(),
            config: config.into(),
            keys: keys.into(),
            root_keys: RootKeyRing::new(RootKeys::generate()),
            checker: Checker::new(env!("CARGO_BIN_EXE_comptoir-check-file").into(), &[]),
            passwords: Hasher::default(),
            sign_ins: SignIns::default(),
            mailer: None,
            contract_wallets: None,
            webhooks: Webhooks::new(crate::webhooks::guard()).unwrap(),
            callers: Callers::default(),
            rereads: Rereads::default(),
            submissions: Submissions::default(),
            purchases: Purchases::default(),
            calls: Calls::new(relay.clone(), Terms::default()),
            uploads: Uploads::default(),
        };
        let (router, openapi) = comptoir_api::app(state.clone());
        Self {
            owner,
            state,
            openapi,
            signing_pem,
            router,
            blobs,
            relay,
        }
    }

    /// Asks contracts about signatures, from now on.
    pub fn with_contract_wallets(&mut self, wallets: Arc<ContractWallets>) {
        self.state.contract_wallets = Some(wallets);
        (self.router, _) = comptoir_api::app(self.state.clone());
    }

    /// Calls receivers of webhooks in this way from now on.
    pub fn replace_webhooks(&mut self, webhooks: Webhooks) {
        self.state.webhooks = webhooks;
        (self.router, _) = comptoir_api::app(self.state.clone());
    }

    /// Takes uploads in this way from now on.
    pub fn replace_uploads(&mut self, uploads: Uploads) {
        self.state.uploads = uploads;
        (self.router, _) = comptoir_api::app(self.state.clone());
    }

    /// Has calls of models answered on these terms from now on.
    pub fn replace_calls(&mut self, terms: Terms) {
        self.state.calls = Calls::new(self.relay.clone(), terms);
        (self.router, _) = comptoir_api::app(self.state.clone());
    }

    /// Checks files in this way from now on.
    pub fn replace_checker(&mut self, checker: Checker) {
        self.state.checker = checker;
        (self.router, _) = comptoir_api::app(self.state.clone());
    }

    /// Sends mail into this folder, in steps from now on.
    pub fn with_mail(&mut self, folder: &Path) {
        let url = format!("file://{}", folder.display());
        let mailer = Mailer::open(&url, "Comptoir <no-reply@comptoir.test>");
        self.state.mailer = Some(mailer.unwrap());
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        PASSED.set(self.now() + time - NOW);
    }

    pub fn now(&self) -> OffsetDateTime {
        self.state.now()
    }

    /// Somebody who signed in and has no address yet.
    pub async fn session(&self) -> Session {
        let email = format!("{}@example.org", uuid::Uuid::now_v7());
        let mut connection = self.state.db.acquire().await.unwrap();
        let account = accounts::create(
            &mut connection,
            &email.parse().unwrap(),
            "no password",
            self.now(),
        )
        .await
        .unwrap()
        .id;
        drop(connection);
        self.sign_in(account).await
    }

    /// Somebody else's sign-in to the same account.
    pub async fn sign_in(&self, account: AccountId) -> Session {
        let secret = sessions::Credential::RefreshToken(Sha256(random()));
        let now = self.now();
        let mut tx = self.state.db.begin().await.unwrap();
        let who = (account, sessions::Method::Password);
        let session = sessions::start(&mut tx, who, secret, now, now + Duration::days(500))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        Session {
            account,
            token: self.state.keys.access_token(account, session, now),
            id: session,
        }
    }

    /// The same sign-in with an access token of now.
    pub fn renewed(&self, session: &Session) -> Session {
        let token = self
            .state
            .keys
            .access_token(session.account, session.id, self.now());
        Session {
            token,
            ..session.clone()
        }
    }

    /// Somebody who signed in and has bound an address.
    pub async fn bound_session(&self) -> (Session, Address) {
        let session = self.session().await;
        let address = Address::from(random::<20>());
        let challenge = Challenge {
            id: ChallengeId::generate(),
            address,
            message: String::new(),
            expires_at: self.now() + Duration::minutes(5),
        };
        let mut tx = self.state.db.begin().await.unwrap();
        accounts::create_challenge(&mut tx, session.account, &challenge)
            .await
            .unwrap();
        accounts::bind(&mut tx, session.account, &challenge, self.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        (session, address)
    }

    /// An API key of the same account with these scopes.
    pub async fn api_key(&self, session: &Session, scopes: &Scopes) -> Session {
        let key = ApiKey::from_random(Environment::Test, random());
        let new = NewApiKey {
            name: "test",
            prefix: key.shown(),
            hmac: self.state.keys.api_key_hmac(&key),
            scopes,
            allowed_ips: &IpList::default(),
            spend_limit: None,
            expires_at: None,
        };
        let mut tx = self.state.db.begin().await.unwrap();
        api_keys::create(&mut tx, session.account, &new, self.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        Session {
            token: key.reveal().to_owned(),
            ..session.clone()
        }
    }

    /// Begins a request.
    pub fn request(&self, method: Method, path: &str) -> Call<'_> {
        Call {
            app: self,
            request: Request::builder().method(method).uri(path),
            body: Body::empty(),
        }
    }

    pub fn get(&self, path: &str) -> Call<'_> {
        self.request(Method::GET, path)
    }

    /// A POST with an `Idempotency-Key` of its own.
    pub fn post(&self, path: &str, body: &Value) -> Call<'_> {
        let key = uuid::Uuid::now_v7().to_string();
        self.request(Method::POST, path)
            .json(body)
            .idempotency_key(&key)
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        let json = serde_json::from_slice(&bytes).unwrap_or_default();
        Reply {
            status: head.status,
            headers: head.headers,
            bytes,
            json,
        }
    }
}

/// A request that is being put together.
pub struct Call<'a> {
    app: &'a TestApp,
    request: Builder,
    body: Body,
}

impl Call<'_> {
    pub fn by(self, session: &Session) -> Self {
        let token = format!("Bearer {}", session.token);
        self.header(header::AUTHORIZATION, &token)
    }

    pub fn header(self, name: impl Into<HeaderName>, value: &str) -> Self {
        Self {
            request: self.request.header(name.into(), value),
            ..self
        }
    }

    /// As if it came from this address.
    pub fn called_from(self, address: &str) -> Self {
        let peer = SocketAddr::new(address.parse().unwrap(), 4711);
        Self {
            request: self.request.extension(ConnectInfo(peer)),
            ..self
        }
    }

    /// Replaces the key that [`TestApp::post`] chose.
    pub fn idempotency_key(mut self, key: &str) -> Self {
        let headers = self.request.headers_mut().unwrap();
        headers.insert("idempotency-key", key.parse().unwrap());
        self
    }

    pub fn json(self, body: &Value) -> Self {
        let call = self.header(header::CONTENT_TYPE, "application/json");
        Self {
            body: Body::from(body.to_string()),
            ..call
        }
    }

    pub fn body(self, body: impl Into<Body>) -> Self {
        Self {
            body: body.into(),
            ..self
        }
    }

    pub fn build(self) -> Request<Body> {
        self.request.body(self.body).unwrap()
    }

    pub async fn send(self) -> Reply {
        let app = self.app;
        app.send(self.build()).await
    }
}
