//! Offers of datasets, and their prices.

use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{AccountId, DatasetId, DatasetVersionId, OfferId},
    offer::{OfferKind, Terms},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_amount, to_digest, to_enum, to_numeric},
    violates,
};

/// Terms on which a dataset can be had.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its identifier.
    pub id: OfferId,
    /// The dataset.
    pub dataset: DatasetId,
    /// The seller.
    pub account: AccountId,
    /// Row of `assets`.
    pub asset_id: i32,
    /// What it promises.
    pub terms: Terms,
    /// The price that counts now.
    pub price: Price,
    /// The price that will, once its notice is over.
    pub next_price: Option<Price>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it was closed; `None`: it stands.
    pub closed_at: Option<OffsetDateTime>,
}

/// One of an offer's prices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Its number, from 1.
    pub number: i32,
    /// Of the purchase, of a second, of a period, or of a job.
    pub amount: Amount,
    /// What the platform takes of it, in millionths.
    pub platform_ppm: u32,
    /// From when on it counts.
    pub effective_at: OffsetDateTime,
}

/// A price that is to be added to an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewPrice {
    /// Of the purchase, of a second, of a period, or of a job.
    pub amount: Amount,
    /// What the platform takes of it, in millionths.
    pub platform_ppm: u32,
    /// From when on it counts.
    pub effective_at: OffsetDateTime,
}

/// An offer that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewOffer<'a> {
    /// The dataset; it is locked, and the account's.
    pub dataset: DatasetId,
    /// The seller.
    pub account: AccountId,
    /// Row of `assets`.
    pub asset_id: i32,
    /// What it promises.
    pub terms: &'a Terms,
    /// Its first price.
    pub price: Amount,
    /// What the platform takes of it, in millionths.
    pub platform_ppm: u32,
}

/// Why an offer is not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateOfferError {
    /// The version is not one of the dataset's, or not ready.
    #[error("the dataset has no such ready version")]
    NoVersion,
    /// Jobs can compute on the dataset under another offer already.
    #[error("the dataset has an open offer to compute on it")]
    ComputesAlready,
    /// A statement failed.
    #[error("make an offer")]
    Database(#[from] sqlx::Error),
}

/// Makes an offer.
///
/// # Errors
/// When it cannot be made as described.
pub async fn create(
    tx: &mut PgTransaction<'_>,
    new: &NewOffer<'_>,
    now: OffsetDateTime,
) -> Result<OfferId, CreateOfferError> {
    let (id, terms) = (OfferId::generate(), new.terms);
    if let Some(version) = terms.version {
        let ready = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM dataset_versions WHERE version_id = $1 AND dataset_id = $2 AND state = 'ready') AS "ready!""#,
            version.0,
            new.dataset.0,
        )
        .fetch_one(&mut **tx)
        .await?;
        if !ready {
            return Err(CreateOfferError::NoVersion);
        }
    }
    let programs: Option<Vec<Vec<u8>>> = terms
        .programs
        .as_ref()
        .map(|programs| programs.iter().map(|it| it.0.to_vec()).collect());
    sqlx::query!(
        "INSERT INTO offers (offer_id, dataset_id, account_id, asset_id, kind, version_id, is_gated, answer_seconds, refund_seconds,
             period_seconds, minimum_seconds, programs, output_bytes_max, is_released_by_seller, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        id.0,
        new.dataset.0,
        new.account.0,
        new.asset_id,
        terms.kind.as_str(),
        terms.version.map(|it| it.0),
        terms.answer_seconds.is_some(),
        terms.answer_seconds.map(u32::cast_signed),
        terms.refund_seconds.cast_signed(),
        terms.period_seconds.map(u32::cast_signed),
        terms.minimum_seconds.cast_signed(),
        programs.as_deref(),
        terms.output_bytes_max.map(u64::cast_signed),
        terms.is_released_by_seller,
        now,
    )
    .execute(&mut **tx)
    .await
    .map_err(|error| {
        if violates(&error, "offers_one_compute") {
            CreateOfferError::ComputesAlready
        } else {
            error.into()
        }
    })?;
    let first = NewPrice {
        amount: new.price,
        platform_ppm: new.platform_ppm,
        effective_at: now,
    };
    add_price(tx, id, &first, now).await?;
    Ok(id)
}

