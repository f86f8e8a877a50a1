//! What is written down as having happened: with its cause, and only for whoever listens.

use axum::http::{Method, StatusCode};
use comptoir_domain::{
    amount::Amount,
    id::{AccountId, JobId},
};
use comptoir_store::{
    accounts, events as job_events,
    holds::{self, Hold, HoldSource},
    tenant,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use time::Duration;

use super::{count, create, endpoint, happen, receiver::Receiver, send_all, tidy};
use crate::{
    harness::{Session, TestApp},
    market::{self, join, worker},
    purchases::Shop,
};

async fn list(app: &TestApp, owner: &Session, query: &str) -> Vec<Value> {
    let call = app.get(&format!("/v1/events?limit=100{query}"));
    let listed = call
        .by(&app.renewed(owner))
        .send()
        .await
        .expect(StatusCode::OK);
    listed.json["data"].as_array().unwrap().clone()
}

async fn kinds(app: &TestApp, owner: &Session) -> Vec<String> {
    let listed = list(app, owner, "").await;
    let mut kinds: Vec<_> = listed
        .iter()
        .map(|it| it["type"].as_str().unwrap().to_owned())
        .collect();
    kinds.reverse();
    kinds
}

/// Somebody with money and an endpoint that is called by nobody.
async fn listener(app: &TestApp, base: u128) -> (Session, comptoir_domain::asset::Asset) {
    let (asset, _) = market::open(app).await;
    let (client, _) = market::client(app, &asset, base).await;
    create(app, &client, &json!({ "url": "https://example.org/" })).await;
    (client, asset)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_tells_its_story_and_whoever_has_no_endpoint_has_no_events(db: PgPool) {
    let app = TestApp::new(db).await;
    let (client, asset) = listener(&app, 1_000_000).await;
    let (silent, _) = market::client(&app, &asset, 1_000_000).await;
    for owner in [&client, &silent] {
        let job = market::job(&app, owner, "none").await;
        let path = format!("/v1/jobs/{}/cancel", job.text("/id"));
        app.post(&path, &json!({}))
            .by(owner)
            .send()
            .await
            .expect(StatusCode::OK);
    }
    assert_eq!(kinds(&app, &client).await, ["job.queued", "job.cancelled"]);
    assert!(kinds(&app, &silent).await.is_empty());
    assert_eq!(count(&app, "webhook_events").await, 2);
    assert_eq!(count(&app, "webhook_deliveries").await, 2);
    assert_eq!(list(&app, &client, "&type=job.cancelled").await.len(), 1);
    assert_eq!(
        list(&app, &client, "&created_after=2026-11-22T09:00:00Z")
            .await
            .len(),
        0
    );
    assert_eq!(
        list(&app, &client, "&created_before=2026-11-22T09:00:01Z")
            .await
            .len(),
        2
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_rolled_back_was_never_said(db: PgPool) {
    let app = TestApp::new(db).await;
    let (client, _) = listener(&app, 1_000_000).await;
    let job = market::job(&app, &client, "none").await;
    let job: JobId = job.text("/id").parse().unwrap();
    let say = async |commit: bool| {
        let mut tx = app.owner.begin().await.unwrap();
        let data = json!({ "cause": "client", "code": "bad_program", "detail": "much text" });
        job_events::append(&mut tx, job, "failed", &data, app.now())
            .await
            .unwrap();
        if commit {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
    };
    say(false).await;
    assert_eq!(kinds(&app, &client).await, ["job.queued"]);
    say(true).await;
    assert_eq!(kinds(&app, &client).await, ["job.queued", "job.failed"]);
    let said = &list(&app, &client, "&type=job.failed").await[0];
    assert_eq!(
        said["data"],
        json!({ "job_id": job.to_string(), "seq": 2, "cause": "client", "code": "bad_program" }),
        "thin: the detail is asked for"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn metrics_and_progress_of_a_job_are_not_sent(db: PgPool) {
    let app = TestApp::new(db).await;
    let (client, _) = listener(&app, 1_000_000).await;
    let job = market::job(&app, &client, "none").await;
    let mut tx = app.owner.begin().await.unwrap();
    for kind in [
        "metrics",
        "progress",
        "checkpoint",
        "sealed",
        "attempt_failed",
    ] {
        job_events::append(
            &mut tx,
            job.text("/id").parse().unwrap(),
            kind,
            &json!({}),
            app.now(),
        )
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(kinds(&app, &client).await, ["job.queued"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_endpoint_is_told_of_what_it_asked_for(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let (some, all) = (Receiver::start().await, Receiver::start().await);
    let body = json!({ "url": some.url("/"), "event_types": ["job.failed", "job.expired"] });
    create(&app, &owner, &body).await;
    endpoint(&app, &owner, &all).await;
    for kind in ["job.queued", "job.failed", "job.completed", "job.expired"] {
        happen(&app, owner.account, kind, 1).await;
    }
    send_all(&app).await;
    let kinds = |receiver: &Receiver| {
        let mut kinds: Vec<_> = receiver
            .got()
            .iter()
            .map(super::receiver::Got::kind)
            .collect();
        kinds.sort();
        kinds
    };
    assert_eq!(kinds(&some), ["job.expired", "job.failed"]);
    assert_eq!(kinds(&all).len(), 4);
}

async fn set_alert(app: &TestApp, owner: &Session, threshold: Value) -> Value {
    let call = app.request(Method::PUT, "/v1/balance/alert").by(owner);
    let set = call.json(&json!({ "threshold": threshold })).send().await;
    set.expect(StatusCode::OK).json
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_low_balance_is_said_once_for_each_fall(db: PgPool) {
    let app = TestApp::new(db).await;
    let (client, asset) = listener(&app, 1_000).await;
    let money = |amount: &str| json!({ "amount": amount, "asset": asset.caip19(), "decimals": 18 });
    let alert = set_alert(&app, &client, money("500")).await;
    assert_eq!(
        (&alert["threshold"]["amount"], &alert["is_low"]),
        (&json!("500"), &json!(false))
    );
    let mut connection = app.owner.acquire().await.unwrap();
    let found = accounts::find(&mut connection, client.account).await;
    let owner = found.unwrap().unwrap().address.unwrap();
    let hold = async |base: u128| {
        let mut tx = app.owner.begin().await.unwrap();
        let source = HoldSource::Job(JobId::generate());
        let hold = Hold {
            source,
            owner,
            asset_id: asset.id,
            amount: Amount::from_base(base).unwrap(),
        };
        holds::place(&mut tx, &hold, app.now()).await.unwrap();
        tx.commit().await.unwrap();
        source
    };
    let release = async |source: HoldSource| {
        let mut tx = app.owner.begin().await.unwrap();
        holds::release(&mut tx, source, app.now()).await.unwrap();
        tx.commit().await.unwrap();
    };
    hold(500).await;
    assert!(
        kinds(&app, &client).await.is_empty(),
        "500 is not below 500"
    );
    let one = hold(1).await;
    hold(100).await;
    assert_eq!(
        kinds(&app, &client).await,
        ["balance.low"],
        "it fell once, and then further"
    );
    let said = &list(&app, &client, "").await[0]["data"];
    assert_eq!(
        said,
        &json!({ "available": money("499"), "threshold": money("500") })
    );
    release(one).await;
    assert_eq!(kinds(&app, &client).await.len(), 1, "400 is still below");
    let mut tx = app.owner.begin().await.unwrap();
    comptoir_store::ledger::deposit(
        &mut tx,
        asset.id,
        owner,
        Amount::from_base(200).unwrap(),
        "test:more",
        app.now(),
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(kinds(&app, &client).await.len(), 1, "rising is not said");
    hold(150).await;
    assert_eq!(kinds(&app, &client).await.len(), 2, "it fell again");
    set_alert(&app, &client, Value::Null).await;
    hold(10).await;
    assert_eq!(kinds(&app, &client).await.len(), 2);
    for threshold in [
        money("0"),
        json!({ "amount": "1", "asset": "eip155:1/erc20:0x0", "decimals": 18 }),
        json!("1"),
    ] {
        let call = app.request(Method::PUT, "/v1/balance/alert").by(&client);
        let refused = call.json(&json!({ "threshold": threshold })).send().await;
        refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_is_gone_is_said_to_be_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let (owner, _) = app.bound_session().await;
    let before = join(&app, &owner, &worker("gone before anybody listened")).await;
    app.pass(Duration::minutes(1));
    create(
        &app,
        &app.renewed(&owner),
        &json!({ "url": "https://example.org/" }),
    )
    .await;
    let watched = join(&app, &app.renewed(&owner), &worker("watched")).await;
    tidy(&app).await;
    assert!(kinds(&app, &owner).await.is_empty());
    app.pass(Duration::minutes(6));
    tidy(&app).await;
    tidy(&app).await;
    let said = list(&app, &owner, "").await;
    assert_eq!(said.len(), 1, "{said:?}, not of {before}");
    assert_eq!(said[0]["type"], "worker.offline");
    assert_eq!(
        said[0]["data"],
        json!({ "worker_id": watched.to_string(), "last_seen_at": "2026-11-22T09:01:00Z" })
    );
    seen(&app, watched.0).await;
    tidy(&app).await;
    assert_eq!(kinds(&app, &owner).await.len(), 1, "it is back");
    app.pass(Duration::minutes(6));
    tidy(&app).await;
    assert_eq!(kinds(&app, &owner).await.len(), 2, "it is gone again");
}

async fn seen(app: &TestApp, worker: uuid::Uuid) {
    sqlx::query("UPDATE worker_heartbeats SET seen_at = $2 WHERE worker_id = $1")
        .bind(worker)
        .bind(app.now())
        .execute(&app.owner)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn events_are_forgotten_after_thirty_days(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = app.session().await;
    let receiver = Receiver::start().await;
    endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.failed", 2).await;
    send_all(&app).await;
    app.pass(Duration::days(29));
    tidy(&app).await;
    assert_eq!(count(&app, "webhook_attempts").await, 2);
    app.pass(Duration::days(2));
    tidy(&app).await;
    for table in ["webhook_events", "webhook_deliveries", "webhook_attempts"] {
        assert_eq!(count(&app, table).await, 0, "{table}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_tenant_sees_nothing_of_another_even_where_a_query_forgets_to_ask(db: PgPool) {
    let app = TestApp::new(db).await;
    let (owner, stranger) = (app.session().await, app.session().await);
    let receiver = Receiver::start().await;
    endpoint(&app, &owner, &receiver).await;
    happen(&app, owner.account, "job.failed", 1).await;
    send_all(&app).await;
    let rows = async |account: AccountId, table: &str| -> i64 {
        let mut tx = tenant::read(&app.state.db, (account, None)).await.unwrap();
        let statement = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(statement)
            .fetch_one(&mut *tx)
            .await
            .unwrap()
    };
    for table in [
        "webhook_endpoints",
        "webhook_events",
        "webhook_deliveries",
        "webhook_attempts",
    ] {
        assert_eq!(rows(owner.account, table).await, 1, "{table}");
        assert_eq!(rows(stranger.account, table).await, 0, "{table}");
    }
    let mut tx = tenant::begin(&app.state.db, (stranger.account, None))
        .await
        .unwrap();
    let forged = sqlx::query("INSERT INTO webhook_events (account_id, kind, data, created_at) VALUES ($1, 'job.failed', '{}', now())")
        .bind(owner.account.0)
        .execute(&mut *tx)
        .await;
    assert!(
        forged.is_err(),
        "nobody says that something happened to somebody else"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn both_sides_are_told_of_each_step_of_a_purchase_once(db: PgPool) {
    const GATED: u32 = 86_400;
    let shop = Shop::open(db, 1_000).await;
    for side in [&shop.buyer, &shop.seller] {
        create(&shop.app, side, &json!({ "url": "https://example.org/" })).await;
    }
    let open = shop.offer(json!({ "kind": "buy" }), 100).await;
    let gated = json!({ "kind": "buy", "answer_seconds": GATED });
    let gated = shop.offer(gated, 50).await;
    let rent = json!({ "kind": "rent", "period_seconds": GATED, "minimum_seconds": 0, "answer_seconds": GATED });
    let rent = shop.offer(rent, 1).await;
    let mut renting = shop.wish(&rent, 60);
    renting["seconds"] = json!(60);
    for (wish, act, told) in [
        (shop.wish(&gated, 50), "deny", vec!["requested", "denied"]),
        (
            shop.wish(&gated, 50),
            "refund",
            vec!["requested", "refunded"],
        ),
        (shop.wish(&gated, 50), "lapse", vec!["requested", "lapsed"]),
        (renting, "approve", vec!["requested", "granted", "settled"]),
        (shop.wish(&open, 100), "read", vec!["granted", "settled"]),
    ] {
        sqlx::query("DELETE FROM webhook_events")
            .execute(&shop.app.owner)
            .await
            .unwrap();
        let path = shop.taken(&wish).await;
        let id = path.rsplit('/').next().unwrap();
        match act {
            "deny" => {
                let deny = format!("/v1/sales/{id}/deny");
                let denied = shop.sell(&deny, &json!({ "reason": "no" })).await;
                denied.expect(StatusCode::OK);
            }
            "refund" => {
                let refund = shop.act(&format!("{path}/refund")).await;
                refund.expect(StatusCode::OK);
            }
            "lapse" => shop.pass(Duration::days(1)).await,
            "approve" => {
                let approve = format!("/v1/sales/{id}/approve");
                let approved = shop.sell(&approve, &json!({})).await;
                approved.expect(StatusCode::OK);
                shop.pass(Duration::minutes(1)).await;
            }
            _ => shop.open_it().await,
        }
        let told: Vec<_> = told.iter().map(|it| format!("purchase.{it}")).collect();
        for side in [&shop.buyer, &shop.seller] {
            assert_eq!(kinds(&shop.app, side).await, told, "{act}");
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_rental_that_begins_later_is_told_when_it_is_taken(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    create(
        &shop.app,
        &shop.buyer,
        &json!({ "url": "https://example.org/" }),
    )
    .await;
    let terms = json!({ "kind": "rent", "period_seconds": 3_600, "minimum_seconds": 0 });
    let rent = shop.offer(terms, 1).await;
    let mut wish = shop.wish(&rent, 300);
    wish["seconds"] = json!(300);
    shop.taken(&wish).await;
    shop.app.pass(Duration::seconds(10));
    shop.taken(&wish).await;
    let told = list(&shop.app, &shop.buyer, "").await;
    let times: Vec<_> = told
        .iter()
        .map(|it| {
            it["timestamp"]
                .as_str()
                .or(it["created_at"].as_str())
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(told.len(), 2);
    let now = shop
        .app
        .now()
        .format(&time::format_description::well_known::Rfc3339);
    assert_eq!(times[0], now.unwrap());
}
