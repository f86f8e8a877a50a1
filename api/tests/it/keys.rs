//! API keys.

use axum::http::StatusCode;
use comptoir_domain::{
    credential::{ApiKey, Environment},
    ip_list::IpList,
    scope::{Scope, Scopes},
};
use comptoir_store::api_keys::{self, NewApiKey};
use serde_json::json;
use sqlx::PgPool;
use time::{Duration, format_description::well_known::Rfc3339};

use crate::harness::{Session, TestApp};

/// A key of the owner's, for the walk over every route.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let body = json!({ "name": "walk", "scopes": ["jobs:read"] });
    let made = app
        .post("/v1/keys", &body)
        .by(owner)
        .send()
        .await
        .expect(StatusCode::CREATED);
    vec![made.text("/id").to_owned()]
}

fn with_key(session: &Session, key: &str) -> Session {
    Session {
        token: key.to_owned(),
        ..session.clone()
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_is_shown_once_and_may_do_what_its_scopes_say(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let body = json!({ "name": "reader", "scopes": ["account:read"] });
    let made = app
        .post("/v1/keys", &body)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let key = made.text("/key");
    assert!(
        key.parse::<ApiKey>().is_ok() && key.starts_with(made.text("/prefix")),
        "{key}"
    );
    assert_eq!(
        made.header(axum::http::header::LOCATION),
        format!("/v1/keys/{}", made.text("/id"))
    );

    let holder = with_key(&session, key);
    let account = app
        .get("/v1/account")
        .by(&holder)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(account.text("/id"), session.account.to_string());
    app.get("/v1/keys")
        .by(&holder)
        .send()
        .await
        .expect_problem(StatusCode::FORBIDDEN, "insufficient_scope");
    let itself = app
        .get("/v1/key")
        .by(&holder)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(itself.json["scopes"], json!(["account:read"]));
    assert_eq!(itself.text("/last_used_at"), "2026-11-22T09:00:00Z");

    let listed = app
        .get("/v1/keys")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(listed.json["data"][0]["id"], made.json["id"]);
    assert!(!String::from_utf8(listed.bytes).unwrap().contains(key));
    let stored: Vec<u8> = sqlx::query_scalar("SELECT body FROM idempotency_keys")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert!(
        !String::from_utf8_lossy(&stored).contains(&key[8..]),
        "a kept reply is sealed"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_ends_when_it_is_revoked_or_expires(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let expires_at = (app.now() + Duration::hours(1)).format(&Rfc3339).unwrap();
    let body = json!({ "name": "short", "scopes": ["account:read"], "expires_at": expires_at });
    let short = app
        .post("/v1/keys", &body)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let body = json!({ "name": "long", "scopes": ["account:read"] });
    let long = app
        .post("/v1/keys", &body)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let use_of = async |made: &str| {
        app.get("/v1/account")
            .by(&with_key(&session, made))
            .send()
            .await
            .status
    };
    assert_eq!(use_of(short.text("/key")).await, StatusCode::OK);

    app.pass(Duration::hours(1));
    let session = app.renewed(&session);
    assert_eq!(use_of(short.text("/key")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(use_of(long.text("/key")).await, StatusCode::OK);

    let revoke = format!("/v1/keys/{}/revoke", long.text("/id"));
    let first = app
        .post(&revoke, &json!({}))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    app.pass(Duration::minutes(1));
    let again = app
        .post(&revoke, &json!({}))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(first.text("/revoked_at"), again.text("/revoked_at"));
    assert_eq!(use_of(long.text("/key")).await, StatusCode::UNAUTHORIZED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_gives_no_more_than_it_has(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let scopes: Scopes = [Scope::KeysWrite, Scope::JobsRead].into_iter().collect();
    let maker = app.api_key(&session, &scopes).await;
    let within = json!({ "name": "within", "scopes": ["jobs:read"] });
    app.post("/v1/keys", &within)
        .by(&maker)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let beyond = json!({ "name": "beyond", "scopes": ["jobs:read", "jobs:write"] });
    let refused = app.post("/v1/keys", &beyond).by(&maker).send().await;
    refused.expect_problem(StatusCode::FORBIDDEN, "insufficient_scope");
}

/// A key that is stored, but for a deployment whose money is worth something.
async fn live_key(app: &TestApp, session: &Session) -> String {
    let key = ApiKey::from_random(Environment::Live, [3; 32]);
    let new = NewApiKey {
        name: "live",
        prefix: key.shown(),
        hmac: app.state.keys.api_key_hmac(&key),
        scopes: &Scopes::all(),
        allowed_ips: &IpList::default(),
        spend_limit: None,
        expires_at: None,
    };
    let mut tx = app.state.db.begin().await.unwrap();
    api_keys::create(&mut tx, session.account, &new, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    key.reveal().to_owned()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_not_one_of_our_keys_is_refused(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let good = app.api_key(&session, &Scopes::all()).await.token;
    let unknown = ApiKey::from_random(Environment::Test, [3; 32]);
    let live = live_key(&app, &session).await;
    let cases = [
        &good[..43],
        &good.to_uppercase(),
        "ck_test_",
        unknown.reveal(),
        &live,
    ];
    for key in cases {
        let reply = app.get("/v1/key").by(&with_key(&session, key)).send().await;
        reply.expect_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
    }
    let in_query = app
        .get(&format!("/v1/key?access_token={good}"))
        .send()
        .await;
    in_query.expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
    let twice = app
        .get("/v1/key")
        .by(&with_key(&session, &good))
        .by(&with_key(&session, &good))
        .send()
        .await;
    twice.expect_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
    app.get("/v1/key")
        .by(&with_key(&session, &good))
        .send()
        .await
        .expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_list_is_read_page_by_page_and_each_row_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    for _ in 0..5 {
        make(&app, &session).await;
    }
    let mut seen = Vec::new();
    let mut next = Some("/v1/keys?limit=2".to_owned());
    while let Some(path) = next {
        let page = app
            .get(&path)
            .by(&session)
            .send()
            .await
            .expect(StatusCode::OK);
        seen.extend(
            page.json["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|key| key["id"].as_str().unwrap().to_owned()),
        );
        let link = page.header(axum::http::header::LINK);
        let linked = link
            .strip_prefix('<')
            .and_then(|link| link.strip_suffix(">; rel=\"next\""));
        assert_eq!(linked.is_some(), page.json["has_more"].as_bool().unwrap());
        assert_eq!(linked.is_some(), page.json["next_cursor"].is_string());
        next = linked.map(str::to_owned);
    }
    let mut newest_first = seen.clone();
    newest_first.sort_by(|a, b| b.cmp(a));
    newest_first.dedup();
    assert_eq!((seen.len(), &seen), (5, &newest_first));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_cursor_is_good_for_its_list_and_its_owner_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, other) = (app.session().await, app.session().await);
    make(&app, &session).await;
    make(&app, &session).await;
    let page = app
        .get("/v1/keys?limit=1")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    let cursor = page.text("/next_cursor");
    let path = format!("/v1/keys?cursor={cursor}");
    app.get(&path)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    app.get(&path)
        .by(&other)
        .send()
        .await
        .expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
    for query in [
        "cursor=x",
        "cursor=",
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=a",
        "limit=1&limit=2",
        "offset=3",
    ] {
        let reply = app
            .get(&format!("/v1/keys?{query}"))
            .by(&session)
            .send()
            .await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{query}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_key_request_is_told_all_that_is_wrong(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let body = json!({ "name": "", "scopes": [], "expires_at": "2020-01-01T00:00:00Z" });
    let reply = app.post("/v1/keys", &body).by(&session).send().await;
    let reply = reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let pointers: Vec<_> = reply.json["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["pointer"].clone())
        .collect();
    assert_eq!(pointers, ["/name", "/scopes", "/expires_at"]);
    for path in ["/v1/keys", "/v1/join-tokens"] {
        for name in ["\u{1b}[2J", "a\u{9b}2J", "one\ntwo", "\u{7f}"] {
            let mut body = json!({ "name": name });
            if path == "/v1/keys" {
                body["scopes"] = json!(["jobs:read"]);
            }
            let reply = app.post(path, &body).by(&session).send().await;
            let reply = reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
            assert_eq!(reply.text("/errors/0/pointer"), "/name", "{name:?}");
        }
    }
    let body = json!({ "name": "a", "scopes": ["jobs:all"] });
    let reply = app.post("/v1/keys", &body).by(&session).send().await;
    let reply = reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(reply.text("/errors/0/pointer"), "/scopes/0");
}
