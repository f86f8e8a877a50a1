//! What the sender takes, and what it writes down. A delivery that is taken is leased on the database's clock: whoever dies between
//! sending and writing down lets it be sent again.

use comptoir_domain::{
    id::{AccountId, WebhookDeliveryId, WebhookEndpointId},
    webhook::{DISABLED_AFTER, pause_after, retry_after},
};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    Cause,
    deliveries::DeliveryState,
    events::{EventRow, WebhookEvent},
};
use crate::PgTransaction;

/// Longer than an attempt may take, with what is written down before and after.
const LEASE: Duration = Duration::seconds(60);
/// Attempts at one endpoint that are made at once,
const AT_ONCE: i64 = 4;
/// and where it is slow, or the last one failed.
const AT_ONCE_TROUBLED: i64 = 1;
/// Attempts at all endpoints of one account that are made at once,
const AT_ONCE_OF_ACCOUNT: i64 = 16;
/// and at those that are slow, or failed last.
const AT_ONCE_OF_ACCOUNT_TROUBLED: i64 = 8;

/// A delivery to be tried.
#[derive(Debug, Clone)]
pub struct DueDelivery {
    /// Which.
    pub id: WebhookDeliveryId,
    /// To where.
    pub endpoint: WebhookEndpointId,
    /// Whose.
    pub account: AccountId,
    /// What must be shown to write down what came of it.
    pub lease: Uuid,
    /// The address.
    pub url: String,
    /// The sealed secret,
    pub secret: Vec<u8>,
    /// and the one before while it still signs.
    pub previous_secret: Option<Vec<u8>>,
    /// What is sent.
    pub event: WebhookEvent,
}

/// Which endpoints are looked at: those that are slow or failed last are kept apart, so that they hold nobody else up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The last attempt was quick, and succeeded.
    Well,
    /// It was slow, or failed.
    Troubled,
}

/// Takes at most `limit` deliveries that are due, the oldest of each endpoint first, no more of one endpoint, and of one account, than may be tried
/// at once. Accounts take turns.
pub async fn take_due(
    conn: &mut PgConnection,
    class: Class,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<DueDelivery>> {
    let (at_once, of_account) = match class {
        Class::Well => (AT_ONCE, AT_ONCE_OF_ACCOUNT),
        Class::Troubled => (AT_ONCE_TROUBLED, AT_ONCE_OF_ACCOUNT_TROUBLED),
    };
    let rows = sqlx::query_as!(
        DueRow,
        r#"WITH RECURSIVE waiting AS (
             (SELECT webhook_endpoint_id FROM webhook_deliveries WHERE state = 'pending' ORDER BY webhook_endpoint_id LIMIT 1)
             UNION ALL
             SELECT (SELECT d.webhook_endpoint_id FROM webhook_deliveries d
                 WHERE d.state = 'pending' AND d.webhook_endpoint_id > w.webhook_endpoint_id ORDER BY d.webhook_endpoint_id LIMIT 1)
             FROM waiting w WHERE w.webhook_endpoint_id IS NOT NULL
         ), open AS (
             SELECT * FROM (
                 SELECT e.webhook_endpoint_id, e.account_id, e.state, e.paused_until, $4 - it.taken AS room,
                     $6 - (sum(it.taken) OVER (PARTITION BY e.account_id))::bigint AS room_of_account
                 FROM waiting JOIN webhook_endpoints e USING (webhook_endpoint_id)
                 CROSS JOIN LATERAL (
                     SELECT count(*) AS taken FROM webhook_deliveries d
                     WHERE d.webhook_endpoint_id = e.webhook_endpoint_id AND d.state = 'pending' AND d.lease_expires_at > clock_timestamp()
                 ) it
                 WHERE (e.failures > 0 OR e.is_slow) = $3
             ) e
             WHERE e.state = 'enabled' AND (e.paused_until IS NULL OR e.paused_until <= $1) AND e.room > 0 AND e.room_of_account > 0
         ), due AS MATERIALIZED (
             SELECT webhook_delivery_id FROM (
                 SELECT it.*, open.room_of_account, row_number() OVER (PARTITION BY open.account_id ORDER BY it.next_attempt_at) AS place
                 FROM open CROSS JOIN LATERAL (
                     SELECT d.webhook_delivery_id, d.next_attempt_at FROM webhook_deliveries d
                     WHERE d.webhook_endpoint_id = open.webhook_endpoint_id AND d.state = 'pending' AND d.next_attempt_at <= $1
                         AND (d.lease_expires_at IS NULL OR d.lease_expires_at <= clock_timestamp())
                     ORDER BY d.next_attempt_at LIMIT open.room FOR UPDATE SKIP LOCKED
                 ) it
             ) it
             WHERE place <= room_of_account ORDER BY place, next_attempt_at LIMIT $2
         ), taken AS (
             UPDATE webhook_deliveries d SET lease_token = gen_random_uuid(), lease_expires_at = clock_timestamp() + $5::float8 * interval '1 s'
             FROM due WHERE d.webhook_delivery_id = due.webhook_delivery_id
             RETURNING d.webhook_delivery_id, d.webhook_endpoint_id, d.account_id, d.webhook_event_id, d.lease_token
         )
         SELECT t.webhook_delivery_id, t.webhook_endpoint_id, t.account_id, t.lease_token AS "lease_token!", e.url, e.secret,
             CASE WHEN e.previous_secret_until > $1 THEN e.previous_secret END AS previous_secret,
             v.webhook_event_id, v.kind, v.subject_id, v.data, v.created_at, v.asset_id,
             a.chain_id AS "chain_id?", a.token AS "token?", a.contract AS "contract?", a.decimals AS "decimals?"
         FROM taken t JOIN webhook_endpoints e USING (webhook_endpoint_id) JOIN webhook_events v USING (webhook_event_id)
         LEFT JOIN assets a ON a.asset_id = v.asset_id
         ORDER BY v.webhook_event_id"#,
        now,
        limit,
        class == Class::Troubled,
        at_once,
        LEASE.as_seconds_f64(),
        of_account,
    )
    .fetch_all(conn)
    .await?;
    let due = rows.into_iter().filter_map(|row| {
        let id = WebhookDeliveryId(row.webhook_delivery_id);
        // Of a service that is newer than this one, which sends it when the lease is over; the others are not held up.
        DueDelivery::try_from(row)
            .inspect_err(|error| tracing::warn!(webhook_delivery.id = %id, %error, "an event is not understood"))
            .ok()
    });
    Ok(due.collect())
}

