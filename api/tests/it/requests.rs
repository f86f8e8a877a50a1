//! What holds for every request, whatever it asks for.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode, header},
    routing::get,
};
use comptoir_http::{finish, request_id};
use serde_json::json;
use sqlx::PgPool;
use time::Duration;
use tower::ServiceExt as _;

use crate::harness::TestApp;

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_request_keeps_its_name_and_gets_one_when_it_has_none(db: PgPool) {
    let app = TestApp::new(db).await;
    let named = app
        .get("/healthz")
        .header(request_id::HEADER, "mine-1")
        .send()
        .await;
    assert_eq!(named.header(request_id::HEADER), "mine-1");
    assert_eq!(named.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    let (first, second) = (
        app.get("/healthz").send().await,
        app.get("/healthz").send().await,
    );
    assert_ne!(
        first.header(request_id::HEADER),
        second.header(request_id::HEADER)
    );
    let problem = app
        .get("/v1/account")
        .header(request_id::HEADER, "mine-2")
        .send()
        .await;
    assert_eq!(problem.text("/request_id"), "mine-2");
    assert_eq!(problem.text("/type"), "/problems/unauthenticated");
    assert_eq!(problem.json["status"], 401);
    assert_eq!(problem.json["retryable"], false);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_no_route_answers_is_a_problem(db: PgPool) {
    let app = TestApp::new(db).await;
    app.get("/nowhere")
        .send()
        .await
        .expect_problem(StatusCode::NOT_FOUND, "no_such_route");
    app.get("/v1//account")
        .send()
        .await
        .expect_problem(StatusCode::NOT_FOUND, "no_such_route");
    let reply = app.request(Method::DELETE, "/v1/account").send().await;
    let reply = reply.expect_problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
    assert!(reply.header(header::ALLOW).contains("PATCH"));
    let trace = app.request(Method::TRACE, "/v1/account").send().await;
    trace.expect_problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
    app.get("/v1/keys/%00")
        .send()
        .await
        .expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_body_is_refused_by_what_is_wrong_with_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let good = json!({ "email": "a@b.c", "password": "0123456789ab" }).to_string();
    let post = || app.request(Method::POST, "/v1/accounts");
    let cases = [
        (
            "application/json",
            String::new(),
            StatusCode::BAD_REQUEST,
            "malformed_request",
        ),
        (
            "application/json",
            good[..9].to_owned(),
            StatusCode::BAD_REQUEST,
            "malformed_request",
        ),
        (
            "application/json",
            format!("{good} x"),
            StatusCode::BAD_REQUEST,
            "malformed_request",
        ),
        (
            "application/json",
            r#"["eve@example.com","a-long-password-1"]"#.to_owned(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_request",
        ),
        (
            "text/plain",
            good.clone(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
        ),
        (
            "application/json",
            good.replace("a@b", r"a\u0000@b"),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_request",
        ),
        (
            "application/json",
            good.replace("\"0123456789ab\"", "7"),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_request",
        ),
        (
            "application/json",
            " ".repeat((1 << 20) + 1),
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
        ),
    ];
    for (kind, body, status, code) in cases {
        let reply = post()
            .header(header::CONTENT_TYPE, kind)
            .body(body)
            .send()
            .await;
        reply.expect_problem(status, code);
    }
    let untyped = post().body(good.clone()).send().await;
    untyped.expect_problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type");
    let padded = format!("{good}{}", " ".repeat((1 << 20) - good.len()));
    post()
        .header(header::CONTENT_TYPE, "application/json")
        .body(padded)
        .send()
        .await
        .expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_single_object_takes_no_parameters(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = app.bound_session().await;
    let job = crate::jobs::make(&app, &session).await.remove(0);
    for path in ["/v1/account".to_owned(), format!("/v1/jobs/{job}")] {
        let get = async |query: &str| {
            let call = app.get(&format!("{path}{query}"));
            call.by(&session).send().await
        };
        for query in ["?include=nope", "?nope", "?limit=1"] {
            get(query)
                .await
                .expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
        }
        get("").await.expect(StatusCode::OK);
        get("?").await.expect(StatusCode::OK);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_post_answers_is_what_is_read_later(db: PgPool) {
    let app = TestApp::new(db).await;
    app.pass(Duration::nanoseconds(123_456_789));
    let (session, address) = app.bound_session().await;
    let asset = crate::money::asset(&app).await;
    crate::money::deposit(&app, address, 10).await;
    let amount = json!({ "amount": "10", "asset": asset.caip19(), "decimals": 18 });
    let made = app
        .post("/v1/withdrawals", &json!({ "amount": amount }))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    assert!(made.text("/created_at").ends_with(".123456Z"));
    let found = app
        .get(made.header(header::LOCATION))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(made.json, found.json);
}

#[tokio::test]
async fn a_panic_is_a_problem_and_nothing_of_it_is_told() {
    let router = Router::new().route("/", get(async || -> StatusCode { panic!("secret") }));
    let response = finish(router, 1)
        .oneshot(Request::get("/").body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(response.headers().contains_key(request_id::HEADER));
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "internal");
    assert!(!body.to_string().contains("secret"));
}
