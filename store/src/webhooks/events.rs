//! What happened to accounts that listen. Triggers of `migrations/*_webhooks.sql` write it with its cause.

use alloy_primitives::Address;
use comptoir_domain::{
    asset::Asset,
    id::{AccountId, WebhookEndpointId, WebhookEventId},
    webhook::EventType,
};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::codec::{to_address, to_enum};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookEvent {
    /// Its identifier, the same however often it is sent.
    pub id: WebhookEventId,
    /// What happened.
    pub kind: EventType,
    /// What it is about, where that has an identifier.
    pub subject: Option<Uuid>,
    /// What amounts are of.
    pub asset: Option<Asset>,
    /// What else is known.
    pub data: Value,
    /// When it happened.
    pub created_at: OffsetDateTime,
}

/// An event as it is read, beside the token of its amounts.
pub(super) struct EventRow {
    pub webhook_event_id: Uuid,
    pub kind: String,
    pub subject_id: Option<Uuid>,
    pub data: Value,
    pub created_at: OffsetDateTime,
    pub asset_id: Option<i32>,
    pub chain_id: Option<i64>,
    pub token: Option<Vec<u8>>,
    pub contract: Option<Vec<u8>>,
    pub decimals: Option<i16>,
}

impl TryFrom<EventRow> for WebhookEvent {
    type Error = sqlx::Error;

    fn try_from(row: EventRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: WebhookEventId(row.webhook_event_id),
            kind: to_enum("kind", &row.kind, |text| text.parse().ok())?,
            subject: row.subject_id,
            asset: to_asset(&row)?,
            data: row.data,
            created_at: row.created_at,
        })
    }
}

fn to_asset(row: &EventRow) -> sqlx::Result<Option<Asset>> {
    let (Some(id), Some(chain_id), Some(token), Some(contract), Some(decimals)) = (
        row.asset_id,
        row.chain_id,
        &row.token,
        &row.contract,
        row.decimals,
    ) else {
        return Ok(None);
    };
    let decode = |error: std::num::TryFromIntError| sqlx::Error::Decode(error.into());
    let address = |name, bytes: &[u8]| -> sqlx::Result<Address> { to_address(name, bytes) };
    Ok(Some(Asset {
        id,
        chain_id: chain_id.try_into().map_err(decode)?,
        token: address("token", token)?,
        contract: address("contract", contract)?,
        decimals: decimals.try_into().map_err(decode)?,
    }))
}

/// Which events a list has.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventFilter {
    /// Of this type alone.
    pub kind: Option<EventType>,
    /// That happened after this time.
    pub after: Option<OffsetDateTime>,
    /// That happened before this time.
    pub before: Option<OffsetDateTime>,
}

/// The account's event of this identifier.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    id: WebhookEventId,
) -> sqlx::Result<Option<WebhookEvent>> {
    let found = select(conn, account, (Some(id), None), EventFilter::default(), 1).await?;
    Ok(found.into_iter().next())
}

/// What happened to the account, newest first, older than `position`.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    filter: EventFilter,
    position: Option<WebhookEventId>,
    limit: i64,
) -> sqlx::Result<Vec<WebhookEvent>> {
    select(conn, account, (None, position), filter, limit).await
}

async fn select(
    conn: &mut PgConnection,
    account: AccountId,
    (id, position): (Option<WebhookEventId>, Option<WebhookEventId>),
    filter: EventFilter,
    limit: i64,
) -> sqlx::Result<Vec<WebhookEvent>> {
    let rows = sqlx::query_as!(
        EventRow,
        r#"SELECT webhook_event_id, kind, subject_id, data, e.created_at, e.asset_id, a.chain_id AS "chain_id?", a.token AS "token?",
             a.contract AS "contract?", a.decimals AS "decimals?"
           FROM webhook_events e LEFT JOIN assets a USING (asset_id)
           WHERE account_id = $1 AND ($2::uuid IS NULL OR webhook_event_id = $2) AND ($3::uuid IS NULL OR webhook_event_id < $3)
             AND ($4::text IS NULL OR kind = $4) AND ($5::timestamptz IS NULL OR e.created_at > $5)
             AND ($6::timestamptz IS NULL OR e.created_at < $6)
           ORDER BY webhook_event_id DESC LIMIT $7"#,
        account.0,
        id.map(|it| it.0),
        position.map(|it| it.0),
        filter.kind.map(EventType::as_str),
        filter.after,
        filter.before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(WebhookEvent::try_from).collect()
}

/// Writes a test, which is on its way to this endpoint and to no other.
pub async fn create_test(
    conn: &mut PgConnection,
    account: AccountId,
    endpoint: WebhookEndpointId,
    now: OffsetDateTime,
) -> sqlx::Result<WebhookEventId> {
    sqlx::query_scalar!(
        "INSERT INTO webhook_events (account_id, kind, subject_id, data, created_at) VALUES ($1, $2, $3, $4, $5)
         RETURNING webhook_event_id",
        account.0,
        EventType::WebhookTest.as_str(),
        endpoint.0,
        json!({}),
        now,
    )
    .fetch_one(conn)
    .await
    .map(WebhookEventId)
}

/// Forgets at most `limit` events that happened before `until`, with what came of telling them; says how many.
pub async fn forget_old(
    conn: &mut PgConnection,
    until: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM webhook_events WHERE webhook_event_id IN (
             SELECT webhook_event_id FROM webhook_events WHERE created_at < $1 ORDER BY created_at LIMIT $2
         )",
        until,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(forgotten.rows_affected())
}
