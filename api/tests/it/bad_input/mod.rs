//! The catalogue of bad input against every route: each case gets a problem document, none a 5xx, and nothing is held or
//! half written.

mod cases;
mod files;

use axum::http::{Method, StatusCode, header};
use comptoir_domain::asset::Asset;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use crate::{
    harness::{Reply, Session, TestApp},
    market::{self, training},
};

/// An operation of the document with what its valid request is like.
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts of an operation, each of which is so or not"
)]
struct Operation {
    method: Method,
    path: String,
    takes_json: bool,
    is_list: bool,
    needs_idempotency_key: bool,
    is_public: bool,
}

impl Operation {
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Statuses as clients of the operation know them.
    fn told(&self, statuses: &[u16]) -> Vec<u16> {
        let dialect = comptoir_api::dialect_of(&self.method, &self.path);
        let dialect = dialect.filter(|it| !it.is_beside);
        let told = |status: &u16| {
            let status = StatusCode::from_u16(*status).unwrap();
            dialect.map_or(status, |it| (it.status)(status)).as_u16()
        };
        statuses.iter().map(told).collect()
    }

    /// The path with `parameter` for each of its parameters.
    fn url(&self, parameter: &str) -> String {
        let segments = self.path.split('/').map(|segment| {
            if segment.starts_with('{') {
                parameter
            } else {
                segment
            }
        });
        segments.collect::<Vec<_>>().join("/")
    }
}

fn operations(app: &TestApp) -> Vec<Operation> {
    let document = serde_json::to_value(&app.openapi).unwrap();
    let named = |definition: &Value, place: &str, name: &str| {
        let parameters = definition["parameters"].as_array();
        parameters.is_some_and(|all| all.iter().any(|it| it["in"] == place && it["name"] == name))
    };
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, definition) in item.as_object().unwrap() {
            let content = &definition["requestBody"]["content"];
            let security = definition["security"].as_array();
            operations.push(Operation {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                takes_json: content["application/json"].is_object()
                    || content["application/merge-patch+json"].is_object(),
                is_list: named(definition, "query", "cursor"),
                needs_idempotency_key: named(definition, "header", "Idempotency-Key"),
                is_public: security.is_none_or(|all| all.iter().any(|it| it == &json!({}))),
            });
        }
    }
    assert!(operations.len() > 30, "the document lists the service");
    operations
}

/// The rows of every table, but for what a refusal is meant to leave: a line in the audit log.
async fn rows(app: &TestApp) -> Vec<(String, i64)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
           AND relname NOT IN ('audit_events', 'audit_head') ORDER BY relname",
    )
    .fetch_all(&app.owner)
    .await
    .unwrap();
    let mut counts = Vec::new();
    for table in tables {
        let count = format!("SELECT count(*) FROM {table}");
        let count = sqlx::query_scalar(AssertSqlSafe(count));
        counts.push((table, count.fetch_one(&app.owner).await.unwrap()));
    }
    let held = "SELECT count(*) FROM ledger_accounts WHERE code = 'held' AND balance_base > 0";
    let held = sqlx::query_scalar(held)
        .fetch_one(&app.owner)
        .await
        .unwrap();
    counts.push(("money held".to_owned(), held));
    counts
}

#[track_caller]
fn assert_refused(reply: &Reply, allowed: &[u16], what: &str) {
    let status = reply.status.as_u16();
    let shown = String::from_utf8_lossy(&reply.bytes);
    assert!(allowed.contains(&status), "{what}: {status} {shown}");
    assert_ne!(reply.code(), "", "{what}: no problem document: {shown}");
    for leak in ["sqlx", "postgres", "panicked", "SELECT ", "src/"] {
        assert!(
            !shown.contains(leak),
            "{what} tells of our insides: {shown}"
        );
    }
}

