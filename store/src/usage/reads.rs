//! What an account used: sums of it, the calls themselves, and the windows that they are charged in.

use comptoir_domain::{
    amount::Amount,
    atto::Atto,
    id::{AccountId, ApiKeyId, CallId, ModelId, ModelVersionId, ReceiptId, UsageWindowId},
    usage::{Counted, UsageRecord},
};
use sqlx::{PgConnection, postgres::types::PgInterval, types::BigDecimal};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::windows::{EventRow, to_madds};
use crate::codec::{to_amount, to_atto};

/// Which calls are asked for: of an account, answered from one time on and before another.
#[derive(Debug, Clone, Copy)]
pub struct UsageFilter {
    /// Whose.
    pub account: AccountId,
    /// Of this time or later.
    pub from: OffsetDateTime,
    /// Before this.
    pub to: OffsetDateTime,
    /// Of this model alone.
    pub model: Option<ModelId>,
    /// Made with this key alone.
    pub key: Option<ApiKeyId>,
}

/// What sums are made for, beside the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupBy {
    /// Each API key.
    pub key: bool,
    /// Each model.
    pub model: bool,
    /// Each version of a model.
    pub version: bool,
}

/// Where a sum stands among the others: newest first, then by what it is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumPlace {
    /// When its time begins.
    pub from: OffsetDateTime,
    /// The key; `None`: of calls without one, or of all.
    pub key: Option<ApiKeyId>,
    /// The model; `None`: of all.
    pub model: Option<ModelId>,
    /// The version; `None`: of all.
    pub version: Option<ModelVersionId>,
}

/// A sum.
#[derive(Debug, Clone, Copy)]
pub struct UsageSum {
    /// What it is made for.
    pub place: SumPlace,
    /// What was counted.
    pub counted: Counted,
    /// What that costs.
    pub cost: Atto,
}

/// Sums of calls by time and by what else is asked for, newest first, those that come after `after`.
///
/// # Errors
/// When the statement fails.
pub async fn sums(
    conn: &mut PgConnection,
    filter: &UsageFilter,
    (by, length): (GroupBy, Duration),
    after: Option<SumPlace>,
    limit: i64,
) -> sqlx::Result<Vec<UsageSum>> {
    // Nothing of the times before the last page is counted again.
    let to = after.map_or(filter.to, |it| {
        filter.to.min(it.from.saturating_add(length))
    });
    let rows = sqlx::query!(
        r#"SELECT * FROM (
               SELECT date_bin($2, at, '1970-01-01 00:00Z') AS "starts_at!",
                   CASE WHEN $3 THEN api_key_id END AS api_key_id, CASE WHEN $4 THEN model_id END AS model_id,
                   CASE WHEN $5 THEN version_id END AS version_id, count(*) AS "calls!", sum(rows) AS "rows!", sum(input_tokens) AS "input_tokens!",
                   sum(output_tokens) AS "output_tokens!", sum(madds) AS "madds!", sum(cost_atto) AS "cost_atto!"
               FROM usage_events
               WHERE account_id = $1 AND at >= $6 AND at < $7 AND ($8::uuid IS NULL OR model_id = $8) AND ($9::uuid IS NULL OR api_key_id = $9)
               GROUP BY 1, 2, 3, 4
           ) AS it
           WHERE $10::timestamptz IS NULL OR "starts_at!" < $10 OR "starts_at!" = $10 AND
               (coalesce(api_key_id, $14), coalesce(model_id, $14), coalesce(version_id, $14))
                   > (coalesce($11::uuid, $14), coalesce($12::uuid, $14), coalesce($13::uuid, $14))
           ORDER BY "starts_at!" DESC, coalesce(api_key_id, $14), coalesce(model_id, $14), coalesce(version_id, $14) LIMIT $15"#,
        filter.account.0,
        PgInterval {
            months: 0,
            days: 0,
            microseconds: i64::try_from(length.whole_microseconds()).unwrap_or(i64::MAX),
        },
        by.key,
        by.model,
        by.version,
        filter.from,
        to,
        filter.model.map(|it| it.0),
        filter.key.map(|it| it.0),
        after.map(|it| it.from),
        after.and_then(|it| it.key).map(|it| it.0),
        after.and_then(|it| it.model).map(|it| it.0),
        after.and_then(|it| it.version).map(|it| it.0),
        Uuid::nil(),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(UsageSum {
                place: SumPlace {
                    from: row.starts_at,
                    key: row.api_key_id.map(ApiKeyId),
                    model: row.model_id.map(ModelId),
                    version: row.version_id.map(ModelVersionId),
                },
                counted: Counted {
                    calls: row.calls.cast_unsigned(),
                    rows: to_count("rows", &row.rows)?,
                    input_tokens: to_count("input_tokens", &row.input_tokens)?,
                    output_tokens: to_count("output_tokens", &row.output_tokens)?,
                    madds: to_madds(&row.madds)?,
                },
                cost: to_atto("cost_atto", &row.cost_atto)?,
            })
        })
        .collect()
}

fn to_count(column: &'static str, stored: &BigDecimal) -> sqlx::Result<u64> {
    let count = crate::codec::to_wide(column, stored)?;
    count
        .try_into()
        .map_err(|_| sqlx::Error::Decode(format!("`{column}` is above every count").into()))
}

