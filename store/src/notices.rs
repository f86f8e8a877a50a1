//! Messages to owners of accounts: written in the transaction of their cause, sent later, more than once at worst.

use comptoir_domain::id::{AccountId, NoticeId};
use serde_json::Value;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

/// How often one is tried: for about three days, with the pauses of [`pause`].
pub const ATTEMPTS_MAX: i16 = 20;
/// The pause after the first attempt; each further one is twice as long,
const PAUSE_FIRST: Duration = Duration::minutes(1);
/// but no longer than this.
const PAUSE_MAX: Duration = Duration::hours(6);
/// How long a message that has ended is kept.
const KEPT_FOR: Duration = Duration::days(30);

/// A message to be written.
#[derive(Debug, Clone)]
pub struct NewNotice<'a> {
    /// Its identifier; what is sealed in it is sealed for this.
    pub id: NoticeId,
    /// To whom.
    pub account: AccountId,
    /// What it is about.
    pub kind: &'a str,
    /// What it says.
    pub facts: &'a Value,
    /// What it says that nobody else may read, sealed.
    pub secret: Option<&'a [u8]>,
}

/// A message that is to be sent now.
#[derive(Debug, Clone)]
pub struct DueNotice {
    /// Its identifier.
    pub id: NoticeId,
    /// The e-mail address.
    pub recipient: String,
    /// What it is about.
    pub kind: String,
    /// What it says.
    pub facts: Value,
    /// What it says that nobody else may read, sealed.
    pub secret: Option<Vec<u8>>,
    /// When it was written.
    pub created_at: OffsetDateTime,
    /// The attempts, with this one.
    pub attempts: i16,
}

/// Writes a message to the account's e-mail address; an account without one gets none.
pub async fn create(
    connection: &mut PgConnection,
    new: &NewNotice<'_>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO notices (notice_id, account_id, recipient, kind, facts, secret, created_at, next_attempt_at)
         SELECT $1, account_id, email, $3, $4, $5, $6, $6 FROM accounts WHERE account_id = $2 AND email IS NOT NULL",
        new.id.0,
        new.account.0,
        new.kind,
        new.facts,
        new.secret,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes at most `limit` messages that are due, each for one attempt; nobody else takes them before the pause after it.
pub async fn take_due(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<DueNotice>> {
    let rows = sqlx::query!(
        "WITH due AS MATERIALIZED (
             SELECT notice_id FROM notices
             WHERE sent_at IS NULL AND given_up_at IS NULL AND next_attempt_at <= $1
             ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
         )
         UPDATE notices SET attempts = attempts + 1,
             next_attempt_at = $1 + make_interval(secs => least($3::float8 * 2 ^ attempts::float8, $4::float8))
         FROM due WHERE notices.notice_id = due.notice_id
         RETURNING notices.notice_id, recipient, kind, facts, secret, created_at, attempts",
        now,
        limit,
        PAUSE_FIRST.as_seconds_f64(),
        PAUSE_MAX.as_seconds_f64(),
    )
    .fetch_all(connection)
    .await?;
    let mut due: Vec<_> = rows
        .into_iter()
        .map(|row| DueNotice {
            id: NoticeId(row.notice_id),
            recipient: row.recipient,
            kind: row.kind,
            facts: row.facts,
            secret: row.secret,
            created_at: row.created_at,
            attempts: row.attempts,
        })
        .collect();
    due.sort_by_key(|notice| notice.id);
    Ok(due)
}

/// The message was handed over, or never will be: no further attempt is made, and its secret is forgotten.
pub async fn end(
    connection: &mut PgConnection,
    id: NoticeId,
    sent: bool,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE notices SET secret = NULL, sent_at = CASE WHEN $2 THEN $3::timestamptz END,
             given_up_at = CASE WHEN NOT $2 THEN $3::timestamptz END
         WHERE notice_id = $1 AND sent_at IS NULL AND given_up_at IS NULL",
        id.0,
        sent,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets at most `limit` messages that ended long ago; says how many.
pub async fn forget_old(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM notices WHERE notice_id IN (
             SELECT notice_id FROM notices
             WHERE (sent_at IS NOT NULL OR given_up_at IS NOT NULL) AND coalesce(sent_at, given_up_at) <= $1
             ORDER BY coalesce(sent_at, given_up_at) LIMIT $2
         )",
        now.saturating_sub(KEPT_FOR),
        limit,
    )
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}
