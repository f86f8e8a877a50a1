//! The object store: content-addressed bytes in a local folder or in S3. An object at its final place is
//! whole and has the digest that names it: it gets there in one step, after it was checked.

mod parts;
mod strays;

use std::{error::Error as StdError, io, ops::Range, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use comptoir_domain::digest::Sha256;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload,
    WriteMultipart, aws::AmazonS3Builder, local::LocalFileSystem, path::Path, prefix::PrefixStore,
};
use sha2::Digest as _;
use url::Url;
use uuid::Uuid;

pub use object_store::Error as StoreError;
pub use parts::{PutPartError, ReadPartError};
pub use strays::StoredPart;

/// Bytes of one part of a large upload. S3 wants at least 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Parts of one upload on their way at once.
const PARTS_IN_FLIGHT: usize = 2;

/// Bytes that a [`Reader`] fetches at once: after a jump, and at most. Each fetch that goes on where the last one ended
/// doubles them, so a parser that jumps through a file costs little and one that reads it through is fast.
const READ_AHEAD_BYTES: (u64, u64) = (16 << 10, 1 << 20);

/// A cause from outside, whatever its type.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The store of content-addressed bytes, and the folder where it is, if it is in one. Clones share it.
#[derive(Debug, Clone)]
pub struct Objects(Arc<dyn ObjectStore>, Option<Arc<PathBuf>>);

