//! Where accounts want to be told what happens. What happened, and what came of telling it, are in the modules below.

pub mod absences;
pub mod alerts;
pub mod deliveries;
pub mod events;
pub mod sending;

use comptoir_domain::{
    id::{AccountId, WebhookEndpointId},
    webhook::{ENDPOINTS_MAX, EventType},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{PgTransaction, codec::to_enum};

/// Why an endpoint is told nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its owner said so.
    Owner,
    /// It answered 410.
    Gone,
    /// It failed for days.
    Failing,
}

impl Cause {
    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let all = [Self::Owner, Self::Gone, Self::Failing];
        all.into_iter().find(|cause| cause.as_str() == text)
    }
}

/// An endpoint, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its identifier.
    pub id: WebhookEndpointId,
    /// Where events are sent.
    pub url: String,
    /// What its owner calls it.
    pub description: Option<String>,
    /// What it is told of; nothing: of everything.
    pub event_types: Option<Vec<EventType>>,
    /// Why and since when it is told nothing.
    pub disabled: Option<(Cause, OffsetDateTime)>,
    /// Until when the secret before this one signs too.
    pub previous_secret_until: Option<OffsetDateTime>,
    /// The first failure after the last success.
    pub failing_since: Option<OffsetDateTime>,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// What its owner decides of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings<'a> {
    /// Where events are sent.
    pub url: &'a str,
    /// What its owner calls it.
    pub description: Option<&'a str>,
    /// What it is told of; nothing: of everything.
    pub event_types: Option<&'a [EventType]>,
    /// Is it told anything?
    pub enabled: bool,
}

/// Why an endpoint was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateEndpointError {
    /// The account has as many as it may.
    #[error("the account has {ENDPOINTS_MAX} webhook endpoints")]
    TooMany,
    /// Postgres failed.
    #[error("create a webhook endpoint")]
    Database(#[from] sqlx::Error),
}

struct Row {
    webhook_endpoint_id: Uuid,
    url: String,
    description: Option<String>,
    event_types: Option<Vec<String>>,
    disabled_because: Option<String>,
    disabled_at: Option<OffsetDateTime>,
    previous_secret_until: Option<OffsetDateTime>,
    failing_since: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for Endpoint {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let disabled = row.disabled_because.zip(row.disabled_at);
        let disabled = disabled.map(|(cause, at)| {
            to_enum("disabled_because", &cause, Cause::parse).map(|cause| (cause, at))
        });
        let event_types = row.event_types.map(|all| {
            let parse = |text: &String| to_enum("event_types", text, |it| it.parse().ok());
            all.iter().map(parse).collect()
        });
        Ok(Self {
            id: WebhookEndpointId(row.webhook_endpoint_id),
            url: row.url,
            description: row.description,
            event_types: event_types.transpose()?,
            disabled: disabled.transpose()?,
            previous_secret_until: row.previous_secret_until,
            failing_since: row.failing_since,
            created_at: row.created_at,
        })
    }
}

fn names(types: Option<&[EventType]>) -> Option<Vec<String>> {
    types.map(|all| all.iter().map(ToString::to_string).collect())
}

/// Makes an endpoint. The account is locked, so that endpoints made at once are counted one after the other.
pub async fn create(
    tx: &mut PgTransaction<'_>,
    (account, id): (AccountId, WebhookEndpointId),
    settings: &Settings<'_>,
    sealed_secret: &[u8],
    now: OffsetDateTime,
) -> Result<Endpoint, CreateEndpointError> {
    sqlx::query!(
        "SELECT account_id FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE",
        account.0
    )
    .fetch_optional(&mut **tx)
    .await?;
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM webhook_endpoints WHERE account_id = $1"#,
        account.0
    )
    .fetch_one(&mut **tx)
    .await?;
    if count >= ENDPOINTS_MAX {
        return Err(CreateEndpointError::TooMany);
    }
    let types = names(settings.event_types);
    let row = sqlx::query_as!(
        Row,
        "INSERT INTO webhook_endpoints (webhook_endpoint_id, account_id, url, description, event_types, state, disabled_because,
             disabled_at, secret, created_at)
         VALUES ($1, $2, $3, $4, $5, CASE WHEN $6 THEN 'enabled' ELSE 'disabled' END, CASE WHEN NOT $6 THEN 'owner' END,
             CASE WHEN NOT $6 THEN $8::timestamptz END, $7, $8)
         RETURNING webhook_endpoint_id, url, description, event_types, disabled_because, disabled_at, previous_secret_until,
             failing_since, created_at",
        id.0,
        account.0,
        settings.url,
        settings.description,
        types.as_deref(),
        settings.enabled,
        sealed_secret,
        now,
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(row.try_into()?)
}

