//! Webhooks, sent to receivers on loopback.

mod endpoints;
mod events;
mod faults;
mod receiver;
mod sending;

use std::{io, net::IpAddr, sync::Arc};

use axum::http::{Method, StatusCode};
use comptoir_api::webhooks::{
    guard::{Guard, Lookup},
    sender::Sender,
    upkeep,
};
use comptoir_domain::id::AccountId;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use time::Duration;

use crate::harness::{Reply, Session, TestApp};
use receiver::Receiver;

/// Names mean something without a resolver: a test says what.
pub fn lookup(means: impl Fn(&str) -> Vec<&'static str> + Send + Sync + 'static) -> Lookup {
    Arc::new(move |host: String| {
        let found: Vec<IpAddr> = means(&host).iter().map(|it| it.parse().unwrap()).collect();
        Box::pin(async move {
            if found.is_empty() {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(found)
        })
    })
}

/// Receivers of tests are on loopback, which is allowed here; other names of the tests are public.
pub fn guard() -> Guard {
    let means = |host: &str| match host {
        "localhost" => vec!["127.0.0.1"],
        "private.test" => vec!["10.1.2.3"],
        name if name.ends_with("example.org") => vec!["93.184.215.14"],
        _ => Vec::new(),
    };
    Guard::with_lookup(vec!["127.0.0.0/8".parse().unwrap()], lookup(means))
}

/// For the walk over every route: an endpoint, and a delivery to it.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let made = create(app, owner, &json!({ "url": "https://example.org/hook" })).await;
    let id = made.text("/id").to_owned();
    test(app, owner, &id).await;
    let delivery = deliveries(app, owner, &id).await[0]["id"].clone();
    vec![id, delivery.as_str().unwrap().to_owned()]
}

/// For the walk over every route: something that happened.
pub async fn make_event(app: &TestApp, owner: &Session) -> Vec<String> {
    let made = create(app, owner, &json!({ "url": "https://example.org/hook" })).await;
    vec![test(app, owner, made.text("/id")).await]
}

pub async fn create(app: &TestApp, owner: &Session, body: &Value) -> Reply {
    let made = app
        .post("/v1/webhook-endpoints", body)
        .by(&app.renewed(owner))
        .send()
        .await;
    made.expect(StatusCode::CREATED)
}

/// An endpoint for the receiver that is told of everything: its identifier and secret.
async fn endpoint(app: &TestApp, owner: &Session, receiver: &Receiver) -> (String, String) {
    let made = create(app, owner, &json!({ "url": receiver.url("/hook") })).await;
    (made.text("/id").to_owned(), made.text("/secret").to_owned())
}

/// Asks for a test; the event's identifier.
async fn test(app: &TestApp, owner: &Session, id: &str) -> String {
    let path = format!("/v1/webhook-endpoints/{id}/test");
    let made = app
        .post(&path, &json!({}))
        .by(&app.renewed(owner))
        .send()
        .await;
    made.expect(StatusCode::CREATED).text("/id").to_owned()
}

async fn deliveries(app: &TestApp, owner: &Session, id: &str) -> Vec<Value> {
    let path = format!("/v1/webhook-endpoints/{id}/deliveries?limit=100");
    let listed = app
        .get(&path)
        .by(&app.renewed(owner))
        .send()
        .await
        .expect(StatusCode::OK);
    listed.json["data"].as_array().unwrap().clone()
}

/// The newest delivery, with its log.
async fn last_delivery(app: &TestApp, owner: &Session, id: &str) -> Value {
    let delivery = deliveries(app, owner, id).await[0]["id"].clone();
    let path = format!(
        "/v1/webhook-endpoints/{id}/deliveries/{}",
        delivery.as_str().unwrap()
    );
    app.get(&path)
        .by(&app.renewed(owner))
        .send()
        .await
        .expect(StatusCode::OK)
        .json
}

async fn shown(app: &TestApp, owner: &Session, id: &str) -> Value {
    let path = format!("/v1/webhook-endpoints/{id}");
    app.get(&path)
        .by(&app.renewed(owner))
        .send()
        .await
        .expect(StatusCode::OK)
        .json
}

async fn patch(app: &TestApp, owner: &Session, id: &str, body: &Value) -> Reply {
    let call = app.request(Method::PATCH, &format!("/v1/webhook-endpoints/{id}"));
    call.by(&app.renewed(owner))
        .header(axum::http::header::IF_MATCH, "*")
        .json(body)
        .send()
        .await
}

/// So many things happen to the account, by the hand of the database.
async fn happen(app: &TestApp, account: AccountId, kind: &str, count: i32) {
    sqlx::query(
        "INSERT INTO webhook_events (account_id, kind, subject_id, data, created_at)
         SELECT $1, $2, gen_random_uuid(), jsonb_build_object('seq', n), $3 FROM generate_series(1, $4) n",
    )
    .bind(account.0)
    .bind(kind)
    .bind(app.now())
    .bind(count)
    .execute(&app.owner)
    .await
    .unwrap();
}

/// Sends what is due, once, and waits for what comes of it; says how much that was.
async fn send_due(app: &TestApp) -> usize {
    let mut sender = Sender::new(app.state.clone());
    let begun = sender.begin().await.unwrap();
    sender.finish().await;
    begun
}

/// Sends until nothing is due any more.
async fn send_all(app: &TestApp) {
    while send_due(app).await > 0 {}
}

async fn tidy(app: &TestApp) {
    upkeep::round(&app.state).await.unwrap();
}

async fn count(app: &TestApp, rows: &str) -> i64 {
    let statement = AssertSqlSafe(format!("SELECT count(*) FROM {rows}"));
    sqlx::query_scalar(statement)
        .fetch_one(&app.owner)
        .await
        .unwrap()
}

/// Every lease of a delivery has run out, by the database's clock.
async fn leases_run_out(app: &TestApp) {
    sqlx::query("UPDATE webhook_deliveries SET lease_expires_at = clock_timestamp() WHERE lease_token IS NOT NULL")
        .execute(&app.owner)
        .await
        .unwrap();
}

/// Longer than jitter makes a pause of the schedule.
fn surely(pause: Duration) -> Duration {
    pause * 1.1 + Duration::SECOND
}
