//! What calls of models cost, and who shares it: numbered, and never changed.

use comptoir_domain::{
    id::ModelId,
    model::{Payee, Shares, Tariff},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::to_address,
    prices::{rate_to_numeric, to_rate},
};

/// One of a model's prices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPrice {
    /// Of which model.
    pub model: ModelId,
    /// Its number, from 1.
    pub number: i32,
    /// Row of `assets`.
    pub asset_id: i32,
    /// What a call costs.
    pub tariff: Tariff,
    /// What the platform takes of it, in millionths.
    pub platform_ppm: u32,
    /// Who shares the rest.
    pub shares: Shares,
    /// From when on it counts.
    pub effective_at: OffsetDateTime,
    /// When it was published.
    pub created_at: OffsetDateTime,
}

struct Stored {
    model_id: Uuid,
    number: i32,
    asset_id: i32,
    call_nano: BigDecimal,
    row_nano: BigDecimal,
    input_token_nano: BigDecimal,
    output_token_nano: BigDecimal,
    giga_madds_nano: BigDecimal,
    free_calls_per_day: i64,
    platform_ppm: i32,
    worker_ppm: i32,
    payees: Vec<Vec<u8>>,
    weights: Vec<i64>,
    effective_at: OffsetDateTime,
    created_at: OffsetDateTime,
}

impl TryFrom<Stored> for ModelPrice {
    type Error = sqlx::Error;

    fn try_from(row: Stored) -> sqlx::Result<Self> {
        let payees = row.payees.iter().zip(row.weights).map(|(address, weight)| {
            Ok(Payee {
                address: to_address("payees", address)?,
                weight: count("weights", weight)?,
            })
        });
        Ok(Self {
            model: ModelId(row.model_id),
            number: row.number,
            asset_id: row.asset_id,
            tariff: Tariff {
                call_nano: to_rate("call_nano", &row.call_nano)?,
                row_nano: to_rate("row_nano", &row.row_nano)?,
                input_token_nano: to_rate("input_token_nano", &row.input_token_nano)?,
                output_token_nano: to_rate("output_token_nano", &row.output_token_nano)?,
                giga_madds_nano: to_rate("giga_madds_nano", &row.giga_madds_nano)?,
                free_calls_per_day: count("free_calls_per_day", row.free_calls_per_day)?,
            },
            platform_ppm: row.platform_ppm.cast_unsigned(),
            shares: Shares {
                worker_ppm: row.worker_ppm.cast_unsigned(),
                payees: payees.collect::<sqlx::Result<_>>()?,
            },
            effective_at: row.effective_at,
            created_at: row.created_at,
        })
    }
}

fn count(column: &'static str, stored: i64) -> sqlx::Result<u32> {
    u32::try_from(stored).map_err(|error| sqlx::Error::ColumnDecode {
        index: column.into(),
        source: error.into(),
    })
}