struct DueRow {
    webhook_delivery_id: Uuid,
    webhook_endpoint_id: Uuid,
    account_id: Uuid,
    lease_token: Uuid,
    url: String,
    secret: Vec<u8>,
    previous_secret: Option<Vec<u8>>,
    webhook_event_id: Uuid,
    kind: String,
    subject_id: Option<Uuid>,
    data: serde_json::Value,
    created_at: OffsetDateTime,
    asset_id: Option<i32>,
    chain_id: Option<i64>,
    token: Option<Vec<u8>>,
    contract: Option<Vec<u8>>,
    decimals: Option<i16>,
}

impl TryFrom<DueRow> for DueDelivery {
    type Error = sqlx::Error;

    fn try_from(row: DueRow) -> sqlx::Result<Self> {
        let event = EventRow {
            webhook_event_id: row.webhook_event_id,
            kind: row.kind,
            subject_id: row.subject_id,
            data: row.data,
            created_at: row.created_at,
            asset_id: row.asset_id,
            chain_id: row.chain_id,
            token: row.token,
            contract: row.contract,
            decimals: row.decimals,
        };
        Ok(Self {
            id: WebhookDeliveryId(row.webhook_delivery_id),
            endpoint: WebhookEndpointId(row.webhook_endpoint_id),
            account: AccountId(row.account_id),
            lease: row.lease_token,
            url: row.url,
            secret: row.secret,
            previous_secret: row.previous_secret,
            event: event.try_into()?,
        })
    }
}

/// What came of an attempt, to be written down.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// When it began.
    pub started_at: OffsetDateTime,
    /// How long it took.
    pub latency_ms: i32,
    /// Was it so slow that the endpoint gets one attempt at a time?
    pub is_slow: bool,
    /// The status of the answer, when there was one.
    pub status: Option<i16>,
    /// Why it counts as failed; nothing: it was taken.
    pub error: Option<&'static str>,
    /// The beginning of the answer.
    pub answer: Option<Vec<u8>>,
    /// Says that nothing shall be sent there any more.
    pub is_gone: bool,
}

/// Where a delivery and its endpoint stand after an attempt was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// How the delivery stands.
    pub state: DeliveryState,
    /// The number of the attempt.
    pub number: i16,
    /// When it is tried next.
    pub next_attempt_at: Option<OffsetDateTime>,
    /// Why the endpoint was disabled, when it was with this attempt, and since when it fails.
    pub disabled: Option<(Cause, OffsetDateTime)>,
}

