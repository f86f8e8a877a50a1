//! The reply of a request, kept in the transaction of its effect, so that a repeated request is
//! answered and not repeated.

use comptoir_domain::{digest::Sha256, id::AccountId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{PgTransaction, codec};

/// What makes two requests the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestKey<'a> {
    /// Who asks.
    pub account: AccountId,
    /// The method.
    pub method: &'a str,
    /// The path.
    pub path: &'a str,
    /// The client's `Idempotency-Key`.
    pub key: &'a str,
}

/// A reply that was given.
#[derive(Debug, Clone)]
pub struct StoredReply {
    /// Its status.
    pub status: u16,
    /// Its `Location`.
    pub location: Option<String>,
    /// Its body, sealed by the caller.
    pub body: Vec<u8>,
    /// The digest of the body of the request that it answered.
    pub request_sha256: Sha256,
}

/// Takes the key for this transaction. `false` when another transaction holds it now.
pub async fn try_lock(tx: &mut PgTransaction<'_>, key: &RequestKey<'_>) -> sqlx::Result<bool> {
    let taken = try_lock_all(tx, std::slice::from_ref(key)).await?;
    Ok(taken == [true])
}

/// Takes keys for this transaction. `false` for one that another transaction holds now. A key that is named twice is
/// taken twice.
pub async fn try_lock_all(
    tx: &mut PgTransaction<'_>,
    keys: &[RequestKey<'_>],
) -> sqlx::Result<Vec<bool>> {
    let names: Vec<_> = keys.iter().map(RequestKey::name).collect();
    let rows = sqlx::query!(
        r#"SELECT place AS "place!", pg_try_advisory_xact_lock(hashtextextended(name, 0)) AS "taken!"
           FROM UNNEST($1::text[]) WITH ORDINALITY AS it (name, place)"#,
        &names,
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut taken = vec![false; keys.len()];
    for row in rows {
        codec::put(&mut taken, row.place, row.taken);
    }
    Ok(taken)
}

/// The reply that was given to this request, if it is kept still.
pub async fn find(
    connection: &mut PgConnection,
    key: &RequestKey<'_>,
    now: OffsetDateTime,
) -> sqlx::Result<Option<StoredReply>> {
    let found = find_all(connection, std::slice::from_ref(key), now).await?;
    Ok(found.into_iter().next().flatten())
}

/// The replies that were given to these requests, as far as they are kept still.
pub async fn find_all(
    connection: &mut PgConnection,
    keys: &[RequestKey<'_>],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Option<StoredReply>>> {
    let columns = KeyColumns::of(keys.iter());
    let rows = sqlx::query!(
        r#"SELECT place AS "place!", body_sha256, status, location, body
           FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
               AS it (account_id, method, path, key, place)
           JOIN idempotency_keys USING (account_id, method, path, key)
           WHERE expires_at > $5"#,
        &columns.accounts,
        &columns.methods,
        &columns.paths,
        &columns.keys,
        now,
    )
    .fetch_all(connection)
    .await?;
    let mut found = vec![None; keys.len()];
    for row in rows {
        let status =
            u16::try_from(row.status).map_err(|error| sqlx::Error::Decode(error.into()))?;
        let reply = StoredReply {
            status,
            location: row.location,
            body: row.body,
            request_sha256: codec::to_digest("body_sha256", &row.body_sha256)?,
        };
        codec::put(&mut found, row.place, Some(reply));
    }
    Ok(found)
}

/// Keeps a reply until `expires_at`; one that was kept before and expired makes way.
pub async fn keep(
    tx: &mut PgTransaction<'_>,
    key: &RequestKey<'_>,
    reply: &StoredReply,
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> sqlx::Result<()> {
    keep_all(tx, &[(*key, reply)], now, expires_at).await
}

/// Keeps replies until `expires_at`; those that were kept before and expired make way.
pub async fn keep_all(
    tx: &mut PgTransaction<'_>,
    replies: &[(RequestKey<'_>, &StoredReply)],
    now: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> sqlx::Result<()> {
    let columns = KeyColumns::of(replies.iter().map(|(key, _)| key));
    sqlx::query!(
        "DELETE FROM idempotency_keys
         USING UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[]) AS it (account_id, method, path, key)
         WHERE idempotency_keys.account_id = it.account_id AND idempotency_keys.method = it.method
             AND idempotency_keys.path = it.path AND idempotency_keys.key = it.key AND expires_at <= $5",
        &columns.accounts,
        &columns.methods,
        &columns.paths,
        &columns.keys,
        now,
    )
    .execute(&mut **tx)
    .await?;
    let replies = || replies.iter().map(|(_, reply)| *reply);
    let digests: Vec<_> = replies().map(|it| it.request_sha256.0.to_vec()).collect();
    let statuses = replies().map(|it| i16::try_from(it.status));
    let statuses: Vec<_> = statuses
        .collect::<Result<_, _>>()
        .map_err(|error| sqlx::Error::Encode(error.into()))?;
    let locations: Vec<_> = replies().map(|it| it.location.clone()).collect();
    let bodies: Vec<_> = replies().map(|it| it.body.clone()).collect();
    sqlx::query!(
        "INSERT INTO idempotency_keys
            (account_id, method, path, key, body_sha256, status, location, body, created_at, expires_at)
         SELECT it.account_id, it.method, it.path, it.key, it.body_sha256, it.status, it.location, it.body, $9, $10
         FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::smallint[], $7::text[], $8::bytea[])
             AS it (account_id, method, path, key, body_sha256, status, location, body)",
        &columns.accounts,
        &columns.methods,
        &columns.paths,
        &columns.keys,
        &digests,
        &statuses,
        &locations as &[Option<String>],
        &bodies,
        now,
        expires_at,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

impl RequestKey<'_> {
    /// What names the request, across processes.
    fn name(&self) -> String {
        let Self {
            account,
            method,
            path,
            key,
        } = self;
        format!("idempotency {account} {method} {path} {key}")
    }
}

#[derive(Default)]
struct KeyColumns {
    accounts: Vec<uuid::Uuid>,
    methods: Vec<String>,
    paths: Vec<String>,
    keys: Vec<String>,
}

impl KeyColumns {
    fn of<'k>(keys: impl Iterator<Item = &'k RequestKey<'k>>) -> Self {
        let mut columns = Self::default();
        for key in keys {
            columns.accounts.push(key.account.0);
            columns.methods.push(key.method.to_owned());
            columns.paths.push(key.path.to_owned());
            columns.keys.push(key.key.to_owned());
        }
        columns
    }
}

/// Forgets at most `limit` replies that expired; says how many.
pub async fn forget_expired(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM idempotency_keys WHERE (account_id, method, path, key) IN
            (SELECT account_id, method, path, key FROM idempotency_keys WHERE expires_at <= $1
             ORDER BY expires_at LIMIT $2)",
        now,
        limit,
    )
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}
