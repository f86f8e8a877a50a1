//! Workers that are not heard of any more, said once for each time.

use comptoir_domain::webhook::EventType;
use sqlx::PgConnection;
use time::OffsetDateTime;

/// Says of at most `limit` workers, last heard of before `silent_since`, that they are gone; how many. Of a worker that was gone before
/// its account listened nothing is said, and one that was heard of again may be gone again.
pub async fn say(
    conn: &mut PgConnection,
    silent_since: OffsetDateTime,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<u64> {
    let said = sqlx::query!(
        "WITH back AS (
             DELETE FROM worker_absences a USING worker_heartbeats h WHERE h.worker_id = a.worker_id AND h.seen_at > a.last_seen_at
         ), gone AS (
             INSERT INTO worker_absences (worker_id, account_id, last_seen_at)
             SELECT w.worker_id, w.account_id, h.seen_at FROM worker_heartbeats h JOIN workers w USING (worker_id)
             WHERE h.seen_at < $1 AND w.revoked_at IS NULL
                 AND EXISTS (SELECT FROM webhook_endpoints e WHERE e.account_id = w.account_id AND e.created_at <= h.seen_at)
                 AND NOT EXISTS (SELECT FROM worker_absences a WHERE a.worker_id = w.worker_id)
             ORDER BY h.seen_at LIMIT $4
             ON CONFLICT DO NOTHING
             RETURNING worker_id, account_id, last_seen_at
         )
         INSERT INTO webhook_events (account_id, kind, subject_id, data, created_at)
         SELECT account_id, $3, worker_id, jsonb_build_object('last_seen_at', last_seen_at), $2 FROM gone",
        silent_since,
        now,
        EventType::WorkerOffline.as_str(),
        limit,
    )
    .execute(conn)
    .await?;
    Ok(said.rows_affected())
}
