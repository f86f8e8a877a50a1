//! Bodies that are taken as they come: how many at once, of everybody and of each account, and how long each may take. Who sends slowly, or nothing
//! at all, holds its own places and nobody else's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use axum::http::StatusCode;
use comptoir_domain::id::AccountId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::Problem;

/// Uploads at once; each has up to three pieces of 8 MiB in memory.
const AT_ONCE: usize = 64;
/// Those of one account.
const AT_ONCE_EACH: usize = 8;
/// How long an upload waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(10);
/// How long every upload may take, and beside it a second for so many bytes.
const TIME_LEAST: Duration = Duration::from_mins(1);
const BYTES_PER_SECOND: u64 = 64 << 10;

/// The places of one process. Clones share them.
#[derive(Debug, Clone)]
pub struct Uploads {
    all: Arc<Semaphore>,
    each: Arc<Mutex<BTreeMap<AccountId, Weak<Semaphore>>>>,
    time_least: Duration,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _of_account: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
    time_least: Duration,
}

impl Default for Uploads {
    fn default() -> Self {
        Self::within(TIME_LEAST)
    }
}

impl Uploads {
    /// Uploads that may take so long, and longer where they are large.
    #[must_use]
    pub fn within(time_least: Duration) -> Self {
        Self {
            all: Arc::new(Semaphore::new(AT_ONCE)),
            each: Arc::default(),
            time_least,
        }
    }

    /// Waits for a place: first for one of the account's, so that whoever has many waiting takes none from others.
    pub(crate) async fn begin(&self, account: AccountId) -> Result<Place, Problem> {
        let places = async {
            let of_account = self.of(account).acquire_owned().await.ok()?;
            let of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
            Some((of_account, of_all))
        };
        let Ok(Some((of_account, of_all))) = timeout(TURN_WAIT, places).await else {
            return Err(Problem::unavailable("Too many uploads at once"));
        };
        Ok(Place {
            _of_account: of_account,
            _of_all: of_all,
            time_least: self.time_least,
        })
    }

    /// The account's places, which are forgotten with the last of its uploads.
    fn of(&self, account: AccountId) -> Arc<Semaphore> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = each.get(&account).and_then(Weak::upgrade) {
            return places;
        }
        each.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(AT_ONCE_EACH));
        each.insert(account, Arc::downgrade(&places));
        places
    }
}

impl Place {
    /// Takes a body of at most so many bytes, and gives the place back.
    ///
    /// # Errors
    /// 408 where it takes too long; nothing of it remains.
    pub(crate) async fn take<T>(
        self,
        bytes: u64,
        upload: impl Future<Output = T>,
    ) -> Result<T, Problem> {
        let by_size = Duration::from_secs(bytes / BYTES_PER_SECOND);
        let limit = self.time_least.saturating_add(by_size);
        timeout(limit, upload).await.map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "The body took too long to arrive",
            )
        })
    }
}
