//! What every handler and every step can reach.

use std::sync::Arc;

use comptoir_domain::policy::holdback::DisputeWindows;
use comptoir_http::Edge;
use comptoir_store::{data_keys::RootKeyRing, objects::Objects, relay::Relay, wake::Wake};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Calls, groups::Groups, keys::Keys};

/// The state of the service; cheap to clone.
#[derive(Debug, Clone)]
pub struct SchedulerState {
    /// Postgres, in the role `comptoir_scheduler`.
    pub db: PgPool,
    /// What many workers ask for at once.
    pub(crate) groups: Groups,
    /// Injected so that a test decides what time it is. Leases are on the database's clock instead.
    pub clock: fn() -> OffsetDateTime,
    /// The blobs.
    pub objects: Objects,
    /// Wake-ups between processes.
    pub wake: Wake,
    /// Calls of models, on their way to workers: within this process, unless somebody sets it.
    pub calls: Calls,
    /// Signs and checks worker tokens.
    pub keys: Arc<Keys>,
    /// What the keys of datasets' sellers are wrapped with.
    pub root_keys: RootKeyRing,
    /// Who may call, from where, and how often: anybody, as often as it can, unless somebody sets it.
    pub edge: Edge,
    /// How long results may be disputed.
    pub dispute_windows: DisputeWindows,
    /// Rings when a job waits for its verdict.
    pub(crate) verdict_due: Arc<Notify>,
    /// Cancelled when the service is asked to end: held requests are answered, steps stop.
    pub closing: CancellationToken,
}

impl SchedulerState {
    /// The state of one scheduler.
    #[must_use]
    pub fn new(
        db: PgPool,
        clock: fn() -> OffsetDateTime,
        objects: Objects,
        wake: Wake,
        (keys, root_keys): (Keys, RootKeyRing),
    ) -> Self {
        let verdict_due = Arc::default();
        Self {
            groups: Groups::start(&db, &wake, &verdict_due),
            db,
            clock,
            objects,
            wake,
            calls: Calls::new(Relay::local()),
            keys: Arc::new(keys),
            root_keys,
            edge: Edge::default(),
            dispute_windows: DisputeWindows::default(),
            verdict_due,
            closing: CancellationToken::new(),
        }
    }

    /// What time it is, no finer than Postgres keeps it: what is answered first is what is read later.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        (self.clock)().truncate_to_microsecond()
    }
}
