//! A worker's folder: who it is, its key, the blobs it keeps, and scratch space for jobs.

use std::{
    env, fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use comptoir_domain::{digest::Sha256, id::WorkerId};
use comptoir_wire::join::WorkerFacts;
use serde::{Deserialize, Serialize};
use url::Url;

/// Longest identity file, in bytes.
const IDENTITY_BYTES_MAX: u64 = 1 << 16;
const IDENTITY: &str = "identity.json";
const KEY: &str = "key.pk8";
const LOCK: &str = "lock";

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is nowhere to put it.
    #[error("there is no home folder; name a folder with --folder")]
    NoHome,
    /// Another process holds the lock.
    #[error("another worker runs in {}; give each worker a folder of its own", .0.display())]
    InUse(PathBuf),
    /// `join` has already been here.
    #[error(
        "{} already holds the identity of a worker; join from another folder (--folder)",
        .0.display()
    )]
    Taken(PathBuf),
    /// `join` has not been here.
    #[error("{} holds no identity; run `comptoir-worker join` first", .0.display())]
    NotJoined(PathBuf),
    /// A file is not what it must be.
    #[error("{}: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk refused.
    #[error("{}: {source}", path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Who a worker is, as `join` left it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its id.
    pub worker_id: WorkerId,
    /// The server that it joined.
    pub url: Url,
    /// The fingerprint of a key of that server's at that time.
    pub server: Sha256,
    /// What its owner calls it.
    pub name: String,
    /// What it said that it can run.
    pub facts: WorkerFacts,
}

/// The worker's Ed25519 key.
pub struct Key(Ed25519KeyPair);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

impl Key {
    /// A fresh key.
    #[must_use]
    pub fn generate() -> Self {
        Self(Ed25519KeyPair::generate().expect("the operating system gives random bytes"))
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.0
            .public_key()
            .as_ref()
            .try_into()
            .expect("an Ed25519 public key has 32 bytes")
    }

    /// A signature.
    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0
            .sign(bytes)
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature has 64 bytes")
    }
}

/// The folder that is used when none is named.
pub fn default_folder() -> Result<PathBuf, FolderError> {
    let folder = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|it| it.is_absolute())
    };
    let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
    data.map(|data| data.join("comptoir-worker"))
        .ok_or(FolderError::NoHome)
}

/// A folder that this process alone uses, as long as it lives.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// Held until it is dropped, or the process ends in whatever way.
    _lock: fs::File,
}