/// Adds a price to an offer, which is locked: its number comes after those of all others, announced ones too.
///
/// # Errors
/// When the statement fails.
pub async fn add_price(
    tx: &mut PgTransaction<'_>,
    offer: OfferId,
    price: &NewPrice,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO offer_prices (offer_id, number, price_base, platform_ppm, effective_at, created_at)
         VALUES ($1, (SELECT 1 + coalesce(max(number), 0) FROM offer_prices WHERE offer_id = $1), $2, $3, $4, $5)",
        offer.0,
        to_numeric(price.amount),
        price.platform_ppm.cast_signed(),
        price.effective_at,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Takes an offer from the market. Again changes nothing.
///
/// # Errors
/// When the statement fails.
pub async fn close(
    tx: &mut PgTransaction<'_>,
    offer: OfferId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE offers SET closed_at = $2 WHERE offer_id = $1 AND closed_at IS NULL",
        offer.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// An offer that the connection may see, with its prices as of `now`.
///
/// # Errors
/// When the statement fails, or what is stored is not an offer.
pub async fn find(
    conn: &mut PgConnection,
    offer: OfferId,
    now: OffsetDateTime,
) -> sqlx::Result<Option<Offer>> {
    Ok(find_all(conn, &[offer], now).await?.pop())
}

/// Those of these offers that the connection may see, newest first, with their prices as of `now`.
///
/// # Errors
/// When the statement fails, or what is stored is not an offer.
pub async fn find_all(
    conn: &mut PgConnection,
    offers: &[OfferId],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Offer>> {
    let ids: Vec<_> = offers.iter().map(|it| it.0).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT o.offer_id, o.dataset_id, o.account_id, o.asset_id, o.kind, o.version_id, o.answer_seconds, o.refund_seconds,
               o.period_seconds, o.minimum_seconds, o.programs, o.output_bytes_max, o.is_released_by_seller, o.created_at, o.closed_at,
               p.number, p.price_base, p.platform_ppm, p.effective_at,
               n.number AS "next_number?", n.price_base AS "next_price_base?", n.platform_ppm AS "next_platform_ppm?",
               n.effective_at AS "next_effective_at?"
           FROM offers o
           JOIN LATERAL (SELECT * FROM offer_prices p WHERE p.offer_id = o.offer_id AND p.effective_at <= $2 ORDER BY number DESC LIMIT 1) p ON true
           LEFT JOIN LATERAL (SELECT * FROM offer_prices n WHERE n.offer_id = o.offer_id AND n.number > p.number AND n.effective_at > $2
               ORDER BY effective_at, number DESC LIMIT 1) n ON true
           WHERE o.offer_id = ANY ($1) ORDER BY o.offer_id DESC"#,
        &ids,
        now,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Offer::try_from).collect()
}

/// Locks an offer of the account against other changes of it: is there one?
///
/// # Errors
/// When the statement fails.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    offer: OfferId,
) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar!(
        "SELECT offer_id FROM offers WHERE offer_id = $1 AND account_id = $2 FOR NO KEY UPDATE",
        offer.0,
        account.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.is_some())
}

/// Is it on sale: does it stand, is its dataset listed and not blocked, and its seller not frozen?
///
/// # Errors
/// When the statement fails.
pub async fn is_on_sale(conn: &mut PgConnection, id: OfferId) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        r#"SELECT is_on_sale(o, d) AS "is_on_sale!" FROM offers o JOIN datasets d USING (dataset_id) WHERE offer_id = $1"#,
        id.0,
    );
    Ok(found.fetch_optional(conn).await?.unwrap_or_default())
}

