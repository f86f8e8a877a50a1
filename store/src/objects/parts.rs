//! Parts of dataset files: sealed as they pass, and opened a few chunks at a time.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use comptoir_domain::{
    envelope::{self, CHUNK_BYTES, Chunk, Damaged, Key, Part, PartKey, TAG_BYTES},
    id::{DatasetFileId, DatasetVersionId},
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::{ObjectStoreExt as _, path::Path};

use super::{BoxError, Objects, PutError, Upload};

/// Why a part was not stored. Nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum PutPartError {
    /// More or fewer bytes than the part has.
    #[error("the part has {expected} bytes, and {found} came")]
    Length {
        /// What it has.
        expected: u64,
        /// What came; where too many did, what had come by then.
        found: u64,
    },
    /// The sender broke off.
    #[error("read the bytes of a part")]
    Body(#[source] BoxError),
    /// The store failed.
    #[error("store a part")]
    Store(#[source] PutError),
}

/// Why bytes of a part cannot be read. None that are wrong are ever handed out.
#[derive(Debug, thiserror::Error)]
pub enum ReadPartError {
    /// The object is not there.
    #[error("part {part} of {file} is not in the object store")]
    Missing {
        /// Of which file.
        file: DatasetFileId,
        /// Which part.
        part: u32,
    },
    /// The object is not what was stored.
    #[error("part {part} of {file} is not what was stored")]
    Damaged {
        /// Of which file.
        file: DatasetFileId,
        /// Which part.
        part: u32,
    },
    /// The store failed.
    #[error("read from the object store")]
    Store(#[source] object_store::Error),
}

impl ReadPartError {
    /// Are the bytes lost, so that trying again is of no use?
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Damaged { .. })
    }
}

