//! What is left of versions whose keys are gone, drafts that nobody touches any more, and sellers' keys that an older root key wraps.

use comptoir_store::{dataset_versions, tenant_keys};
use time::Duration;

use crate::{AppState, steps::StepError};

/// How long a draft, or a version that was refused, is kept without being touched.
pub const UNTOUCHED_FOR: Duration = Duration::days(7);
/// Versions, and keys, of one step.
const AT_ONCE: i64 = 50;
/// How long a key that did not open waits until it is tried again.
const TRY_KEY_EVERY: Duration = Duration::HOUR;
/// Objects of one version that one step removes.
const OBJECTS_AT_ONCE: usize = 500;

/// Shreds what was forgotten.
pub(crate) async fn shred_forgotten(state: &AppState) -> Result<usize, StepError> {
    let now = state.now();
    let since = now.saturating_sub(UNTOUCHED_FOR);
    let mut connection = state.db.acquire().await?;
    let shredded = dataset_versions::shred_forgotten(&mut connection, since, now, AT_ONCE).await?;
    if shredded > 0 {
        tracing::info!(shredded, "versions that nobody published are shredded");
    }
    Ok(usize::try_from(shredded).unwrap_or(usize::MAX))
}

/// Removes objects that nobody can read any more.
pub(crate) async fn remove_objects(state: &AppState) -> Result<usize, StepError> {
    let found = dataset_versions::to_remove(&mut *state.db.acquire().await?, AT_ONCE).await?;
    let mut done = 0_usize;
    for version in found {
        let removed = state.objects.remove_version(version, OBJECTS_AT_ONCE).await;
        let removed = match removed {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(version.id = %version, %error, "objects of a shredded version are not removed yet");
                continue;
            }
        };
        done = done.saturating_add(removed).saturating_add(1);
        if removed < OBJECTS_AT_ONCE {
            let mut tx = state.db.begin().await?;
            dataset_versions::removed(&mut tx, version, state.now()).await?;
            tx.commit().await?;
            tracing::info!(version.id = %version, "a version is shredded, and its objects are removed");
        }
    }
    Ok(done)
}

/// Wraps keys with the root key in use. Files stay as they are.
pub(crate) async fn rewrap(state: &AppState) -> Result<usize, StepError> {
    let roots = state.root_keys.now();
    let mut connection = state.db.acquire().await?;
    let since = state.now().saturating_sub(TRY_KEY_EVERY);
    let found =
        tenant_keys::wrapped_otherwise(&mut connection, roots.current(), since, AT_ONCE).await?;
    let mut done = 0_usize;
    for (account, old) in found {
        match roots.open(account, &old) {
            Ok(key) => {
                let new = roots.wrap(account, &key);
                tenant_keys::rewrap(&mut connection, account, &old, &new).await?;
                done = done.saturating_add(1);
            }
            Err(error) => {
                tracing::error!(account.id = %account, %error, "the key of a seller does not open");
                tenant_keys::fail(&mut connection, account, state.now()).await?;
            }
        }
    }
    if done > 0 {
        tracing::info!(done, "keys of sellers are wrapped with the root key in use");
    }
    Ok(done)
}
