//! Published prices. A version is never edited; a job keeps the one it was quoted.

use comptoir_domain::{
    amount::Amount,
    job::Device,
    price::{PriceVersion, Rate},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;

use crate::codec::{to_amount, to_enum, to_numeric};

/// Why there is no price.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// Nothing was published for the device, or the version does not exist.
    #[error("no price is published")]
    NotPublished,
    /// The statement failed.
    #[error("read the price")]
    Database(#[from] sqlx::Error),
}

/// What is published.
#[derive(Debug, Clone, Copy)]
pub struct NewPrice {
    /// The kind of device.
    pub device: Device,
    /// Nano base units per 10^9 multiply-adds.
    pub rate_nano: Rate,
    /// The least that a job costs.
    pub minimum: Amount,
    /// The platform's share, in millionths.
    pub platform_ppm: u32,
    /// When quotes begin to use it.
    pub effective_at: OffsetDateTime,
}

/// Publishes a price. Quotes made before `effective_at` keep theirs.
///
/// # Errors
/// When a number is outside its bounds or the statement fails.
pub async fn publish(
    conn: &mut PgConnection,
    asset_id: i32,
    new: NewPrice,
) -> sqlx::Result<PriceVersion> {
    let platform_ppm =
        i32::try_from(new.platform_ppm).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let id = sqlx::query_scalar!(
        "INSERT INTO price_versions (asset_id, device, rate_nano, minimum_base, platform_ppm, effective_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         RETURNING price_version_id",
        asset_id,
        new.device.as_str(),
        rate_to_numeric(new.rate_nano),
        to_numeric(new.minimum),
        platform_ppm,
        new.effective_at,
    )
    .fetch_one(conn)
    .await?;
    let NewPrice {
        device,
        rate_nano,
        minimum,
        platform_ppm,
        ..
    } = new;
    Ok(PriceVersion {
        id,
        device,
        rate_nano,
        minimum,
        platform_ppm,
    })
}

/// The price that a quote made `now` uses.
///
/// # Errors
/// When nothing was published for the device.
pub async fn current(
    conn: &mut PgConnection,
    asset_id: i32,
    device: Device,
    now: OffsetDateTime,
) -> Result<PriceVersion, PriceError> {
    let row = sqlx::query_as!(
        Row,
        "SELECT price_version_id, device, rate_nano, minimum_base, platform_ppm
         FROM price_versions
         WHERE asset_id = $1 AND device = $2 AND effective_at <= $3
         ORDER BY effective_at DESC, price_version_id DESC
         LIMIT 1",
        asset_id,
        device.as_str(),
        now,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.ok_or(PriceError::NotPublished)?.decode()?)
}

/// The price of every kind of device `now`, by device.
///
/// # Errors
/// When the statement fails.
pub async fn list_current(
    conn: &mut PgConnection,
    asset_id: i32,
    now: OffsetDateTime,
) -> sqlx::Result<Vec<(PriceVersion, OffsetDateTime)>> {
    let rows = sqlx::query_as!(
        DatedRow,
        "SELECT DISTINCT ON (device) price_version_id, device, rate_nano, minimum_base, platform_ppm, effective_at
         FROM price_versions
         WHERE asset_id = $1 AND effective_at <= $2
         ORDER BY device, effective_at DESC, price_version_id DESC",
        asset_id,
        now,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(DatedRow::decode).collect()
}

/// Every version, those that are not used yet too, newest first, published before `before`.
///
/// # Errors
/// When the statement fails.
pub async fn list(
    conn: &mut PgConnection,
    asset_id: i32,
    before: Option<i32>,
    limit: i64,
) -> sqlx::Result<Vec<(PriceVersion, OffsetDateTime)>> {
    let rows = sqlx::query_as!(
        DatedRow,
        "SELECT price_version_id, device, rate_nano, minimum_base, platform_ppm, effective_at
         FROM price_versions
         WHERE asset_id = $1 AND ($2::integer IS NULL OR price_version_id < $2)
         ORDER BY price_version_id DESC LIMIT $3",
        asset_id,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(DatedRow::decode).collect()
}

/// A version by its number.
///
/// # Errors
/// When there is none.
pub async fn find(conn: &mut PgConnection, id: i32) -> Result<PriceVersion, PriceError> {
    find_published(conn, id)
        .await
        .map(|(version, _, _)| version)
}

/// A version by its number, the asset it is for, and since when it is used.
///
/// # Errors
/// When there is none.
pub async fn find_published(
    conn: &mut PgConnection,
    id: i32,
) -> Result<(PriceVersion, i32, OffsetDateTime), PriceError> {
    let it = sqlx::query!(
        "SELECT price_version_id, device, rate_nano, minimum_base, platform_ppm, asset_id, effective_at
         FROM price_versions WHERE price_version_id = $1",
        id,
    )
    .fetch_optional(conn)
    .await?
    .ok_or(PriceError::NotPublished)?;
    let row = Row {
        price_version_id: it.price_version_id,
        device: it.device,
        rate_nano: it.rate_nano,
        minimum_base: it.minimum_base,
        platform_ppm: it.platform_ppm,
    };
    Ok((row.decode()?, it.asset_id, it.effective_at))
}

/// A rate as `numeric`.
#[must_use]
pub fn rate_to_numeric(rate: Rate) -> BigDecimal {
    BigDecimal::from(rate.nano())
}

/// A rate from `numeric`.
///
/// # Errors
/// When the value is not a rate.
pub fn to_rate(column: &'static str, stored: &BigDecimal) -> sqlx::Result<Rate> {
    let nano = to_amount(column, stored)?.base();
    Ok(Rate::from_nano(nano).expect("a rate has the bound of an amount"))
}

struct Row {
    price_version_id: i32,
    device: String,
    rate_nano: BigDecimal,
    minimum_base: BigDecimal,
    platform_ppm: i32,
}

impl Row {
    fn decode(self) -> sqlx::Result<PriceVersion> {
        Ok(PriceVersion {
            id: self.price_version_id,
            device: to_enum("device", &self.device, Device::parse)?,
            rate_nano: to_rate("rate_nano", &self.rate_nano)?,
            minimum: to_amount("minimum_base", &self.minimum_base)?,
            platform_ppm: u32::try_from(self.platform_ppm)
                .map_err(|error| sqlx::Error::Decode(error.into()))?,
        })
    }
}

/// A version with since when it is used.
struct DatedRow {
    price_version_id: i32,
    device: String,
    rate_nano: BigDecimal,
    minimum_base: BigDecimal,
    platform_ppm: i32,
    effective_at: OffsetDateTime,
}

impl DatedRow {
    fn decode(self) -> sqlx::Result<(PriceVersion, OffsetDateTime)> {
        let row = Row {
            price_version_id: self.price_version_id,
            device: self.device,
            rate_nano: self.rate_nano,
            minimum_base: self.minimum_base,
            platform_ppm: self.platform_ppm,
        };
        Ok((row.decode()?, self.effective_at))
    }
}
