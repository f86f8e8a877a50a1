//! The clock that services live by.

use comptoir_store::clock::Clock;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

#[expect(clippy::disallowed_methods, reason = "a machine's clock")]
fn right() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn an_hour_late() -> OffsetDateTime {
    right() - Duration::HOUR
}

#[sqlx::test(migrations = false)]
async fn a_machine_that_is_an_hour_late_lives_by_the_database_s_time(db: PgPool) {
    let clock = Clock::new(an_hour_late);
    let mut connection = db.acquire().await.unwrap();
    let corrected = clock.set(&mut connection).await.unwrap();
    assert!((corrected - Duration::HOUR).abs() < Duration::seconds(10));
    assert!((clock.now() - right()).abs() < Duration::seconds(10));
    let again = clock.set(&mut connection).await.unwrap();
    assert!(again.abs() < Duration::seconds(10), "{again}");
}

#[sqlx::test(migrations = false)]
async fn a_clock_that_nobody_answers_goes_on_as_it_was_set(db: PgPool) {
    let clock = Clock::new(an_hour_late);
    let mut connection = db.acquire().await.unwrap();
    clock.set(&mut connection).await.unwrap();
    let ahead = clock.ahead();
    sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())")
        .execute(&mut *connection)
        .await
        .unwrap_err();
    clock.set(&mut connection).await.unwrap_err();
    assert_eq!(clock.ahead(), ahead);
}
