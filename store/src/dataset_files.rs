//! Files of a version, and which of their parts are there.

use std::{collections::BTreeMap, ops::Range};

use comptoir_domain::{
    dataset::{Facts, FilePath, Format, ManifestFile, parts},
    digest::Sha256,
    envelope::{PART_SALT_BYTES, Part},
    id::{DatasetFileId, DatasetVersionId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_digest, to_document, to_enum, to_sized},
    objects::StoredPart,
    violates,
};

/// A file as it is stored.
#[derive(Debug, Clone)]
pub struct File {
    /// Which.
    pub id: DatasetFileId,
    /// Of which version.
    pub version: DatasetVersionId,
    /// What the manifest says of it.
    pub entry: ManifestFile,
    /// How many bytes each part but the last has.
    pub part_bytes: u32,
    /// How many parts are stored.
    pub parts_stored: u64,
    /// When it was announced.
    pub created_at: OffsetDateTime,
}

impl File {
    /// How many parts it has.
    #[must_use]
    pub const fn parts(&self) -> u64 {
        parts(self.entry.bytes, self.part_bytes)
    }

    /// Where one of its parts is, and what that is sealed to.
    #[must_use]
    pub const fn part(&self, number: u32, salt: [u8; PART_SALT_BYTES]) -> Part {
        Part {
            version: self.version,
            file: self.id,
            file_bytes: self.entry.bytes,
            number,
            salt,
        }
    }
}

/// Salts of the parts of a file.
pub type Salts = BTreeMap<u32, [u8; PART_SALT_BYTES]>;

/// Why files were not announced.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// A path is taken.
    #[error("a path is taken")]
    PathTaken,
    /// Postgres failed.
    #[error("announce files")]
    Database(#[from] sqlx::Error),
}

/// Files as they are stored, by what follows `SELECT` and what comes behind `FROM`.
macro_rules! files {
    ($select:literal, $where:literal, $($argument:expr),* $(,)?) => {
        sqlx::query_as!(
            Row,
            $select
                + " file_id, version_id, path, format, bytes, sha256, part_bytes, is_sample, facts, created_at,
                   CASE (SELECT state FROM dataset_versions AS v WHERE v.version_id = f.version_id)
                       WHEN 'draft' THEN (SELECT count(*) FROM dataset_parts AS p WHERE p.file_id = f.file_id) WHEN 'shredded' THEN 0 END AS stored
                   FROM dataset_files AS f "
                + $where,
            $($argument),*
        )
    };
}

struct Row {
    file_id: Uuid,
    version_id: Uuid,
    path: String,
    format: String,
    bytes: i64,
    sha256: Vec<u8>,
    part_bytes: i32,
    is_sample: bool,
    facts: Option<serde_json::Value>,
    created_at: OffsetDateTime,
    /// `None` of what is no draft any more: all of it is stored, or it was not published.
    stored: Option<i64>,
}

impl TryFrom<Row> for File {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let facts = row.facts.map(|it| to_document::<Facts>("facts", it));
        let (bytes, part_bytes) = (row.bytes.unsigned_abs(), row.part_bytes.unsigned_abs());
        Ok(Self {
            id: DatasetFileId(row.file_id),
            version: DatasetVersionId(row.version_id),
            entry: ManifestFile {
                path: to_enum("path", &row.path, |it| it.parse::<FilePath>().ok())?,
                sha256: to_digest("sha256", &row.sha256)?,
                bytes,
                format: to_enum("format", &row.format, Format::parse)?,
                is_sample: row.is_sample,
                facts: facts.transpose()?,
            },
            part_bytes,
            parts_stored: row
                .stored
                .map_or_else(|| parts(bytes, part_bytes), i64::unsigned_abs),
            created_at: row.created_at,
        })
    }
}

