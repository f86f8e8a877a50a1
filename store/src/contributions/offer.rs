//! Offering a version to the dataset of another, all or nothing. The same bytes are taken once per dataset, however many offer them at the same
//! moment.

use std::collections::HashSet;

use comptoir_domain::{
    amount::Amount,
    contribution::{ANSWERED_WITHIN, Terms},
    dataset::{FilePath, ManifestFile},
    id::{AccountId, ContributionId, DatasetId, DatasetVersionId, EntitlementId, TakedownId},
    offer::Allows,
};
use time::OffsetDateTime;

use super::terms;
use crate::{PgTransaction, accounts, codec::to_numeric, dataset_files, datasets};

/// Contributions of one account to one dataset that wait for an answer.
const PENDING_MAX: i64 = 10;

/// A contribution that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewContribution<'a> {
    /// The contributor, who has an address.
    pub account: AccountId,
    /// The dataset that it is offered to; the contributor may see it.
    pub dataset: DatasetId,
    /// The version that is offered.
    pub version: DatasetVersionId,
    /// Words to the owner.
    pub note: Option<&'a str>,
}

/// Why a contribution is not made.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The dataset is the contributor's own.
    #[error("the dataset is the contributor's own")]
    Own,
    /// The dataset, or that of the version, is blocked.
    #[error("{0} blocks it")]
    Blocked(TakedownId),
    /// Its owner invites nobody now, or took it off the list.
    #[error("the dataset takes no contributions")]
    Closed,
    /// The account has no such version that is ready.
    #[error("the account has no such ready version")]
    NoVersion,
    /// No file of it has rows.
    #[error("no file of the version has rows")]
    NoRows,
    /// It has more rows than are taken at once.
    #[error("the version has {0} rows, and {1} are taken at once")]
    TooManyRows(u64, u64),
    /// Its rows would earn more than any amount.
    #[error("what its {0} rows would earn is above every amount")]
    TooDear(u64),
    /// The contributor has as many that wait as it may.
    #[error("{PENDING_MAX} contributions of the account wait for an answer")]
    TooManyPending,
    /// The dataset has these bytes, or was offered them.
    #[error("the dataset has, or was offered, what is in {0}")]
    Duplicate(FilePath),
    /// A statement failed.
    #[error("make a contribution")]
    Database(#[from] sqlx::Error),
}

