//! What holds for every operation of the document, present and future.

use comptoir_domain::id::AttemptId;
use comptoir_http::codes;
use comptoir_scheduler::{app, openapi};
use reqwest::{Method, StatusCode};
use sqlx::PgPool;
use utoipa::openapi::path::PathItem;

use crate::harness::Bench;

/// Operations that answer without credentials. This list only shrinks.
const PUBLIC: &[&str] = &[
    "/v1/join",
    "/v1/worker-token",
    "/.well-known/jwks.json",
    "/healthz",
    "/readyz",
    "/version",
];

fn methods(item: &PathItem) -> Vec<Method> {
    let methods = [
        (&item.get, Method::GET),
        (&item.post, Method::POST),
        (&item.put, Method::PUT),
        (&item.patch, Method::PATCH),
        (&item.delete, Method::DELETE),
    ];
    methods
        .into_iter()
        .filter(|(operation, _)| operation.is_some())
        .map(|(_, method)| method)
        .collect()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_operation_refuses_a_stranger(db: PgPool) {
    let bench = Bench::new(db).await;
    let document = app(bench.state.clone()).1;
    let guarded = document
        .paths
        .paths
        .iter()
        .filter(|(path, _)| !PUBLIC.contains(&path.as_str()));
    let mut walked = 0;
    for (path, item) in guarded {
        let path = path
            .replace("{id}", &AttemptId::generate().to_string())
            .replace("{sha256}", &"0".repeat(64));
        for method in methods(item) {
            for token in ["", "Bearer x", "Bearer a.b.c"] {
                let reply = reqwest::Client::new()
                    .request(method.clone(), format!("{}{path}", bench.base))
                    .header("authorization", token)
                    .send()
                    .await
                    .unwrap();
                assert_eq!(reply.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
                assert_eq!(reply.headers()["content-type"], "application/problem+json");
            }
            walked += 1;
        }
    }
    assert_eq!(walked, 6);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_operation_on_another_s_attempt_answers_404(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, one, two) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    bench
        .submit(
            client,
            &crate::harness::inference(),
            comptoir_domain::job::Tier::None,
        )
        .await;
    let leased = crate::harness::lease(&one).await;
    let document = app(bench.state.clone()).1;
    let of_attempts = document
        .paths
        .paths
        .iter()
        .filter(|(path, _)| path.contains("{id}"));
    let bodies = [
        (
            "/events",
            r#"{"events":[{"seq":1,"event":{"kind":"progress","done":1,"of":2}}]}"#.to_owned(),
        ),
        (
            "/segments",
            format!(r#"{{"segment":0,"checkpoint":"{}"}}"#, "0".repeat(64)),
        ),
    ];
    for (path, item) in of_attempts {
        let body = bodies
            .iter()
            .find(|(end, _)| path.ends_with(end))
            .map_or("", |(_, body)| body);
        for attempt in [leased.attempt_id, AttemptId::generate()] {
            let path = path
                .replace("{id}", &attempt.to_string())
                .replace("{sha256}", &"0".repeat(64));
            for method in methods(item) {
                let reply = two
                    .request(method.clone(), &path)
                    .header("comptoir-lease-token", leased.lease_token.to_string())
                    .header("content-type", "application/json")
                    .body(body.to_owned())
                    .send()
                    .await
                    .unwrap();
                assert_eq!(reply.status(), StatusCode::NOT_FOUND, "{method} {path}");
            }
        }
    }
}

#[test]
fn the_committed_document_is_what_the_code_says() {
    let committed = std::fs::read_to_string("../openapi/scheduler.json").unwrap();
    assert_eq!(
        committed,
        openapi::committed() + "\n",
        "run `make generate`"
    );
}

#[test]
fn every_problem_that_the_document_names_has_a_page() {
    let document: serde_json::Value = serde_json::from_str(&openapi::committed()).unwrap();
    let operations = document["paths"].as_object().unwrap().values();
    let operations = operations.flat_map(|item| item.as_object().unwrap().values());
    let responses = operations
        .filter_map(|operation| operation["responses"].as_object())
        .flatten();
    let refusals = responses.filter(|(status, _)| status.starts_with('4'));
    let mut named = 0;
    for (status, refusal) in refusals {
        let description = refusal["description"].as_str().unwrap();
        for code in description.split('`').skip(1).step_by(2) {
            let found = codes::find(code).unwrap_or_else(|| panic!("no page about {code}"));
            assert_eq!(found.status.to_string(), *status, "{code}");
            named += 1;
        }
    }
    assert!(named >= 15, "{named}");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_service_says_how_it_is(db: PgPool) {
    let bench = Bench::new(db).await;
    for (path, status) in [
        ("/healthz", StatusCode::OK),
        ("/readyz", StatusCode::OK),
        ("/nowhere", StatusCode::NOT_FOUND),
    ] {
        let reply = reqwest::get(format!("{}{path}", bench.base)).await.unwrap();
        assert_eq!(reply.status(), status, "{path}");
    }
    let keys = reqwest::get(format!("{}/.well-known/jwks.json", bench.base))
        .await
        .unwrap();
    let keys: serde_json::Value = keys.json().await.unwrap();
    assert_eq!(
        comptoir_domain::digest::Sha256::of_document(&keys).unwrap(),
        bench.state.keys.fingerprint()
    );
}
