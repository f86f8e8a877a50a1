//! Waiting for a statement that waits.

use std::time::Duration;

use sqlx::PgPool;

/// Until somebody in this database waits for a lock.
///
/// # Panics
/// When nobody does within some seconds, or the database fails.
pub async fn wait_for_a_lock(db: &PgPool) {
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
    for _ in 0..500 {
        let waits = sqlx::query_scalar(waits).fetch_one(db);
        if waits.await.expect("the database answers") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody waits");
}