/// What a finished upload holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Digest of the bytes, and their name.
    pub sha256: Sha256,
    /// How many there are.
    pub bytes: u64,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither `file:` nor `s3:`.
    #[error("the object store must be a file: or s3: URL, not {0}:")]
    Scheme(String),
    /// A `file:` URL without an absolute path.
    #[error("the object store's file: URL has no absolute path")]
    Folder,
    /// The folder cannot be made.
    #[error("make the object store's folder")]
    Io(#[from] std::io::Error),
    /// The store's own refusal.
    #[error("open the object store")]
    Store(#[from] object_store::Error),
}

/// Why an upload was refused. Nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// More bytes than allowed.
    #[error("the object is larger than {limit} bytes")]
    TooLarge {
        /// The most that were allowed.
        limit: u64,
    },
    /// Other bytes than announced.
    #[error("the bytes have the digest {actual}")]
    DigestMismatch {
        /// What arrived.
        actual: Sha256,
    },
    /// The sender broke off.
    #[error("read the bytes to store")]
    Body(#[source] BoxError),
    /// The store failed.
    #[error("write to the object store")]
    Store(#[from] object_store::Error),
}

/// Why bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No such object.
    #[error("the object store has no object {0}")]
    Missing(Sha256),
    /// More bytes than the reader takes.
    #[error("object {sha256} is larger than {limit} bytes")]
    TooLarge {
        /// Which object.
        sha256: Sha256,
        /// The most that were allowed.
        limit: u64,
    },
    /// The bytes changed since they were stored.
    #[error("object {sha256} has the digest {actual}")]
    Corrupt {
        /// What was asked for.
        sha256: Sha256,
        /// What is there.
        actual: Sha256,
    },
    /// The store failed.
    #[error("read from the object store")]
    Store(#[source] object_store::Error),
}

impl Objects {
    /// Opens the store at a `file:///folder` or `s3://bucket/prefix` URL. Credentials of S3 come from the
    /// environment, as the AWS tools read them.
    pub fn open(url: &Url) -> Result<Self, OpenError> {
        match url.scheme() {
            "file" => {
                let folder = url.to_file_path().map_err(|()| OpenError::Folder)?;
                std::fs::create_dir_all(&folder)?;
                // The row that announces a blob is durable, so the blob must be.
                let store = LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true);
                Ok(Self(Arc::new(store), Some(Arc::new(folder))))
            }
            "s3" => {
                let bucket = AmazonS3Builder::from_env().with_url(url.as_str()).build()?;
                let prefix = Path::from_url_path(url.path()).map_err(object_store::Error::from)?;
                Ok(Self(Arc::new(PrefixStore::new(bucket, prefix)), None))
            }
            other => Err(OpenError::Scheme(other.to_owned())),
        }
    }

    /// Stores the bytes of `body` under their digest, hashing them as they pass. With `expected`, other bytes
    /// are refused. The same bytes may be stored again: nothing changes.
    pub async fn put_stream<S, E>(
        &self,
        body: S,
        limit: u64,
        expected: Option<Sha256>,
    ) -> Result<Stored, PutError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<BoxError>,
    {
        let mut body = Hashing::new(body, limit);
        let mut head = BytesMut::new();
        while head.len() < PART_BYTES {
            let Some(chunk) = body.next().await? else {
                let stored = body.finish(expected)?;
                let whole = PutPayload::from_bytes(head.freeze());
                self.0.put(&place(stored.sha256), whole).await?;
                return Ok(stored);
            };
            head.extend_from_slice(&chunk);
        }
        // A large body whose name is not known yet grows elsewhere and is moved.
        let target = expected.map_or_else(incoming, place);
        let mut upload = Upload::start(&*self.0, &target).await?;
        upload.put(head.freeze()).await?;
        while let Some(chunk) = body.next().await? {
            upload.put(chunk).await?;
        }
        let stored = body.finish(expected)?;
        upload.finish().await?;
        if expected.is_none() {
            self.0.rename(&target, &place(stored.sha256)).await?;
        }
        Ok(stored)
    }

    /// Stores bytes that are at hand.
    pub async fn put(&self, bytes: Bytes) -> Result<Stored, PutError> {
        let stored = Stored {
            sha256: Sha256::of(&bytes),
            bytes: bytes.len() as u64,
        };
        self.0
            .put(&place(stored.sha256), PutPayload::from_bytes(bytes))
            .await?;
        Ok(stored)
    }

    /// The bytes of a range, or all of them, as they are read.
    pub async fn stream(
        &self,
        sha256: Sha256,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, object_store::Error>>, GetError> {
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let found = self.0.get_opts(&place(sha256), options).await;
        Ok(found
            .map_err(|error| GetError::of(sha256, error))?
            .into_stream())
    }

    /// The bytes of a small range; fewer where the object ends before it does.
    pub async fn get_range(&self, sha256: Sha256, range: Range<u64>) -> Result<Bytes, GetError> {
        let found = self.0.get_range(&place(sha256), range).await;
        found.map_err(|error| GetError::of(sha256, error))
    }

    /// All bytes of an object of at most `limit`, checked against the digest again.
    pub async fn get_all(&self, sha256: Sha256, limit: u64) -> Result<Bytes, GetError> {
        let found = self
            .0
            .get(&place(sha256))
            .await
            .map_err(|error| GetError::of(sha256, error))?;
        if found.meta.size > limit {
            return Err(GetError::TooLarge { sha256, limit });
        }
        let capacity = usize::try_from(found.meta.size).unwrap_or_default();
        let mut bytes = BytesMut::with_capacity(capacity);
        let mut chunks = found.into_stream();
        let mut hash = sha2::Sha256::new();
        while let Some(chunk) = chunks.try_next().await.map_err(GetError::Store)? {
            hash.update(&chunk);
            bytes.extend_from_slice(&chunk);
        }
        let actual = Sha256(hash.finalize().into());
        if actual == sha256 {
            Ok(bytes.freeze())
        } else {
            Err(GetError::Corrupt { sha256, actual })
        }
    }

    /// Is the store reachable? Reads nothing that must exist.
    pub async fn check(&self) -> Result<(), GetError> {
        let nothing = Sha256([0; 32]);
        match self.0.head(&place(nothing)).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(GetError::Store(error)),
        }
    }
}

impl GetError {
    fn of(sha256: Sha256, error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::Missing(sha256),
            other => Self::Store(other),
        }
    }
}

/// Two levels of folders, so that no folder of a local store grows without bound.
fn place(sha256: Sha256) -> Path {
    let name = sha256.to_string();
    Path::from_iter(["blobs", &name[..2], &name[2..4], &name])
}

fn incoming() -> Path {
    Path::from_iter(["incoming".to_owned(), Uuid::new_v4().to_string()])
}

/// A body that counts and hashes what passes.
struct Hashing<S> {
    body: std::pin::Pin<Box<S>>,
    hash: sha2::Sha256,
    bytes: u64,
    limit: u64,
}

