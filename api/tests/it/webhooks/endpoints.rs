//! The routes: endpoints and their secrets, deliveries, and what is refused.

use axum::http::{Method, StatusCode, header};
use comptoir_domain::webhook::ENDPOINTS_MAX;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{
    count, create, deliveries, endpoint, happen, patch, receiver::Receiver, send_all, shown, test,
};
use crate::harness::TestApp;

const URL: &str = "https://example.org/hook";

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_endpoint_shows_its_secret_once_and_keeps_it_sealed(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let body = json!({ "url": "HTTPS://Example.Org:443/Hook", "event_types": ["job.failed"], "description": "mine" });
    let made = create(&app, &owner, &body).await;
    let id = made.text("/id");
    assert!(id.starts_with("we_") && made.text("/secret").starts_with("whsec_"));
    assert_eq!(
        made.header(header::LOCATION),
        format!("/v1/webhook-endpoints/{id}")
    );
    assert_eq!(
        shown(&app, &owner, id).await,
        json!({
            "id": id, "object": "webhook_endpoint", "url": "https://example.org/Hook", "description": "mine",
            "event_types": ["job.failed"], "enabled": true, "disabled_reason": null, "disabled_at": null, "failing_since": null,
            "previous_secret_until": null, "created_at": "2026-11-22T09:00:00Z",
        })
    );
    let listed = app
        .get("/v1/webhook-endpoints")
        .by(&owner)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(listed.json["data"], json!([shown(&app, &owner, id).await]));
    let stored: Vec<u8> = sqlx::query_scalar("SELECT secret FROM webhook_endpoints")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert!(!String::from_utf8_lossy(&stored).contains("whsec"));
    let key = made
        .text("/secret")
        .strip_prefix("whsec_")
        .unwrap()
        .as_bytes();
    assert!(!stored.windows(key.len()).any(|part| part == key));
    let log = app.get("/v1/account/audit-log").by(&owner).send().await;
    assert!(!String::from_utf8_lossy(&log.bytes).contains("whsec"));
    assert_eq!(
        count(
            &app,
            "audit_events WHERE action = 'webhook_endpoint.created'"
        )
        .await,
        1
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_repeated_request_makes_one_endpoint_and_shows_the_same_secret(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let call = || {
        let call = app.post("/v1/webhook-endpoints", &json!({ "url": URL }));
        call.by(&owner).idempotency_key("once").send()
    };
    let (first, again) = (
        call().await.expect(StatusCode::CREATED),
        call().await.expect(StatusCode::CREATED),
    );
    assert_eq!(first.json, again.json);
    assert_eq!(count(&app, "webhook_endpoints").await, 1);
    let rotate = || {
        let path = format!("/v1/webhook-endpoints/{}/rotate", first.text("/id"));
        app.post(&path, &json!({}))
            .by(&owner)
            .idempotency_key("rotate once")
            .send()
    };
    assert_eq!(
        rotate().await.text("/secret"),
        rotate().await.text("/secret")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_change_needs_the_endpoint_as_it_was_read(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let made = create(&app, &owner, &json!({ "url": URL })).await;
    let path = format!("/v1/webhook-endpoints/{}", made.text("/id"));
    let read = app.get(&path).by(&owner).send().await;
    let tag = read.header(header::ETAG).to_owned();
    let change = |tag: Option<String>, body: Value| {
        let call = app.request(Method::PATCH, &path).by(&owner).json(&body);
        let call = tag
            .iter()
            .fold(call, |call, tag| call.header(header::IF_MATCH, tag));
        call.send()
    };
    let body = json!({ "event_types": ["job.completed", "balance.low"], "description": "b" });
    change(None, body.clone())
        .await
        .expect_problem(StatusCode::PRECONDITION_REQUIRED, "precondition_required");
    let changed = change(Some(tag.clone()), body.clone())
        .await
        .expect(StatusCode::OK);
    assert_eq!(changed.json["event_types"], body["event_types"]);
    assert_eq!(changed.text("/url"), URL, "what is not named stays");
    change(Some(tag), body)
        .await
        .expect_problem(StatusCode::PRECONDITION_FAILED, "precondition_failed");
    let tag = changed.header(header::ETAG).to_owned();
    let changed = change(
        Some(tag),
        json!({ "event_types": null, "description": null, "enabled": false }),
    )
    .await;
    let changed = changed.expect(StatusCode::OK);
    assert_eq!(
        (&changed.json["event_types"], &changed.json["description"]),
        (&json!(null), &json!(null))
    );
    assert_eq!(
        (&changed.json["enabled"], changed.text("/disabled_reason")),
        (&json!(false), "owner")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_makes_no_endpoint_is_refused_by_name(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let made = create(&app, &owner, &json!({ "url": URL })).await;
    let id = made.text("/id");
    let long = "a".repeat(201);
    for (body, pointer) in [
        (json!({ "url": "http://example.org/" }), "/url"),
        (json!({ "url": "file:///etc/passwd" }), "/url"),
        (json!({ "url": "https://user:secret@example.org/" }), "/url"),
        (json!({ "url": "https://example.org:22/" }), "/url"),
        (json!({ "url": "https://10.0.0.1/" }), "/url"),
        (json!({ "url": "https://[::ffff:127.0.0.1]/" }), "/url"),
        (json!({ "url": "https://169.254.169.254/latest" }), "/url"),
        (json!({ "url": "https://private.test/" }), "/url"),
        (json!({ "url": "https://nowhere.test/" }), "/url"),
        (json!({ "url": "https://example.org/\n" }), "/url"),
        (json!({ "url": "" }), "/url"),
        (json!({ "url": URL, "event_types": [] }), "/event_types"),
        (
            json!({ "url": URL, "event_types": ["job.failed", "job.failed"] }),
            "/event_types",
        ),
        (
            json!({ "url": URL, "event_types": ["job.*"] }),
            "/event_types/0",
        ),
        (
            json!({ "url": URL, "event_types": ["purchase.made"] }),
            "/event_types/0",
        ),
        (json!({ "url": URL, "description": "" }), "/description"),
        (json!({ "url": URL, "description": long }), "/description"),
    ] {
        let made = app
            .post("/v1/webhook-endpoints", &body)
            .by(&owner)
            .send()
            .await;
        let made = made.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(made.text("/errors/0/pointer"), pointer, "{body}");
        let changed = patch(&app, &owner, id, &body).await;
        changed.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    let without = app
        .post("/v1/webhook-endpoints", &json!({}))
        .by(&owner)
        .send()
        .await;
    without.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    for body in [json!({ "url": null }), json!({ "enabled": null })] {
        let changed = patch(&app, &owner, id, &body).await;
        changed.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    for (path, body) in [
        ("rotate", json!({ "previous_valid_s": 604_801 })),
        ("rotate", json!({ "previous_valid_s": -1 })),
        ("test", json!({ "type": "job.failed" })),
        ("redeliver", json!({ "since": "yesterday" })),
        ("redeliver", json!({ "since": "2026-11-22T09:00:01Z" })),
        ("redeliver", json!({ "since": "2026-10-01T00:00:00Z" })),
    ] {
        let path = format!("/v1/webhook-endpoints/{id}/{path}");
        let refused = app.post(&path, &body).by(&owner).send().await;
        refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    assert_eq!(count(&app, "webhook_endpoints").await, 1);
    assert_eq!(shown(&app, &owner, id).await["url"], URL);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_account_has_so_many_endpoints_and_no_more(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let mut ids = Vec::new();
    for _ in 0..ENDPOINTS_MAX {
        let made = create(&app, &owner, &json!({ "url": URL })).await;
        ids.push(made.text("/id").to_owned());
    }
    let one_more = || {
        app.post("/v1/webhook-endpoints", &json!({ "url": URL }))
            .by(&owner)
            .send()
    };
    one_more()
        .await
        .expect_problem(StatusCode::CONFLICT, "too_many_webhook_endpoints");
    let delete = |id: &str| {
        app.request(Method::DELETE, &format!("/v1/webhook-endpoints/{id}"))
            .by(&owner)
            .send()
    };
    delete(&ids[0]).await.expect(StatusCode::NO_CONTENT);
    delete(&ids[0])
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
    one_more().await.expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_deleted_endpoint_is_sent_nothing_that_was_on_its_way(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.failed", 3).await;
    let path = format!("/v1/webhook-endpoints/{id}");
    app.request(Method::DELETE, &path)
        .by(&owner)
        .send()
        .await
        .expect(StatusCode::NO_CONTENT);
    send_all(&app).await;
    assert!(receiver.got().is_empty());
    assert_eq!(count(&app, "webhook_deliveries").await, 0);
    let events = app.get("/v1/events").by(&owner).send().await;
    assert_eq!(
        events.json["data"].as_array().unwrap().len(),
        3,
        "what happened, happened"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_test_goes_to_its_endpoint_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let (tested, other) = (Receiver::start().await, Receiver::start().await);
    let body = json!({ "url": tested.url("/"), "event_types": ["job.failed"] });
    let made = create(&app, &owner, &body).await;
    let (id, secret) = (made.text("/id"), made.text("/secret"));
    endpoint(&app, &owner, &other).await;
    let event = test(&app, &owner, id).await;
    send_all(&app).await;
    let got = tested.only();
    assert_eq!(
        (got.kind().as_str(), got.header("webhook-id")),
        ("webhook.test", event.as_str())
    );
    assert_eq!(got.json()["data"], json!({ "endpoint_id": id }));
    assert!(got.is_signed_with(secret));
    assert!(other.got().is_empty());
    patch(&app, &owner, id, &json!({ "enabled": false }))
        .await
        .expect(StatusCode::OK);
    let path = format!("/v1/webhook-endpoints/{id}/test");
    let refused = app.post(&path, &json!({})).by(&owner).send().await;
    refused.expect_problem(StatusCode::CONFLICT, "webhook_endpoint_disabled");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn deliveries_are_listed_by_page_state_and_event(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    let (id, _) = endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.failed", 3).await;
    send_all(&app).await;
    happen(&app, owner.account, "job.failed", 2).await;
    let list = |query: String| {
        let path = format!("/v1/webhook-endpoints/{id}/deliveries?{query}");
        app.get(&path).by(&owner).send()
    };
    let ids = |page: &Value| -> Vec<Value> {
        page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["id"].clone())
            .collect()
    };
    let all: Vec<_> = deliveries(&app, &owner, &id)
        .await
        .iter()
        .map(|it| it["id"].clone())
        .collect();
    assert_eq!(all.len(), 5);
    let first = list("limit=2".to_owned()).await;
    let cursor = first.text("/next_cursor").to_owned();
    let second = list(format!("limit=3&cursor={cursor}")).await;
    assert_eq!([ids(&first.json), ids(&second.json)].concat(), all);
    assert_eq!(
        ids(&list("state=delivered".to_owned()).await.json),
        all[2..]
    );
    assert_eq!(
        ids(&list("state=failed".to_owned()).await.json),
        [Value::Null; 0]
    );
    let event = first.text("/data/1/event_id").to_owned();
    assert_eq!(
        ids(&list(format!("event_id={event}")).await.json),
        all[1..2]
    );
    for query in [
        "state=done",
        "event_id=1",
        "event_id=job_01h455vb4pex5vsknk084sn02q",
        "other=1",
    ] {
        let refused = list(query.to_owned()).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}");
    }
}
