//! What every handler can reach, and what the deployment decides.

use std::sync::Arc;

use comptoir_checker::Checker;
use comptoir_domain::{credential::Environment, limits::Limits, refund::Caps};
use comptoir_http::Edge;
use comptoir_store::{data_keys::RootKeyRing, objects::Objects, wake::Wake};
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::{
    AdminDb, Purchases, Rereads, Submissions,
    auth::{
        callers::Callers, contract_wallets::ContractWallets, keys::Keys, password::Hasher,
        sign_ins::SignIns,
    },
    calls::Calls,
    mail::Mailer,
    uploading::Uploads,
    webhooks::Webhooks,
};

/// The state of the service; cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// Postgres, in the role `comptoir_api`.
    pub db: PgPool,
    /// Postgres, in the role `comptoir_admin`: what administrators do.
    pub admin_db: AdminDb,
    /// Injected so that a test decides what time it is.
    pub clock: fn() -> OffsetDateTime,
    /// The blobs.
    pub objects: Objects,
    /// Wake-ups between processes.
    pub wake: Wake,
    /// What the deployment decides.
    pub config: Arc<Config>,
    /// The service's secrets.
    pub keys: Arc<Keys>,
    /// What the keys of sellers are wrapped with.
    pub root_keys: RootKeyRing,
    /// Reads files of datasets, in children.
    pub checker: Checker,
    /// Hashes passwords, a few at a time.
    pub passwords: Hasher,
    /// Sends mail; without it notices wait.
    pub mailer: Option<Mailer>,
    /// Tells accounts what happened.
    pub webhooks: Webhooks,
    /// Judges signatures of contracts; without it only keys sign in.
    pub contract_wallets: Option<Arc<ContractWallets>>,
    /// Counts sign-ins.
    pub sign_ins: SignIns,
    /// Finds out who calls.
    pub callers: Callers,
    /// Looks again whether bytes that are under way may leave.
    pub rereads: Rereads,
    /// Takes bodies as they come, so many at once.
    pub uploads: Uploads,
    /// Commits submissions in groups.
    pub submissions: Submissions,
    /// Commits purchases in groups.
    pub purchases: Purchases,
    /// Has calls of models answered.
    pub calls: Calls,
}

impl AppState {
    /// What time it is, no finer than Postgres keeps it: what is answered first is what is read later.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        (self.clock)().truncate_to_microsecond()
    }
}

/// What the deployment decides; the caller of the crate reads it from wherever it is kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// How the service is reached from outside, such as `https://comptoir.example`; no slash at the end.
    pub public_origin: String,
    /// How workers reach the scheduler; told to whoever makes a join token.
    pub scheduler_url: String,
    /// Is the money worth something?
    pub environment: Environment,
    /// The chains that a sign-in message may name; none: the settlement contract's.
    pub sign_in_chains: Vec<u64>,
    /// What an account may have and do, unless an operator decides otherwise for it.
    pub limits: Limits,
    /// The most that is given back.
    pub refund_caps: Caps,
    /// What the platform takes of sales of datasets, in millionths.
    pub market_ppm: u32,
    /// Who may call, from where, and how often.
    pub edge: Edge,
}
