//! Files of datasets at rest: their keys, and their bytes, opened as they are read.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use comptoir_domain::{
    dataset::part_length,
    envelope::{Damaged, Key, PART_SALT_BYTES, Part},
    id::{AccountId, DatasetVersionId},
    root_keys::{self, OpenError},
};
use comptoir_store::{
    PgTransaction,
    dataset_files::{self, File, Salts},
    dataset_versions::Version,
    objects::{Objects, ReadPartError},
    tenant_keys,
};
use futures::{Stream, stream};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{AppState, metrics::DATASET_DAMAGES, state::RootKeyRing};

/// Bytes that are in memory for each download, sealed and opened.
const STEP_BYTES: u64 = 4 << 20;

/// Why a key does not open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// The version's key is gone, or its seller has none.
    #[error("{0} has no key")]
    Gone(DatasetVersionId),
    /// The seller's key does not open.
    #[error("open the key of a seller")]
    Tenant(#[from] OpenError),
    /// The version's key does not open.
    #[error("open the key of a version")]
    Data(#[from] Damaged),
    /// Postgres failed.
    #[error("find a key")]
    Database(#[from] sqlx::Error),
}

/// The seller's key; made where there is none yet.
pub(crate) async fn tenant_key(
    tx: &mut PgTransaction<'_>,
    roots: &RootKeyRing,
    account: AccountId,
    now: OffsetDateTime,
) -> Result<Key, KeyError> {
    let roots = roots.now();
    if tenant_keys::find(tx, account).await?.is_none() {
        let fresh = roots.wrap(account, &Key::generate());
        // Another request may have been quicker: what it made counts.
        tenant_keys::create(tx, account, &fresh, now).await?;
    }
    let wrapped = tenant_keys::find(tx, account).await?;
    let wrapped = wrapped.ok_or(sqlx::Error::RowNotFound)?;
    Ok(roots.open(account, &wrapped)?)
}

/// The data key of a version. Who may have it was decided before: the connection sees everybody's keys.
pub(crate) async fn data_key(
    conn: &mut PgConnection,
    roots: &RootKeyRing,
    version: &Version,
) -> Result<Key, KeyError> {
    let gone = || KeyError::Gone(version.id);
    let wrapped = version.wrapped_key.as_ref().ok_or_else(gone)?;
    let tenant = tenant_keys::find(conn, version.account).await?;
    let tenant = roots
        .now()
        .open(version.account, &tenant.ok_or_else(gone)?)?;
    Ok(root_keys::open_data_key(&tenant, version.id, wrapped)?)
}

/// A file whose key is at hand.
pub(crate) struct SealedFile {
    objects: Objects,
    key: Key,
    file: File,
    salts: Salts,
}

impl SealedFile {
    /// Gets a file ready to be read.
    pub(crate) async fn open(
        state: &AppState,
        version: &Version,
        file: File,
    ) -> Result<Self, KeyError> {
        let mut connection = state.db.acquire().await?;
        Ok(Self {
            objects: state.objects.clone(),
            key: data_key(&mut connection, &state.root_keys, version).await?,
            salts: dataset_files::salts(&mut connection, file.id).await?,
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
            let part = place(&self.file, number, *salt);
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

/// Where a part of a file is, and what it is sealed to.
pub(crate) const fn place(file: &File, number: u32, salt: [u8; PART_SALT_BYTES]) -> Part {
    Part {
        version: file.version,
        file: file.id,
        file_bytes: file.entry.bytes,
        number,
        salt,
    }
}
