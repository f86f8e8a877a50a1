//! Files of datasets at rest: their keys, and their bytes, opened as they are read.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use comptoir_domain::{dataset::part_length, envelope::Key};
use comptoir_store::{
    data_keys::{self, KeyError},
    dataset_files::{self, File, Salts},
    dataset_versions::Version,
    objects::{Objects, ReadPartError},
};
use futures::{Stream, stream};
use sqlx::PgConnection;

use crate::{AppState, metrics::DATASET_DAMAGES};

/// Bytes that are in memory for each download, sealed and opened.
const STEP_BYTES: u64 = 4 << 20;

/// A file whose key is at hand.
pub(crate) struct SealedFile {
    objects: Objects,
    key: Key,
    file: File,
    salts: Salts,
}

impl SealedFile {
    /// Gets all of a file ready to be read.
    pub(crate) async fn open(
        state: &AppState,
        version: &Version,
        file: File,
    ) -> Result<Self, KeyError> {
        let (all, mut connection) = (0..file.entry.bytes, state.db.acquire().await?);
        Self::open_range(state, &mut connection, (version, file), &all).await
    }

    /// Gets a range of a file ready to be read. Who may have it was decided before: the connection sees everybody's keys.
    pub(crate) async fn open_range(
        state: &AppState,
        connection: &mut PgConnection,
        (version, file): (&Version, File),
        range: &Range<u64>,
    ) -> Result<Self, KeyError> {
        Ok(Self {
            objects: state.objects.clone(),
            key: data_keys::of_version(connection, &state.root_keys, version).await?,
            salts: dataset_files::salts_of(connection, &file, range).await?,
            file,
        })
    }

    /// What it is.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// A small range, which is within the file: all of it is in memory.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, ReadPartError> {
        let mut read = BytesMut::new();
        let mut at = range.start;
        while at < range.end {
            let piece = self.read_within_part(at..range.end).await?;
            at = at.saturating_add(piece.len() as u64);
            if piece.len() as u64 == range.end.saturating_sub(range.start) {
                return Ok(piece);
            }
            read.extend_from_slice(&piece);
        }
        Ok(read.freeze())
    }

    /// The bytes of a range, a few at a time. An error ends it: what came before is right.
    pub(crate) fn stream(
        self: Arc<Self>,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, ReadPartError>> + Send + 'static {
        stream::try_unfold((self, range.start), move |(file, at)| async move {
            if at >= range.end {
                return Ok(None);
            }
            let end = range.end.min(at.saturating_add(STEP_BYTES));
            let piece = file.read_within_part(at..end).await?;
            let next = at.saturating_add(piece.len() as u64);
            Ok(Some((piece, (file, next))))
        })
    }

    /// The beginning of a range, up to the end of the part that it begins in.
    async fn read_within_part(&self, range: Range<u64>) -> Result<Bytes, ReadPartError> {
        let part_bytes = u64::from(self.file.part_bytes);
        let number = u32::try_from(range.start / part_bytes).unwrap_or(u32::MAX);
        let start = range.start % part_bytes;
        let read = async {
            let missing = || ReadPartError::Missing {
                file: self.file.id,
                part: number,
            };
            let length = part_length(self.file.entry.bytes, self.file.part_bytes, number);
            let length = length.ok_or_else(missing)?;
            let salt = self.salts.get(&number).ok_or_else(missing)?;
            let end = start.saturating_add(range.end.saturating_sub(range.start));
            let within = start..end.min(length);
            let part = self.file.part(number, *salt);
            self.objects
                .read_part(&self.key, &part, length, &within)
                .await
        };
        let read = read.await;
        if let Err(error) = &read
            && error.is_damage()
        {
            metrics::counter!(DATASET_DAMAGES).increment(1);
            tracing::error!(version.id = %self.file.version, file.id = %self.file.id, %error, "a file of a dataset is damaged");
        }
        read
    }
}
