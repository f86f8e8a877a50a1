//! Transactions that are wanted on the chain. What was signed is stored before it is sent, and sent again as the same
//! bytes; a row without `first_sent_block` was never sent.

use alloy_primitives::{Address, B256};
use comptoir_domain::{
    amount::Amount,
    id::{BatchId, IntentId},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_enum, to_hash, to_numeric},
};

pub use comptoir_domain::settlement::IntentKind;

/// How an intent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its effect is final.
    Done,
    /// Its nonce was used without the effect, and that is final.
    Failed,
}

/// A transaction to be stored before it is sent.
#[derive(Debug, Clone)]
pub struct NewIntent {
    /// What it is for.
    pub kind: IntentKind,
    /// What it is about; an intent of one kind is about one thing, once.
    pub subject: String,
    /// The batch that it commits or answers with.
    pub batch: Option<BatchId>,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Whose nonce it takes.
    pub signer: Address,
    /// The nonce.
    pub nonce: u64,
    /// The contract that is called.
    pub target: Address,
    /// What it is called with.
    pub calldata: Vec<u8>,
}

/// The signed bytes of an intent, with the fees they offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The hash of the transaction.
    pub tx_hash: B256,
    /// The bytes.
    pub raw: Vec<u8>,
    /// Gas it may use.
    pub gas_limit: u64,
    /// Most it pays for a unit of gas.
    pub fee_cap_wei: Amount,
    /// What the proposer gets of that.
    pub tip_wei: Amount,
    /// It moves nothing, to take the place of a call that nobody wants any more.
    pub fills: bool,
}

/// An intent whose end is not known, with its newest attempt.
#[derive(Debug, Clone)]
pub struct OpenIntent {
    /// Which.
    pub id: IntentId,
    /// What it is for.
    pub kind: IntentKind,
    /// What it is about.
    pub subject: String,
    /// The batch that it commits or answers with.
    pub batch: Option<BatchId>,
    /// Whose nonce it takes.
    pub signer: Address,
    /// The nonce.
    pub nonce: u64,
    /// The contract that is called.
    pub target: Address,
    /// What it is called with.
    pub calldata: Vec<u8>,
    /// The bytes that are sent.
    pub attempt: Attempt,
    /// At which block they were sent first.
    pub first_sent_block: Option<u64>,
    /// At which block they were sent last.
    pub last_sent_block: Option<u64>,
}

/// The next nonce of this signer: after the last that was ever given out, and not below its floor. `None` when neither is
/// known.
///
/// # Errors
/// When the database refuses.
pub async fn next_nonce(
    conn: &mut PgConnection,
    chain_id: u64,
    signer: Address,
) -> sqlx::Result<Option<u64>> {
    let next = sqlx::query_scalar!(
        "SELECT GREATEST(
             (SELECT max(nonce) + 1 FROM eth_intents WHERE chain_id = $1 AND signer = $2),
             (SELECT floor FROM settler_nonces WHERE chain_id = $1 AND signer = $2)
         )",
        chain_id.cast_signed(),
        signer.as_slice()
    )
    .fetch_one(conn)
    .await?;
    Ok(next.map(i64::cast_unsigned))
}

/// The signer's own nonces begin here: those below were used by others, and that is accepted.
///
/// # Errors
/// When the database refuses.
pub async fn raise_floor(
    tx: &mut PgTransaction<'_>,
    chain_id: u64,
    signer: Address,
    floor: u64,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO settler_nonces (chain_id, signer, floor) VALUES ($1, $2, $3)
         ON CONFLICT (chain_id, signer) DO UPDATE SET floor = GREATEST(settler_nonces.floor, $3)",
        chain_id.cast_signed(),
        signer.as_slice(),
        floor.cast_signed(),
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Every key that ever signed here, or was ready to.
///
/// # Errors
/// When the database refuses.
pub async fn signers(conn: &mut PgConnection, chain_id: u64) -> sqlx::Result<Vec<Address>> {
    sqlx::query_scalar!(
        r#"SELECT signer AS "signer!" FROM settler_nonces WHERE chain_id = $1
           UNION SELECT signer FROM eth_intents WHERE chain_id = $1"#,
        chain_id.cast_signed()
    )
    .fetch_all(conn)
    .await?
    .iter()
    .map(|signer| to_address("signer", signer))
    .collect()
}

/// What this signer has spent since then and may still have to pay: what ended intents cost, and for open ones, and where
/// nobody knows, the most that one of their attempts can.
///
/// # Errors
/// When the database refuses.
pub async fn spent(
    conn: &mut PgConnection,
    chain_id: u64,
    signer: Address,
    since: OffsetDateTime,
) -> sqlx::Result<Amount> {
    let spent = sqlx::query_scalar!(
        r#"SELECT COALESCE(sum(COALESCE(
               i.cost_wei, (SELECT max(a.gas_limit * a.fee_cap_wei) FROM eth_attempts a WHERE a.intent_id = i.intent_id)
           )), 0) AS "spent!"
           FROM eth_intents i WHERE i.chain_id = $1 AND i.signer = $2 AND (i.ended_at IS NULL OR i.ended_at > $3)"#,
        chain_id.cast_signed(),
        signer.as_slice(),
        since,
    )
    .fetch_one(conn)
    .await?;
    to_amount("spent", &spent)
}

/// The hashes of all bytes that were ever signed for an intent.
///
/// # Errors
/// When the database refuses.
pub async fn hashes(conn: &mut PgConnection, intent: IntentId) -> sqlx::Result<Vec<B256>> {
    sqlx::query_scalar!(
        "SELECT tx_hash FROM eth_attempts WHERE intent_id = $1 ORDER BY fee_cap_wei DESC",
        intent.0
    )
    .fetch_all(conn)
    .await?
    .iter()
    .map(|hash| to_hash("tx_hash", hash))
    .collect()
}