/// The account's endpoint of this identifier.
pub async fn find(
    conn: &mut PgConnection,
    account: AccountId,
    id: WebhookEndpointId,
) -> sqlx::Result<Option<Endpoint>> {
    let found = select(conn, account, Some(id), None, 1).await?;
    Ok(found.into_iter().next())
}

/// The account's endpoints, newest first, older than `before`.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    before: Option<WebhookEndpointId>,
    limit: i64,
) -> sqlx::Result<Vec<Endpoint>> {
    select(conn, account, None, before, limit).await
}

async fn select(
    conn: &mut PgConnection,
    account: AccountId,
    id: Option<WebhookEndpointId>,
    before: Option<WebhookEndpointId>,
    limit: i64,
) -> sqlx::Result<Vec<Endpoint>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT webhook_endpoint_id, url, description, event_types, disabled_because, disabled_at, previous_secret_until,
             failing_since, created_at
         FROM webhook_endpoints
         WHERE account_id = $1 AND ($2::uuid IS NULL OR webhook_endpoint_id = $2) AND ($3::uuid IS NULL OR webhook_endpoint_id < $3)
         ORDER BY webhook_endpoint_id DESC LIMIT $4",
        account.0,
        id.map(|it| it.0),
        before.map(|it| it.0),
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Endpoint::try_from).collect()
}

/// Locks the account's endpoint, so that it stays as it is read until the end of the transaction.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    id: WebhookEndpointId,
) -> sqlx::Result<Option<Endpoint>> {
    sqlx::query!(
        "SELECT webhook_endpoint_id FROM webhook_endpoints WHERE webhook_endpoint_id = $1 AND account_id = $2 FOR NO KEY UPDATE",
        id.0,
        account.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    find(tx, account, id).await
}

/// Changes what its owner decides. One that is enabled again begins anew: what it failed at before is forgotten.
pub async fn update(
    conn: &mut PgConnection,
    (account, id): (AccountId, WebhookEndpointId),
    settings: &Settings<'_>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let types = names(settings.event_types);
    sqlx::query!(
        "UPDATE webhook_endpoints SET url = $3, description = $4, event_types = $5,
             state = CASE WHEN $6 THEN 'enabled' ELSE 'disabled' END,
             disabled_because = CASE WHEN NOT $6 THEN coalesce(disabled_because, 'owner') END,
             disabled_at = CASE WHEN NOT $6 THEN coalesce(disabled_at, $7::timestamptz) END,
             failures = CASE WHEN $6 AND state = 'disabled' THEN 0 ELSE failures END,
             failing_since = CASE WHEN $6 AND state = 'disabled' THEN NULL ELSE failing_since END,
             paused_until = CASE WHEN url = $3 AND state = 'enabled' THEN paused_until END
         WHERE webhook_endpoint_id = $1 AND account_id = $2",
        id.0,
        account.0,
        settings.url,
        settings.description,
        types.as_deref(),
        settings.enabled,
        now,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Signs with another secret from now on, and with the one before until `until`.
pub async fn rotate(
    conn: &mut PgConnection,
    (account, id): (AccountId, WebhookEndpointId),
    sealed_secret: &[u8],
    until: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE webhook_endpoints SET previous_secret = secret, previous_secret_until = $4, secret = $3
         WHERE webhook_endpoint_id = $1 AND account_id = $2",
        id.0,
        account.0,
        sealed_secret,
        until,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Forgets an endpoint with everything on its way to it. False when the account has no such endpoint.
pub async fn delete(
    conn: &mut PgConnection,
    account: AccountId,
    id: WebhookEndpointId,
) -> sqlx::Result<bool> {
    let deleted = sqlx::query!(
        "DELETE FROM webhook_endpoints WHERE webhook_endpoint_id = $1 AND account_id = $2",
        id.0,
        account.0,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected() == 1)
}