/// Makes a contribution. Its files are the owner's to read from now on. The transaction must see everybody.
///
/// # Errors
/// When it is not made; the caller rolls back.
pub async fn offer(
    tx: &mut PgTransaction<'_>,
    new: &NewContribution<'_>,
    now: OffsetDateTime,
) -> Result<ContributionId, OfferError> {
    accounts::lock(tx, new.account).await?;
    let owner = open_owner(tx, new).await?;
    let standing = terms::terms(tx, new.dataset).await?;
    let standing = standing
        .filter(|it| it.terms.is_open)
        .ok_or(OfferError::Closed)?;
    let source = lock_version(tx, new).await?;
    if let Some(block) = datasets::blocks(tx, &[new.dataset, source])
        .await?
        .values()
        .next()
    {
        return Err(OfferError::Blocked(block.by));
    }
    let pending = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM contributions WHERE account_id = $1 AND dataset_id = $2 AND state = 'pending'"#,
        new.account.0,
        new.dataset.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    if pending >= PENDING_MAX {
        return Err(OfferError::TooManyPending);
    }
    let files = dataset_files::all(tx, new.version).await?;
    let files = files.into_iter().map(|it| it.entry);
    let counted: Vec<_> = files.filter(|it| rows_of(it) > 0).collect();
    let (rows, reward) = count(&counted, &standing.terms)?;
    refuse_known(tx, new.dataset, &counted).await?;
    let id = ContributionId::generate();
    sqlx::query!(
        "INSERT INTO contributions (contribution_id, dataset_id, owner_id, account_id, version_id, terms_number, files, rows, reward_base,
             asset_id, state, note, created_at, answer_due_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'pending', $11, $12, $13)",
        id.0,
        new.dataset.0,
        owner.0,
        new.account.0,
        new.version.0,
        standing.number,
        i32::try_from(counted.len()).unwrap_or(i32::MAX),
        rows.cast_signed(),
        to_numeric(reward),
        standing.asset_id,
        new.note,
        now,
        now.saturating_add(ANSWERED_WITHIN),
    )
    .execute(&mut **tx)
    .await?;
    claim(tx, (id, new.dataset), &counted).await?;
    sqlx::query!(
        "INSERT INTO entitlements (entitlement_id, account_id, dataset_id, version_id, contribution_id, allows, starts_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
        EntitlementId::generate().0,
        owner.0,
        source.0,
        new.version.0,
        id.0,
        Allows::Download.as_str(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// Whose dataset it is that is listed, which stays so until the end of the transaction.
async fn open_owner(
    tx: &mut PgTransaction<'_>,
    new: &NewContribution<'_>,
) -> Result<AccountId, OfferError> {
    let row = sqlx::query!(
        "SELECT account_id, state FROM datasets WHERE dataset_id = $1 FOR SHARE",
        new.dataset.0,
    )
    .fetch_one(&mut **tx)
    .await?;
    if row.account_id == new.account.0 {
        return Err(OfferError::Own);
    }
    if row.state != "listed" {
        return Err(OfferError::Closed);
    }
    Ok(AccountId(row.account_id))
}

/// The dataset of a ready version of the contributor, which is not shredded before the transaction ends.
async fn lock_version(
    tx: &mut PgTransaction<'_>,
    new: &NewContribution<'_>,
) -> Result<DatasetId, OfferError> {
    let source = sqlx::query_scalar!(
        "SELECT dataset_id FROM dataset_versions WHERE version_id = $1 AND account_id = $2 AND state = 'ready' FOR SHARE",
        new.version.0,
        new.account.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    source.map(DatasetId).ok_or(OfferError::NoVersion)
}

fn rows_of(file: &ManifestFile) -> u64 {
    let rows = file.facts.as_ref().and_then(|facts| facts.rows);
    rows.unwrap_or_default()
}

/// How many rows there are, and what they earn.
fn count(files: &[ManifestFile], terms: &Terms) -> Result<(u64, Amount), OfferError> {
    let rows = files
        .iter()
        .fold(0_u64, |sum, it| sum.saturating_add(rows_of(it)));
    if rows == 0 {
        return Err(OfferError::NoRows);
    }
    if rows > terms.rows_max {
        return Err(OfferError::TooManyRows(rows, terms.rows_max));
    }
    let reward = terms.reward.times(rows);
    Ok((rows, reward.ok_or(OfferError::TooDear(rows))?))
}

/// Refuses bytes that are twice in a contribution, or in a ready version of the dataset.
async fn refuse_known(
    tx: &mut PgTransaction<'_>,
    dataset: DatasetId,
    files: &[ManifestFile],
) -> Result<(), OfferError> {
    let mut seen = HashSet::new();
    if let Some(twice) = files.iter().find(|it| !seen.insert(it.sha256)) {
        return Err(OfferError::Duplicate(twice.path.clone()));
    }
    let digests: Vec<_> = files.iter().map(|it| it.sha256.0.to_vec()).collect();
    // `IS TRUE` keeps this a hashed look-up where joins are pinned to loops: ten thousand files against as many.
    let known = sqlx::query_scalar!(
        "SELECT f.sha256 FROM dataset_versions v JOIN dataset_files f USING (version_id)
         WHERE v.dataset_id = $1 AND v.state = 'ready' AND (f.sha256 IN (SELECT unnest($2::bytea[]))) IS TRUE LIMIT 1",
        dataset.0,
        &digests,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let known = known.and_then(|known| files.iter().find(|it| it.sha256.0[..] == known[..]));
    known.map_or(Ok(()), |it| Err(OfferError::Duplicate(it.path.clone())))
}

/// Claims the files' bytes for a contribution: whoever claims the same waits until this is decided. In one order, so that two who claim several
/// do not wait for each other.
async fn claim(
    tx: &mut PgTransaction<'_>,
    (id, dataset): (ContributionId, DatasetId),
    files: &[ManifestFile],
) -> Result<(), OfferError> {
    let mut digests: Vec<_> = files.iter().map(|it| it.sha256.0.to_vec()).collect();
    digests.sort_unstable();
    let claimed = sqlx::query_scalar!(
        "INSERT INTO contribution_files (contribution_id, dataset_id, sha256, stands)
         SELECT $1, $2, sha256, true FROM unnest($3::bytea[]) WITH ORDINALITY AS it (sha256, place) ORDER BY place
         ON CONFLICT DO NOTHING RETURNING sha256",
        id.0,
        dataset.0,
        &digests,
    )
    .fetch_all(&mut **tx)
    .await?;
    let claimed: HashSet<_> = claimed.into_iter().collect();
    let other = files.iter().find(|it| !claimed.contains(&it.sha256.0[..]));
    other.map_or(Ok(()), |it| Err(OfferError::Duplicate(it.path.clone())))
}

#[cfg(test)]
mod tests {
    use comptoir_domain::{
        contribution::ROWS_MAX,
        dataset::{Facts, Format},
        digest::Sha256,
    };

    use super::*;

    fn of_rows(rows: u64) -> ManifestFile {
        ManifestFile {
            path: "more.csv".parse().expect("a path"),
            sha256: Sha256([0; 32]),
            bytes: 1,
            format: Format::Csv,
            is_sample: false,
            facts: Some(Facts {
                rows: Some(rows),
                columns: Vec::new(),
            }),
        }
    }

    #[test]
    fn rows_that_would_earn_more_than_any_amount_are_not_said_to_be_too_many() {
        let terms = |reward, rows_max| Terms {
            reward,
            pool_ppm: 0,
            rows_max,
            is_open: true,
        };
        let one = Amount::from_base(1).expect("an amount");
        let files = [of_rows(1), of_rows(2)];
        let (rows, reward) = count(&files, &terms(one, 3)).expect("taken");
        assert_eq!((rows, reward.base()), (3, 3));
        let many = count(&files, &terms(one, 2));
        assert!(
            matches!(many, Err(OfferError::TooManyRows(3, 2))),
            "{many:?}"
        );
        let dear = count(&files, &terms(Amount::MAX, ROWS_MAX));
        assert!(matches!(dear, Err(OfferError::TooDear(3))), "{dear:?}");
    }
}
