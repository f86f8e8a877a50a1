//! Datasets as inputs of jobs: who may compute on what, what was quoted for it, and who is paid.

use std::collections::HashMap;

use alloy_primitives::Address;
use comptoir_domain::{
    bill::DataPrice,
    dataset_input::{ComputeTerms, Standing},
    id::{AccountId, DatasetId, DatasetVersionId, JobId, OfferId, QuoteId, TakedownId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_digest},
    payees,
    quotes::Quote,
};

/// What was quoted for the dataset of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotedData {
    /// Which version.
    pub version: DatasetVersionId,
    /// What it costs; `None` where the account may read it anyhow.
    pub price: Option<DataPrice>,
}

/// How an account stands to a version. `None` where it may not know of it: another's that is neither listed nor was ever the account's to use.
/// The connection sees everybody's rows: what somebody may compute on is offered by others.
pub async fn standing(
    conn: &mut PgConnection,
    (account, asset_id): (AccountId, i32),
    version: DatasetVersionId,
    now: OffsetDateTime,
) -> sqlx::Result<Option<Standing>> {
    let row = sqlx::query!(
        r#"SELECT v.dataset_id, v.account_id = $1 AS "is_own!", v.state IN ('ready', 'shredded') AND d.state = 'listed' AS "is_listed!",
             is_entitled($1, v.dataset_id, v.version_id, 'download', $3) AS "may_download!",
             EXISTS (SELECT FROM entitlements e WHERE e.account_id = $1 AND e.dataset_id = v.dataset_id
                 AND (e.version_id IS NULL OR e.version_id = v.version_id)) AS "had_right!", d.blocked_by
           FROM dataset_versions v JOIN datasets d USING (dataset_id) WHERE v.version_id = $2"#,
        account.0,
        version.0,
        now,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row.filter(|it| it.is_own || it.is_listed || it.had_right) else {
        return Ok(None);
    };
    let dataset = DatasetId(row.dataset_id);
    let may_read = row.is_own || row.may_download;
    Ok(Some(Standing {
        blocked_by: row.blocked_by.map(TakedownId),
        may_read,
        terms: if may_read {
            None
        } else {
            terms(conn, (account, asset_id), (dataset, version), now).await?
        },
        had_right: row.had_right,
    }))
}

/// The terms that the account may compute on a version under: those that stand open, unless their seller is frozen, or those that it was let in on.
async fn terms(
    conn: &mut PgConnection,
    (account, asset_id): (AccountId, i32),
    (dataset, version): (DatasetId, DatasetVersionId),
    now: OffsetDateTime,
) -> sqlx::Result<Option<ComputeTerms>> {
    let row = sqlx::query!(
        r#"SELECT o.offer_id, p.number, p.price_base, p.platform_ppm, o.programs, o.output_bytes_max AS "output_bytes_max!",
             o.is_released_by_seller
           FROM offers o
           JOIN accounts seller ON seller.account_id = o.account_id AND seller.address IS NOT NULL
           CROSS JOIN LATERAL (
               SELECT number, price_base, platform_ppm FROM offer_prices
               WHERE offer_prices.offer_id = o.offer_id AND effective_at <= $4 ORDER BY number DESC LIMIT 1
           ) p
           WHERE o.dataset_id = $2 AND o.kind = 'compute_only' AND o.asset_id = $5 AND may_compute($1, o.offer_id, $3, $4)
               AND (o.is_gated OR NOT is_frozen(o.account_id))
           ORDER BY o.closed_at IS NULL DESC, o.offer_id DESC LIMIT 1"#,
        account.0,
        dataset.0,
        version.0,
        now,
        asset_id,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        let programs = row.programs.map(|programs| {
            let programs = programs.iter().map(|it| to_digest("programs", it));
            programs.collect::<sqlx::Result<Vec<_>>>()
        });
        Ok(ComputeTerms {
            price: DataPrice {
                offer: OfferId(row.offer_id),
                number: row.number.unsigned_abs(),
                price: to_amount("price_base", &row.price_base)?,
                platform_ppm: row.platform_ppm.unsigned_abs(),
            },
            programs: programs.transpose()?,
            output_bytes_max: row.output_bytes_max.unsigned_abs(),
            is_released_by_seller: row.is_released_by_seller,
        })
    })
    .transpose()
}