impl<S, E> Hashing<S>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Into<BoxError>,
{
    fn new(body: S, limit: u64) -> Self {
        Self {
            body: Box::pin(body),
            hash: sha2::Sha256::new(),
            bytes: 0,
            limit,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, PutError> {
        let Some(chunk) = self.body.next().await else {
            return Ok(None);
        };
        let chunk = chunk.map_err(|error| PutError::Body(error.into()))?;
        self.bytes = self.bytes.saturating_add(chunk.len() as u64);
        if self.bytes > self.limit {
            return Err(PutError::TooLarge { limit: self.limit });
        }
        self.hash.update(&chunk);
        Ok(Some(chunk))
    }

    fn finish(&mut self, expected: Option<Sha256>) -> Result<Stored, PutError> {
        let actual = Sha256(self.hash.finalize_reset().into());
        if expected.is_some_and(|expected| expected != actual) {
            return Err(PutError::DigestMismatch { actual });
        }
        Ok(Stored {
            sha256: actual,
            bytes: self.bytes,
        })
    }
}

/// A large upload. Dropped before `finish`, as when a client disconnects, it is taken back.
struct Upload(Option<WriteMultipart>);

impl Upload {
    async fn start(store: &dyn ObjectStore, target: &Path) -> Result<Self, PutError> {
        let parts: Box<dyn MultipartUpload> = store.put_multipart(target).await?;
        Ok(Self(Some(WriteMultipart::new_with_chunk_size(
            parts, PART_BYTES,
        ))))
    }

    async fn put(&mut self, chunk: Bytes) -> Result<(), PutError> {
        let parts = self.0.as_mut().expect("only `finish` takes it");
        parts.wait_for_capacity(PARTS_IN_FLIGHT).await?;
        parts.put(chunk);
        Ok(())
    }

    async fn finish(mut self) -> Result<(), PutError> {
        let parts = self.0.take().expect("only `finish` takes it");
        parts.finish().await?;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (Some(parts), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            if let Err(error) = parts.abort().await {
                tracing::warn!(
                    error = &error as &dyn StdError,
                    "an abandoned upload stays in the object store"
                );
            }
        });
    }
}

/// An object as a seekable file, for parsers that run on a blocking thread.
#[derive(Debug)]
pub struct Reader {
    objects: Objects,
    runtime: tokio::runtime::Handle,
    sha256: Sha256,
    bytes: u64,
    at: u64,
    ahead: Bytes,
    ahead_at: u64,
    /// Bytes of the last fetch.
    step: u64,
}

impl Objects {
    /// Reads an object of `bytes` bytes piece by piece. Use it on a blocking thread: reading waits there.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn reader(&self, sha256: Sha256, bytes: u64) -> Reader {
        let runtime = tokio::runtime::Handle::current();
        let objects = self.clone();
        Reader {
            objects,
            runtime,
            sha256,
            bytes,
            at: 0,
            ahead: Bytes::new(),
            ahead_at: 0,
            step: READ_AHEAD_BYTES.0,
        }
    }
}

impl Reader {
    /// What is read ahead from the current position on.
    fn buffered(&self) -> &[u8] {
        let skip = self
            .at
            .checked_sub(self.ahead_at)
            .and_then(|skip| usize::try_from(skip).ok());
        skip.and_then(|skip| self.ahead.get(skip..))
            .unwrap_or_default()
    }
}

impl io::Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.bytes || into.is_empty() {
            return Ok(0);
        }
        if self.buffered().is_empty() {
            let (least, most) = READ_AHEAD_BYTES;
            let goes_on = self.at == self.ahead_at.saturating_add(self.ahead.len() as u64);
            self.step = if goes_on {
                self.step.saturating_mul(2).min(most)
            } else {
                least
            };
            let end = self
                .at
                .saturating_add(self.step.max(into.len() as u64))
                .min(self.bytes);
            let read = self.objects.get_range(self.sha256, self.at..end);
            self.ahead = self.runtime.block_on(read).map_err(io::Error::other)?;
            self.ahead_at = self.at;
        }
        let buffered = self.buffered();
        let count = buffered.len().min(into.len());
        into[..count].copy_from_slice(&buffered[..count]);
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

impl io::Seek for Reader {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests;
