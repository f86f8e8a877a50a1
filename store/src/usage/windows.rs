//! Windows of an allowance, as they are charged.

use std::collections::HashMap;

use alloy_primitives::{Address, U256};
use comptoir_domain::{
    digest::Sha256,
    id::{AllowanceId, ApiKeyId, CallId, ModelId, ModelVersionId, UsageWindowId, WorkerId},
    model::Usage,
    usage::{Counted, UsageDigest, UsageRecord},
};
use futures::TryStreamExt as _;
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    codec::{to_address, to_atto, to_digest, to_wide},
    model_prices::{self, ModelPrice},
};

/// A window with all that its charge is computed from.
#[derive(Debug)]
pub(crate) struct OpenWindow {
    pub id: UsageWindowId,
    pub version: ModelVersionId,
    /// The digest of the version's manifest.
    pub manifest: Sha256,
    pub worker_owner: Address,
    pub price: ModelPrice,
    pub counted: Counted,
}

/// The windows of an allowance, in the order in which they were opened.
pub(crate) async fn windows_of(
    conn: &mut PgConnection,
    of: AllowanceId,
) -> sqlx::Result<Vec<OpenWindow>> {
    let rows = sqlx::query!(
        "SELECT window_id, w.model_id, w.version_id, price_number, worker_owner, calls, rows, input_tokens, output_tokens, madds, manifest_sha256
         FROM usage_windows w JOIN model_versions v USING (version_id)
         WHERE allowance_id = $1 ORDER BY window_id",
        of.0,
    )
    .fetch_all(&mut *conn)
    .await?;
    let streams: Vec<_> = rows
        .iter()
        .map(|row| (ModelId(row.model_id), row.price_number))
        .collect();
    let prices = model_prices::find_all(conn, &streams).await?;
    let prices: HashMap<_, _> = prices
        .into_iter()
        .map(|it| ((it.model, it.number), it))
        .collect();
    rows.into_iter()
        .map(|row| {
            let price = prices.get(&(ModelId(row.model_id), row.price_number));
            Ok(OpenWindow {
                id: UsageWindowId(row.window_id),
                version: ModelVersionId(row.version_id),
                manifest: to_digest("manifest_sha256", &row.manifest_sha256)?,
                worker_owner: to_address("worker_owner", &row.worker_owner)?,
                price: price.cloned().ok_or(sqlx::Error::RowNotFound)?,
                counted: Counted {
                    calls: row.calls.cast_unsigned(),
                    rows: row.rows.cast_unsigned(),
                    input_tokens: row.input_tokens.cast_unsigned(),
                    output_tokens: row.output_tokens.cast_unsigned(),
                    madds: to_madds(&row.madds)?,
                },
            })
        })
        .collect()
}

/// The digest of the usage file of a window: of what `GET /v1/usage/events?window=…` serves as CSV.
pub(crate) async fn file_digest(
    conn: &mut PgConnection,
    window: UsageWindowId,
) -> sqlx::Result<Sha256> {
    let mut digest = UsageDigest::default();
    let mut rows = sqlx::query_as!(
        EventRow,
        "SELECT call_id, window_id, api_key_id, model_id, version_id, price_number, worker_id, rows, input_tokens, output_tokens, madds, cost_atto,
             duration_us, at
         FROM usage_events WHERE window_id = $1 ORDER BY call_id",
        window.0,
    )
    .fetch(conn);
    while let Some(row) = rows.try_next().await? {
        digest.add(&row.decode()?);
    }
    Ok(digest.finish())
}

pub(super) struct EventRow {
    pub call_id: Uuid,
    pub window_id: Option<Uuid>,
    pub api_key_id: Option<Uuid>,
    pub model_id: Uuid,
    pub version_id: Uuid,
    pub price_number: i32,
    pub worker_id: Uuid,
    pub rows: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub madds: BigDecimal,
    pub cost_atto: BigDecimal,
    pub duration_us: i64,
    pub at: OffsetDateTime,
}

impl EventRow {
    pub(super) fn decode(&self) -> sqlx::Result<UsageRecord> {
        let duration_us = u32::try_from(self.duration_us);
        Ok(UsageRecord {
            call: CallId(self.call_id),
            at: self.at,
            window: self.window_id.map(UsageWindowId),
            key: self.api_key_id.map(ApiKeyId),
            model: ModelId(self.model_id),
            version: ModelVersionId(self.version_id),
            price: self.price_number.cast_unsigned(),
            worker: WorkerId(self.worker_id),
            usage: Usage {
                rows: self.rows.cast_unsigned(),
                input_tokens: self.input_tokens.cast_unsigned(),
                output_tokens: self.output_tokens.cast_unsigned(),
                madds: to_madds(&self.madds)?,
            },
            cost: to_atto("cost_atto", &self.cost_atto)?,
            duration_us: duration_us.map_err(|error| sqlx::Error::Decode(error.into()))?,
        })
    }
}

pub(super) fn to_madds(stored: &BigDecimal) -> sqlx::Result<u128> {
    let madds: U256 = to_wide("madds", stored)?;
    madds
        .try_into()
        .map_err(|_| sqlx::Error::Decode("`madds` is above every count".into()))
}
