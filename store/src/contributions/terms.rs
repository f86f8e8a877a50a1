//! On what terms a dataset's owner invites contributions.

use comptoir_domain::{contribution::Terms, id::DatasetId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{to_amount, to_numeric},
};

/// One of a dataset's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermsVersion {
    /// The dataset.
    pub dataset: DatasetId,
    /// Its number, from 1.
    pub number: i32,
    /// Row of `assets`.
    pub asset_id: i32,
    /// What they say.
    pub terms: Terms,
    /// From when on they count.
    pub created_at: OffsetDateTime,
}

/// The terms that count now; `None` where contributions were never invited.
///
/// # Errors
/// When the statement fails, or what is stored is not an amount.
pub async fn terms(
    conn: &mut PgConnection,
    dataset: DatasetId,
) -> sqlx::Result<Option<TermsVersion>> {
    let row = sqlx::query!(
        "SELECT number, asset_id, reward_base, pool_ppm, rows_max, is_open, created_at FROM contribution_terms
         WHERE dataset_id = $1 ORDER BY number DESC LIMIT 1",
        dataset.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(TermsVersion {
            dataset,
            number: row.number,
            asset_id: row.asset_id,
            terms: Terms {
                reward: to_amount("reward_base", &row.reward_base)?,
                pool_ppm: row.pool_ppm.unsigned_abs(),
                rows_max: row.rows_max.unsigned_abs(),
                is_open: row.is_open,
            },
            created_at: row.created_at,
        })
    })
    .transpose()
}

/// Gives a dataset, which is locked, other terms. The same again change nothing.
///
/// # Errors
/// When a statement fails.
pub async fn set_terms(
    tx: &mut PgTransaction<'_>,
    dataset: DatasetId,
    (asset_id, terms): (i32, Terms),
    now: OffsetDateTime,
) -> sqlx::Result<TermsVersion> {
    let last = self::terms(tx, dataset).await?;
    if let Some(last) = last.filter(|it| (it.asset_id, it.terms) == (asset_id, terms)) {
        return Ok(last);
    }
    let new = TermsVersion {
        dataset,
        number: last.map_or(1, |it| it.number.saturating_add(1)),
        asset_id,
        terms,
        created_at: now,
    };
    sqlx::query!(
        "INSERT INTO contribution_terms (dataset_id, number, asset_id, reward_base, pool_ppm, rows_max, is_open, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        dataset.0,
        new.number,
        asset_id,
        to_numeric(terms.reward),
        terms.pool_ppm.cast_signed(),
        terms.rows_max.cast_signed(),
        terms.is_open,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(new)
}
