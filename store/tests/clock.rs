//! The clock that services live by.

use std::cell::Cell;

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

thread_local! {
    static SET_AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn set_by_somebody() -> OffsetDateTime {
    right() + SET_AHEAD.get()
}

#[sqlx::test(migrations = false)]
async fn setting_the_machine_s_clock_does_not_set_the_service_s(db: PgPool) {
    let clock = Clock::new(set_by_somebody);
    clock.set(&mut db.acquire().await.unwrap()).await.unwrap();
    SET_AHEAD.set(Duration::DAY);
    assert!((clock.now() - right()).abs() < Duration::seconds(10));
    assert!((clock.ahead() + Duration::DAY).abs() < Duration::seconds(10));
}

#[sqlx::test(migrations = false)]
async fn a_clock_that_nobody_answers_goes_on_as_it_was_set(db: PgPool) {
    let clock = Clock::new(an_hour_late);
    let mut connection = db.acquire().await.unwrap();
    clock.set(&mut connection).await.unwrap();
    sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())")
        .execute(&mut *connection)
        .await
        .unwrap_err();
    clock.set(&mut connection).await.unwrap_err();
    assert!((clock.now() - right()).abs() < Duration::seconds(10));
}
