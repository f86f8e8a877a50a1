//! Which blobs exist, and which account may read them. The bytes are in `objects`.

use comptoir_domain::{digest::Sha256, id::AccountId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{codec::to_digest, objects::Stored};

/// A blob that an account may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Its name.
    pub sha256: Sha256,
    /// Its size.
    pub bytes: u64,
    /// When the account got it.
    pub created_at: OffsetDateTime,
}

/// Records that the object store holds these bytes. Recording them again changes nothing.
pub async fn register(
    conn: &mut PgConnection,
    stored: Stored,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO blobs (sha256, bytes, created_at) VALUES ($1, $2, $3) ON CONFLICT (sha256) DO NOTHING",
        &stored.sha256.0,
        to_bigint(stored.bytes),
        now,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Lets an account read a registered blob. Granting it again changes nothing.
pub async fn grant(
    conn: &mut PgConnection,
    account: AccountId,
    sha256: Sha256,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO blob_owners (account_id, sha256, created_at) VALUES ($1, $2, $3)
         ON CONFLICT (account_id, sha256) DO NOTHING",
        account.0,
        &sha256.0,
        now,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// The blob, if the account may read it.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    sha256: Sha256,
) -> sqlx::Result<Option<Blob>> {
    let found = find_all(conn, account, &[sha256]).await?;
    Ok(found.into_iter().next())
}

/// Those of the blobs that the account may read, by digest.
pub async fn find_all(
    conn: &mut PgConnection,
    account: AccountId,
    wanted: &[Sha256],
) -> sqlx::Result<Vec<Blob>> {
    let wanted: Vec<Vec<u8>> = wanted.iter().map(|sha256| sha256.0.to_vec()).collect();
    let rows = sqlx::query!(
        "SELECT blobs.sha256, blobs.bytes, blob_owners.created_at
         FROM blob_owners JOIN blobs USING (sha256)
         WHERE account_id = $1 AND blob_owners.sha256 = ANY ($2)
         ORDER BY blobs.sha256",
        account.0,
        &wanted,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Blob {
                sha256: to_digest("sha256", &row.sha256)?,
                bytes: row.bytes.unsigned_abs(),
                created_at: row.created_at,
            })
        })
        .collect()
}

/// Sizes are far below 2^63: an upload's limit is.
fn to_bigint(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
