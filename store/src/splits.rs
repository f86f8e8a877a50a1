//! Split versions: the parties of charges, and the fraction of a base unit that each carries.
//!
//! Carries change only under the lock on the version's `split_dust` account.

use std::collections::HashMap;

use comptoir_domain::{
    digest::Sha256,
    id::{JournalEntryId, SplitVersionId},
    ledger::{AccountKey, EntryKind, Lines, Source},
    split::{InvalidSplit, Party, Split},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{to_address, to_wide},
    ledger::{self, PostError},
};

/// A split version as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitVersion {
    /// Row of `assets`.
    pub asset_id: i32,
    /// Its parties.
    pub split: Split,
    /// What each carries, in millionths of a base unit.
    pub carries: Vec<u32>,
    /// Was its dust handed out?
    pub closed: bool,
}

/// Why a version was not closed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// No such version, or it is closed.
    #[error("the split version is not open")]
    NotOpen,
    /// What is stored is not a split.
    #[error("read the split")]
    Split(#[from] InvalidSplit),
    /// The entry was refused.
    #[error("post the dust")]
    Post(#[from] PostError),
    /// A statement failed.
    #[error("close the split version")]
    Database(#[from] sqlx::Error),
}

/// The open version of these parties; made on first use, without a lock on one that exists.
pub(crate) async fn open_version(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    split: &Split,
    now: OffsetDateTime,
) -> sqlx::Result<SplitVersionId> {
    let digest = split.digest();
    if let Some(version) = find_open(tx, asset_id, &digest.0).await? {
        return Ok(version);
    }
    let id = SplitVersionId::generate();
    let made = sqlx::query!(
        "INSERT INTO split_versions (split_version_id, asset_id, parties_sha256, created_at)
         VALUES ($1, $2, $3, $4)
         ON CONFLICT (asset_id, parties_sha256) WHERE closed_at IS NULL DO NOTHING",
        id.0,
        asset_id,
        &digest.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    if made.rows_affected() == 0 {
        let version = find_open(tx, asset_id, &digest.0).await?;
        return version.ok_or(sqlx::Error::RowNotFound);
    }
    let payees: Vec<_> = split
        .parties()
        .iter()
        .map(|party| party.payee.to_vec())
        .collect();
    let platform: Vec<_> = split.parties().iter().map(|party| party.platform).collect();
    let ppm: Vec<_> = split
        .parties()
        .iter()
        .map(|party| party.ppm.cast_signed())
        .collect();
    sqlx::query!(
        "INSERT INTO split_parties (split_version_id, party, payee, platform, ppm)
         SELECT $1, it.number - 1, it.payee, it.platform, it.ppm
         FROM UNNEST($2::bytea[], $3::boolean[], $4::integer[]) WITH ORDINALITY AS it (payee, platform, ppm, number)",
        id.0,
        &payees,
        &platform,
        &ppm,
    )
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// The open versions that a transaction looked up: each once.
#[derive(Debug, Default)]
pub(crate) struct OpenVersions(HashMap<(i32, Sha256), SplitVersionId>);

impl OpenVersions {
    /// As [`open_version`].
    pub(crate) async fn of(
        &mut self,
        tx: &mut PgTransaction<'_>,
        asset_id: i32,
        split: &Split,
        now: OffsetDateTime,
    ) -> sqlx::Result<SplitVersionId> {
        let parties = (asset_id, split.digest());
        let version = match self.0.get(&parties) {
            Some(version) => *version,
            None => open_version(tx, asset_id, split, now).await?,
        };
        self.0.insert(parties, version);
        Ok(version)
    }
}

async fn find_open(
    conn: &mut PgConnection,
    asset_id: i32,
    parties_sha256: &[u8],
) -> sqlx::Result<Option<SplitVersionId>> {
    let id = sqlx::query_scalar!(
        "SELECT split_version_id FROM split_versions
         WHERE asset_id = $1 AND parties_sha256 = $2 AND closed_at IS NULL",
        asset_id,
        parties_sha256,
    )
    .fetch_optional(conn)
    .await?;
    Ok(id.map(SplitVersionId))
}

/// A version as it stands.
///
/// # Errors
/// When the statement fails or what is stored is not a split.
pub async fn find(
    conn: &mut PgConnection,
    version: SplitVersionId,
) -> sqlx::Result<Option<SplitVersion>> {
    let rows = sqlx::query!(
        r#"SELECT v.asset_id, v.closed_at IS NOT NULL AS "closed!", p.payee, p.platform, p.ppm, p.carry
           FROM split_versions v JOIN split_parties p USING (split_version_id)
           WHERE split_version_id = $1 ORDER BY p.party"#,
        version.0,
    )
    .fetch_all(conn)
    .await?;
    let Some((asset_id, closed)) = rows.first().map(|row| (row.asset_id, row.closed)) else {
        return Ok(None);
    };
    let mut parties = Vec::with_capacity(rows.len());
    let mut carries = Vec::with_capacity(rows.len());
    for row in rows {
        let payee = to_address("payee", &row.payee)?;
        parties.push(Party {
            payee,
            platform: row.platform,
            ppm: row.ppm.cast_unsigned(),
        });
        carries.push(to_carry(&row.carry)?);
    }
    let split = Split::from_parties(parties).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Some(SplitVersion {
        asset_id,
        split,
        carries,
        closed,
    }))
}

/// Writes what each party carries now. The caller has locked the version's `split_dust`.
pub(crate) async fn save_carries(
    tx: &mut PgTransaction<'_>,
    version: SplitVersionId,
    carries: &[u32],
) -> sqlx::Result<()> {
    let carries: Vec<_> = carries.iter().copied().map(BigDecimal::from).collect();
    sqlx::query!(
        "UPDATE split_parties SET carry = it.carry
         FROM UNNEST($2::numeric[]) WITH ORDINALITY AS it (carry, number)
         WHERE split_version_id = $1 AND party = it.number - 1",
        version.0,
        &carries,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Ends a version: its dust goes to the parties by largest remainder. The same parties start a new version.
///
/// # Errors
/// When it is not open.
pub async fn close(
    tx: &mut PgTransaction<'_>,
    version: SplitVersionId,
    now: OffsetDateTime,
) -> Result<Option<JournalEntryId>, CloseError> {
    let SplitVersion {
        asset_id, split, ..
    } = find(tx, version).await?.ok_or(CloseError::NotOpen)?;
    let dust = AccountKey::SplitDust(version);
    let accounts = split.parties().iter().map(account_of).chain([dust]);
    ledger::lock(tx, asset_id, accounts).await?;
    let SplitVersion {
        carries, closed, ..
    } = find(tx, version).await?.ok_or(CloseError::NotOpen)?;
    if closed {
        return Err(CloseError::NotOpen);
    }
    let credits = split.close(&carries)?;
    let mut lines = Lines::default();
    for (party, credit) in split.parties().iter().zip(&credits) {
        lines = lines
            .credit(account_of(party), *credit)
            .debit(dust, *credit);
    }
    save_carries(tx, version, &vec![0; carries.len()]).await?;
    sqlx::query!(
        "UPDATE split_versions SET closed_at = $2 WHERE split_version_id = $1",
        version.0,
        now
    )
    .execute(&mut **tx)
    .await?;
    if credits.iter().all(|credit| credit.is_zero()) {
        return Ok(None);
    }
    let entry = lines
        .into_entry(EntryKind::SplitClose, Source::SplitClose(version))
        .map_err(PostError::from)?;
    Ok(Some(ledger::post_locked(tx, asset_id, &entry, now).await?))
}

/// Where a party's share goes.
pub(crate) const fn account_of(party: &Party) -> AccountKey {
    if party.platform {
        AccountKey::Fees
    } else {
        AccountKey::Available(party.payee)
    }
}

fn to_carry(stored: &BigDecimal) -> sqlx::Result<u32> {
    let carry = to_wide("carry", stored)?;
    carry
        .try_into()
        .map_err(|_| sqlx::Error::Decode("a carry is below one million".into()))
}