impl Folder {
    /// Takes a folder, which is made if it is not there.
    pub fn open(root: &Path) -> Result<Self, FolderError> {
        let disk = |source| FolderError::Disk {
            path: root.to_owned(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(disk)?;
        let root = root.canonicalize().map_err(disk)?;
        let lock = root.join(LOCK);
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock)
            .map_err(|source| FolderError::Disk { path: lock, source })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(FolderError::InUse(root)),
            Err(fs::TryLockError::Error(source)) => Err(FolderError::Disk { path: root, source }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where blobs are kept.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Refuses a folder in which a worker has joined.
    pub fn ensure_not_joined(&self) -> Result<(), FolderError> {
        if self.root.join(IDENTITY).exists() {
            Err(FolderError::Taken(self.root.clone()))
        } else {
            Ok(())
        }
    }

    /// The key, which is made if it is not there. The key of a `join` that did not end is used again, so that the
    /// server takes the second try for a repetition of the first.
    pub fn make_key(&self) -> Result<Key, FolderError> {
        match self.key() {
            Err(FolderError::Disk { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let key = Key::generate();
        let document = key
            .0
            .to_pkcs8v1()
            .expect("a generated key can be written down");
        self.write(KEY, document.as_ref())?;
        Ok(key)
    }

    /// The key.
    pub fn key(&self) -> Result<Key, FolderError> {
        let path = self.root.join(KEY);
        let document = match fs::read(&path) {
            Ok(document) => document,
            Err(source) => return Err(FolderError::Disk { path, source }),
        };
        let key = Ed25519KeyPair::from_pkcs8(&document);
        key.map(Key).map_err(|error| FolderError::Broken {
            path,
            reason: format!("not a key: {error}"),
        })
    }

    /// Writes down who the worker is, once and for all.
    pub fn keep_identity(&self, identity: &Identity) -> Result<(), FolderError> {
        self.ensure_not_joined()?;
        let mut text = serde_json::to_vec_pretty(identity).expect("an identity has a JSON form");
        text.push(b'\n');
        self.write(IDENTITY, &text)
    }

    /// A file that only this user reads, there whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
        let path = self.root.join(name);
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.root)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist_noclobber(&path)?;
            fs::File::open(&self.root)?.sync_all()
        };
        write().map_err(|source| FolderError::Disk {
            path: path.clone(),
            source,
        })
    }

    /// A fresh folder for jobs; what a worker before this one left there is wiped.
    pub fn open_scratch(&self) -> Result<PathBuf, FolderError> {
        let path = self.root.join("scratch");
        let open = || -> io::Result<()> {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::DirBuilder::new().mode(0o700).create(&path)
        };
        open().map_err(|source| FolderError::Disk {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }
}

/// Who the worker of a folder is; the folder may be in use.
pub fn read_identity(root: &Path) -> Result<Identity, FolderError> {
    let path = root.join(IDENTITY);
    let broken = |reason: String| FolderError::Broken {
        path: path.clone(),
        reason,
    };
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(FolderError::NotJoined(root.to_owned()));
        }
        Err(source) => return Err(FolderError::Disk { path, source }),
    };
    if length > IDENTITY_BYTES_MAX {
        return Err(broken(format!(
            "{length} bytes are too many for an identity"
        )));
    }
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(FolderError::Disk { path, source }),
    };
    serde_json::from_slice(&text).map_err(|error| broken(format!("not an identity: {error}")))
}

/// The scratch folder of one attempt; what is in it goes with it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it.
    pub fn make(path: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a scratch folder stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use comptoir_domain::{amount::Amount, job::Device};

    use super::*;

    fn identity() -> Identity {
        Identity {
            worker_id: WorkerId::generate(),
            url: "http://127.0.0.1:1/".parse().unwrap(),
            server: Sha256::of(b"keys"),
            name: "bench".to_owned(),
            facts: WorkerFacts {
                device: Device::Cpu,
                device_name: "x".to_owned(),
                memory_bytes: 1,
                threads: 1,
                numeric_class: "c".to_owned(),
                libtorch: "2.13.0".to_owned(),
                version: "0.1.0".to_owned(),
                price_floor_nano: Amount::ZERO,
                unsandboxed: false,
            },
        }
    }

    #[test]
    fn an_identity_is_written_once_and_read_back() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        assert!(matches!(
            read_identity(root.path()),
            Err(FolderError::NotJoined(_))
        ));
        let first = identity();
        folder.keep_identity(&first).unwrap();
        assert!(matches!(
            folder.keep_identity(&identity()),
            Err(FolderError::Taken(_))
        ));
        assert_eq!(read_identity(root.path()).unwrap(), first);
        fs::write(root.path().join(IDENTITY), b"{}").unwrap();
        assert!(matches!(
            read_identity(root.path()),
            Err(FolderError::Broken { .. })
        ));
    }

    #[test]
    fn a_key_is_made_once_and_only_its_user_reads_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let public = folder.make_key().unwrap().public();
        assert_eq!(folder.make_key().unwrap().public(), public);
        assert_eq!(folder.key().unwrap().public(), public);
        let mode = fs::metadata(root.path().join(KEY))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn one_process_has_a_folder_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        assert!(matches!(
            Folder::open(root.path()),
            Err(FolderError::InUse(_))
        ));
        drop(folder);
        Folder::open(root.path()).unwrap();
    }

    #[test]
    fn scratch_starts_empty_and_goes_with_its_attempt() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let scratch = folder.open_scratch().unwrap();
        fs::write(scratch.join("left"), b"x").unwrap();
        let scratch = folder.open_scratch().unwrap();
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
        let of_attempt = Scratch::make(scratch.join("att")).unwrap();
        fs::write(of_attempt.path().join("blob"), b"x").unwrap();
        drop(of_attempt);
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    }
}
