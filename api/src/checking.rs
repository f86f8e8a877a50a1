//! What happens between `publish` and `ready`: every file is read back, its digest compared, and its format read in a child. One checker has a
//! version at a time, by a lease on the database's clock; another one takes over where it dies. What was found is noted file by file, so that a
//! version gives way to those of other accounts and goes on later.

use std::{
    sync::Arc,
    time::{Duration as Wait, Instant},
};

use comptoir_checker::{CheckError, Verdict};
use comptoir_domain::{
    dataset::{self, Facts, VERSION_FACTS_BYTES_MAX},
    digest::Sha256,
};
use comptoir_store::{
    data_keys::KeyError,
    dataset_checks::{self, Lease, Takes},
    dataset_files::{self, File},
    dataset_versions::{self, Refusal, Version},
    objects::ReadPartError,
};
use futures::{FutureExt as _, TryStreamExt as _};
use sha2::Digest as _;
use time::Duration;
use tokio::time::timeout;

use crate::{AppState, metrics::DATASET_CHECKS, sealed::SealedFile};

/// How long a version is a checker's without a sign of life; also how long it waits after a check that could not be done.
pub const LEASE: Duration = Duration::minutes(2);
/// How often a checker gives one.
const RENEW_EVERY: Wait = Wait::from_secs(30);
/// How often whoever reads a file may end without a word, before it is refused.
const FAILURES_MAX: u16 = 5;
/// Refusals that are told of one version.
const REFUSALS_MAX: u32 = 100;
/// Files of one version that are read before others have their turn,
const FILES_A_TURN: usize = 200;
/// and the time after which no further one is begun.
const TURN: Wait = Wait::from_secs(30);
/// Time that reading all files of a version may take, and beside it a second for so many bytes.
const VERSION_TIME_LEAST: Wait = Wait::from_mins(30);
const BYTES_PER_SECOND: u64 = 8 << 20;

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

/// How far a turn came.
enum Turn {
    /// Files are left.
    Unfinished,
    /// All files are what they say they are.
    Good,
    /// Some are not.
    Bad,
    /// The version is somebody else's by now.
    Lost,
}

/// Checks some files of the version whose turn it is among those that are taken; false where none waits.
///
/// # Errors
/// When something is not reached that is needed: the version waits for the next try.
pub async fn step(state: &AppState, takes: Takes) -> Result<bool, CheckStepError> {
    step_within(state, takes, TURN).await
}

