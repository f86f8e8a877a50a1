use axum::http::StatusCode;
use comptoir_store::{dataset_checks, dataset_versions::Refusal};
use sqlx::PgPool;
use time::Duration;

use super::{act, check, dataset, draft, fill, get};
use crate::harness::{Session, TestApp};

async fn submitted(app: &TestApp, seller: &Session) -> String {
    let dataset = dataset(app, seller).await;
    let version = draft(app, seller, &dataset).await;
    fill(app, seller, &version, &[("a.csv", b"a\n1\n")]).await;
    act(app, seller, &format!("{version}/publish"))
        .await
        .expect(StatusCode::OK);
    version
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_checker_that_dies_is_followed_by_another_and_says_nothing_later(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let version = submitted(&app, &seller).await;
    let mut connection = app.state.db.acquire().await.unwrap();
    let dead = dataset_checks::take(&mut connection, Duration::minutes(2))
        .await
        .unwrap()
        .unwrap();
    assert!(
        !check::step(&app.state).await.unwrap(),
        "it is the first one's for now"
    );
    let past = "UPDATE dataset_versions SET check_until = clock_timestamp() - interval '1 s' WHERE state = 'checking'";
    sqlx::query(past).execute(&app.owner).await.unwrap();
    // Its time is over, though nobody else has the version yet.
    assert!(
        !dataset_checks::renew(&mut connection, &dead, Duration::minutes(2))
            .await
            .unwrap()
    );
    assert!(check::step(&app.state).await.unwrap());
    let late = Refusal {
        path: "a.csv".to_owned(),
        reason: "late".to_owned(),
    };
    assert!(
        !dataset_checks::refuse(&mut connection, &dead, &[late])
            .await
            .unwrap()
    );
    assert_eq!(get(&app, &seller, &version).await.text("/state"), "ready");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_that_cannot_be_checked_now_waits_and_is_not_refused(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let seller = app.session().await;
    let version = submitted(&app, &seller).await;
    let works = std::mem::replace(
        &mut app.state.checker,
        comptoir_checker::Checker::new("/nowhere".into(), &[]),
    );
    assert!(check::step(&app.state).await.is_err());
    assert_eq!(
        get(&app, &seller, &version).await.text("/state"),
        "checking"
    );
    app.state.checker = works;
    let past = "UPDATE dataset_versions SET check_until = clock_timestamp() - interval '1 s' WHERE state = 'checking'";
    sqlx::query(past).execute(&app.owner).await.unwrap();
    assert!(check::step(&app.state).await.unwrap());
    assert_eq!(get(&app, &seller, &version).await.text("/state"), "ready");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_file_whose_reader_ends_without_a_word_waits_behind_others_and_is_refused_in_the_end(
    db: PgPool,
) {
    let mut app = TestApp::new(db).await;
    let seller = app.session().await;
    let hostile = submitted(&app, &seller).await;
    let works = std::mem::replace(
        &mut app.state.checker,
        comptoir_checker::Checker::new("/bin/false".into(), &[]),
    );
    let expire = async |app: &TestApp| {
        let past = "UPDATE dataset_versions SET check_until = clock_timestamp() - interval '1 s' WHERE state = 'checking'";
        sqlx::query(past).execute(&app.owner).await.unwrap();
    };
    for _ in 0..5 {
        assert!(check::step(&app.state).await.is_err());
        expire(&app).await;
    }
    let other = submitted(&app, &seller).await;
    let fails = std::mem::replace(&mut app.state.checker, works);
    assert!(check::step(&app.state).await.unwrap());
    assert_eq!(get(&app, &seller, &other).await.text("/state"), "ready");
    app.state.checker = fails;
    assert!(check::step(&app.state).await.unwrap());
    let refused = get(&app, &seller, &hostile).await;
    assert_eq!(refused.text("/state"), "refused");
    assert!(
        refused
            .text("/refusals/0/reason")
            .contains("without a word")
    );
}