/// Who may do everything that a user may, with money, in a market that is open.
async fn somebody(app: &TestApp) -> (Session, Asset) {
    let (asset, _) = market::open(app).await;
    (market::client(app, &asset, 1_000_000).await.0, asset)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_body_is_refused_by_every_route(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = somebody(&app).await;
    let before = rows(&app).await;
    // What names nothing is not there, who is no administrator may not, and an unread object is not changed.
    let beside = [403, 404, 428, 412, 429];
    for operation in operations(&app).iter().filter(|it| it.takes_json) {
        let call = |content_types: &[&str]| {
            let call = app.request(operation.method.clone(), &operation.url("nobodys"));
            let call = call.by(&session).idempotency_key("bad");
            let call = call.header(header::IF_MATCH, "*");
            content_types
                .iter()
                .fold(call, |call, kind| call.header(header::CONTENT_TYPE, kind))
        };
        for case in cases::BODIES {
            let reply = call(&["application/json"])
                .body((case.bytes)())
                .send()
                .await;
            let allowed = [&operation.told(case.refused)[..], &beside].concat();
            assert_refused(
                &reply,
                &allowed,
                &format!("{} with {}", operation.name(), case.name),
            );
        }
        for kinds in cases::CONTENT_TYPES {
            let reply = call(kinds).body("{}").send().await;
            let allowed = [&[415][..], &beside].concat();
            assert_refused(
                &reply,
                &allowed,
                &format!("{} as {kinds:?}", operation.name()),
            );
        }
    }
    assert_eq!(rows(&app).await, before, "nothing was written");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_path_or_query_is_refused_by_every_route(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = somebody(&app).await;
    let before = rows(&app).await;
    for operation in operations(&app) {
        let call = |url: &str| {
            let call = app.request(operation.method.clone(), url).by(&session);
            let call = call.idempotency_key("bad").header(header::IF_MATCH, "*");
            call.json(&json!({})).send()
        };
        if operation.path.contains('{') {
            for parameter in cases::PATH_PARAMETERS {
                let url = operation.url(parameter);
                assert_refused(
                    &call(&url).await,
                    &[400, 403, 404, 405, 411, 415, 422],
                    &url,
                );
            }
        }
        for query in cases::QUERIES {
            let url = format!("{}?{query}", operation.url("nobodys"));
            // A list that has the filter may know the value.
            let known =
                operation.is_list && ["limit", "cursor"].iter().all(|it| !query.starts_with(it));
            let allowed: &[u16] = match (known, operation.path.contains('{')) {
                // A list of what belongs to an object that is not there.
                (_, true) if operation.is_list => &[400, 403, 404],
                (true, _) => &[400, 403, 200],
                (false, _) => &[400, 403],
            };
            let reply = call(&url).await;
            let status = reply.status.as_u16();
            assert!(
                allowed.contains(&status),
                "{} {url}: {status}",
                operation.method
            );
        }
    }
    assert_eq!(rows(&app).await, before, "nothing was written");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_credential_opens_nothing(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = somebody(&app).await;
    let good = format!("Bearer {}", session.token);
    let twice = [good.as_str(), good.as_str()];
    let lower = format!("Bearer {}", session.token.to_lowercase());
    let cases = cases::AUTHORIZATIONS.iter().copied();
    for operation in operations(&app).iter().filter(|it| !it.is_public) {
        for values in cases.clone().chain([&twice[..], &[&lower[..]]]) {
            let call = app.request(operation.method.clone(), &operation.url("nobodys"));
            let call = call.json(&json!({})).idempotency_key("bad");
            let reply = values
                .iter()
                .fold(call, |call, value| {
                    call.header(header::AUTHORIZATION, value)
                })
                .send()
                .await;
            assert_refused(
                &reply,
                &[401],
                &format!("{} by {values:?}", operation.name()),
            );
        }
        // A credential in the address would be in every log.
        let url = format!(
            "{}?access_token={}",
            operation.url("nobodys"),
            session.token
        );
        let reply = app.request(operation.method.clone(), &url).json(&json!({}));
        assert_refused(&reply.send().await, &[400, 401], &operation.name());
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_idempotency_key_makes_nothing(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = somebody(&app).await;
    let before = rows(&app).await;
    for operation in operations(&app)
        .iter()
        .filter(|it| it.needs_idempotency_key)
    {
        for keys in cases::IDEMPOTENCY_KEYS {
            let call = app.request(operation.method.clone(), &operation.url("nobodys"));
            let call = call.by(&session).json(&json!({}));
            let reply = keys
                .iter()
                .fold(call, |call, key| {
                    call.header(header::HeaderName::from_static("idempotency-key"), key)
                })
                .send()
                .await;
            assert_refused(
                &reply,
                &[400, 403, 404],
                &format!("{} with {keys:?}", operation.name()),
            );
        }
    }
    assert_eq!(rows(&app).await, before, "nothing was written");
}

/// Each place in a document that holds neither an object nor an array.
fn scalars(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                scalars(value, format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (place, value) in items.iter().enumerate() {
                scalars(value, format!("{at}/{place}"), found);
            }
        }
        Value::Null | Value::Bool(_) => {}
        Value::Number(_) | Value::String(_) => found.push(at),
    }
}

/// Each place in a document that holds an object, but for the document itself.
fn objects(value: &Value, at: String, found: &mut Vec<String>) {
    if let Value::Object(fields) = value {
        for (name, value) in fields {
            objects(value, format!("{at}/{name}"), found);
        }
        if !at.is_empty() {
            found.push(at);
        }
    }
}

/// A valid request of each operation that takes more than a text or two.
async fn samples(
    app: &TestApp,
    session: &Session,
    asset: &Asset,
) -> Vec<(Method, &'static str, Value)> {
    let money = |amount: &str| json!({ "amount": amount, "asset": asset.caip19(), "decimals": 18 });
    let spec = training(app, session, "mlp.pt2").await;
    let post = |path, body| (Method::POST, path, body);
    vec![
        post(
            "/v1/accounts",
            json!({ "email": "a@example.org", "password": "0123456789ab" }),
        ),
        post(
            "/v1/keys",
            json!({ "name": "walk", "scopes": ["jobs:read"] }),
        ),
        post("/v1/withdrawals", json!({ "amount": money("10") })),
        post(
            "/v1/join-tokens",
            json!({ "name": "walk", "max_uses": 2, "expires_in_s": 60 }),
        ),
        post(
            "/v1/webhook-endpoints",
            json!({ "url": "https://example.org/hook", "description": "walk", "event_types": ["job.failed"] }),
        ),
        post(
            "/v1/quotes",
            json!({ "spec": spec, "tier": "none", "device": "cpu" }),
        ),
        post(
            "/v1/jobs",
            json!({ "spec": spec, "tier": "none", "device": "cpu", "max_cost": money("1000000"), "name": "walk" }),
        ),
    ]
}

async fn send(
    app: &TestApp,
    session: &Session,
    request: &(Method, &str, Value),
    body: &Value,
) -> Reply {
    let (method, path, _) = request;
    let key = uuid::Uuid::now_v7().to_string();
    let call = app.request(method.clone(), path).by(session);
    call.idempotency_key(&key).json(body).send().await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_field_takes_no_value_of_another_kind(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, asset) = somebody(&app).await;
    let samples = samples(&app, &session, &asset).await;
    let before = rows(&app).await;
    for request in &samples {
        let (_, path, sample) = request;
        let (mut places, mut nested) = (Vec::new(), Vec::new());
        scalars(sample, String::new(), &mut places);
        objects(sample, String::new(), &mut nested);
        for place in &places {
            for wrong in cases::NO_SCALARS {
                let mut body = sample.clone();
                *body.pointer_mut(place).unwrap() = serde_json::from_str(wrong).unwrap();
                let reply = send(&app, &session, request, &body).await;
                assert_refused(
                    &reply,
                    &[422, 400],
                    &format!("{path} with {wrong} at {place}"),
                );
            }
        }
        for place in &nested {
            // A list of an object's values is not the object.
            let mut body = sample.clone();
            let object = body.pointer_mut(place).unwrap();
            *object = object.as_object().unwrap().values().cloned().collect();
            let reply = send(&app, &session, request, &body).await;
            assert_refused(&reply, &[422], &format!("{path} with an array at {place}"));
            let mut body = sample.clone();
            let object = body.pointer_mut(place).unwrap().as_object_mut().unwrap();
            if !place.ends_with("/inputs") {
                object.insert("surplus".to_owned(), json!(1));
                let reply = send(&app, &session, request, &body).await;
                assert_refused(
                    &reply,
                    &[422],
                    &format!("{path} with a surplus field at {place}"),
                );
            }
        }
    }
    assert_eq!(rows(&app).await, before, "nothing was written");
    // The samples themselves are good, so it was the change that was refused.
    for request in &samples {
        let reply = send(&app, &session, request, &request.2).await;
        assert_eq!(
            reply.status,
            StatusCode::CREATED,
            "{}: {:?}",
            request.1,
            reply.json
        );
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_no_amount_moves_no_money(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, asset) = somebody(&app).await;
    let samples = samples(&app, &session, &asset).await;
    let before = rows(&app).await;
    let mut tried = 0;
    for request in &samples {
        let (_, path, sample) = request;
        for place in ["/amount", "/max_cost"] {
            if sample.pointer(place).is_none() {
                continue;
            }
            for amount in cases::AMOUNTS {
                let mut body = sample.clone();
                body.pointer_mut(place).unwrap()["amount"] = serde_json::from_str(amount).unwrap();
                let reply = send(&app, &session, request, &body).await;
                // A budget of nothing is an amount, and too little.
                assert_refused(&reply, &[422], &format!("{path} with {amount}"));
                tried += 1;
            }
            for (field, wrong) in [
                ("decimals", json!(6)),
                ("decimals", json!(256)),
                ("decimals", json!("18")),
                ("asset", json!("eip155:1/slip44:60")),
                ("asset", json!("")),
                (
                    "asset",
                    json!("eip155:31337/erc20:0x0101010101010101010101010101010101010102"),
                ),
            ] {
                let mut body = sample.clone();
                body.pointer_mut(place).unwrap()[field] = wrong.clone();
                let reply = send(&app, &session, request, &body).await;
                assert_refused(&reply, &[422], &format!("{path} with {field} {wrong}"));
            }
        }
    }
    assert!(tried > 0, "the samples have amounts");
    assert_eq!(rows(&app).await, before, "nothing was held");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_no_address_is_not_bound(db: PgPool) {
    let app = TestApp::new(db).await;
    crate::money::asset(&app).await;
    let session = app.session().await;
    let before = rows(&app).await;
    for address in cases::ADDRESSES {
        let body = json!({ "address": address });
        let reply = app
            .post("/v1/account/address/challenges", &body)
            .by(&session)
            .send()
            .await;
        assert_refused(&reply, &[422], address);
    }
    assert_eq!(rows(&app).await, before, "nothing was written");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_number_at_its_end_is_priced_or_refused(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = somebody(&app).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "tier": "none" });
    let request = (Method::POST, "/v1/quotes", body.clone());
    let mut places = Vec::new();
    scalars(&body, String::new(), &mut places);
    places.retain(|place| body.pointer(place).unwrap().is_number());
    assert!(places.len() > 3, "{places:?}");
    for place in &places {
        for number in cases::NUMBERS {
            let mut body = body.clone();
            *body.pointer_mut(place).unwrap() = serde_json::from_str(number).unwrap();
            let reply = send(&app, &session, &request, &body).await;
            if reply.status != StatusCode::CREATED {
                assert_refused(&reply, &[422], &format!("{number} at {place}"));
            }
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_moment_that_is_none_makes_no_job(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, asset) = somebody(&app).await;
    let samples = samples(&app, &session, &asset).await;
    let request = samples.iter().find(|it| it.1 == "/v1/jobs").unwrap();
    let before = rows(&app).await;
    for moment in cases::MOMENTS {
        let mut body = request.2.clone();
        body["deadline_at"] = serde_json::from_str(moment).unwrap();
        let reply = send(&app, &session, request, &body).await;
        assert_refused(&reply, &[422], &format!("a deadline of {moment}"));
    }
    assert_eq!(rows(&app).await, before, "nothing was held");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_time_beyond_the_calendar_is_refused_wherever_one_is_read(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = somebody(&app).await;
    // Their UTC forms are in the years 10000 and -1.
    for moment in ["9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+23:59"] {
        let key = json!({ "name": "k", "scopes": ["jobs:read"], "expires_at": moment });
        let reply = app.post("/v1/keys", &key).by(&session).send().await;
        let problem = reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(problem.text("/errors/0/pointer"), "/expires_at");
        for filter in ["created_after", "created_before"] {
            let url = format!("/v1/jobs?{filter}={}", moment.replace('+', "%2B"));
            let reply = app.get(&url).by(&session).send().await;
            assert_refused(&reply, &[400, 422], &url);
        }
    }
}