impl Objects {
    /// Stores the bytes of a part, sealed chunk by chunk as they come.
    pub async fn put_part<S, E>(
        &self,
        data_key: &Key,
        part: &Part,
        bytes: u64,
        body: S,
    ) -> Result<(), PutPartError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<BoxError>,
    {
        let store = PutPartError::Store;
        let upload = Upload::start(&*self.0, &place(part)).await.map_err(store)?;
        let mut sealing = Sealing::new(PartKey::derive(data_key, part), bytes, upload);
        let mut body = std::pin::pin!(body);
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| PutPartError::Body(error.into()))?;
            sealing.take(piece).await?;
        }
        sealing.finish().await
    }

    /// A range of a part that has `bytes` bytes, opened. The whole of it is in memory.
    pub async fn read_part(
        &self,
        data_key: &Key,
        part: &Part,
        bytes: u64,
        range: &Range<u64>,
    ) -> Result<Bytes, ReadPartError> {
        let span = envelope::span(bytes, range);
        let sealed = self.sealed(part, &span).await?;
        let key = PartKey::derive(data_key, part);
        open(&key, bytes, &span, sealed)
            .map_err(|Damaged| damaged(part))?
            .try_slice(&span, range)
            .ok_or_else(|| damaged(part))
    }

    /// The whole of a part that has `bytes` bytes, still sealed, for somebody who has the key too. It was opened once, so that only what opens
    /// is ever handed out.
    pub async fn read_sealed(
        &self,
        data_key: &Key,
        part: &Part,
        bytes: u64,
    ) -> Result<Bytes, ReadPartError> {
        let span = envelope::span(bytes, &(0..bytes));
        let sealed = self.sealed(part, &span).await?;
        let key = PartKey::derive(data_key, part);
        let copy = Bytes::copy_from_slice(&sealed);
        open(&key, bytes, &span, copy).map_err(|Damaged| damaged(part))?;
        Ok(sealed)
    }

    /// The sealed bytes of a span of a part.
    async fn sealed(&self, part: &Part, span: &envelope::Span) -> Result<Bytes, ReadPartError> {
        let read = self.0.get_range(&place(part), span.sealed.clone()).await;
        let sealed = match read {
            Ok(sealed) => sealed,
            Err(error) => return Err(self.why_not(part, span, error).await),
        };
        if sealed.len() as u64 == span.sealed.end.saturating_sub(span.sealed.start) {
            Ok(sealed)
        } else {
            Err(damaged(part))
        }
    }

    /// Why a span could not be read. Stores say the same of a range behind the end of an object, which was cut then, and of a failure of their own:
    /// its length tells them apart, and what cannot even be asked for that is no damage.
    async fn why_not(
        &self,
        part: &Part,
        span: &envelope::Span,
        error: object_store::Error,
    ) -> ReadPartError {
        if matches!(error, object_store::Error::NotFound { .. }) {
            return ReadPartError::Missing {
                file: part.file,
                part: part.number,
            };
        }
        match self.0.head(&place(part)).await {
            Ok(it) if it.size < span.sealed.end => damaged(part),
            Ok(_) | Err(_) => ReadPartError::Store(error),
        }
    }

    /// Removes the object of a part. One that is not there is none to remove.
    pub async fn remove_part(&self, part: &Part) -> Result<(), object_store::Error> {
        match self.0.delete(&place(part)).await {
            Err(object_store::Error::NotFound { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes objects of a version, `limit` at most; says how many. What was left behind by an upload that broke off, or that
    /// another one replaced, goes too.
    pub async fn remove_version(
        &self,
        version: DatasetVersionId,
        limit: usize,
    ) -> Result<usize, object_store::Error> {
        let listed = self.0.list(Some(&folder(version)));
        let found: Vec<Path> = listed
            .take(limit)
            .map_ok(|it| it.location)
            .try_collect()
            .await?;
        for object in &found {
            match self.0.delete(object).await {
                Err(object_store::Error::NotFound { .. }) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found.len())
    }
}

const fn damaged(part: &Part) -> ReadPartError {
    ReadPartError::Damaged {
        file: part.file,
        part: part.number,
    }
}

fn folder(version: DatasetVersionId) -> Path {
    Path::from_iter(["datasets".to_owned(), version.0.to_string()])
}

/// Where the object of a part is: made of identifiers of ours alone.
fn place(part: &Part) -> Path {
    let salt = alloy_primitives::hex::encode(part.salt);
    Path::from_iter([
        "datasets".to_owned(),
        part.version.0.to_string(),
        part.file.0.to_string(),
        format!("{}-{salt}", part.number),
    ])
}

/// Bytes that were opened.
struct Opened(Bytes);

impl Opened {
    /// Those that are wanted.
    fn try_slice(self, span: &envelope::Span, range: &Range<u64>) -> Option<Bytes> {
        let start = usize::try_from(span.skipped).ok()?;
        let count = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let end = start
            .checked_add(count)
            .filter(|end| *end <= self.0.len())?;
        Some(self.0.slice(start..end))
    }
}

fn open(
    key: &PartKey,
    bytes: u64,
    span: &envelope::Span,
    sealed: Bytes,
) -> Result<Opened, Damaged> {
    let step = usize::try_from(CHUNK_BYTES.saturating_add(TAG_BYTES)).map_err(|_| Damaged)?;
    let mut buffer = BytesMut::from(sealed);
    let (mut from, mut opened) = (0_usize, 0_usize);
    let last = envelope::chunks(bytes).saturating_sub(1);
    for number in span.chunks.clone() {
        let end = from.saturating_add(step).min(buffer.len());
        let chunk = Chunk {
            number,
            is_last: number == last,
        };
        let sealed = buffer.get_mut(from..end).ok_or(Damaged)?;
        let length = key.open(chunk, sealed)?.len();
        // Where it lies already: a second buffer costs more than opening it.
        buffer.copy_within(from..from.saturating_add(length), opened);
        opened = opened.saturating_add(length);
        from = end;
    }
    buffer.truncate(opened);
    Ok(Opened(buffer.freeze()))
}

/// A part on its way into the store.
struct Sealing {
    key: PartKey,
    upload: Upload,
    bytes: u64,
    taken: u64,
    chunk: BytesMut,
    number: u64,
}

impl Sealing {
    fn new(key: PartKey, bytes: u64, upload: Upload) -> Self {
        Self {
            key,
            upload,
            bytes,
            taken: 0,
            chunk: BytesMut::new(),
            number: 0,
        }
    }

    async fn take(&mut self, mut piece: Bytes) -> Result<(), PutPartError> {
        self.taken = self.taken.saturating_add(piece.len() as u64);
        if self.taken > self.bytes {
            return Err(self.wrong_length());
        }
        let whole = usize::try_from(CHUNK_BYTES).expect("small");
        while !piece.is_empty() {
            let room = whole.saturating_sub(self.chunk.len()).min(piece.len());
            self.chunk.extend_from_slice(&piece.split_to(room));
            if self.chunk.len() == whole {
                self.seal().await?;
            }
        }
        Ok(())
    }

    async fn seal(&mut self) -> Result<(), PutPartError> {
        let is_last = self.number.saturating_add(1) == envelope::chunks(self.bytes);
        let mut chunk = self.chunk.split();
        let tag = self.key.seal(
            Chunk {
                number: self.number,
                is_last,
            },
            &mut chunk,
        );
        chunk.extend_from_slice(&tag);
        self.number = self.number.saturating_add(1);
        self.upload
            .put(chunk.freeze())
            .await
            .map_err(PutPartError::Store)
    }

    async fn finish(mut self) -> Result<(), PutPartError> {
        if self.taken != self.bytes {
            return Err(self.wrong_length());
        }
        if !self.chunk.is_empty() {
            self.seal().await?;
        }
        self.upload.finish().await.map_err(PutPartError::Store)
    }

    fn wrong_length(&self) -> PutPartError {
        PutPartError::Length {
            expected: self.bytes,
            found: self.taken,
        }
    }
}
