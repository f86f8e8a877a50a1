//! What is on its way to an endpoint, and what came of it.

use comptoir_domain::{
    id::{AccountId, WebhookDeliveryId, WebhookEndpointId, WebhookEventId},
    webhook::EventType,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::codec::to_enum;

/// Events that one request sends again at most.
pub const REDELIVERED_MAX: i64 = 1_000;

/// How a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is tried, again where it failed.
    Pending,
    /// The endpoint took it.
    Delivered,
    /// It did not, however often it was tried.
    Failed,
    /// The endpoint was disabled before it did.
    Cancelled,
}

impl DeliveryState {
    /// As it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::Pending,
            Self::Delivered,
            Self::Failed,
            Self::Cancelled,
        ];
        all.into_iter().find(|state| state.as_str() == text)
    }
}

/// One event on its way to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its identifier.
    pub id: WebhookDeliveryId,
    /// What is sent.
    pub event: WebhookEventId,
    /// What that says.
    pub kind: EventType,
    /// How it stands.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: i16,
    /// When it is tried next.
    pub next_attempt_at: Option<OffsetDateTime>,
    /// When it began.
    pub created_at: OffsetDateTime,
    /// When it was delivered or given up.
    pub ended_at: Option<OffsetDateTime>,
    /// What came of the last attempt.
    pub last: Option<Attempt>,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// 1, 2, 3 … within the delivery.
    pub number: i16,
    /// When it began.
    pub started_at: OffsetDateTime,
    /// How long it took.
    pub latency_ms: i32,
    /// The status of the answer, when there was one.
    pub status: Option<i16>,
    /// Why it counts as failed.
    pub error: Option<String>,
    /// The beginning of the answer.
    pub answer: Option<Vec<u8>>,
}

/// Which deliveries a list has.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeliveryFilter {
    /// In this state alone.
    pub state: Option<DeliveryState>,
    /// Of this event alone.
    pub event: Option<WebhookEventId>,
}

/// The delivery of this identifier to the account's endpoint.
pub async fn find(
    conn: &mut PgConnection,
    owner: (AccountId, WebhookEndpointId),
    id: WebhookDeliveryId,
) -> sqlx::Result<Option<Delivery>> {
    let found = select(conn, owner, (Some(id), None), DeliveryFilter::default(), 1).await?;
    Ok(found.into_iter().next())
}

/// Deliveries to the account's endpoint, newest first, older than `position`.
pub async fn list(
    conn: &mut PgConnection,
    owner: (AccountId, WebhookEndpointId),
    filter: DeliveryFilter,
    position: Option<WebhookDeliveryId>,
    limit: i64,
) -> sqlx::Result<Vec<Delivery>> {
    select(conn, owner, (None, position), filter, limit).await
}

struct Row {
    webhook_delivery_id: Uuid,
    webhook_event_id: Uuid,
    kind: String,
    state: String,
    attempts: i16,
    next_attempt_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    number: Option<i16>,
    started_at: Option<OffsetDateTime>,
    latency_ms: Option<i32>,
    status: Option<i16>,
    error: Option<String>,
    answer: Option<Vec<u8>>,
}

impl TryFrom<Row> for Delivery {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let last = row.number.zip(row.started_at).zip(row.latency_ms);
        Ok(Self {
            id: WebhookDeliveryId(row.webhook_delivery_id),
            event: WebhookEventId(row.webhook_event_id),
            kind: to_enum("kind", &row.kind, |text| text.parse().ok())?,
            state: to_enum("state", &row.state, DeliveryState::parse)?,
            attempts: row.attempts,
            next_attempt_at: row.next_attempt_at,
            created_at: row.created_at,
            ended_at: row.ended_at,
            last: last.map(|((number, started_at), latency_ms)| Attempt {
                number,
                started_at,
                latency_ms,
                status: row.status,
                error: row.error,
                answer: row.answer,
            }),
        })
    }
}