/// Adds a price to a model that is locked. One that was announced makes way for it where this one counts no later.
///
/// # Errors
/// When the statement fails.
pub async fn add(tx: &mut PgTransaction<'_>, price: &ModelPrice) -> sqlx::Result<()> {
    let (tariff, shares) = (&price.tariff, &price.shares);
    let payees: Vec<_> = shares.payees.iter().map(|it| it.address.to_vec()).collect();
    let weights: Vec<_> = shares
        .payees
        .iter()
        .map(|it| i64::from(it.weight))
        .collect();
    sqlx::query!(
        "INSERT INTO model_prices (model_id, number, asset_id, call_nano, row_nano, input_token_nano, output_token_nano, giga_madds_nano,
             free_calls_per_day, platform_ppm, worker_ppm, payees, weights, effective_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        price.model.0,
        price.number,
        price.asset_id,
        rate_to_numeric(tariff.call_nano),
        rate_to_numeric(tariff.row_nano),
        rate_to_numeric(tariff.input_token_nano),
        rate_to_numeric(tariff.output_token_nano),
        rate_to_numeric(tariff.giga_madds_nano),
        i64::from(tariff.free_calls_per_day),
        price.platform_ppm.cast_signed(),
        shares.worker_ppm.cast_signed(),
        &payees,
        &weights,
        price.effective_at,
        price.created_at,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// The price that counts at `now`: of those in effect the newest.
///
/// # Errors
/// When the statement fails, or what is stored is not a price.
pub async fn current(
    conn: &mut PgConnection,
    model: ModelId,
    now: OffsetDateTime,
) -> sqlx::Result<Option<ModelPrice>> {
    let row = sqlx::query_as!(
        Stored,
        "SELECT model_id, number, asset_id, call_nano, row_nano, input_token_nano, output_token_nano, giga_madds_nano, free_calls_per_day, platform_ppm,
           worker_ppm, payees, weights, effective_at, created_at
         FROM model_prices WHERE model_id = $1 AND effective_at <= $2 ORDER BY number DESC LIMIT 1",
        model.0,
        now,
    )
    .fetch_optional(conn)
    .await?;
    row.map(ModelPrice::try_from).transpose()
}

/// As [`current`], of several models: those that have a price.
///
/// # Errors
/// When the statement fails, or what is stored is not a price.
pub async fn current_of(
    conn: &mut PgConnection,
    models: &[ModelId],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<ModelPrice>> {
    let ids: Vec<_> = models.iter().map(|it| it.0).collect();
    let rows = sqlx::query_as!(
        Stored,
        r#"SELECT it.model_id AS "model_id!", p.number, p.asset_id, p.call_nano, p.row_nano, p.input_token_nano, p.output_token_nano, p.giga_madds_nano,
             p.free_calls_per_day, p.platform_ppm, p.worker_ppm, p.payees, p.weights, p.effective_at, p.created_at
           FROM unnest($1::uuid[]) AS it (model_id)
           CROSS JOIN LATERAL (SELECT * FROM model_prices p WHERE p.model_id = it.model_id AND p.effective_at <= $2 ORDER BY number DESC LIMIT 1) p"#,
        &ids,
        now,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(ModelPrice::try_from).collect()
}

/// These prices of these models: those that there are.
pub(crate) async fn find_all(
    conn: &mut PgConnection,
    wanted: &[(ModelId, i32)],
) -> sqlx::Result<Vec<ModelPrice>> {
    let (models, numbers): (Vec<_>, Vec<_>) = wanted
        .iter()
        .map(|(model, number)| (model.0, *number))
        .unzip();
    let rows = sqlx::query_as!(
        Stored,
        "SELECT model_id, number, asset_id, call_nano, row_nano, input_token_nano, output_token_nano, giga_madds_nano, free_calls_per_day, platform_ppm,
           worker_ppm, payees, weights, effective_at, created_at
         FROM model_prices
         WHERE (model_id, number) IN (SELECT DISTINCT model, number FROM UNNEST($1::uuid[], $2::integer[]) AS it (model, number))",
        &models,
        &numbers,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(ModelPrice::try_from).collect()
}

/// The prices of a model that the connection may see, newest first, before the number `before`.
///
/// # Errors
/// When the statement fails, or what is stored is not a price.
pub async fn list(
    conn: &mut PgConnection,
    model: ModelId,
    before: Option<i32>,
    limit: i64,
) -> sqlx::Result<Vec<ModelPrice>> {
    let rows = sqlx::query_as!(
        Stored,
        "SELECT model_id, number, asset_id, call_nano, row_nano, input_token_nano, output_token_nano, giga_madds_nano, free_calls_per_day, platform_ppm,
           worker_ppm, payees, weights, effective_at, created_at
         FROM model_prices WHERE model_id = $1 AND ($2::integer IS NULL OR number < $2) ORDER BY number DESC LIMIT $3",
        model.0,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(ModelPrice::try_from).collect()
}
