//! Usage events that wait are committed together, before their calls are answered.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use axum::http::StatusCode;
use comptoir_domain::id::ReceiptId;
use comptoir_store::{
    group::Group,
    pool,
    usage::{self, Recorded, UsageEvent},
};
use sqlx::PgPool;

use crate::{AppState, Problem};

/// Commits usage events in groups. Clones share the queue, which starts with the first call.
#[derive(Clone, Default)]
pub(super) struct Recorder(Arc<OnceLock<Group<UsageEvent, Outcome>>>);

/// One error is that of a whole group.
type Outcome = Result<Recorded, Arc<sqlx::Error>>;

impl Recorder {
    /// Commits that a call was answered. The receipt is that which its window has once it is charged; a free call has none.
    ///
    /// # Errors
    /// When its allowance was closed meanwhile, or it is not known whether it was committed.
    pub(super) async fn record(
        &self,
        state: &AppState,
        event: UsageEvent,
    ) -> Result<Option<ReceiptId>, Problem> {
        let group = self.0.get_or_init(|| {
            let db = pool::for_groups(&state.db, 1);
            Group::start(move |events| {
                let db = db.clone();
                Box::pin(async move { commit(&db, events).await })
            })
        });
        let recorded = group.ask(event).await;
        let recorded = recorded.map_err(|error| Problem::ungrouped(&error, error.is_full()))?;
        match recorded {
            Ok(Recorded::In(window)) => Ok(Some(window.receipt())),
            Ok(Recorded::Free) => Ok(None),
            Ok(Recorded::Refused) => Err(closed()),
            Err(error) => Err(Problem::internal(error.as_ref())),
        }
    }
}

/// All of a group or none: events do not depend on each other, so that nothing but Postgres itself can fail.
async fn commit(db: &PgPool, events: Vec<UsageEvent>) -> Vec<Outcome> {
    let writing = async {
        let mut tx = db.begin().await?;
        let recorded = usage::record(&mut tx, &events).await?;
        tx.commit().await?;
        Ok(recorded)
    };
    match writing.await {
        Ok(recorded) => recorded.into_iter().map(Ok).collect(),
        Err(error) => {
            let error = Arc::new(error);
            events.iter().map(|_| Err(Arc::clone(&error))).collect()
        }
    }
}

/// This process was silent for so long that somebody else closed its allowances.
fn closed() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "allowance_closed",
        "What would pay for the call was closed meanwhile",
    )
    .detail("Nothing is charged")
    .retry_after(1)
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}
