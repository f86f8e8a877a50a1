//! The one place where the services' time comes from.

use std::time::Duration;

use comptoir_store::clock::Clock;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether the clock is right.
const PACE: Duration = Duration::from_mins(1);
/// A correction that is told.
const TOLD: time::Duration = time::Duration::SECOND;
/// How many seconds the database is ahead of this machine.
const AHEAD: &str = "comptoir_database_clock_ahead_seconds";

static CLOCK: Clock = Clock::new(here);
/// Services of one process set it one after the other.
static SETTING: Mutex<()> = Mutex::const_new(());

#[expect(clippy::disallowed_methods, reason = "this is the machine's clock")]
fn here() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// What time it is, by the database once a service has started.
#[must_use]
pub fn now() -> OffsetDateTime {
    CLOCK.now()
}

/// Sets the clock by the database, and again every minute until `stop`.
///
/// # Errors
/// When the database does not answer the first time.
pub async fn follow(db: &PgPool, stop: &CancellationToken) -> sqlx::Result<()> {
    metrics::describe_gauge!(
        AHEAD,
        "How many seconds the database is ahead of this machine"
    );
    set(db).await?;
    let (db, stop) = (db.clone(), stop.clone());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            tokio::time::sleep(PACE).await;
            if let Err(error) = set(&db).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the clock is not set");
            }
        }
    }));
    Ok(())
}

async fn set(db: &PgPool) -> sqlx::Result<()> {
    let _one_at_a_time = SETTING.lock().await;
    let corrected = CLOCK.set(&mut *db.acquire().await?).await?;
    let ahead = CLOCK.ahead().as_seconds_f64();
    metrics::gauge!(AHEAD).set(ahead);
    if corrected.abs() > TOLD {
        let corrected = corrected.as_seconds_f64();
        tracing::warn!(
            corrected,
            ahead,
            "the clock of this machine is wrong: set by the database's"
        );
    }
    Ok(())
}