/// Writes down what came of an attempt. Nothing when somebody else has the delivery by now, or the endpoint is gone: the attempt took
/// longer than its lease. `jitter` is between 0 and 1000.
pub async fn record(
    tx: &mut PgTransaction<'_>,
    due: &DueDelivery,
    outcome: &Outcome,
    jitter: u16,
    now: OffsetDateTime,
) -> sqlx::Result<Option<Recorded>> {
    let endpoint = sqlx::query!(
        "SELECT failures, failing_since, state FROM webhook_endpoints WHERE webhook_endpoint_id = $1 FOR NO KEY UPDATE",
        due.endpoint.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let held = sqlx::query!(
        "SELECT attempts, tries FROM webhook_deliveries WHERE webhook_delivery_id = $1 AND lease_token = $2 AND state = 'pending'
         FOR NO KEY UPDATE",
        due.id.0,
        due.lease,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let (Some(endpoint), Some(held)) = (endpoint, held) else {
        return Ok(None);
    };
    let (number, tries) = (
        held.attempts.saturating_add(1),
        held.tries.saturating_add(1),
    );
    let retry = retry_after(tries.unsigned_abs(), jitter).map(|pause| now.saturating_add(pause));
    let (state, next_attempt_at) = match (outcome.error, retry) {
        (None, _) => (DeliveryState::Delivered, None),
        (Some(_), _) if outcome.is_gone => (DeliveryState::Failed, None),
        (Some(_), None) => (DeliveryState::Failed, None),
        (Some(_), Some(at)) => (DeliveryState::Pending, Some(at)),
    };
    write_attempt(tx, due, outcome, number).await?;
    sqlx::query!(
        "UPDATE webhook_deliveries SET state = $2, attempts = $3, tries = $4, next_attempt_at = $5, lease_token = NULL,
             lease_expires_at = NULL, ended_at = CASE WHEN $2 <> 'pending' THEN $6::timestamptz END
         WHERE webhook_delivery_id = $1",
        due.id.0,
        state.as_str(),
        number,
        tries,
        next_attempt_at,
        now,
    )
    .execute(&mut **tx)
    .await?;
    let health = Health {
        failures: endpoint.failures,
        failing_since: endpoint.failing_since,
        is_enabled: endpoint.state == "enabled",
    };
    let disabled = note_health(tx, due.endpoint, &health, outcome, now).await?;
    Ok(Some(Recorded {
        state,
        number,
        next_attempt_at,
        disabled,
    }))
}

async fn write_attempt(
    conn: &mut PgConnection,
    due: &DueDelivery,
    outcome: &Outcome,
    number: i16,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO webhook_attempts (webhook_delivery_id, number, account_id, started_at, latency_ms, status, error, answer)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        due.id.0,
        number,
        due.account.0,
        outcome.started_at,
        outcome.latency_ms,
        outcome.status,
        outcome.error,
        outcome.answer.as_deref(),
    )
    .execute(conn)
    .await
    .map(drop)
}

struct Health {
    failures: i32,
    failing_since: Option<OffsetDateTime>,
    is_enabled: bool,
}

/// What an endpoint does decides how it is treated: pauses after some failures in a row, and its end after days of them.
async fn note_health(
    conn: &mut PgConnection,
    endpoint: WebhookEndpointId,
    health: &Health,
    outcome: &Outcome,
    now: OffsetDateTime,
) -> sqlx::Result<Option<(Cause, OffsetDateTime)>> {
    if outcome.error.is_none() {
        sqlx::query!(
            "UPDATE webhook_endpoints SET failures = 0, failing_since = NULL, paused_until = NULL, is_slow = $2
             WHERE webhook_endpoint_id = $1 AND (failures > 0 OR is_slow <> $2 OR paused_until IS NOT NULL)",
            endpoint.0,
            outcome.is_slow,
        )
        .execute(conn)
        .await?;
        return Ok(None);
    }
    let failures = health.failures.saturating_add(1);
    let since = health.failing_since.unwrap_or(now);
    let paused_until = pause_after(failures.unsigned_abs()).map(|pause| now.saturating_add(pause));
    let is_failing = now - since >= DISABLED_AFTER;
    let cause = if outcome.is_gone {
        Some(Cause::Gone)
    } else {
        is_failing.then_some(Cause::Failing)
    };
    let cause = cause.filter(|_| health.is_enabled);
    sqlx::query!(
        "UPDATE webhook_endpoints SET failures = $2, failing_since = $3, paused_until = $4, is_slow = $5,
             state = CASE WHEN $6::text IS NULL THEN state ELSE 'disabled' END,
             disabled_because = coalesce($6, disabled_because),
             disabled_at = CASE WHEN $6::text IS NULL THEN disabled_at ELSE $7::timestamptz END
         WHERE webhook_endpoint_id = $1",
        endpoint.0,
        failures,
        since,
        paused_until,
        outcome.is_slow,
        cause.map(Cause::as_str),
        now,
    )
    .execute(conn)
    .await?;
    Ok(cause.map(|cause| (cause, since)))
}

/// Ends at most `limit` deliveries to endpoints that are disabled; how many. What is being tried is left to whoever tries it.
pub async fn cancel_of_disabled(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let cancelled = sqlx::query!(
        "UPDATE webhook_deliveries SET state = 'cancelled', next_attempt_at = NULL, ended_at = $1, lease_token = NULL, lease_expires_at = NULL
         WHERE webhook_delivery_id IN (
             SELECT d.webhook_delivery_id FROM webhook_endpoints e JOIN webhook_deliveries d USING (webhook_endpoint_id)
             WHERE e.state = 'disabled' AND d.state = 'pending'
                 AND (d.lease_expires_at IS NULL OR d.lease_expires_at <= clock_timestamp())
             LIMIT $2 FOR UPDATE OF d SKIP LOCKED
         )",
        now,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(cancelled.rows_affected())
}

/// Forgets at most `limit` secrets that no longer sign; how many.
pub async fn forget_previous_secrets(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "UPDATE webhook_endpoints SET previous_secret = NULL, previous_secret_until = NULL WHERE webhook_endpoint_id IN (
             SELECT webhook_endpoint_id FROM webhook_endpoints WHERE previous_secret_until <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED
         )",
        now,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(forgotten.rows_affected())
}
