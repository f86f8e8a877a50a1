//! Looks up who calls, for all requests that wait at once. Nothing is remembered: whoever was signed out or had a key revoked is
//! refused at once.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use comptoir_domain::id::SessionId;
use comptoir_store::{
    api_keys::{self, Holder},
    group::{Group, GroupError},
    pool,
    sessions::{self, LiveSession},
};
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::{AppState, Problem};

/// Seconds after which a client may try again when too many requests wait.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Looks callers up in groups. Clones share the queue.
#[derive(Clone, Default)]
pub struct Callers {
    sessions: Lookups<SessionId, LiveSession>,
    keys: Lookups<[u8; 32], Holder>,
}

type Lookups<K, V> = Arc<OnceLock<Group<(K, OffsetDateTime), Found<V>>>>;
/// What was found; the error of a group is told to all of it.
type Found<V> = Result<Option<V>, Arc<sqlx::Error>>;

impl Callers {
    /// The session of this identifier, unless it has ended.
    pub(super) async fn session(
        &self,
        state: &AppState,
        id: SessionId,
        now: OffsetDateTime,
    ) -> Result<Option<LiveSession>, Problem> {
        let group = self.sessions.get_or_init(|| {
            let db = pool::for_groups(&state.db);
            Group::start(move |asked| Box::pin(find_sessions(db.clone(), asked)))
        });
        answer(group.ask((id, now)).await)
    }

    /// Whose key has this HMAC, if it works now.
    pub(super) async fn key(
        &self,
        state: &AppState,
        hmac: [u8; 32],
        now: OffsetDateTime,
    ) -> Result<Option<Holder>, Problem> {
        let group = self.keys.get_or_init(|| {
            let db = pool::for_groups(&state.db);
            Group::start(move |asked| Box::pin(find_holders(db.clone(), asked)))
        });
        answer(group.ask((hmac, now)).await)
    }
}

fn answer<V>(answered: Result<Found<V>, GroupError>) -> Result<Option<V>, Problem> {
    match answered {
        Ok(found) => found.map_err(|error| Problem::internal(error.as_ref())),
        Err(GroupError::Full) => {
            Err(Problem::unavailable("Too many requests wait").retry_after(RETRY_AFTER_SECONDS))
        }
        Err(error @ GroupError::Lost) => Err(Problem::internal(&error)),
    }
}

async fn find_sessions(
    db: PgPool,
    asked: Vec<(SessionId, OffsetDateTime)>,
) -> Vec<Found<LiveSession>> {
    let found = async { sessions::find_live_all(&mut *db.acquire().await?, &asked).await };
    to_each(found.await, asked.len())
}

async fn find_holders(db: PgPool, asked: Vec<([u8; 32], OffsetDateTime)>) -> Vec<Found<Holder>> {
    let found = async { api_keys::find_holders(&mut *db.acquire().await?, &asked).await };
    to_each(found.await, asked.len())
}

fn to_each<V>(found: sqlx::Result<Vec<Option<V>>>, asked: usize) -> Vec<Found<V>> {
    match found {
        Ok(found) => found.into_iter().map(Ok).collect(),
        Err(error) => {
            let error = Arc::new(error);
            (0..asked).map(|_| Err(Arc::clone(&error))).collect()
        }
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers").finish_non_exhaustive()
    }
}
