use axum::http::{Method, StatusCode};
use comptoir_api::steps;
use comptoir_domain::root_keys::RootKeys;
use serde_json::json;
use sqlx::PgPool;
use time::Duration;

use super::{act, announcement, dataset, draft, fill, get, objects, published};
use crate::harness::{LIMITS, Session, TestApp};

async fn delete(app: &TestApp, seller: &Session, path: &str) -> crate::harness::Reply {
    app.request(Method::DELETE, path).by(seller).send().await
}

async fn step(app: &TestApp) {
    steps::step(&app.state).await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_shredded_version_is_read_by_nobody_and_leaves_no_object(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let (dataset, version, files) = published(&app, &seller, &[("sample.csv", b"a\n1\n")]).await;
    let (_, kept, _) = published(&app, &seller, &[("b.csv", b"b\n1\n")]).await;
    act(&app, &seller, &format!("{dataset}/list"))
        .await
        .expect(StatusCode::OK);
    delete(&app, &seller, &version)
        .await
        .expect_problem(StatusCode::CONFLICT, "version_last");
    act(&app, &seller, &format!("{dataset}/withdraw"))
        .await
        .expect(StatusCode::OK);
    for _ in 0..2 {
        let shredded = delete(&app, &seller, &version).await.expect(StatusCode::OK);
        assert_eq!(shredded.text("/state"), "shredded");
    }
    let keys = "SELECT count(wrapped_key) FROM dataset_versions";
    let keys: i64 = sqlx::query_scalar(keys)
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert_eq!(
        keys, 1,
        "the key is gone, though the objects are still there"
    );
    assert_eq!(objects(&app).len(), 2);
    get(&app, &seller, &format!("{}/content", files[0]))
        .await
        .expect_problem(StatusCode::GONE, "version_shredded");
    get(&app, &seller, &format!("{version}/manifest"))
        .await
        .expect_problem(StatusCode::GONE, "version_shredded");
    step(&app).await;
    assert_eq!(objects(&app).len(), 1);
    assert_eq!(get(&app, &seller, &kept).await.text("/state"), "ready");
    act(&app, &seller, &format!("{dataset}/list"))
        .await
        .expect_problem(StatusCode::CONFLICT, "nothing_ready");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_draft_that_nobody_touches_for_a_week_goes_and_another_stays(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let forgotten = draft(&app, &seller, &dataset).await;
    fill(&app, &seller, &forgotten, &[("a", b"x")]).await;
    let touched = draft(&app, &seller, &dataset).await;
    let (_, ready, _) = published(&app, &seller, &[("a", b"x")]).await;
    app.pass(Duration::days(6));
    let seller = app.renewed(&seller);
    fill(&app, &seller, &touched, &[("a", b"x")]).await;
    step(&app).await;
    assert_eq!(objects(&app).len(), 3);
    app.pass(Duration::days(1) + Duration::seconds(1));
    step(&app).await;
    let seller = app.renewed(&seller);
    let state = async |path: &str| get(&app, &seller, path).await.text("/state").to_owned();
    assert_eq!(
        [
            state(&forgotten).await,
            state(&touched).await,
            state(&ready).await
        ],
        ["shredded", "draft", "ready"]
    );
    assert_eq!(objects(&app).len(), 2);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_new_root_key_wraps_the_sellers_keys_and_no_file_changes(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let (_, _, files) = published(&app, &seller, &[("a.csv", b"a\n1\n")]).await;
    let contents = |app: &TestApp| {
        objects(app)
            .into_iter()
            .map(|it| std::fs::read(it).unwrap())
            .collect::<Vec<_>>()
    };
    let before = contents(&app);
    let rotated = app.state.root_keys.now().rotated();
    app.state.root_keys.replace(rotated.clone());
    step(&app).await;
    // The older key may go now.
    let newest = rotated.to_text().lines().next().unwrap().to_owned();
    app.state
        .root_keys
        .replace(RootKeys::parse(&newest).unwrap());
    let content = format!("{}/content", files[0]);
    assert_eq!(
        get(&app, &seller, &content)
            .await
            .expect(StatusCode::OK)
            .bytes,
        b"a\n1\n"
    );
    assert_eq!(contents(&app), before);
    app.state.root_keys.replace(RootKeys::generate());
    get(&app, &seller, &content)
        .await
        .expect_problem(StatusCode::INTERNAL_SERVER_ERROR, "internal");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn keys_that_do_not_open_keep_no_other_from_being_wrapped_anew(db: PgPool) {
    let app = TestApp::new(db).await;
    let (first, last) = (app.session().await, app.session().await);
    for seller in [&first, &last] {
        published(&app, seller, &[("a.csv", b"a\n1\n")]).await;
    }
    // More than one step takes, all before the last one.
    let lost = "WITH made AS (
            INSERT INTO accounts SELECT (jsonb_populate_record(a, jsonb_build_object('account_id', id, 'email', id || '@example.org'))).*
            FROM accounts a, (SELECT gen_random_uuid() AS id FROM generate_series(1, 60)) ids WHERE a.account_id = $1
            RETURNING account_id
         )
         INSERT INTO tenant_keys (account_id, root_key, wrapped, created_at)
         SELECT account_id, 'lost', decode(repeat('00', 60), 'hex'), now() FROM made";
    let lost = sqlx::query(lost).bind(first.account.0);
    lost.execute(&app.owner).await.unwrap();
    let rotated = app.state.root_keys.now().rotated();
    app.state.root_keys.replace(rotated.clone());
    for _ in 0..2 {
        step(&app).await;
    }
    let wrapped = "SELECT count(*) FROM tenant_keys WHERE root_key = $1";
    let wrapped: i64 = sqlx::query_scalar(wrapped)
        .bind(rotated.current())
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert_eq!(wrapped, 2);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn files_count_towards_the_limit_until_they_are_shredded(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    let much = |path: &str| json!({ "files": [{ "path": path, "bytes": LIMITS.storage_bytes - 1, "sha256": "00".repeat(32) }] });
    let announce = async |version: &str, body| {
        app.post(&format!("{version}/files"), &body)
            .by(&seller)
            .send()
            .await
    };
    announce(&version, much("a"))
        .await
        .expect(StatusCode::CREATED);
    announce(&version, announcement(&[("b", b"xx")]))
        .await
        .expect_problem(StatusCode::FORBIDDEN, "limit_reached");
    let blob = crate::market::upload(&app, &seller, b"xx").await;
    blob.expect_problem(StatusCode::FORBIDDEN, "limit_reached");
    delete(&app, &seller, &version).await.expect(StatusCode::OK);
    let next = draft(&app, &seller, &dataset).await;
    announce(&next, much("a")).await.expect(StatusCode::CREATED);
}
