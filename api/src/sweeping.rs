//! Removes what lies in the object store and nobody refers to.

use std::time::Duration as Wait;

use comptoir_store::{dataset_files, objects::StoreError};
use futures::TryStreamExt as _;
use time::Duration;

use crate::{AppState, metrics::STRAYS_REMOVED};

/// How old what nobody refers to must be: older than any upload may take.
pub const STRAY_AFTER: Duration = Duration::DAY;
/// How often all of the store is looked at.
const SWEEP_EVERY: Wait = Wait::from_hours(6);

/// Why the store was not swept.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The object store failed.
    #[error("list or remove objects")]
    Store(#[from] StoreError),
    /// Postgres failed.
    #[error("look up what objects are")]
    Database(#[from] sqlx::Error),
}

/// Sweeps for ever.
pub(crate) async fn run(state: AppState) {
    let mut every = tokio::time::interval(SWEEP_EVERY);
    loop {
        every.tick().await;
        if let Err(error) = sweep(&state).await {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "the object store is not swept; it is tried again");
        }
    }
}

/// Looks at all parts of datasets, and at uploads that never ended, and removes what is left over; says how much that was. What a blob is called
/// says what is in it, so those stay: whoever sends the same again has them.
///
/// # Errors
/// When the store or the database fails: what was removed until then is removed.
pub async fn sweep(state: &AppState) -> Result<usize, SweepError> {
    let then = state.now().saturating_sub(STRAY_AFTER);
    let mut parts = std::pin::pin!(state.objects.parts_before(then));
    let mut strays = 0_usize;
    while let Some(found) = parts.try_next().await? {
        let unknown = dataset_files::unknown_parts(&mut *state.db.acquire().await?, found).await?;
        for part in &unknown {
            state.objects.remove_stray(part).await?;
        }
        strays = strays.saturating_add(unknown.len());
    }
    let unfinished = state.objects.remove_unfinished(then).await?;
    for (kind, count) in [("part", strays), ("unfinished", unfinished)] {
        let counted = u64::try_from(count).unwrap_or(u64::MAX);
        metrics::counter!(STRAYS_REMOVED, "kind" => kind).increment(counted);
    }
    let removed = strays.saturating_add(unfinished);
    if removed > 0 {
        tracing::info!(
            strays,
            unfinished,
            "objects that nobody refers to are removed"
        );
    }
    Ok(removed)
}