/// Was its dataset listed, and taken off the list again? The connection must see everybody: whoever took nothing of it does not see it any more.
///
/// # Errors
/// When the statement fails.
pub async fn was_withdrawn(conn: &mut PgConnection, id: OfferId) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        r#"SELECT d.state = 'withdrawn' AS "withdrawn!" FROM offers o JOIN datasets d USING (dataset_id) WHERE offer_id = $1"#,
        id.0,
    );
    Ok(found.fetch_optional(conn).await?.unwrap_or_default())
}

/// The offers of a dataset that the connection may see, newest first, older than `before`; closed ones for who made them alone.
///
/// # Errors
/// When the statement fails, or what is stored is not an offer.
pub async fn list(
    conn: &mut PgConnection,
    (dataset, reader): (DatasetId, AccountId),
    before: Option<OfferId>,
    limit: i64,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Offer>> {
    let ids = sqlx::query_scalar!(
        "SELECT offer_id FROM offers
         WHERE dataset_id = $1 AND (closed_at IS NULL OR account_id = $2) AND ($3::uuid IS NULL OR offer_id < $3)
         ORDER BY offer_id DESC LIMIT $4",
        dataset.0,
        reader.0,
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let ids: Vec<_> = ids.into_iter().map(OfferId).collect();
    find_all(conn, &ids, now).await
}

struct Row {
    offer_id: Uuid,
    dataset_id: Uuid,
    account_id: Uuid,
    asset_id: i32,
    kind: String,
    version_id: Option<Uuid>,
    answer_seconds: Option<i32>,
    refund_seconds: i32,
    period_seconds: Option<i32>,
    minimum_seconds: i32,
    programs: Option<Vec<Vec<u8>>>,
    output_bytes_max: Option<i64>,
    is_released_by_seller: bool,
    created_at: OffsetDateTime,
    closed_at: Option<OffsetDateTime>,
    number: i32,
    price_base: BigDecimal,
    platform_ppm: i32,
    effective_at: OffsetDateTime,
    next_number: Option<i32>,
    next_price_base: Option<BigDecimal>,
    next_platform_ppm: Option<i32>,
    next_effective_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Offer {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let programs = row.programs.map(|programs| {
            let digests = programs.iter().map(|it| to_digest("programs", it));
            digests.collect::<sqlx::Result<Vec<Sha256>>>()
        });
        let next = (
            row.next_number,
            row.next_price_base,
            row.next_platform_ppm,
            row.next_effective_at,
        );
        let next_price = match next {
            (Some(number), Some(base), Some(ppm), Some(effective_at)) => Some(Price {
                number,
                amount: to_amount("price_base", &base)?,
                platform_ppm: ppm.cast_unsigned(),
                effective_at,
            }),
            _ => None,
        };
        Ok(Self {
            id: OfferId(row.offer_id),
            dataset: DatasetId(row.dataset_id),
            account: AccountId(row.account_id),
            asset_id: row.asset_id,
            terms: Terms {
                kind: to_enum("kind", &row.kind, OfferKind::parse)?,
                version: row.version_id.map(DatasetVersionId),
                answer_seconds: row.answer_seconds.map(i32::cast_unsigned),
                refund_seconds: row.refund_seconds.cast_unsigned(),
                period_seconds: row.period_seconds.map(i32::cast_unsigned),
                minimum_seconds: row.minimum_seconds.cast_unsigned(),
                programs: programs.transpose()?,
                output_bytes_max: row.output_bytes_max.map(i64::cast_unsigned),
                is_released_by_seller: row.is_released_by_seller,
            },
            price: Price {
                number: row.number,
                amount: to_amount("price_base", &row.price_base)?,
                platform_ppm: row.platform_ppm.cast_unsigned(),
                effective_at: row.effective_at,
            },
            next_price,
            created_at: row.created_at,
            closed_at: row.closed_at,
        })
    }
}
