//! API keys. The key itself is never stored: only its HMAC under a secret that is not in the database.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    id::{AccountId, ApiKeyId},
    ip_list::{IpList, Network},
    scope::{Scope, Scopes},
    spend_limit::SpendLimit,
};
use sqlx::{PgConnection, types::BigDecimal};
use time::{Duration, OffsetDateTime};

use crate::{PgTransaction, codec, spending};

/// Keys of an account that work at the same time.
pub const KEYS_MAX: i64 = 300;

/// How exactly the last use of a key is known; a write per request would be waste.
const LAST_USED_PRECISION: Duration = Duration::minutes(1);

/// An API key, without its secret.
#[derive(Debug, Clone)]
pub struct ApiKeyRow {
    /// Its identifier.
    pub id: ApiKeyId,
    /// What its owner calls it.
    pub name: String,
    /// The beginning of the key.
    pub prefix: String,
    /// What it may do.
    pub scopes: Scopes,
    /// Where it may be used from.
    pub allowed_ips: IpList,
    /// What its jobs may cost.
    pub spend_limit: Option<SpendLimit>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Until when it works.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<OffsetDateTime>,
    /// Since when it no longer works.
    pub revoked_at: Option<OffsetDateTime>,
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewApiKey<'a> {
    /// What its owner calls it.
    pub name: &'a str,
    /// The beginning of the key.
    pub prefix: &'a str,
    /// The HMAC of the key.
    pub hmac: [u8; 32],
    /// What it may do.
    pub scopes: &'a Scopes,
    /// Where it may be used from.
    pub allowed_ips: &'a IpList,
    /// What its jobs may cost.
    pub spend_limit: Option<SpendLimit>,
    /// Until when it works.
    pub expires_at: Option<OffsetDateTime>,
}

/// Why a key was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateKeyError {
    /// The account has as many as it may.
    #[error("the account has {KEYS_MAX} keys")]
    TooMany,
    /// Postgres failed.
    #[error("create an API key")]
    Database(#[from] sqlx::Error),
}

/// Whose key was shown, and what it may do.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The key.
    pub key: ApiKeyId,
    /// Whose it is.
    pub account: AccountId,
    /// The account's bound address.
    pub address: Option<Address>,
    /// What it may do.
    pub scopes: Scopes,
    /// Where it may be used from.
    pub allowed_ips: IpList,
    /// Are its jobs counted against a limit?
    pub has_spend_limit: bool,
    /// Until when it works.
    pub expires_at: Option<OffsetDateTime>,
}

struct Row {
    api_key_id: uuid::Uuid,
    name: String,
    prefix: String,
    scopes: Vec<String>,
    allowed_ips: Vec<String>,
    spend_limit_base: Option<BigDecimal>,
    spend_period: Option<String>,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for ApiKeyRow {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let limit = row.spend_limit_base.zip(row.spend_period);
        let limit = limit.map(|(amount, period)| spending::to_limit(&amount, &period));
        Ok(Self {
            id: ApiKeyId(row.api_key_id),
            name: row.name,
            prefix: row.prefix,
            scopes: to_scopes(&row.scopes)?,
            allowed_ips: to_networks(&row.allowed_ips)?,
            spend_limit: limit.transpose()?,
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            revoked_at: row.revoked_at,
        })
    }
}

fn to_scopes(stored: &[String]) -> sqlx::Result<Scopes> {
    stored
        .iter()
        .map(|scope| codec::to_enum("scopes", scope, |text| text.parse::<Scope>().ok()))
        .collect()
}

fn to_networks(stored: &[String]) -> sqlx::Result<IpList> {
    stored
        .iter()
        .map(|network| codec::to_enum("allowed_ips", network, |text| text.parse::<Network>().ok()))
        .collect()
}

/// Stores a key. The account is locked, so that keys made at once are counted one after the other.
pub async fn create(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    key: &NewApiKey<'_>,
    now: OffsetDateTime,
) -> Result<ApiKeyRow, CreateKeyError> {
    // A statement of its own: what is counted below must be seen after the lock is held.
    sqlx::query!(
        "SELECT account_id FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE",
        account.0
    )
    .fetch_optional(&mut **tx)
    .await?;
    let working = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM api_keys
           WHERE account_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)"#,
        account.0,
        now,
    )
    .fetch_one(&mut **tx)
    .await?;
    if working >= KEYS_MAX {
        return Err(CreateKeyError::TooMany);
    }
    let networks: Vec<String> = key.allowed_ips.iter().map(|it| it.to_string()).collect();
    let limit = key.spend_limit.map(|limit| codec::to_numeric(limit.amount));
    let scopes: Vec<String> = key.scopes.iter().map(|scope| scope.to_string()).collect();
    let row = sqlx::query_as!(
        Row,
        "INSERT INTO api_keys (api_key_id, account_id, name, prefix, key_hmac, scopes, created_at, expires_at,
             allowed_ips, spend_limit_base, spend_period)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         RETURNING api_key_id, name, prefix, scopes, allowed_ips, spend_limit_base, spend_period, created_at, expires_at,
             last_used_at, revoked_at",
        ApiKeyId::generate().0,
        account.0,
        key.name,
        key.prefix,
        key.hmac.as_slice(),
        &scopes,
        now,
        key.expires_at,
        &networks,
        limit,
        key.spend_limit.map(|limit| limit.period.as_str()),
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(row.try_into()?)
}