/// The calls of a filter, oldest first, those that come after `after`.
///
/// # Errors
/// When the statement fails.
pub async fn events(
    conn: &mut PgConnection,
    filter: &UsageFilter,
    after: Option<(OffsetDateTime, CallId)>,
    limit: i64,
) -> sqlx::Result<Vec<UsageRecord>> {
    let rows = sqlx::query_as!(
        EventRow,
        "SELECT call_id, window_id, api_key_id, model_id, version_id, price_number, worker_id, rows, input_tokens, output_tokens, madds, cost_atto,
             duration_us, at
         FROM usage_events
         WHERE account_id = $1 AND at >= $2 AND at < $3 AND ($4::uuid IS NULL OR model_id = $4) AND ($5::uuid IS NULL OR api_key_id = $5)
             AND (at, call_id) > (coalesce($6, '-infinity'::timestamptz), coalesce($7, '00000000-0000-0000-0000-000000000000'::uuid))
         ORDER BY at, call_id LIMIT $8",
        filter.account.0,
        filter.from,
        filter.to,
        filter.model.map(|it| it.0),
        filter.key.map(|it| it.0),
        after.map(|(at, _)| at),
        after.map(|(_, call)| call.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.iter().map(EventRow::decode).collect()
}

/// The calls of a window, in the order of its usage file, those that come after `after`.
///
/// # Errors
/// When the statement fails.
pub async fn events_of(
    conn: &mut PgConnection,
    window: UsageWindowId,
    after: Option<CallId>,
    limit: i64,
) -> sqlx::Result<Vec<UsageRecord>> {
    let rows = sqlx::query_as!(
        EventRow,
        "SELECT call_id, window_id, api_key_id, model_id, version_id, price_number, worker_id, rows, input_tokens, output_tokens, madds, cost_atto,
             duration_us, at
         FROM usage_events
         WHERE window_id = $1 AND call_id > coalesce($2, '00000000-0000-0000-0000-000000000000'::uuid) ORDER BY call_id LIMIT $3",
        window.0,
        after.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.iter().map(EventRow::decode).collect()
}

/// A window, as the account sees it whose calls it counts.
#[derive(Debug, Clone)]
pub struct UsageWindow {
    /// Its name.
    pub id: UsageWindowId,
    /// The key that the calls were made with.
    pub key: Option<ApiKeyId>,
    /// The model.
    pub model: ModelId,
    /// The version that answered.
    pub version: ModelVersionId,
    /// Which of the model's prices.
    pub price_number: i32,
    /// What was counted.
    pub counted: Counted,
    /// What that costs.
    pub cost: Atto,
    /// What was charged for it; `None` while it is open.
    pub charged: Option<Amount>,
    /// The receipt of that; `None` where nothing was charged.
    pub receipt: Option<ReceiptId>,
    /// When its first call was answered.
    pub opened_at: OffsetDateTime,
    /// When it was charged.
    pub closed_at: Option<OffsetDateTime>,
}

/// The windows of an account, newest first, older than `before`.
///
/// # Errors
/// When the statement fails.
pub async fn windows(
    conn: &mut PgConnection,
    account: AccountId,
    is_open: Option<bool>,
    before: Option<UsageWindowId>,
    limit: i64,
) -> sqlx::Result<Vec<UsageWindow>> {
    find(conn, (account, None, is_open), before, limit).await
}

/// A window of an account.
///
/// # Errors
/// When the statement fails.
pub async fn window(
    conn: &mut PgConnection,
    account: AccountId,
    id: UsageWindowId,
) -> sqlx::Result<Option<UsageWindow>> {
    let found = find(conn, (account, Some(id), None), None, 1).await?;
    Ok(found.into_iter().next())
}

async fn find(
    conn: &mut PgConnection,
    (account, id, is_open): (AccountId, Option<UsageWindowId>, Option<bool>),
    before: Option<UsageWindowId>,
    limit: i64,
) -> sqlx::Result<Vec<UsageWindow>> {
    let rows = sqlx::query!(
        r#"SELECT w.window_id, api_key_id, w.model_id, version_id, price_number, calls, rows, input_tokens, output_tokens, madds, cost_atto,
             w.charged_base, w.opened_at, w.closed_at, (SELECT receipt_id FROM receipts r WHERE r.window_id = w.window_id) AS receipt_id
           FROM usage_windows w JOIN allowances a USING (allowance_id)
           WHERE w.account_id = $1 AND ($2::uuid IS NULL OR w.window_id = $2) AND ($3::boolean IS NULL OR (w.closed_at IS NULL) = $3)
             AND ($4::uuid IS NULL OR w.window_id < $4)
           ORDER BY w.window_id DESC LIMIT $5"#,
        account.0,
        id.map(|it| it.0),
        is_open,
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let charged = row.charged_base.as_ref();
            let charged = charged
                .map(|it| to_amount("charged_base", it))
                .transpose()?;
            Ok(UsageWindow {
                id: UsageWindowId(row.window_id),
                key: row.api_key_id.map(ApiKeyId),
                model: ModelId(row.model_id),
                version: ModelVersionId(row.version_id),
                price_number: row.price_number,
                counted: Counted {
                    calls: row.calls.cast_unsigned(),
                    rows: row.rows.cast_unsigned(),
                    input_tokens: row.input_tokens.cast_unsigned(),
                    output_tokens: row.output_tokens.cast_unsigned(),
                    madds: to_madds(&row.madds)?,
                },
                cost: to_atto("cost_atto", &row.cost_atto)?,
                charged,
                receipt: row.receipt_id.map(ReceiptId),
                opened_at: row.opened_at,
                closed_at: row.closed_at,
            })
        })
        .collect()
}
