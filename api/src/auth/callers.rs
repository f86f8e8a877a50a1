//! Looks up who calls, for all requests that wait at once. Nothing is remembered: whoever was signed out or had a key revoked is
//! refused at once.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use comptoir_domain::id::SessionId;
use comptoir_store::{
    api_keys::{self, Holder},
    group::{LookupError, Lookups},
    pool,
    sessions::{self, LiveSession},
};
use time::OffsetDateTime;

use crate::{AppState, Problem};

/// Looks callers up in groups. Clones share the queues, which start with the first request.
#[derive(Clone, Default)]
pub struct Callers {
    sessions: Started<SessionId, LiveSession>,
    keys: Started<[u8; 32], Holder>,
}

type Started<K, V> = Arc<OnceLock<Lookups<(K, OffsetDateTime), V>>>;

impl Callers {
    /// The session of this identifier, unless it has ended.
    pub(super) async fn session(
        &self,
        state: &AppState,
        id: SessionId,
        now: OffsetDateTime,
    ) -> Result<Option<LiveSession>, Problem> {
        let lookups = self.sessions.get_or_init(|| {
            let db = pool::for_groups(&state.db, 1);
            Lookups::start(move |asked: Vec<_>| {
                let db = db.clone();
                Box::pin(
                    async move { sessions::find_live_all(&mut *db.acquire().await?, &asked).await },
                )
            })
        });
        lookups.find((id, now)).await.map_err(failed)
    }

    /// Whose key has this HMAC, if it works now.
    pub(super) async fn key(
        &self,
        state: &AppState,
        hmac: [u8; 32],
        now: OffsetDateTime,
    ) -> Result<Option<Holder>, Problem> {
        let lookups = self.keys.get_or_init(|| {
            let db = pool::for_groups(&state.db, 1);
            Lookups::start(move |asked: Vec<_>| {
                let db = db.clone();
                Box::pin(
                    async move { api_keys::find_holders(&mut *db.acquire().await?, &asked).await },
                )
            })
        });
        lookups.find((hmac, now)).await.map_err(failed)
    }
}

fn failed(error: LookupError) -> Problem {
    match error {
        LookupError::Group(error) => Problem::ungrouped(&error, error.is_full()),
        LookupError::Database(error) => Problem::internal(error.as_ref()),
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers").finish_non_exhaustive()
    }
}