async fn select(
    conn: &mut PgConnection,
    (account, endpoint): (AccountId, WebhookEndpointId),
    (id, position): (Option<WebhookDeliveryId>, Option<WebhookDeliveryId>),
    filter: DeliveryFilter,
    limit: i64,
) -> sqlx::Result<Vec<Delivery>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT d.webhook_delivery_id, d.webhook_event_id, e.kind, d.state, d.attempts, d.next_attempt_at, d.created_at, d.ended_at,
             t.number AS "number?", t.started_at AS "started_at?", t.latency_ms AS "latency_ms?", t.status AS "status?",
             t.error AS "error?", t.answer AS "answer?"
           FROM webhook_deliveries d JOIN webhook_events e USING (webhook_event_id)
           LEFT JOIN webhook_attempts t ON t.webhook_delivery_id = d.webhook_delivery_id AND t.number = d.attempts
           WHERE d.webhook_endpoint_id = $1 AND d.account_id = $2 AND ($3::uuid IS NULL OR d.webhook_delivery_id = $3)
             AND ($4::uuid IS NULL OR d.webhook_delivery_id < $4) AND ($5::text IS NULL OR d.state = $5)
             AND ($6::uuid IS NULL OR d.webhook_event_id = $6)
           ORDER BY d.webhook_delivery_id DESC LIMIT $7"#,
        endpoint.0,
        account.0,
        id.map(|it| it.0),
        position.map(|it| it.0),
        filter.state.map(DeliveryState::as_str),
        filter.event.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Delivery::try_from).collect()
}

/// Every attempt at a delivery, oldest first; there are as many as its owner asked for, of which the newest `limit` are read.
pub async fn attempts(
    conn: &mut PgConnection,
    delivery: WebhookDeliveryId,
    limit: i64,
) -> sqlx::Result<Vec<Attempt>> {
    let mut newest = sqlx::query_as!(
        Attempt,
        "SELECT number, started_at, latency_ms, status, error, answer FROM webhook_attempts
         WHERE webhook_delivery_id = $1 ORDER BY number DESC LIMIT $2",
        delivery.0,
        limit,
    )
    .fetch_all(conn)
    .await?;
    newest.reverse();
    Ok(newest)
}

/// Begins a delivery anew. One that is pending is tried at once, and one that an attempt is being made at stays as it is.
pub async fn redeliver(
    conn: &mut PgConnection,
    delivery: WebhookDeliveryId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE webhook_deliveries SET state = 'pending', tries = 0, next_attempt_at = $2, ended_at = NULL
         WHERE webhook_delivery_id = $1 AND lease_token IS NULL",
        delivery.0,
        now,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Begins anew what happened since then and the endpoint did not take: what failed or was cancelled, and what was never on its way
/// because the endpoint was disabled. The oldest [`REDELIVERED_MAX`] of it; how many.
pub async fn redeliver_since(
    conn: &mut PgConnection,
    (account, endpoint): (AccountId, WebhookEndpointId),
    since: OffsetDateTime,
    now: OffsetDateTime,
) -> sqlx::Result<u64> {
    let begun = sqlx::query!(
        "INSERT INTO webhook_deliveries (webhook_endpoint_id, webhook_event_id, account_id, next_attempt_at, created_at)
         SELECT e.webhook_endpoint_id, v.webhook_event_id, v.account_id, $4, $4
         FROM webhook_endpoints e JOIN webhook_events v ON v.account_id = e.account_id
         LEFT JOIN webhook_deliveries d
             ON d.webhook_endpoint_id = e.webhook_endpoint_id AND d.webhook_event_id = v.webhook_event_id
         WHERE e.webhook_endpoint_id = $1 AND e.account_id = $2 AND v.created_at >= $3
             AND (d.webhook_delivery_id IS NULL OR d.state IN ('failed', 'cancelled'))
             AND (e.event_types IS NULL OR v.kind = ANY (e.event_types)) AND v.kind <> 'webhook.test'
         ORDER BY v.webhook_event_id LIMIT $5
         ON CONFLICT (webhook_endpoint_id, webhook_event_id) DO UPDATE
             SET state = 'pending', tries = 0, next_attempt_at = EXCLUDED.next_attempt_at, ended_at = NULL",
        endpoint.0,
        account.0,
        since,
        now,
        REDELIVERED_MAX,
    )
    .execute(conn)
    .await?;
    Ok(begun.rows_affected())
}

/// How much is on its way, and since when the oldest of it is due.
pub async fn backlog(conn: &mut PgConnection) -> sqlx::Result<(i64, Option<OffsetDateTime>)> {
    let row = sqlx::query!(
        r#"SELECT count(*) AS "count!", min(next_attempt_at) AS due_at FROM webhook_deliveries WHERE state = 'pending'"#
    )
    .fetch_one(conn)
    .await?;
    Ok((row.count, row.due_at))
}
