//! Can what is sold be served? Looked at before anybody pays: the manifest is computed again and compared with the version's root, and of each file
//! the beginning is opened with the version's key, which finds what is missing, cut or sealed with another one.

use comptoir_domain::{
    dataset,
    id::{DatasetId, DatasetVersionId},
};
use comptoir_store::{
    PgTransaction,
    dataset_files::{self, File},
    dataset_versions::{self, Version},
    tenant,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use time::{Duration, OffsetDateTime};

use crate::{AppState, Problem, facts::Facts, metrics::DATASETS_UNAVAILABLE, sealed::SealedFile};

/// Bytes of each file that are opened: one chunk.
const LOOKED_AT: u64 = 65_536;
/// Files of which the beginning is opened; of a version with more, these are spread over it.
const FILES_LOOKED_AT: usize = 64;
/// Files that are looked at at the same time.
const AT_ONCE: usize = 8;
/// How long a version that could be served is believed to be.
const BELIEVED_FOR: Duration = Duration::minutes(1);
/// After how many seconds it is worth trying again.
const RETRY_AFTER_SECONDS: u32 = 60;

/// Refuses to sell what cannot be served: the version, or the newest one of the dataset where none is named. The transaction, which decided who may
/// know of it, ends before the objects are read.
///
/// # Errors
/// 409 where nothing of the dataset is ready, 503 where it is and cannot be read.
pub(crate) async fn require(
    state: &AppState,
    mut tx: PgTransaction<'static>,
    (dataset, version): (DatasetId, Option<DatasetVersionId>),
) -> Result<(), Problem> {
    tenant::widen(&mut tx).await?;
    let ready = dataset_versions::newest_ready(&mut tx, dataset, version).await?;
    let Some(version) = ready else {
        return Err(nothing_ready());
    };
    let (facts, now) = (&state.submissions.facts, state.now());
    if is_believed(facts, version.id, now) {
        return Ok(());
    }
    let files = dataset_files::all(&mut tx, version.id).await?;
    tx.rollback().await?;
    if let Err(error) = look(state, &version, files).await {
        metrics::counter!(DATASETS_UNAVAILABLE).increment(1);
        tracing::error!(version.id = %version.id, %error, "a version that is on sale cannot be served");
        return Err(unavailable());
    }
    facts.available.put(version.id, now);
    Ok(())
}

/// Was it seen a moment ago that the version can be served?
pub(crate) fn is_believed(facts: &Facts, version: DatasetVersionId, now: OffsetDateTime) -> bool {
    let seen = facts.available.get(&version);
    seen.is_some_and(|at| now - at < BELIEVED_FOR)
}

/// What is told where nothing of a dataset can be sold.
pub(crate) fn nothing_ready() -> Problem {
    Problem::new(
        axum::http::StatusCode::CONFLICT,
        "nothing_ready",
        "No version of the dataset is ready",
    )
}

/// What is told where bytes that are on sale cannot be read.
pub(crate) fn unavailable() -> Problem {
    Problem::new(
        axum::http::StatusCode::SERVICE_UNAVAILABLE,
        "dataset_unavailable",
        "The dataset cannot be served now, so it is not sold",
    )
    .retry_after(RETRY_AFTER_SECONDS)
}

#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error("its files are not those of its manifest")]
    Manifest,
    #[error("{0}")]
    Read(#[from] comptoir_store::objects::ReadPartError),
    #[error("{0}")]
    Key(#[from] comptoir_store::data_keys::KeyError),
}

async fn look(state: &AppState, version: &Version, files: Vec<File>) -> Result<(), Unavailable> {
    let entries: Vec<_> = files.iter().map(|file| file.entry.clone()).collect();
    if version.manifest_root != Some(dataset::root(&entries)) {
        return Err(Unavailable::Manifest);
    }
    let step = files.len().div_ceil(FILES_LOOKED_AT).max(1);
    stream::iter(files.into_iter().step_by(step))
        .map(|file| async move {
            let end = file.entry.bytes.min(LOOKED_AT);
            let file = SealedFile::open(state, version, file).await?;
            file.read(0..end).await?;
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}
