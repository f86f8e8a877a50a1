use std::time::Duration as Wait;

use axum::http::StatusCode;
use comptoir_checker::{Features, Sandbox};
use comptoir_domain::{dataset::VERSION_FACTS_BYTES_MAX, id::DatasetFileId};
use comptoir_store::{
    dataset_checks::{self, Takes},
    dataset_versions::Refusal,
};
use sqlx::PgPool;
use time::Duration;

use super::{act, check, dataset, draft, fill, get};
use crate::harness::{Session, TestApp};

async fn submitted(app: &TestApp, seller: &Session) -> String {
    submitted_with(app, seller, &[("a.csv", b"a\n1\n")]).await.0
}

/// A version that waits for a checker, and its files.
async fn submitted_with(
    app: &TestApp,
    seller: &Session,
    files: &[(&str, &[u8])],
) -> (String, Vec<String>) {
    let dataset = dataset(app, seller).await;
    let version = draft(app, seller, &dataset).await;
    let files = fill(app, seller, &version, files).await;
    act(app, seller, &format!("{version}/publish"))
        .await
        .expect(StatusCode::OK);
    (version, files)
}

async fn states<const N: usize>(app: &TestApp, versions: [(&Session, &String); N]) -> [String; N] {
    let state = versions.map(|(seller, version)| get(app, seller, version));
    let shown = futures::future::join_all(state).await;
    let states: Vec<_> = shown
        .iter()
        .map(|it| it.text("/state").to_owned())
        .collect();
    states.try_into().unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_publishes_much_takes_turns_with_who_publishes_little(db: PgPool) {
    let app = TestApp::new(db).await;
    let (much, little) = (app.session().await, app.session().await);
    let first = submitted(&app, &much).await;
    let second = submitted(&app, &much).await;
    let other = submitted(&app, &little).await;
    for expected in [
        ["ready", "checking", "checking"],
        ["ready", "checking", "ready"],
        ["ready", "ready", "ready"],
    ] {
        assert!(check::step(&app.state, Takes::All).await.unwrap());
        let found = [(&much, &first), (&much, &second), (&little, &other)];
        assert_eq!(states(&app, found).await, expected);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_of_many_files_gives_way_between_them_and_goes_on(db: PgPool) {
    let app = TestApp::new(db).await;
    let (large, small) = (app.session().await, app.session().await);
    let names: Vec<_> = (0..201).map(|number| format!("{number}.txt")).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|it| (&it[..], &b"x"[..])).collect();
    files.push(("table.csv", b"a\n1\n"));
    let (many, paths) = submitted_with(&app, &large, &files).await;
    let one = submitted(&app, &small).await;
    for expected in [
        ["checking", "checking"],
        ["checking", "ready"],
        ["ready", "ready"],
    ] {
        assert!(check::step(&app.state, Takes::All).await.unwrap());
        assert_eq!(
            states(&app, [(&large, &many), (&small, &one)]).await,
            expected
        );
    }
    let table = get(&app, &large, paths.last().unwrap()).await;
    assert_eq!(table.json["facts"]["rows"], 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_gives_way_once_the_time_of_its_turn_is_over_and_goes_on(db: PgPool) {
    let app = TestApp::new(db).await;
    let (slow, small) = (app.session().await, app.session().await);
    let files: [(&str, &[u8]); 2] = [("a.csv", b"a\n1\n"), ("b.csv", b"b\n2\n")];
    let (two, _) = submitted_with(&app, &slow, &files).await;
    let one = submitted(&app, &small).await;
    for expected in [
        ["checking", "checking"],
        ["checking", "ready"],
        ["ready", "ready"],
    ] {
        let step = check::step_within(&app.state, Takes::All, Wait::ZERO);
        assert!(step.await.unwrap());
        let found = [(&slow, &two), (&small, &one)];
        assert_eq!(states(&app, found).await, expected);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_refused_in_an_earlier_turn_is_not_forgotten(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let names: Vec<_> = (0..201).map(|number| format!("{number}.txt")).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|it| (&it[..], &b"x"[..])).collect();
    // Files that were announced last are read first.
    files.push(("bad.csv", b"a,b\n1\n"));
    let (version, _) = submitted_with(&app, &seller, &files).await;
    for _ in 0..2 {
        assert!(check::step(&app.state, Takes::All).await.unwrap());
    }
    let refused = get(&app, &seller, &version).await;
    assert_eq!(refused.text("/state"), "refused");
    assert_eq!(refused.text("/refusals/0/path"), "bad.csv");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_turn_took_and_found_counts_in_the_next_one(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let files: [(&str, &[u8]); 2] = [("a.csv", b"a\n1\n"), ("b.csv", b"b\n2\n")];
    let (version, _) = submitted_with(&app, &seller, &files).await;
    let first = check::step_within(&app.state, Takes::All, Wait::ZERO);
    assert!(first.await.unwrap());
    let sums = "SELECT check_spent_ms, check_facts_bytes FROM dataset_versions";
    let (spent, found): (i64, i64) = sqlx::query_as(sums).fetch_one(&app.owner).await.unwrap();
    assert!(spent > 0 && found > 0, "{spent} ms, {found} bytes");
    let full = "UPDATE dataset_versions SET check_facts_bytes = $1";
    let full = sqlx::query(full).bind(i64::try_from(VERSION_FACTS_BYTES_MAX).unwrap());
    full.execute(&app.owner).await.unwrap();
    assert!(check::step(&app.state, Takes::All).await.unwrap());
    let refused = get(&app, &seller, &version).await;
    assert_eq!(refused.text("/state"), "refused");
    let reason = refused.text("/refusals/0/reason");
    assert!(reason.contains("what the columns of all files"), "{reason}");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_whose_checker_died_after_it_noted_a_refusal_is_refused(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let version = submitted(&app, &seller).await;
    for noted in [
        "UPDATE dataset_files SET checked_at = now()",
        r#"UPDATE dataset_versions SET refusals = '[{"path": "a.csv", "reason": "no table"}]'"#,
    ] {
        sqlx::query(noted).execute(&app.owner).await.unwrap();
    }
    assert!(check::step(&app.state, Takes::All).await.unwrap());
    let refused = get(&app, &seller, &version).await;
    assert_eq!(refused.text("/state"), "refused");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_account_has_one_checker_at_a_time(db: PgPool) {
    let app = TestApp::new(db).await;
    let (much, little) = (app.session().await, app.session().await);
    submitted(&app, &much).await;
    submitted(&app, &much).await;
    let mut connection = app.state.db.acquire().await.unwrap();
    let mut take = async || {
        let taken = dataset_checks::take(&mut connection, Takes::All, Duration::minutes(2)).await;
        taken.unwrap().map(|it| it.account)
    };
    assert_eq!(take().await, Some(much.account));
    assert_eq!(take().await, None);
    submitted(&app, &little).await;
    assert_eq!(take().await, Some(little.account));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn one_checker_leaves_huge_files_to_others_so_that_small_ones_never_wait_for_them(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let (large, small) = (app.session().await, app.session().await);
    let (huge, files) = submitted_with(&app, &large, &[("a.csv", b"a\n1\n")]).await;
    let file: DatasetFileId = files[0].rsplit('/').next().unwrap().parse().unwrap();
    // As if so many had been uploaded: what is published does not change.
    let change = "ALTER TABLE dataset_files DISABLE TRIGGER USER";
    sqlx::query(change).execute(&app.owner).await.unwrap();
    let is_of = async |bytes: i64| {
        let grow = "UPDATE dataset_files SET bytes = $2 WHERE file_id = $1";
        let query = sqlx::query(grow).bind(file.0).bind(bytes);
        query.execute(&app.owner).await.unwrap();
    };
    is_of((64 << 20) + 1).await;
    let one = submitted(&app, &small).await;
    // It came first, and another checker would have it.
    for (waits, expected) in [
        (true, ["checking", "ready"]),
        (false, ["checking", "ready"]),
    ] {
        assert_eq!(check::step(&app.state, Takes::Small).await.unwrap(), waits);
        let found = [(&large, &huge), (&small, &one)];
        assert_eq!(states(&app, found).await, expected);
    }
    is_of(4).await;
    assert!(check::step(&app.state, Takes::Small).await.unwrap());
    assert_eq!(states(&app, [(&large, &huge)]).await, ["ready"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_that_takes_too_long_in_all_is_refused_and_told_why(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let version = submitted(&app, &seller).await;
    let spent = "UPDATE dataset_versions SET check_spent_ms = 30 * 60 * 1000";
    sqlx::query(spent).execute(&app.owner).await.unwrap();
    assert!(check::step(&app.state, Takes::All).await.unwrap());
    let refused = get(&app, &seller, &version).await;
    assert_eq!(refused.text("/state"), "refused");
    let reason = refused.text("/refusals/0/reason");
    assert!(reason.contains("takes more than 1800 s"), "{reason}");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_checker_that_dies_is_followed_by_another_and_says_nothing_later(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let (version, files) = submitted_with(&app, &seller, &[("a.csv", b"a\n1\n")]).await;
    let mut connection = app.state.db.acquire().await.unwrap();
    let dead = dataset_checks::take(&mut connection, Takes::All, Duration::minutes(2))
        .await
        .unwrap()
        .unwrap();
    assert!(
        !check::step(&app.state, Takes::All).await.unwrap(),
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
    assert!(check::step(&app.state, Takes::All).await.unwrap());
    let late = Refusal {
        path: "a.csv".to_owned(),
        reason: "late".to_owned(),
    };
    assert!(
        !dataset_checks::refuse(&mut connection, &dead)
            .await
            .unwrap()
    );
    let mut tx = app.state.db.begin().await.unwrap();
    let file = files[0].rsplit('/').next().unwrap().parse().unwrap();
    let noted = dataset_checks::note(&mut tx, &dead, file, (None, Some(&late)), Duration::ZERO);
    assert_eq!(noted.await.unwrap(), None);
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
    assert!(check::step(&app.state, Takes::All).await.is_err());
    assert_eq!(
        get(&app, &seller, &version).await.text("/state"),
        "checking"
    );
    app.state.checker = works;
    let past = "UPDATE dataset_versions SET check_until = clock_timestamp() - interval '1 s' WHERE state = 'checking'";
    sqlx::query(past).execute(&app.owner).await.unwrap();
    assert!(check::step(&app.state, Takes::All).await.unwrap());
    assert_eq!(get(&app, &seller, &version).await.text("/state"), "ready");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_machine_without_walls_says_so_and_its_versions_wait(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let seller = app.session().await;
    let version = submitted(&app, &seller).await;
    let ready = async |app: &TestApp| {
        let ready = app.get("/readyz").send().await.expect(StatusCode::OK);
        ready.text("/components/checker").to_owned()
    };
    assert_eq!(ready(&app).await, "up");
    let bare = || Sandbox {
        features: Features::NONE,
        allow_unsandboxed: false,
    };
    app.replace_checker(app.state.checker.clone().behind(bare));
    assert_eq!(ready(&app).await, "down");
    assert!(check::step(&app.state, Takes::All).await.is_err());
    let waits = get(&app, &seller, &version).await;
    assert_eq!(waits.text("/state"), "checking");
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
        assert!(check::step(&app.state, Takes::All).await.is_err());
        expire(&app).await;
    }
    let other = submitted(&app, &seller).await;
    let fails = std::mem::replace(&mut app.state.checker, works);
    assert!(check::step(&app.state, Takes::All).await.unwrap());
    assert_eq!(get(&app, &seller, &other).await.text("/state"), "ready");
    app.state.checker = fails;
    assert!(check::step(&app.state, Takes::All).await.unwrap());
    let refused = get(&app, &seller, &hostile).await;
    assert_eq!(refused.text("/state"), "refused");
    assert!(
        refused
            .text("/refusals/0/reason")
            .contains("without a word")
    );
}