/// Do the rights that were quoted still stand, each in its place? A right to download stands for every quote; none does while the dataset is
/// blocked.
pub async fn still_stand(
    conn: &mut PgConnection,
    quoted: &[(AccountId, QuotedData)],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<bool>> {
    let (mut accounts, mut versions, mut offers) = (vec![], vec![], vec![]);
    for (account, data) in quoted {
        accounts.push(account.0);
        versions.push(data.version.0);
        offers.push(data.price.map(|it| it.offer.0));
    }
    sqlx::query_scalar!(
        r#"SELECT coalesce(v.state = 'ready' AND d.blocked_by IS NULL AND (v.account_id = it.account
               OR is_entitled(it.account, v.dataset_id, v.version_id, 'download', $4)
               OR it.offer IS NOT NULL AND may_compute(it.account, it.offer, v.version_id, $4)), false) AS "stands!"
           FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS it (account, version, offer, place)
           LEFT JOIN dataset_versions v ON v.version_id = it.version LEFT JOIN datasets d USING (dataset_id) ORDER BY it.place"#,
        &accounts,
        &versions,
        &offers as &[Option<Uuid>],
        now,
    )
    .fetch_all(conn)
    .await
}

/// Writes what was quoted for the datasets of quotes that are written in the same transaction.
pub(crate) async fn insert_all(conn: &mut PgConnection, quotes: &[&Quote]) -> sqlx::Result<()> {
    let (mut ids, mut versions, mut offers, mut numbers) = (vec![], vec![], vec![], vec![]);
    for (id, data) in quotes.iter().filter_map(|it| Some((it.id, it.data?))) {
        ids.push(id.0);
        versions.push(data.version.0);
        offers.push(data.price.map(|it| it.offer.0));
        numbers.push(data.price.map(|it| it.number.cast_signed()));
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO quote_data (quote_id, version_id, offer_id, price_number)
         SELECT * FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::integer[])",
        &ids,
        &versions,
        &offers as &[Option<Uuid>],
        &numbers as &[Option<i32>],
    )
    .execute(conn)
    .await
    .map(drop)
}

/// What was quoted for the datasets of quotes, for those that read one.
pub(crate) async fn quoted(
    conn: &mut PgConnection,
    quotes: &[Uuid],
) -> sqlx::Result<HashMap<QuoteId, QuotedData>> {
    let rows = sqlx::query!(
        r#"SELECT quote_id AS "quote_id!", version_id AS "version_id!", price_number, offer_id, price_base AS "price_base?", platform_ppm AS "platform_ppm?"
           FROM quote_data LEFT JOIN offer_prices p USING (offer_id)
           WHERE quote_id = ANY ($1) AND (p.number IS NULL OR p.number = price_number)"#,
        quotes,
    )
    .fetch_all(conn)
    .await?;
    let found = rows.into_iter().map(|row| {
        let price = match (
            row.offer_id,
            row.price_number,
            row.price_base,
            row.platform_ppm,
        ) {
            (Some(offer), Some(number), Some(price), Some(platform_ppm)) => Some(DataPrice {
                offer: OfferId(offer),
                number: number.unsigned_abs(),
                price: to_amount("price_base", &price)?,
                platform_ppm: platform_ppm.unsigned_abs(),
            }),
            _ => None,
        };
        let version = DatasetVersionId(row.version_id);
        Ok((QuoteId(row.quote_id), QuotedData { version, price }))
    });
    found.collect()
}

