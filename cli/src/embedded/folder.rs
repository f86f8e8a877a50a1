//! The folder of one node: held by one process at a time, and never taken for ours when it is not.

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::{leftover, postgres};

/// Locked for as long as a node lives.
const LOCK: &str = "lock";
/// The first thing that a node makes in a new folder; with the lock it marks the folder as ours.
const KEYS: &str = "keys";
/// What we put into a folder, beside logs and process ids: all that a reset removes.
const OURS: [&str; 8] = [
    KEYS,
    "operator.env",
    "objects",
    "postgres",
    "postgres.password",
    "redis.password",
    "redis.conf",
    "chain.json",
];

/// A folder that is ours alone until this is dropped.
pub struct Folder {
    path: PathBuf,
    /// The system releases the lock when this is closed, however the process ends.
    _lock: File,
}

impl Folder {
    /// Takes a folder, and stops what an earlier process left running in it; with `reset` it is emptied.
    ///
    /// # Errors
    /// When another process holds it, it is to be reset and is not ours, or something in it cannot be stopped.
    pub async fn take(path: &Path, reset: bool) -> anyhow::Result<Self> {
        let path =
            std::path::absolute(path).with_context(|| format!("resolve {}", path.display()))?;
        if reset && !is_ours(&path)? {
            bail!(
                "{} was not made by `comptoir up`, so --reset does not remove what is in it",
                path.display()
            );
        }
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let lock = lock(&path)?;
        leftover::stop_all(&path).await?;
        if reset {
            empty(&path)?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// Where it is: an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(LOCK);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another `comptoir up` uses this folder: {}",
            folder.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// Whether a node made it, or nobody has put anything into it.
fn is_ours(folder: &Path) -> anyhow::Result<bool> {
    if folder.join(LOCK).is_file() && folder.join(KEYS).is_dir() {
        return Ok(true);
    }
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.all(|entry| entry.is_ok_and(|it| it.file_name() == LOCK))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("read {}", folder.display())),
    }
}

/// Removes what nodes keep. The marker goes last, so that an interrupted reset can be repeated.
fn empty(folder: &Path) -> anyhow::Result<()> {
    postgres::remove_cluster(folder)?;
    for name in OURS.iter().rev() {
        remove(&folder.join(name))?;
    }
    Ok(())
}

/// Removes a file or a folder, if it is there.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
