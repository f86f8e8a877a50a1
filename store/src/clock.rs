//! The clock of a service: the database's, however wrong that of its machine is or becomes, so that all processes agree on what is over.

use std::{
    sync::{PoisonError, RwLock},
    time::Instant,
};

use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

/// How often it is asked what time it is; the quickest answer counts.
const QUESTIONS: usize = 3;
/// What a clock may be wrong by and be left alone: answers take some time to arrive.
const TOLERATED: Duration = Duration::milliseconds(100);

/// A clock that is set by the database, and goes on from there by what steadily passes: nobody who sets the machine's clock sets this one.
#[derive(Debug)]
pub struct Clock {
    here: fn() -> OffsetDateTime,
    set: RwLock<Option<(OffsetDateTime, Instant)>>,
}

impl Clock {
    /// The machine's clock, until it is set.
    #[must_use]
    pub const fn new(here: fn() -> OffsetDateTime) -> Self {
        Self {
            here,
            set: RwLock::new(None),
        }
    }

    /// What time it is.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        match *self.set.read().unwrap_or_else(PoisonError::into_inner) {
            Some((at, since)) => at.saturating_add(elapsed(since)),
            None => (self.here)(),
        }
    }

    /// How far it is ahead of the machine's.
    #[must_use]
    pub fn ahead(&self) -> Duration {
        self.now() - (self.here)()
    }

    /// Sets it by the database, where it is wrong by more than 100 ms; by how much it was set.
    ///
    /// # Errors
    /// When the database does not answer; the clock goes on as it was set before.
    pub async fn set(&self, conn: &mut PgConnection) -> sqlx::Result<Duration> {
        let mut quickest: Option<(Duration, OffsetDateTime, Instant)> = None;
        for _ in 0..QUESTIONS {
            let asked = Instant::now();
            let at = sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "at!""#)
                .fetch_one(&mut *conn)
                .await?;
            let (answered, took) = (Instant::now(), elapsed(asked));
            if quickest.is_none_or(|(least, ..)| took < least) {
                // It said so half way there and back.
                quickest = Some((took, at.saturating_add(took / 2), answered));
            }
        }
        let Some((_, at, since)) = quickest else {
            return Ok(Duration::ZERO);
        };
        let wrong = at.saturating_add(elapsed(since)) - self.now();
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        if set.is_some() && wrong.abs() <= TOLERATED {
            return Ok(Duration::ZERO);
        }
        *set = Some((at, since));
        Ok(wrong)
    }
}

fn elapsed(since: Instant) -> Duration {
    Duration::try_from(since.elapsed()).unwrap_or(Duration::MAX)
}