/// Adds files to a draft that is locked.
///
/// # Errors
/// When a path is taken, in whatever case.
pub async fn announce(
    tx: &mut PgTransaction<'_>,
    version: DatasetVersionId,
    files: &[ManifestFile],
    part_bytes: u32,
    now: OffsetDateTime,
) -> Result<Vec<File>, AnnounceError> {
    let ids: Vec<Uuid> = files.iter().map(|_| DatasetFileId::generate().0).collect();
    let paths: Vec<_> = files.iter().map(|it| it.path.to_string()).collect();
    let folded: Vec<_> = files.iter().map(|it| it.path.folded()).collect();
    let formats: Vec<_> = files.iter().map(|it| it.format.to_string()).collect();
    let bytes: Vec<_> = files.iter().map(|it| it.bytes.cast_signed()).collect();
    let digests: Vec<_> = files.iter().map(|it| it.sha256.0.to_vec()).collect();
    let samples: Vec<_> = files.iter().map(|it| it.is_sample).collect();
    sqlx::query!(
        "INSERT INTO dataset_files (file_id, version_id, path, path_folded, format, bytes, sha256, is_sample, part_bytes, created_at)
         SELECT it.*, $8, $9 FROM (
             SELECT file_id, $10::uuid, path, folded, format, bytes, sha256, is_sample
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bytea[], $7::bool[])
               AS given (file_id, path, folded, format, bytes, sha256, is_sample)
         ) AS it",
        &ids,
        &paths,
        &folded,
        &formats,
        &bytes,
        &digests,
        &samples,
        part_bytes.cast_signed(),
        now,
        version.0,
    )
    .execute(&mut **tx)
    .await
    .map_err(|error| {
        if violates(&error, "dataset_files_path_once") {
            AnnounceError::PathTaken
        } else {
            error.into()
        }
    })?;
    let file = |(id, entry): (Uuid, &ManifestFile)| File {
        id: DatasetFileId(id),
        version,
        entry: entry.clone(),
        part_bytes,
        parts_stored: 0,
        created_at: now,
    };
    Ok(ids.into_iter().zip(files).map(file).collect())
}