/// Stores an intent and its signed bytes.
///
/// # Errors
/// When its subject or its nonce is taken, or the database refuses.
pub async fn create(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    intent: &NewIntent,
    attempt: &Attempt,
    now: OffsetDateTime,
) -> sqlx::Result<IntentId> {
    let id = IntentId::generate();
    sqlx::query!(
        "INSERT INTO eth_intents (intent_id, asset_id, chain_id, kind, subject, batch_id, signer, nonce, target, calldata, state, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'open', $11)",
        id.0,
        asset,
        intent.chain_id.cast_signed(),
        intent.kind.as_str(),
        intent.subject,
        intent.batch.map(|batch| batch.0),
        intent.signer.as_slice(),
        intent.nonce.cast_signed(),
        intent.target.as_slice(),
        intent.calldata,
        now,
    )
    .execute(&mut **tx)
    .await?;
    add_attempt(tx, id, attempt, now).await?;
    Ok(id)
}

/// Stores other bytes of the same nonce and calldata: a replacement that pays more.
///
/// # Errors
/// When the database refuses.
pub async fn add_attempt(
    tx: &mut PgTransaction<'_>,
    intent: IntentId,
    attempt: &Attempt,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO eth_attempts (tx_hash, intent_id, raw_tx, gas_limit, fee_cap_wei, tip_wei, fills, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        attempt.tx_hash.as_slice(),
        intent.0,
        attempt.raw,
        attempt.gas_limit.cast_signed(),
        to_numeric(attempt.fee_cap_wei),
        to_numeric(attempt.tip_wei),
        attempt.fills,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The intents whose end is not known, by nonce, each with its newest attempt.
///
/// # Errors
/// When the database refuses.
pub async fn open(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Vec<OpenIntent>> {
    let rows = sqlx::query!(
        "SELECT i.intent_id, i.kind, i.subject, i.batch_id, i.signer, i.nonce, i.target, i.calldata,
                a.tx_hash, a.raw_tx, a.gas_limit, a.fee_cap_wei, a.tip_wei, a.fills, a.first_sent_block, a.last_sent_block
         FROM eth_intents i
         CROSS JOIN LATERAL (
             SELECT tx_hash, raw_tx, gas_limit, fee_cap_wei, tip_wei, fills, first_sent_block, last_sent_block
             FROM eth_attempts WHERE intent_id = i.intent_id ORDER BY fee_cap_wei DESC, created_at DESC LIMIT 1
         ) a
         WHERE i.asset_id = $1 AND i.state = 'open' ORDER BY i.nonce",
        asset
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(OpenIntent {
                id: IntentId(row.intent_id),
                kind: to_enum("kind", &row.kind, IntentKind::parse)?,
                subject: row.subject,
                batch: row.batch_id.map(BatchId),
                signer: to_address("signer", &row.signer)?,
                nonce: row.nonce.cast_unsigned(),
                target: to_address("target", &row.target)?,
                calldata: row.calldata,
                attempt: Attempt {
                    tx_hash: to_hash("tx_hash", &row.tx_hash)?,
                    raw: row.raw_tx,
                    gas_limit: row.gas_limit.cast_unsigned(),
                    fee_cap_wei: to_amount("fee_cap_wei", &row.fee_cap_wei)?,
                    tip_wei: to_amount("tip_wei", &row.tip_wei)?,
                    fills: row.fills,
                },
                first_sent_block: row.first_sent_block.map(i64::cast_unsigned),
                last_sent_block: row.last_sent_block.map(i64::cast_unsigned),
            })
        })
        .collect()
}

/// How many intents of a kind were ever made about a subject that begins so.
///
/// # Errors
/// When the database refuses.
pub async fn count_about(
    conn: &mut PgConnection,
    kind: IntentKind,
    prefix: &str,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM eth_intents WHERE kind = $1 AND starts_with(subject, $2)"#,
        kind.as_str(),
        prefix
    )
    .fetch_one(conn)
    .await
}

/// Notes that the bytes were handed to a node at `block`, and what it said against them.
///
/// # Errors
/// When the database refuses.
pub async fn sent(
    tx: &mut PgTransaction<'_>,
    tx_hash: B256,
    block: u64,
    error: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE eth_attempts
         SET first_sent_block = COALESCE(first_sent_block, $2), last_sent_block = $2, last_error = $3
         WHERE tx_hash = $1",
        tx_hash.as_slice(),
        block.cast_signed(),
        error
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The commit of this batch was mined, and the block that had it has left the chain: it waits anew, from `block` on.
///
/// # Errors
/// When the database refuses.
pub async fn wait_anew(tx: &mut PgTransaction<'_>, batch: BatchId, block: u64) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE eth_attempts SET first_sent_block = $2
         FROM eth_intents i
         WHERE eth_attempts.intent_id = i.intent_id AND i.batch_id = $1 AND i.kind = 'commit' AND i.state = 'open'
           AND first_sent_block IS NOT NULL",
        batch.0,
        block.cast_signed(),
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Ends an intent, at what it cost where that is known.
///
/// # Errors
/// When the database refuses.
pub async fn end(
    tx: &mut PgTransaction<'_>,
    intent: IntentId,
    ended: Ended,
    cost_wei: Option<Amount>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let state = match ended {
        Ended::Done => "done",
        Ended::Failed => "failed",
    };
    sqlx::query!(
        "UPDATE eth_intents SET state = $2, cost_wei = $3, ended_at = $4 WHERE intent_id = $1 AND state = 'open'",
        intent.0,
        state,
        cost_wei.map(to_numeric),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
