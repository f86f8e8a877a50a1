//! Workers: how one joins, who it is, and when it was last seen.

use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{AccountId, JoinTokenId, WorkerId},
    job::Device,
    policy::{Reputation, Standing},
};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use crate::{
    PgTransaction,
    codec::{self, to_amount, to_enum, to_numeric},
};

/// A worker that was seen this recently is not written down again.
const SEEN_EVERY: Duration = Duration::seconds(5);

/// What a worker says about itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWorker {
    /// What its owner calls it.
    pub name: String,
    /// Its Ed25519 key.
    pub public_key: [u8; 32],
    /// The kind of device that runs its jobs.
    pub device: Device,
    /// The device's own name.
    pub device_name: String,
    /// Memory for one job.
    pub memory_bytes: u64,
    /// Threads per job.
    pub threads: u32,
    /// Whose results it equals bit by bit.
    pub numeric_class: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Version of the worker.
    pub version: String,
    /// The lowest rate it works for.
    pub price_floor_nano: Amount,
    /// Its jobs run without walls.
    pub unsandboxed: bool,
}

/// A worker, as the protocol needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Whom it earns for.
    pub account: AccountId,
    /// Its Ed25519 key.
    pub public_key: [u8; 32],
    /// The kind of device that runs its jobs.
    pub device: Device,
    /// Memory for one job.
    pub memory_bytes: u64,
    /// Whose results it equals bit by bit.
    pub numeric_class: String,
    /// The lowest rate it works for.
    pub price_floor_nano: Amount,
    /// What its record earns it.
    pub standing: Standing,
    /// Its owner took it out.
    pub revoked: bool,
    /// When it was last written down that it was heard.
    pub seen_at: Option<OffsetDateTime>,
}

/// Why a worker may not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is unknown, expired, revoked or used up.
    #[error("the join token is not valid")]
    Token,
    /// Earnings would have no address to go to.
    #[error("the token's account has no bound address")]
    AddressNotBound,
    /// Another worker has this key.
    #[error("the public key belongs to another worker")]
    KeyTaken,
    /// The database failed.
    #[error("join a worker")]
    Database(#[from] sqlx::Error),
}

/// Trades one use of a join token for a worker. A repetition, by the same key with the same token, is answered
/// with the worker that the first made.
pub async fn join(
    tx: &mut PgTransaction<'_>,
    token: JoinTokenId,
    secret: Sha256,
    worker: &NewWorker,
    now: OffsetDateTime,
) -> Result<WorkerId, JoinError> {
    let account = sqlx::query_scalar!(
        "SELECT account_id FROM join_tokens
         WHERE join_token_id = $1 AND secret_sha256 = $2 AND expires_at > $3 AND revoked_at IS NULL
         FOR NO KEY UPDATE",
        token.0,
        &secret.0,
        now,
    )
    .fetch_optional(&mut **tx)
    .await?
    .ok_or(JoinError::Token)?;
    if let Some(known) = find_by_key(tx, &worker.public_key).await? {
        return if known.1 == token {
            Ok(known.0)
        } else {
            Err(JoinError::KeyTaken)
        };
    }
    let bound = sqlx::query_scalar!(
        r#"SELECT address IS NOT NULL AS "bound!" FROM accounts WHERE account_id = $1"#,
        account,
    )
    .fetch_one(&mut **tx)
    .await?;
    if !bound {
        return Err(JoinError::AddressNotBound);
    }
    let used = sqlx::query!(
        "UPDATE join_tokens SET uses = uses + 1 WHERE join_token_id = $1 AND uses < max_uses",
        token.0,
    )
    .execute(&mut **tx)
    .await?;
    if used.rows_affected() == 0 {
        return Err(JoinError::Token);
    }
    insert(tx, AccountId(account), token, worker, now).await
}

async fn find_by_key(
    conn: &mut PgConnection,
    public_key: &[u8; 32],
) -> sqlx::Result<Option<(WorkerId, JoinTokenId)>> {
    let row = sqlx::query!(
        "SELECT worker_id, join_token_id FROM workers WHERE public_key = $1",
        public_key
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (WorkerId(row.worker_id), JoinTokenId(row.join_token_id))))
}

async fn insert(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    token: JoinTokenId,
    worker: &NewWorker,
    now: OffsetDateTime,
) -> Result<WorkerId, JoinError> {
    let id = WorkerId::generate();
    sqlx::query!(
        "INSERT INTO workers (worker_id, account_id, join_token_id, name, public_key, device, device_name,
             memory_bytes, threads, numeric_class, libtorch, version, price_floor_nano, joined_at, unsandboxed)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        id.0,
        account.0,
        token.0,
        worker.name,
        &worker.public_key,
        worker.device.as_str(),
        worker.device_name,
        saturate(worker.memory_bytes),
        i32::try_from(worker.threads).unwrap_or(i32::MAX),
        worker.numeric_class,
        worker.libtorch,
        worker.version,
        to_numeric(worker.price_floor_nano),
        now,
        worker.unsandboxed,
    )
    .execute(&mut **tx)
    .await
    .map_err(|error| {
        if crate::violates(&error, "workers_key_once") { JoinError::KeyTaken } else { error.into() }
    })?;
    sqlx::query!(
        "UPDATE accounts SET roles = array_append(roles, 'provider')
         WHERE account_id = $1 AND NOT 'provider' = ANY (roles)",
        account.0,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO worker_heartbeats (worker_id, seen_at) VALUES ($1, $2)",
        id.0,
        now
    )
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

