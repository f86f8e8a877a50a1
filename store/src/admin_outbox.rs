//! What waits to go out.

use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

/// Messages that were given up are sent again when they are no older than this.
const REPLAYED_FOR: Duration = Duration::days(7);

/// How much waits, and since when the oldest of it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How much.
    pub count: i64,
    /// Since when the oldest.
    pub oldest_at: Option<OffsetDateTime>,
}

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs that have not ended.
    pub open_jobs: i64,
    /// Workers with work.
    pub busy_workers: i64,
    /// Jobs whose verdict is due.
    pub verdicts: Waiting,
    /// Receipts that no batch has.
    pub receipts: Waiting,
    /// Releases that wait for a batch.
    pub releases: Waiting,
    /// Transactions that are wanted on the chain.
    pub transactions: Waiting,
    /// Messages that were not sent yet.
    pub notices: Waiting,
    /// Messages that were given up.
    pub notices_given_up: Waiting,
}

/// What waits now.
///
/// # Errors
/// When the statement fails.
pub async fn backlog(conn: &mut PgConnection) -> sqlx::Result<Backlog> {
    let row = sqlx::query!(
        r#"SELECT
             (SELECT count(*) FROM jobs WHERE finished_at IS NULL) AS "open_jobs!",
             (SELECT count(DISTINCT worker_id) FROM attempts WHERE ended_at IS NULL) AS "busy_workers!",
             (SELECT count(*) FROM verdicts_due) AS "verdicts!", (SELECT min(due_at) FROM verdicts_due) AS verdict_at,
             (SELECT count(*) FROM unbatched_receipts) AS "receipts!",
             (SELECT min(created_at) FROM unbatched_receipts JOIN receipts USING (receipt_id)) AS receipt_at,
             (SELECT count(*) FROM releases WHERE state = 'queued') AS "releases!",
             (SELECT min(created_at) FROM releases WHERE state = 'queued') AS release_at,
             (SELECT count(*) FROM eth_intents WHERE state = 'open') AS "transactions!",
             (SELECT min(created_at) FROM eth_intents WHERE state = 'open') AS transaction_at,
             (SELECT count(*) FROM notices WHERE sent_at IS NULL AND given_up_at IS NULL) AS "notices!",
             (SELECT min(created_at) FROM notices WHERE sent_at IS NULL AND given_up_at IS NULL) AS notice_at,
             (SELECT count(*) FROM notices WHERE given_up_at IS NOT NULL) AS "given_up!",
             (SELECT min(created_at) FROM notices WHERE given_up_at IS NOT NULL) AS given_up_at"#,
    )
    .fetch_one(conn)
    .await?;
    let waiting = |count, oldest_at| Waiting { count, oldest_at };
    Ok(Backlog {
        open_jobs: row.open_jobs,
        busy_workers: row.busy_workers,
        verdicts: waiting(row.verdicts, row.verdict_at),
        receipts: waiting(row.receipts, row.receipt_at),
        releases: waiting(row.releases, row.release_at),
        transactions: waiting(row.transactions, row.transaction_at),
        notices: waiting(row.notices, row.notice_at),
        notices_given_up: waiting(row.given_up, row.given_up_at),
    })
}

/// Makes messages that wait for another attempt due now, and gives those of the last week that were given up a new start; how
/// many. One that was sent is not sent again, and neither is a way to a new password: its secret is gone.
///
/// # Errors
/// When the statement fails.
pub async fn replay_notices(conn: &mut PgConnection, now: OffsetDateTime) -> sqlx::Result<u64> {
    let replayed = sqlx::query!(
        "UPDATE notices SET next_attempt_at = $1, given_up_at = NULL,
             attempts = CASE WHEN given_up_at IS NULL THEN attempts ELSE 0 END
         WHERE sent_at IS NULL AND (
             given_up_at IS NULL AND next_attempt_at > $1
             OR given_up_at IS NOT NULL AND created_at > $2 AND kind <> 'password_reset'
         )",
        now,
        now.saturating_sub(REPLAYED_FOR),
    )
    .execute(conn)
    .await?;
    Ok(replayed.rows_affected())
}
