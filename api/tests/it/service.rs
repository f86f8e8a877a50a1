//! How the service describes itself: health, version, documentation, pages of problems.

use axum::http::{StatusCode, header};
use comptoir_http::codes;
use serde_json::json;
use sqlx::PgPool;

use crate::harness::TestApp;

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn readiness_tells_each_component(db: PgPool) {
    let app = TestApp::new(db).await;
    app.get("/healthz").send().await.expect(StatusCode::OK);
    let ready = app.get("/readyz").send().await.expect(StatusCode::OK);
    let components = json!({ "postgres": "up", "object_store": "up", "redis": "not_configured", "checker": "up" });
    assert_eq!(
        ready.json,
        json!({ "status": "up", "components": components })
    );
    // A server that answers, and has lost what we keep on it.
    for (change, postgres) in [
        ("ALTER TABLE accounts RENAME TO lost", "down"),
        ("ALTER TABLE lost RENAME TO accounts", "up"),
    ] {
        sqlx::query(change).execute(&app.owner).await.unwrap();
        let reply = app.get("/readyz").send().await;
        assert_eq!(reply.text("/components/postgres"), postgres);
        assert_eq!(reply.text("/status"), postgres);
    }
    app.state.db.close().await;
    let unready = app
        .get("/readyz")
        .send()
        .await
        .expect(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(unready.text("/components/postgres"), "down");
    app.get("/healthz").send().await.expect(StatusCode::OK);
    assert_eq!(
        app.get("/version").send().await.text("/version"),
        env!("CARGO_PKG_VERSION")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_problem_has_a_page(db: PgPool) {
    let app = TestApp::new(db).await;
    for kind in codes::ALL {
        let page = app
            .get(&format!("/problems/{}", kind.code))
            .send()
            .await
            .expect(StatusCode::OK);
        assert!(page.header(header::CONTENT_TYPE).starts_with("text/html"));
        assert!(String::from_utf8(page.bytes).unwrap().contains(kind.code));
    }
    app.get("/problems").send().await.expect(StatusCode::OK);
    app.get("/problems/nothing")
        .send()
        .await
        .expect_problem(StatusCode::NOT_FOUND, "no_such_route");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_documentation_asks_nobody_else(db: PgPool) {
    let app = TestApp::new(db).await;
    let document = app.get("/openapi.json").send().await.expect(StatusCode::OK);
    assert_eq!(document.json, serde_json::to_value(&app.openapi).unwrap());

    let page = app.get("/docs/").send().await.expect(StatusCode::OK);
    assert!(
        page.header(header::CONTENT_SECURITY_POLICY)
            .starts_with("default-src 'self';")
    );
    let html = String::from_utf8(page.bytes).unwrap();
    assert!(
        html.contains("swagger-ui") && !html.contains("//"),
        "{html}"
    );
    let settings = app
        .get("/docs/swagger-initializer.js")
        .send()
        .await
        .expect(StatusCode::OK);
    let settings = String::from_utf8(settings.bytes).unwrap();
    assert!(
        settings.contains("/openapi.json") && settings.contains(r#""validatorUrl": "none""#),
        "{settings}"
    );
    for name in [
        "swagger-ui-bundle.js",
        "swagger-ui.css",
        "swagger-ui-standalone-preset.js",
    ] {
        app.get(&format!("/docs/{name}"))
            .send()
            .await
            .expect(StatusCode::OK);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn without_its_database_the_service_asks_to_come_back(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    app.state.db.close().await;
    let reply = app.get("/v1/account").by(&session).send().await;
    let reply = reply.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
    assert_eq!(reply.header(header::RETRY_AFTER), "1");
    assert_eq!(reply.json["retryable"], true);
}
