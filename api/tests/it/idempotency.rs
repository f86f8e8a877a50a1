//! One effect per `Idempotency-Key`.

use axum::http::{StatusCode, header};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::harness::{Session, TestApp};

fn body() -> Value {
    json!({ "name": "once", "scopes": ["jobs:read"] })
}

async fn keys_of(app: &TestApp, session: &Session) -> usize {
    let list = app
        .get("/v1/keys?limit=100")
        .by(session)
        .send()
        .await
        .expect(StatusCode::OK);
    list.json["data"].as_array().unwrap().len()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_repeated_request_gets_the_first_answer(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let call = || {
        app.post("/v1/keys", &body())
            .idempotency_key("k1")
            .by(&session)
    };
    let first = call().send().await.expect(StatusCode::CREATED);
    assert_eq!(first.header(comptoir_api::idempotency::REPLAYED), "");
    let second = call().send().await.expect(StatusCode::CREATED);
    assert_eq!(second.header(comptoir_api::idempotency::REPLAYED), "true");
    assert_eq!(first.bytes, second.bytes);
    assert_eq!(
        first.header(header::LOCATION),
        second.header(header::LOCATION)
    );
    assert_eq!(keys_of(&app, &session).await, 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn sixty_four_duplicates_at_once_have_one_effect(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let calls = (0..64).map(|_| {
        app.post("/v1/keys", &body())
            .idempotency_key("k1")
            .by(&session)
            .send()
    });
    let replies = futures::future::join_all(calls).await;
    let first = replies
        .iter()
        .find(|reply| reply.status == StatusCode::CREATED)
        .unwrap();
    for reply in &replies {
        match reply.status {
            StatusCode::CREATED => assert_eq!(reply.bytes, first.bytes),
            StatusCode::CONFLICT => {
                assert_eq!(reply.code(), "idempotency_in_progress");
                assert_eq!(reply.header(header::RETRY_AFTER), "1");
                assert_eq!(reply.json["retryable"], true);
            }
            other => panic!("{other}: {:?}", reply.json),
        }
    }
    assert_eq!(keys_of(&app, &session).await, 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_request_that_another_one_is_working_on_is_told_to_wait(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let mut other = app.state.db.begin().await.unwrap();
    let key = comptoir_store::idempotency::RequestKey {
        account: session.account,
        method: "POST",
        path: "/v1/keys",
        key: "k1",
    };
    assert!(
        comptoir_store::idempotency::try_lock(&mut other, &key)
            .await
            .unwrap()
    );
    let call = || {
        app.post("/v1/keys", &body())
            .idempotency_key("k1")
            .by(&session)
            .send()
    };
    call()
        .await
        .expect_problem(StatusCode::CONFLICT, "idempotency_in_progress");
    other.rollback().await.unwrap();
    call().await.expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_belongs_to_one_request_of_one_account(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, other) = (app.session().await, app.session().await);
    app.post("/v1/keys", &body())
        .idempotency_key("k1")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let changed = json!({ "name": "twice", "scopes": ["jobs:read"] });
    let reply = app
        .post("/v1/keys", &changed)
        .idempotency_key("k1")
        .by(&session)
        .send()
        .await;
    reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused");
    let reply = app
        .post("/v1/keys", &body())
        .idempotency_key("k1")
        .by(&other)
        .send()
        .await;
    assert_eq!(
        reply
            .expect(StatusCode::CREATED)
            .header(comptoir_api::idempotency::REPLAYED),
        ""
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_refused_request_may_be_corrected_under_its_key(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let wrong = json!({ "name": "", "scopes": ["jobs:read"] });
    let reply = app
        .post("/v1/keys", &wrong)
        .idempotency_key("k1")
        .by(&session)
        .send()
        .await;
    reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    app.post("/v1/keys", &body())
        .idempotency_key("k1")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_is_needed_once_in_printable_characters(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let call = || {
        app.request(axum::http::Method::POST, "/v1/keys")
            .json(&body())
            .by(&session)
    };
    let missing = "idempotency_key_missing";
    call()
        .send()
        .await
        .expect_problem(StatusCode::BAD_REQUEST, missing);
    call()
        .idempotency_key("")
        .send()
        .await
        .expect_problem(StatusCode::BAD_REQUEST, missing);
    call()
        .idempotency_key(&"k".repeat(256))
        .send()
        .await
        .expect_problem(StatusCode::BAD_REQUEST, missing);
    call()
        .idempotency_key("k\u{e9}")
        .send()
        .await
        .expect_problem(StatusCode::BAD_REQUEST, missing);
    let twice = call()
        .idempotency_key("a")
        .header(comptoir_api::idempotency::HEADER, "b");
    twice
        .send()
        .await
        .expect_problem(StatusCode::BAD_REQUEST, missing);
    call()
        .idempotency_key(&"k".repeat(255))
        .send()
        .await
        .expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_reply_is_kept_for_thirty_days_and_then_forgotten(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let call = async |app: &TestApp| {
        let session = app.renewed(&session);
        app.post("/v1/keys", &body())
            .idempotency_key("k1")
            .by(&session)
            .send()
            .await
            .expect(StatusCode::CREATED)
    };
    let first = call(&app).await;
    app.pass(Duration::days(30) - Duration::SECOND);
    assert_eq!(call(&app).await.bytes, first.bytes);
    app.pass(Duration::SECOND);
    assert_ne!(
        call(&app).await.bytes,
        first.bytes,
        "a key that expired is as good as new"
    );

    app.pass(Duration::days(30));
    assert_eq!(
        comptoir_api::server::forget_expired(&app.state)
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        comptoir_api::server::forget_expired(&app.state)
            .await
            .unwrap(),
        0
    );
}
