//! What holds for every operation of the document, present and future.

use comptoir_http::codes;
use comptoir_scheduler::openapi;
use reqwest::StatusCode;
use sqlx::PgPool;

use crate::harness::Bench;

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
    let keys = keys["keys"].as_array().unwrap();
    let mut fingerprints = keys
        .iter()
        .map(|key| comptoir_domain::digest::Sha256::of_document(key).unwrap());
    assert!(fingerprints.any(|it| it == bench.state.keys.fingerprint()));
}
