//! What holds for every request, whatever it asks for.

use axum::http::StatusCode;
use sqlx::PgPool;

use crate::harness::TestApp;

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_unknown_route_is_a_problem_that_names_the_request(db: PgPool) {
    let app = TestApp::new(db).await;
    let reply = app
        .get("/nowhere")
        .header(comptoir_http::request_id::HEADER, "mine-1")
        .send()
        .await;
    let reply = reply.expect_problem(StatusCode::NOT_FOUND, "no_such_route");
    assert_eq!(reply.header(comptoir_http::request_id::HEADER), "mine-1");
    assert_eq!(reply.text("/request_id"), "mine-1");
}