/// The worker, revoked ones too.
pub async fn find(conn: &mut PgConnection, worker: WorkerId) -> sqlx::Result<Option<Worker>> {
    let found = find_all(conn, &[worker]).await?;
    Ok(found.into_iter().next().flatten())
}

/// Workers, each in its place, revoked ones too.
pub async fn find_all(
    conn: &mut PgConnection,
    workers: &[WorkerId],
) -> sqlx::Result<Vec<Option<Worker>>> {
    let ids: Vec<_> = workers.iter().map(|worker| worker.0).collect();
    let rows = sqlx::query!(
        r#"SELECT it.place AS "place!", workers.worker_id AS "worker_id!", account_id AS "account_id!", workers.public_key AS "public_key!",
             device AS "device!", memory_bytes AS "memory_bytes!", workers.numeric_class AS "numeric_class!",
             price_floor_nano AS "price_floor_nano!", revoked_at IS NOT NULL AS "revoked!", coalesce(strikes, 0) AS "strikes!",
             barred_at IS NOT NULL AS "barred!", seen_at AS "seen_at?"
           FROM UNNEST($1::uuid[]) WITH ORDINALITY AS it (worker, place)
           JOIN workers ON workers.worker_id = it.worker
           LEFT JOIN worker_records ON worker_records.worker_id = it.worker
           LEFT JOIN worker_heartbeats ON worker_heartbeats.worker_id = it.worker"#,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    let mut found = vec![None; workers.len()];
    for row in rows {
        let public_key =
            row.public_key
                .as_slice()
                .try_into()
                .map_err(|_| sqlx::Error::ColumnDecode {
                    index: "public_key".into(),
                    source: "not 32 bytes".into(),
                })?;
        let worker = Worker {
            id: WorkerId(row.worker_id),
            account: AccountId(row.account_id),
            public_key,
            device: to_enum("device", &row.device, Device::parse)?,
            memory_bytes: row.memory_bytes.unsigned_abs(),
            numeric_class: row.numeric_class,
            price_floor_nano: to_amount("price_floor_nano", &row.price_floor_nano)?,
            standing: Reputation {
                strikes: row.strikes.unsigned_abs(),
                barred: row.barred,
            }
            .standing(),
            revoked: row.revoked,
            seen_at: row.seen_at,
        };
        codec::put(&mut found, row.place, Some(worker));
    }
    Ok(found)
}

/// Takes note that a token request of this moment, out of this network, was answered. False when it, or a later one, was
/// answered before.
pub async fn note_token(
    conn: &mut PgConnection,
    worker: WorkerId,
    (issued_at_ms, network): (u64, Option<&str>),
) -> sqlx::Result<bool> {
    let noted = sqlx::query!(
        "UPDATE workers SET token_issued_at = $2, network = coalesce($3, network)
         WHERE worker_id = $1 AND token_issued_at < $2 AND revoked_at IS NULL",
        worker.0,
        saturate(issued_at_ms),
        network,
    )
    .execute(conn)
    .await?;
    Ok(noted.rows_affected() == 1)
}

impl Worker {
    /// Is it time to [`note_seen`] that it is heard now?
    #[must_use]
    pub fn is_seen_anew(&self, now: OffsetDateTime) -> bool {
        let until = now.saturating_sub(SEEN_EVERY);
        self.seen_at.is_none_or(|seen_at| seen_at < until)
    }
}

/// Commits this transaction without waiting for the disk: for what costs nothing to lose, such as a renewed lease.
pub async fn forgo_durability(tx: &mut PgTransaction<'_>) -> sqlx::Result<()> {
    sqlx::query!("SET LOCAL synchronous_commit = off")
        .execute(&mut **tx)
        .await
        .map(drop)
}

/// Writes down that the worker was heard; not more often than matters, and not worth waiting for the disk.
pub async fn note_seen(
    tx: &mut PgTransaction<'_>,
    worker: WorkerId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO worker_heartbeats (worker_id, seen_at) VALUES ($1, $2)
         ON CONFLICT (worker_id) DO UPDATE SET seen_at = EXCLUDED.seen_at
         WHERE worker_heartbeats.seen_at < $3",
        worker.0,
        now,
        now.saturating_sub(SEEN_EVERY),
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Takes a worker out: its tokens are refused from now on, and its leases run out. False when the account has no
/// such worker. Wake [`crate::wake::Channel::Worker`] after the commit.
pub async fn revoke(
    tx: &mut PgTransaction<'_>,
    account: AccountId,
    worker: WorkerId,
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    let revoked = sqlx::query!(
        "UPDATE workers SET revoked_at = coalesce(revoked_at, $3) WHERE worker_id = $1 AND account_id = $2",
        worker.0,
        account.0,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(revoked.rows_affected() == 1)
}

/// Quantities from outside are limited far below 2^63 where they come in.
fn saturate(quantity: u64) -> i64 {
    i64::try_from(quantity).unwrap_or(i64::MAX)
}