/// Whose keys have these HMACs, each if it works at the time beside it; in their order. That they were used is written
/// down now and then.
pub async fn find_holders(
    connection: &mut PgConnection,
    asked: &[([u8; 32], OffsetDateTime)],
) -> sqlx::Result<Vec<Option<Holder>>> {
    let (hmacs, times): (Vec<_>, Vec<_>) = asked
        .iter()
        .map(|(hmac, now)| (hmac.to_vec(), *now))
        .unzip();
    let rows = sqlx::query!(
        r#"SELECT it.place AS "place!", it.now AS "now!", api_key_id, account_id, address, scopes, allowed_ips, last_used_at,
             expires_at, spend_limit_base IS NOT NULL AS "has_spend_limit!"
           FROM UNNEST($1::bytea[], $2::timestamptz[]) WITH ORDINALITY AS it (hmac, now, place)
           JOIN api_keys ON key_hmac = it.hmac AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > it.now)
           JOIN accounts USING (account_id)"#,
        &hmacs,
        &times,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut used = BTreeMap::new();
    let mut found = vec![None; asked.len()];
    for row in rows {
        let is_old = |last: OffsetDateTime| last + LAST_USED_PRECISION <= row.now;
        if row.last_used_at.is_none_or(is_old) {
            used.insert(row.api_key_id, row.now);
        }
        let address = row.address.map(|it| codec::to_address("address", &it));
        let holder = Holder {
            key: ApiKeyId(row.api_key_id),
            account: AccountId(row.account_id),
            address: address.transpose()?,
            scopes: to_scopes(&row.scopes)?,
            allowed_ips: to_networks(&row.allowed_ips)?,
            has_spend_limit: row.has_spend_limit,
            expires_at: row.expires_at,
        };
        codec::put(&mut found, row.place, Some(holder));
    }
    note_used(connection, used).await?;
    Ok(found)
}

async fn note_used(
    connection: &mut PgConnection,
    used: BTreeMap<uuid::Uuid, OffsetDateTime>,
) -> sqlx::Result<()> {
    if used.is_empty() {
        return Ok(());
    }
    let (keys, times): (Vec<_>, Vec<_>) = used.into_iter().unzip();
    sqlx::query!(
        "UPDATE api_keys SET last_used_at = it.now FROM UNNEST($1::uuid[], $2::timestamptz[]) AS it (key, now)
         WHERE api_key_id = it.key",
        &keys,
        &times,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// One key of the account.
pub async fn find(
    connection: &mut PgConnection,
    account: AccountId,
    id: ApiKeyId,
) -> sqlx::Result<Option<ApiKeyRow>> {
    sqlx::query_as!(
        Row,
        "SELECT api_key_id, name, prefix, scopes, allowed_ips, spend_limit_base, spend_period, created_at, expires_at,
             last_used_at, revoked_at
         FROM api_keys WHERE api_key_id = $1 AND account_id = $2",
        id.0,
        account.0,
    )
    .fetch_optional(connection)
    .await?
    .map(ApiKeyRow::try_from)
    .transpose()
}

/// The account's keys, newest first, from before `before`.
pub async fn list(
    connection: &mut PgConnection,
    account: AccountId,
    before: Option<ApiKeyId>,
    limit: i64,
) -> sqlx::Result<Vec<ApiKeyRow>> {
    sqlx::query_as!(
        Row,
        "SELECT api_key_id, name, prefix, scopes, allowed_ips, spend_limit_base, spend_period, created_at, expires_at,
             last_used_at, revoked_at
         FROM api_keys WHERE account_id = $1 AND ($2::uuid IS NULL OR api_key_id < $2)
         ORDER BY api_key_id DESC LIMIT $3",
        account.0,
        before.map(|id| id.0),
        limit,
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(ApiKeyRow::try_from)
    .collect()
}

/// Ends a key; one that was ended stays as it was. `None` when the account has no such key.
pub async fn revoke(
    connection: &mut PgConnection,
    account: AccountId,
    id: ApiKeyId,
    now: OffsetDateTime,
) -> sqlx::Result<Option<ApiKeyRow>> {
    sqlx::query_as!(
        Row,
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, $3) WHERE api_key_id = $1 AND account_id = $2
         RETURNING api_key_id, name, prefix, scopes, allowed_ips, spend_limit_base, spend_period, created_at, expires_at,
             last_used_at, revoked_at",
        id.0,
        account.0,
        now,
    )
    .fetch_optional(connection)
    .await?
    .map(ApiKeyRow::try_from)
    .transpose()
}
