//! What happens between `publish` and `ready`: every file is read back, its digest compared, and its format read in a child. One checker has a
//! version at a time, by a lease on the database's clock; another one takes over where it dies.

use std::{sync::Arc, time::Duration as Wait};

use comptoir_checker::{CheckError, Verdict};
use comptoir_domain::{
    dataset::{self, Facts, VERSION_FACTS_BYTES_MAX},
    digest::Sha256,
    id::DatasetFileId,
};
use comptoir_store::{
    data_keys::KeyError,
    dataset_checks::{self, Lease},
    dataset_files::{self, File},
    dataset_versions::{self, Refusal, Version},
    objects::ReadPartError,
};
use futures::{FutureExt as _, TryStreamExt as _};
use sha2::Digest as _;
use time::Duration;

use crate::{AppState, metrics::DATASET_CHECKS, sealed::SealedFile};

/// How long a version is a checker's without a sign of life; also how long it waits after a check that could not be done.
pub const LEASE: Duration = Duration::minutes(2);
/// How often a checker gives one.
const RENEW_EVERY: Wait = Wait::from_secs(30);
/// How often whoever reads a file may end without a word, before it is refused.
const FAILURES_MAX: u16 = 5;
/// Refusals that are told of one version.
const REFUSALS_MAX: usize = 100;

/// Why a version was not checked. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum CheckStepError {
    /// A key does not open.
    #[error("open a version")]
    Key(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The object store does not answer.
    #[error("read a version")]
    Read(#[from] ReadPartError),
    /// No child can be started.
    #[error("check a file")]
    Child(#[from] CheckError),
    /// Postgres failed.
    #[error("check a version")]
    Database(#[from] sqlx::Error),
}

impl From<KeyError> for CheckStepError {
    fn from(error: KeyError) -> Self {
        Self::Key(error.into())
    }
}

/// What was found in a version.
enum Found {
    /// All files are what they say they are.
    Good(Vec<(File, Option<Facts>)>),
    /// Some are not.
    Bad(Vec<Refusal>),
}

/// Checks the version that waits longest; false where none waits.
///
/// # Errors
/// When something is not reached that is needed: the version waits for the next try.
pub async fn step(state: &AppState) -> Result<bool, CheckStepError> {
    let lease = dataset_checks::take(&mut *state.db.acquire().await?, LEASE).await?;
    let Some(lease) = lease else {
        return Ok(false);
    };
    let found = tokio::select! {
        found = judge(state, &lease) => found,
        () = keep(state, &lease) => Ok(None),
    };
    if let Err(CheckStepError::Child(CheckError::Failed)) = found {
        dataset_checks::fail(&mut *state.db.acquire().await?, &lease).await?;
    }
    let found = found?;
    let is_done = match found {
        Some(found) => conclude(state, &lease, found).await?,
        None => false,
    };
    if !is_done {
        tracing::info!(version.id = %lease.version, "a version is checked by somebody else");
    }
    Ok(true)
}

/// Gives signs of life until the version is somebody else's. A database that does not answer once or twice ends nothing: the lease does.
async fn keep(state: &AppState, lease: &Lease) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        match renew(state, lease).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(version.id = %lease.version, %error, "a lease is not renewed");
            }
        }
    }
}

async fn renew(state: &AppState, lease: &Lease) -> sqlx::Result<bool> {
    dataset_checks::renew(&mut *state.db.acquire().await?, lease, LEASE).await
}

/// Reads all files of a version; `None` where it is gone.
async fn judge(state: &AppState, lease: &Lease) -> Result<Option<Found>, CheckStepError> {
    let mut connection = state.db.acquire().await?;
    let place = (lease.dataset, lease.version);
    let version = dataset_versions::find(&mut connection, lease.account, place).await?;
    let Some(version) = version else {
        return Ok(None);
    };
    let files = dataset_files::all(&mut connection, version.id).await?;
    drop(connection);
    let (mut good, mut bad, mut facts_bytes) = (Vec::new(), Vec::new(), 0_usize);
    for file in files {
        let path = file.entry.path.to_string();
        let judged = match judge_file(state, &version, file.clone()).await {
            Err(CheckStepError::Child(CheckError::Failed)) if lease.failures >= FAILURES_MAX => {
                Verdict::Refused("whoever reads it ends without a word".to_owned())
            }
            judged => judged?,
        };
        let refused = match judged {
            Verdict::Accepted(facts) => {
                facts_bytes = facts_bytes.saturating_add(facts.as_ref().map_or(0, Facts::bytes));
                good.push((file, facts));
                let reason = || {
                    format!(
                        "with it, what the columns of all files are called takes more than {VERSION_FACTS_BYTES_MAX} bytes"
                    )
                };
                (facts_bytes > VERSION_FACTS_BYTES_MAX).then(reason)
            }
            Verdict::Refused(reason) => Some(reason),
        };
        bad.extend(refused.map(|reason| Refusal { path, reason }));
        if bad.len() >= REFUSALS_MAX {
            break;
        }
    }
    Ok(Some(if bad.is_empty() {
        Found::Good(good)
    } else {
        Found::Bad(bad)
    }))
}

async fn judge_file(
    state: &AppState,
    version: &Version,
    file: File,
) -> Result<Verdict, CheckStepError> {
    let file = Arc::new(SealedFile::open(state, version, file).await?);
    let entry = &file.file().entry;
    let actual = match digest(&file).await {
        Ok(actual) => actual,
        // It was never read by anybody: whoever publishes it has it still.
        Err(error) if error.is_damage() => {
            return Ok(Verdict::Refused(
                "its bytes were damaged after they were uploaded; publish it again".to_owned(),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    if actual != entry.sha256 {
        return Ok(Verdict::Refused(format!(
            "its bytes have the digest {actual}"
        )));
    }
    let read = |at: u64, count: u32| {
        let file = Arc::clone(&file);
        async move { file.read(at..at.saturating_add(u64::from(count))).await }.boxed()
    };
    Ok(state.checker.check(entry.format, entry.bytes, read).await?)
}

async fn digest(file: &Arc<SealedFile>) -> Result<Sha256, ReadPartError> {
    let mut hash = sha2::Sha256::new();
    let mut bytes = std::pin::pin!(Arc::clone(file).stream(0..file.file().entry.bytes));
    while let Some(piece) = bytes.try_next().await? {
        hash.update(&piece);
    }
    Ok(Sha256(hash.finalize().into()))
}

/// Says what was found; false where the version is somebody else's by now.
async fn conclude(state: &AppState, lease: &Lease, found: Found) -> Result<bool, CheckStepError> {
    let mut tx = state.db.begin().await?;
    let (is_done, outcome) = match found {
        Found::Good(files) => {
            let entries: Vec<_> = files
                .iter()
                .map(|(file, facts)| dataset::ManifestFile {
                    facts: facts.clone(),
                    ..file.entry.clone()
                })
                .collect();
            let root = dataset::root(&entries);
            let facts: Vec<(DatasetFileId, Facts)> = files
                .into_iter()
                .filter_map(|(file, facts)| Some((file.id, facts?)))
                .collect();
            let done = dataset_checks::accept(&mut tx, lease, root, &facts, state.now()).await?;
            (done, "ready")
        }
        Found::Bad(refusals) => (
            dataset_checks::refuse(&mut tx, lease, &refusals).await?,
            "refused",
        ),
    };
    if !is_done {
        tx.rollback().await?;
        return Ok(false);
    }
    tx.commit().await?;
    metrics::counter!(DATASET_CHECKS, "outcome" => outcome).increment(1);
    tracing::info!(version.id = %lease.version, outcome, "a version was checked");
    Ok(true)
}