/// The same, in turns of another length.
///
/// # Errors
/// As [`step`].
pub async fn step_within(
    state: &AppState,
    takes: Takes,
    turn: Wait,
) -> Result<bool, CheckStepError> {
    let lease = dataset_checks::take(&mut *state.db.acquire().await?, takes, LEASE).await?;
    let Some(lease) = lease else {
        return Ok(false);
    };
    let turn = tokio::select! {
        turn = take_turn(state, &lease, turn) => turn,
        () = keep(state, &lease) => Ok(Turn::Lost),
    };
    if let Err(CheckStepError::Child(CheckError::Failed)) = turn {
        dataset_checks::fail(&mut *state.db.acquire().await?, &lease).await?;
    }
    if !conclude(state, &lease, turn?).await? {
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

/// Reads files of a version until its turn is over, and notes what is found in each.
async fn take_turn(state: &AppState, lease: &Lease, within: Wait) -> Result<Turn, CheckStepError> {
    let mut connection = state.db.acquire().await?;
    let place = (lease.dataset, lease.version);
    let version = dataset_versions::find(&mut connection, lease.account, place).await?;
    let Some(version) = version else {
        return Ok(Turn::Lost);
    };
    let more = i64::try_from(FILES_A_TURN.saturating_add(1)).unwrap_or(i64::MAX);
    let files = dataset_files::unchecked(&mut connection, version.id, more).await?;
    drop(connection);
    let is_last = files.len() <= FILES_A_TURN;
    let mut refused = u32::try_from(version.refusals.len()).unwrap_or(u32::MAX);
    let (mut lease, begun) = (*lease, Instant::now());
    for (number, file) in files.into_iter().take(FILES_A_TURN).enumerate() {
        // A turn reads one file at least.
        if number > 0 && begun.elapsed() > within {
            return Ok(Turn::Unfinished);
        }
        let Some(noted) = judge(state, &mut lease, &version, file).await? else {
            return Ok(Turn::Lost);
        };
        refused = noted;
        let is_over = refused > 0 && lease.spent >= budget(&version);
        if is_over || refused >= REFUSALS_MAX {
            return Ok(Turn::Bad);
        }
    }
    Ok(match refused {
        _ if !is_last => Turn::Unfinished,
        0 => Turn::Good,
        _ => Turn::Bad,
    })
}

/// Time that all files of a version have together.
fn budget(version: &Version) -> Wait {
    VERSION_TIME_LEAST.saturating_add(Wait::from_secs(version.bytes / BYTES_PER_SECOND))
}

/// Reads a file in what is left of its version's time, and notes what was found; says how many were refused by now, `None` where the version is
/// somebody else's.
async fn judge(
    state: &AppState,
    lease: &mut Lease,
    version: &Version,
    file: File,
) -> Result<Option<u32>, CheckStepError> {
    let (id, path) = (file.id, file.entry.path.to_string());
    let (begun, budget) = (Instant::now(), budget(version));
    let left = budget.saturating_sub(lease.spent.unsigned_abs());
    let judged = match timeout(left, judge_file(state, version, file)).await {
        Err(_) => Verdict::Refused(format!(
            "checking all files of the version takes more than {} s",
            budget.as_secs()
        )),
        Ok(Err(CheckStepError::Child(CheckError::Failed))) if lease.failures >= FAILURES_MAX => {
            Verdict::Refused("whoever reads it ends without a word".to_owned())
        }
        Ok(judged) => judged?,
    };
    let spent = Duration::try_from(begun.elapsed()).unwrap_or(Duration::MAX);
    lease.spent = lease.spent.saturating_add(spent);
    let bytes = |facts: &Option<Facts>| facts.as_ref().map_or(0, Facts::bytes) as u64;
    let (facts, reason) = match judged {
        Verdict::Accepted(facts) => {
            lease.facts_bytes = lease.facts_bytes.saturating_add(bytes(&facts));
            if lease.facts_bytes > VERSION_FACTS_BYTES_MAX as u64 {
                let reason = format!(
                    "with it, what the columns of all files are called takes more than {VERSION_FACTS_BYTES_MAX} bytes"
                );
                (None, Some(reason))
            } else {
                (facts, None)
            }
        }
        Verdict::Refused(reason) => (None, Some(reason)),
    };
    let refusal = reason.map(|reason| Refusal { path, reason });
    let mut tx = state.db.begin().await?;
    let found = (facts.as_ref(), refusal.as_ref());
    let noted = dataset_checks::note(&mut tx, lease, id, found, spent).await?;
    tx.commit().await?;
    Ok(noted)
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

/// Says what was found, or leaves the version to its next turn; false where it is somebody else's by now.
async fn conclude(state: &AppState, lease: &Lease, turn: Turn) -> Result<bool, CheckStepError> {
    let mut tx = state.db.begin().await?;
    let (is_done, outcome) = match turn {
        Turn::Lost => (false, "lost"),
        Turn::Unfinished => {
            dataset_checks::give_way(&mut tx, lease).await?;
            tx.commit().await?;
            tracing::debug!(version.id = %lease.version, "a version gives way to others");
            return Ok(true);
        }
        Turn::Good => {
            let files = dataset_files::all(&mut tx, lease.version).await?;
            let entries: Vec<_> = files.into_iter().map(|file| file.entry).collect();
            let root = dataset::root(&entries);
            let done = dataset_checks::accept(&mut tx, lease, root, state.now()).await?;
            (done, "ready")
        }
        Turn::Bad => (dataset_checks::refuse(&mut tx, lease).await?, "refused"),
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
