//! Blobs that were fetched before, up to a number of bytes; the longest unused goes first.
//!
//! A job gets a copy, never the kept file itself, and the copy is checked against its digest again.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use comptoir_domain::digest::Sha256;
use sha2::Digest as _;

/// What is kept unless told otherwise, in bytes.
pub const CACHE_BYTES: u64 = 10 << 30;
const BUFFER_BYTES: usize = 1 << 18;

/// Kept blobs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    limit: u64,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    kept: HashMap<Sha256, Kept>,
    bytes: u64,
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    bytes: u64,
    /// Which use of the cache was the last of this blob.
    used: u64,
}

impl Index {
    fn touch(&mut self, sha256: Sha256) {
        self.uses += 1;
        if let Some(kept) = self.kept.get_mut(&sha256) {
            kept.used = self.uses;
        }
    }

    fn insert(&mut self, sha256: Sha256, bytes: u64) {
        self.forget(sha256);
        self.bytes += bytes;
        self.kept.insert(sha256, Kept { bytes, used: 0 });
        self.touch(sha256);
    }

    fn forget(&mut self, sha256: Sha256) {
        if let Some(kept) = self.kept.remove(&sha256) {
            self.bytes -= kept.bytes;
        }
    }

    fn oldest(&self) -> Option<Sha256> {
        self.kept
            .iter()
            .min_by_key(|(_, kept)| kept.used)
            .map(|(sha256, _)| *sha256)
    }
}

impl Cache {
    /// Opens a folder of blobs; what is in it and is none goes.
    pub fn open(folder: PathBuf, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let digest = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<Sha256>().ok());
            match digest.filter(|_| metadata.is_file()) {
                Some(sha256) => found.push((metadata.modified()?, sha256, metadata.len())),
                None if metadata.is_dir() => fs::remove_dir_all(entry.path())?,
                None => fs::remove_file(entry.path())?,
            }
        }
        found.sort_unstable();
        let mut index = Index::default();
        for (_, sha256, bytes) in found {
            index.insert(sha256, bytes);
        }
        let inner = Inner {
            folder,
            limit,
            index: Mutex::new(index),
        };
        inner.make_room(&mut inner.lock(), 0)?;
        Ok(Self(Arc::new(inner)))
    }

    /// Copies a blob to a place, if it is kept. It takes a while: not for a thread that others wait on.
    pub fn take(&self, sha256: Sha256, to: &Path) -> io::Result<bool> {
        let from = self.0.path(sha256);
        if !self.0.lock().kept.contains_key(&sha256) {
            return Ok(false);
        }
        let Ok(file) = File::open(&from) else {
            self.0.lock().forget(sha256);
            return Ok(false);
        };
        let mut hashed = Hashed::new(File::create(to)?);
        copy(&file, &mut hashed)?;
        if hashed.finish().0 != sha256 {
            tracing::warn!(%sha256, "a kept blob was damaged on disk; it is fetched again");
            self.0.lock().forget(sha256);
            fs::remove_file(&from)?;
            return Ok(false);
        }
        self.0.lock().touch(sha256);
        // The order survives a restart.
        file.set_modified(SystemTime::now())?;
        Ok(true)
    }

    /// Keeps a copy of a blob whose digest was checked.
    pub fn keep(&self, sha256: Sha256, from: &Path) -> io::Result<()> {
        let bytes = fs::metadata(from)?.len();
        if bytes > self.0.limit {
            return Ok(());
        }
        let copied = tempfile::NamedTempFile::new_in(&self.0.folder)?;
        fs::copy(from, copied.path())?;
        let mut index = self.0.lock();
        self.0.make_room(&mut index, bytes)?;
        copied.persist(self.0.path(sha256))?;
        index.insert(sha256, bytes);
        Ok(())
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, sha256: Sha256) -> PathBuf {
        self.folder.join(sha256.to_string())
    }

    fn make_room(&self, index: &mut Index, bytes: u64) -> io::Result<()> {
        while index.bytes.saturating_add(bytes) > self.limit
            && let Some(oldest) = index.oldest()
        {
            index.forget(oldest);
            match fs::remove_file(self.path(oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read])?,
        }
    }
}

/// A writer that knows the digest and the number of what was written.
#[derive(Debug)]
pub struct Hashed<W> {
    inner: W,
    digest: sha2::Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    /// Nothing was written yet.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            digest: sha2::Sha256::new(),
            bytes: 0,
        }
    }

    /// How many bytes were written.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest of all bytes, and the writer.
    pub fn finish(self) -> (Sha256, W) {
        (Sha256(self.digest.finalize().into()), self.inner)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        root: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                root: tempfile::tempdir().unwrap(),
            }
        }

        fn cache(&self, limit: u64) -> Cache {
            Cache::open(self.root.path().join("blobs"), limit).unwrap()
        }

        fn keep(&self, cache: &Cache, bytes: &[u8]) -> Sha256 {
            let from = self.root.path().join("from");
            fs::write(&from, bytes).unwrap();
            cache.keep(Sha256::of(bytes), &from).unwrap();
            Sha256::of(bytes)
        }

        fn take(&self, cache: &Cache, sha256: Sha256) -> Option<Vec<u8>> {
            let to = self.root.path().join("to");
            cache
                .take(sha256, &to)
                .unwrap()
                .then(|| fs::read(to).unwrap())
        }
    }

    #[test]
    fn the_longest_unused_blob_goes_first_also_after_a_restart() {
        let bench = Bench::new();
        let cache = bench.cache(10);
        let [a, b] = [bench.keep(&cache, b"aaaa"), bench.keep(&cache, b"bbbb")];
        assert!(bench.take(&cache, a).is_some());
        let c = bench.keep(&cache, b"cccc");
        assert!(bench.take(&cache, b).is_none());
        assert_eq!(bench.take(&cache, c).unwrap(), b"cccc");
        assert_eq!(bench.take(&cache, a).unwrap(), b"aaaa");
        let smaller = bench.cache(5);
        assert!(bench.take(&smaller, c).is_none());
        assert_eq!(bench.take(&smaller, a).unwrap(), b"aaaa");
    }

    #[test]
    fn a_damaged_blob_is_not_handed_out() {
        let bench = Bench::new();
        let cache = bench.cache(10);
        let a = bench.keep(&cache, b"aaaa");
        fs::write(bench.root.path().join("blobs").join(a.to_string()), b"aaab").unwrap();
        assert_eq!(bench.take(&cache, a), None);
        bench.keep(&cache, b"aaaa");
        assert_eq!(bench.take(&cache, a).unwrap(), b"aaaa");
    }

    #[test]
    fn a_job_cannot_change_what_is_kept() {
        let bench = Bench::new();
        let cache = bench.cache(10);
        let a = bench.keep(&cache, b"aaaa");
        assert!(bench.take(&cache, a).is_some());
        fs::write(bench.root.path().join("to"), b"evil").unwrap();
        assert_eq!(bench.take(&cache, a).unwrap(), b"aaaa");
    }

    #[test]
    fn a_blob_over_the_limit_and_a_stray_file_are_not_kept() {
        let bench = Bench::new();
        let cache = bench.cache(3);
        let a = bench.keep(&cache, b"aaaa");
        assert!(bench.take(&cache, a).is_none());
        let stray = bench.root.path().join("blobs/.tmp1");
        fs::write(&stray, b"x").unwrap();
        bench.cache(3);
        assert!(!stray.exists());
    }
}
