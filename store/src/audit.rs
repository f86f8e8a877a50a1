//! The audit log. Services may append to it and nothing else; the database numbers and links what they append.
//!
//! ```ignore
//! let event = Event::new(Actor::Account(account), Action::ApiKeyCreated, key.to_string())
//!     .of_account(account)
//!     .from(comptoir_http::client_ip::origin()); // in the handler: a spawned task knows no request
//! audit::append(tx, &event, now).await?; // the last statement before the commit
//! ```
//!
//! Appending locks the end of the chain until the transaction ends, so nothing else is locked after it: two transactions that
//! each wait for the other would be the result.

use std::collections::{BTreeMap, BTreeSet};

use comptoir_domain::{
    audit::{Broken, Chain, Event, Record},
    digest::Sha256,
    id::AccountId,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{PgTransaction, codec::to_digest};

/// Events that are read at once.
const PAGE: i64 = 1_000;

/// Appends an event, as the last statement of its transaction.
///
/// # Errors
/// When the database refuses, or the event passes a limit: that is a mistake of ours, and fails what it was about.
pub async fn append(
    tx: &mut PgTransaction<'_>,
    event: &Event,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let body = event
        .canonical(now)
        .map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "INSERT INTO audit_events (body, account_id) VALUES ($1, $2)",
        body,
        event.account.map(|account| account.0),
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The end of the chain; none where the log has no events.
///
/// # Errors
/// When the database refuses.
pub async fn head(conn: &mut PgConnection) -> sqlx::Result<Option<Sha256>> {
    let head = sqlx::query!("SELECT seq, hash FROM audit_head")
        .fetch_one(conn)
        .await?;
    if head.seq == 0 {
        return Ok(None);
    }
    to_digest("hash", &head.hash).map(Some)
}

/// An event of the log, with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place, from 1.
    pub number: u64,
    /// What it says.
    pub record: Record,
}

/// Events, newest first: all of them, or those that concern one account.
///
/// # Errors
/// When the database refuses, or an event is no JSON of ours.
pub async fn list(
    conn: &mut PgConnection,
    account: Option<AccountId>,
    before: Option<u64>,
    limit: i64,
) -> sqlx::Result<Vec<Entry>> {
    sqlx::query!(
        "SELECT seq, body FROM audit_events
         WHERE ($1::uuid IS NULL OR account_id = $1) AND ($2::bigint IS NULL OR seq < $2)
         ORDER BY seq DESC LIMIT $3",
        account.map(|account| account.0),
        before.map(u64::cast_signed),
        limit,
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| {
        Ok(Entry {
            number: row.seq.cast_unsigned(),
            record: read(&row.body)?,
        })
    })
    .collect()
}

/// A log that is what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// All of it.
    pub chain: Chain,
    /// Where the heads that were asked for stand in it.
    pub places: BTreeMap<Sha256, u64>,
}

/// Where a log is not what it was.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// An event does not follow from those before it.
    #[error("the audit log was changed")]
    Broken(#[from] Broken),
    /// The log ends elsewhere than was kept.
    #[error("the audit log ends with event {length}, and was kept to end with event {kept}")]
    End {
        /// How many there are.
        length: u64,
        /// How many there were.
        kept: u64,
    },
    /// A column says something else than the event.
    #[error("event {0} concerns another account than its column says")]
    Column(u64),
    /// The database refused.
    #[error("read the audit log")]
    Database(#[from] sqlx::Error),
}

/// Computes the whole chain again, and finds the places of some heads in it. The transaction must be one snapshot:
/// REPEATABLE READ.
///
/// # Errors
/// When the log was changed, or the database refuses.
pub async fn verify(
    tx: &mut PgTransaction<'_>,
    heads: &BTreeSet<Sha256>,
) -> Result<Verified, VerifyError> {
    let mut chain = Chain::default();
    let mut places = BTreeMap::new();
    loop {
        let rows = sqlx::query!(
            "SELECT seq, body, hash, account_id FROM audit_events WHERE seq > $1 ORDER BY seq LIMIT $2",
            chain.length.cast_signed(),
            PAGE,
        )
        .fetch_all(&mut **tx)
        .await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            let number = row.seq.cast_unsigned();
            chain.push(number, &row.body, to_digest("hash", &row.hash)?)?;
            if read(&row.body)?.account.map(|account| account.0) != row.account_id {
                return Err(VerifyError::Column(number));
            }
            if heads.contains(&chain.head) {
                places.insert(chain.head, number);
            }
        }
    }
    let kept = sqlx::query!("SELECT seq, hash FROM audit_head")
        .fetch_one(&mut **tx)
        .await?;
    let end = Chain {
        length: kept.seq.cast_unsigned(),
        head: to_digest("hash", &kept.hash)?,
    };
    if end != chain {
        return Err(VerifyError::End {
            length: chain.length,
            kept: end.length,
        });
    }
    Ok(Verified { chain, places })
}

fn read(body: &str) -> sqlx::Result<Record> {
    serde_json::from_str(body).map_err(|error| sqlx::Error::ColumnDecode {
        index: "body".into(),
        source: error.into(),
    })
}
