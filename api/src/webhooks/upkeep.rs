//! What is done beside sending: workers that are gone are said to be, what goes to disabled endpoints is ended, what is old is forgotten.

use comptoir_domain::webhook::KEPT_FOR;
use comptoir_store::{
    jobs::explain::LIVE_FOR,
    webhooks::{absences, deliveries, events, sending},
};
use time::Duration;

use super::{LATE_SECONDS, WAITING};
use crate::AppState;

/// Rows that one round changes at most, of each kind.
const AT_ONCE: i64 = 1_000;
/// A worker that is not heard of is said to be gone a while after it is shown as offline: one that restarts is no news.
const SILENT_FOR: Duration = Duration::minutes(5);
const _: () = assert!(SILENT_FOR.whole_seconds() > LIVE_FOR.whole_seconds());

/// One bounded round, safe to repeat and in several processes; says how much it changed.
///
/// # Errors
/// When Postgres fails.
pub async fn round(state: &AppState) -> sqlx::Result<u64> {
    let now = state.now();
    let mut connection = state.db.acquire().await?;
    let said = absences::say(&mut connection, now - SILENT_FOR, now, AT_ONCE).await?;
    let cancelled = sending::cancel_of_disabled(&mut connection, now, AT_ONCE).await?;
    let secrets = sending::forget_previous_secrets(&mut connection, now, AT_ONCE).await?;
    let events = events::forget_old(&mut connection, now - KEPT_FOR, AT_ONCE).await?;
    let (waiting, due_at) = deliveries::backlog(&mut connection).await?;
    let late = due_at.map_or(Duration::ZERO, |due_at| (now - due_at).max(Duration::ZERO));
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    metrics::gauge!(WAITING).set(waiting as f64);
    metrics::gauge!(LATE_SECONDS).set(late.as_seconds_f64());
    Ok(said + cancelled + secrets + events)
}