/// One file of a version.
pub async fn find(
    conn: &mut PgConnection,
    version: DatasetVersionId,
    id: DatasetFileId,
) -> sqlx::Result<Option<File>> {
    let row = files!(
        "SELECT",
        "WHERE version_id = $1 AND file_id = $2",
        version.0,
        id.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(File::try_from).transpose()
}

/// Files of a version, those announced last first.
pub async fn list(
    conn: &mut PgConnection,
    version: DatasetVersionId,
    before: Option<DatasetFileId>,
    limit: i64,
) -> sqlx::Result<Vec<File>> {
    let rows = files!(
        "SELECT",
        "WHERE version_id = $1 AND ($2::uuid IS NULL OR file_id < $2) ORDER BY file_id DESC LIMIT $3",
        version.0,
        before.map(|id| id.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(File::try_from).collect()
}

/// All files of a version, whose number and facts have limits.
pub async fn all(conn: &mut PgConnection, version: DatasetVersionId) -> sqlx::Result<Vec<File>> {
    list(conn, version, None, i64::MAX).await
}

/// Some files of a version that nobody has checked yet, those announced last first.
pub async fn unchecked(
    conn: &mut PgConnection,
    version: DatasetVersionId,
    limit: i64,
) -> sqlx::Result<Vec<File>> {
    let rows = files!(
        "SELECT",
        "WHERE version_id = $1 AND checked_at IS NULL ORDER BY file_id DESC LIMIT $2",
        version.0,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(File::try_from).collect()
}

/// Files of a version by their digests, one for each that it has.
pub async fn find_by_digests(
    conn: &mut PgConnection,
    version: DatasetVersionId,
    wanted: impl IntoIterator<Item = Sha256>,
) -> sqlx::Result<BTreeMap<Sha256, File>> {
    let wanted: Vec<Vec<u8>> = wanted.into_iter().map(|it| it.0.to_vec()).collect();
    let rows = files!(
        "SELECT DISTINCT ON (sha256)",
        "WHERE version_id = $1 AND (sha256 IN (SELECT unnest($2::bytea[]))) IS TRUE ORDER BY sha256, file_id",
        version.0,
        &wanted,
    )
    .fetch_all(conn)
    .await?;
    let files = rows.into_iter().map(File::try_from);
    files
        .map(|file| file.map(|it| (it.entry.sha256, it)))
        .collect()
}

/// Takes a file out of a draft that is locked.
pub async fn delete(tx: &mut PgTransaction<'_>, id: DatasetFileId) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM dataset_files WHERE file_id = $1", id.0)
        .execute(&mut **tx)
        .await
        .map(drop)
}

/// The salts of a file's parts: those that are stored.
pub async fn salts(conn: &mut PgConnection, file: &File) -> sqlx::Result<Salts> {
    salts_of(conn, file, &(0..file.entry.bytes)).await
}

/// The salts of the parts in which a range of a file's bytes lies: those that are stored.
pub async fn salts_of(
    conn: &mut PgConnection,
    file: &File,
    range: &Range<u64>,
) -> sqlx::Result<Salts> {
    let number = |at: u64| i32::try_from(at / u64::from(file.part_bytes)).unwrap_or(i32::MAX);
    let rows = sqlx::query!(
        "SELECT part, salt FROM dataset_parts WHERE file_id = $1 AND part BETWEEN $2 AND $3",
        file.id.0,
        number(range.start),
        number(range.end),
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok((
                row.part.unsigned_abs(),
                to_sized("salt", &row.salt, "a salt")?,
            ))
        })
        .collect()
}

/// The salt of a part of a file, if it is stored.
pub async fn salt(
    conn: &mut PgConnection,
    file: DatasetFileId,
    part: u32,
) -> sqlx::Result<Option<[u8; PART_SALT_BYTES]>> {
    let salt = sqlx::query_scalar!(
        "SELECT salt FROM dataset_parts WHERE file_id = $1 AND part = $2",
        file.0,
        i32::try_from(part).unwrap_or(i32::MAX),
    )
    .fetch_optional(conn)
    .await?;
    salt.map(|it| to_sized("salt", &it, "a salt")).transpose()
}

/// Those of these objects that are no part of a file.
pub async fn unknown_parts(
    conn: &mut PgConnection,
    objects: Vec<StoredPart>,
) -> sqlx::Result<Vec<StoredPart>> {
    let files: Vec<Uuid> = objects.iter().map(|it| it.file.0).collect();
    let parts: Vec<i32> = objects.iter().map(|it| it.number).collect();
    let salts: Vec<Vec<u8>> = objects.iter().map(|it| it.salt.to_vec()).collect();
    let known = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM dataset_parts AS p
               WHERE p.file_id = it.file AND p.part = it.part AND p.salt = it.salt) AS "known!"
           FROM unnest($1::uuid[], $2::int[], $3::bytea[]) WITH ORDINALITY AS it (file, part, salt, place) ORDER BY place"#,
        &files,
        &parts,
        &salts,
    )
    .fetch_all(conn)
    .await?;
    let unknown = objects.into_iter().zip(known).filter(|(_, known)| !known);
    Ok(unknown.map(|(object, _)| object).collect())
}

/// Notes that a part is stored, if the version is still a draft, which it stays until the transaction ends. `None` when it is not; else the salt of
/// what the part replaces.
pub async fn store_part(
    tx: &mut PgTransaction<'_>,
    (version, file): (DatasetVersionId, DatasetFileId),
    part: u32,
    salt: [u8; PART_SALT_BYTES],
    now: OffsetDateTime,
) -> sqlx::Result<Option<Option<[u8; PART_SALT_BYTES]>>> {
    let draft = sqlx::query!(
        "SELECT version_id FROM dataset_versions WHERE version_id = $1 AND state = 'draft' FOR SHARE",
        version.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    if draft.is_none() {
        return Ok(None);
    }
    // Its file may be gone in the meantime, and whoever sends the same part waits for the other.
    let file_is_there = sqlx::query!(
        "SELECT file_id FROM dataset_files WHERE file_id = $1 FOR NO KEY UPDATE",
        file.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    if file_is_there.is_none() {
        return Ok(None);
    }
    let old = sqlx::query_scalar!(
        "SELECT salt FROM dataset_parts WHERE file_id = $1 AND part = $2",
        file.0,
        part.cast_signed(),
    )
    .fetch_optional(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO dataset_parts (file_id, part, salt, stored_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (file_id, part) DO UPDATE SET salt = EXCLUDED.salt, stored_at = EXCLUDED.stored_at",
        file.0,
        part.cast_signed(),
        &salt[..],
        now,
    )
    .execute(&mut **tx)
    .await?;
    let old = old.map(|old| to_sized("salt", &old, "a salt"));
    old.transpose().map(Some)
}