/// The dataset of a job: whose job it is, and what was quoted. `None` where it reads none.
pub async fn of_job(
    conn: &mut PgConnection,
    job: JobId,
) -> sqlx::Result<Option<(AccountId, QuotedData)>> {
    let row = sqlx::query!(
        "SELECT jobs.account_id, quote_id FROM jobs JOIN quote_data USING (quote_id) WHERE job_id = $1",
        job.0,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let data = quoted(conn, &[row.quote_id]).await?;
    let account = AccountId(row.account_id);
    Ok(data.into_values().next().map(|data| (account, data)))
}

/// Hands out bytes of what was quoted, if the right to it still stands: then the purchase that gives it cannot be given back any more. What is given
/// back in this moment decides first.
pub async fn serve(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    data: QuotedData,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    sqlx::query!(
        "SELECT lock_rights($1, $2, $3)",
        account.0,
        data.version.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    let stands = still_stand(tx, &[(account, data)], now).await? == [true];
    if stands {
        begin_purchase(tx, account, data.version, now).await?;
    }
    Ok(stands)
}

/// Notes that what an account bought is read. Of several rights it is the one that is paid already, or else one whose time runs anyway, so that nobody
/// loses a window for nothing.
async fn begin_purchase(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    version: DatasetVersionId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO purchase_servings (purchase_id, served_at)
         SELECT purchase_id, $3 FROM (
             SELECT e.purchase_id, p.state FROM entitlements e JOIN dataset_versions v USING (dataset_id) LEFT JOIN purchases p USING (purchase_id)
             WHERE v.version_id = $2 AND e.account_id = $1 AND (e.version_id IS NULL OR e.version_id = v.version_id)
                 AND e.allows = 'download' AND e.starts_at <= $3 AND (e.ends_at IS NULL OR e.ends_at > $3) AND e.ended_at IS NULL
             ORDER BY coalesce(p.state = 'granted', false), e.ends_at DESC NULLS LAST, e.entitlement_id LIMIT 1
         ) AS best WHERE state = 'granted'
         ON CONFLICT (purchase_id) DO NOTHING",
        account.0,
        version.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// What the verdict on a job must know of the offer that it computed under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Computed {
    /// What it is charged, and who gets it.
    pub charge: DataCharge,
    /// Which version it read,
    pub version: DatasetVersionId,
    /// of which dataset,
    pub dataset: DatasetId,
    /// of whom.
    pub seller: AccountId,
    /// The most bytes that its results may have.
    pub output_bytes_max: u64,
    /// Do these wait for the seller's consent?
    pub is_released_by_seller: bool,
}

/// The data's side of a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataCharge {
    /// The price that was quoted.
    pub terms: DataPrice,
    /// Who shares it beside the platform, by weight.
    pub shares: Vec<(Address, u64)>,
    /// The dataset: while it is blocked, what is charged is held back.
    pub dataset: DatasetId,
}

/// The offers that jobs computed under, for those that did.
pub(crate) async fn computed(
    conn: &mut PgConnection,
    jobs: &[Uuid],
) -> sqlx::Result<HashMap<JobId, Computed>> {
    let rows = sqlx::query!(
        r#"SELECT job_id, d.version_id, o.dataset_id, o.account_id, o.offer_id, p.number, p.price_base, p.platform_ppm,
             o.output_bytes_max AS "output_bytes_max!", o.is_released_by_seller
           FROM jobs JOIN quote_data d USING (quote_id) JOIN offers o USING (offer_id)
           JOIN offer_prices p ON p.offer_id = d.offer_id AND p.number = d.price_number
           WHERE job_id = ANY ($1)"#,
        jobs,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut computed = HashMap::with_capacity(rows.len());
    for row in rows {
        let dataset = DatasetId(row.dataset_id);
        let terms = DataPrice {
            offer: OfferId(row.offer_id),
            number: row.number.unsigned_abs(),
            price: to_amount("price_base", &row.price_base)?,
            platform_ppm: row.platform_ppm.unsigned_abs(),
        };
        let it = Computed {
            charge: DataCharge {
                terms,
                shares: payees::of(conn, dataset).await?,
                dataset,
            },
            version: DatasetVersionId(row.version_id),
            dataset,
            seller: AccountId(row.account_id),
            output_bytes_max: row.output_bytes_max.unsigned_abs(),
            is_released_by_seller: row.is_released_by_seller,
        };
        computed.insert(JobId(row.job_id), it);
    }
    Ok(computed)
}
