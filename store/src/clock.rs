//! The clock of a service: the database's, however wrong that of its machine is, so that all processes agree on what is over.

use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

/// How often it is asked what time it is; the quickest answer counts.
const QUESTIONS: usize = 3;
/// What a clock may be wrong by and be left alone: answers take some time to arrive.
const TOLERATED: Duration = Duration::milliseconds(100);

/// A clock that is set by the database.
#[derive(Debug)]
pub struct Clock {
    here: fn() -> OffsetDateTime,
    ahead_nanos: AtomicI64,
}

impl Clock {
    /// The machine's clock, not set yet.
    #[must_use]
    pub const fn new(here: fn() -> OffsetDateTime) -> Self {
        Self {
            here,
            ahead_nanos: AtomicI64::new(0),
        }
    }

    /// How far the database is ahead of the machine, as was found last.
    #[must_use]
    pub fn ahead(&self) -> Duration {
        Duration::nanoseconds(self.ahead_nanos.load(Ordering::Relaxed))
    }

    /// What time it is.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        (self.here)().saturating_add(self.ahead())
    }

    /// Sets it by the database, where it is wrong by more than 100 ms; by how much it was set.
    ///
    /// # Errors
    /// When the database does not answer; the clock goes on as it was set before.
    pub async fn set(&self, conn: &mut PgConnection) -> sqlx::Result<Duration> {
        let mut quickest: Option<(Duration, Duration)> = None;
        for _ in 0..QUESTIONS {
            let asked = self.now();
            let at = sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "at!""#)
                .fetch_one(&mut *conn)
                .await?;
            let took = self.now() - asked;
            // It said so half way there and back.
            let wrong = at - asked.saturating_add(took / 2);
            if quickest.is_none_or(|(least, _)| took < least) {
                quickest = Some((took, wrong));
            }
        }
        let wrong = quickest.map_or(Duration::ZERO, |(_, wrong)| wrong);
        if wrong.abs() <= TOLERATED {
            return Ok(Duration::ZERO);
        }
        let nanos = i64::try_from(wrong.whole_nanoseconds()).unwrap_or_default();
        self.ahead_nanos.fetch_add(nanos, Ordering::Relaxed);
        Ok(wrong)
    }
}
