//! Balance, statement, prices and withdrawals.

use alloy_primitives::Address;
use axum::http::{StatusCode, header};
use comptoir_domain::{amount::Amount, asset::Asset, job::Device, price::Rate};
use comptoir_store::{
    assets::{self, NewAsset},
    ledger,
    prices::{self, NewPrice},
    releases,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::harness::{Session, TestApp};

/// The deployment's token.
pub async fn asset(app: &TestApp) -> Asset {
    let new = NewAsset {
        chain_id: 31_337,
        token: Address::repeat_byte(1),
        contract: Address::repeat_byte(2),
        symbol: "CPT".into(),
        decimals: 18,
        platform: Address::repeat_byte(0xff),
    };
    let mut connection = app.owner.acquire().await.unwrap();
    assets::register(&mut connection, &new, app.now())
        .await
        .unwrap()
}

/// Credits a deposit, as the settler does when the chain has made it final.
pub async fn deposit(app: &TestApp, owner: Address, base: u128) {
    credit(app, &asset(app).await, owner, base).await;
}

/// Credits a deposit of this token.
pub async fn credit(app: &TestApp, asset: &Asset, owner: Address, base: u128) {
    let source = uuid::Uuid::now_v7().to_string();
    let amount = Amount::from_base(base).unwrap();
    let mut tx = app.owner.begin().await.unwrap();
    ledger::deposit(&mut tx, asset.id, owner, amount, &source, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

/// What the next seal does.
async fn seal(app: &TestApp, name: &str, at_most: u128) {
    let asset = asset(app).await;
    let mut tx = app.owner.begin().await.unwrap();
    let at_most = Amount::from_base(at_most).unwrap();
    releases::release_queued(&mut tx, asset.id, name, at_most, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

fn money(asset: &Asset, amount: &str) -> Value {
    json!({ "amount": amount, "asset": asset.caip19(), "decimals": 18 })
}

/// A withdrawal of the owner's, for the walk over every route.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let asset = asset(app).await;
    let address = app
        .get("/v1/account")
        .by(owner)
        .send()
        .await
        .expect(StatusCode::OK);
    let address = address
        .text("/address")
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    deposit(app, address, 10).await;
    let body = json!({ "amount": money(&asset, "10") });
    let made = app
        .post("/v1/withdrawals", &body)
        .by(owner)
        .send()
        .await
        .expect(StatusCode::CREATED);
    vec![made.text("/id").to_owned()]
}

async fn amounts(app: &TestApp, session: &Session) -> [String; 4] {
    let reply = app
        .get("/v1/balance")
        .by(session)
        .send()
        .await
        .expect(StatusCode::OK);
    ["available", "held", "held_back", "payable"]
        .map(|part| reply.text(&format!("/{part}/amount")).to_owned())
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_account_without_an_address_has_no_money(db: PgPool) {
    let app = TestApp::new(db).await;
    let asset = asset(&app).await;
    let session = app.session().await;
    for path in ["/v1/balance", "/v1/statement"] {
        let reply = app.get(path).by(&session).send().await;
        reply.expect_problem(StatusCode::CONFLICT, "address_not_bound");
    }
    let body = json!({ "amount": money(&asset, "1") });
    let reply = app.post("/v1/withdrawals", &body).by(&session).send().await;
    reply.expect_problem(StatusCode::CONFLICT, "address_not_bound");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn before_a_token_is_deployed_the_service_says_that_it_cannot_answer(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = app.bound_session().await;
    let reply = app.get("/v1/balance").by(&session).send().await;
    reply.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_balance_names_the_token_and_every_base_unit(db: PgPool) {
    let app = TestApp::new(db).await;
    let asset = asset(&app).await;
    let (session, address) = app.bound_session().await;
    deposit(&app, address, 12_500_000_000_000_000_000_000).await;
    let reply = app
        .get("/v1/balance")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(reply.text("/id"), format!("eip155:31337:{address}"));
    assert_eq!(
        reply.json["available"],
        money(&asset, "12500000000000000000000")
    );
    assert_eq!(reply.json["claimed"], money(&asset, "0"));
    let tag = reply.header(header::ETAG).to_owned();
    let again = app
        .get("/v1/balance")
        .by(&session)
        .header(header::IF_NONE_MATCH, &tag)
        .send()
        .await;
    again.expect(StatusCode::NOT_MODIFIED);
    deposit(&app, address, 1).await;
    let changed = app
        .get("/v1/balance")
        .by(&session)
        .header(header::IF_NONE_MATCH, &tag)
        .send()
        .await;
    changed.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_the_contract_paid_out_is_claimed(db: PgPool) {
    let app = TestApp::new(db).await;
    let asset = asset(&app).await;
    let (session, address) = app.bound_session().await;
    sqlx::query(
        "INSERT INTO claims (asset_id, event_seq, kind, owner, batch_number, amount_base, cumulative_base, block_number, tx_hash, seen_at)
         VALUES ($1, 1, 'claimed', $2, 1, 7, 7, 1, $3, $4)",
    )
    .bind(asset.id)
    .bind(address.as_slice())
    .bind(&[0_u8; 32][..])
    .bind(app.now())
    .execute(&app.owner)
    .await
    .unwrap();
    let reply = app
        .get("/v1/balance")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(reply.text("/claimed/amount"), "7");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_withdrawal_goes_from_available_to_payable(db: PgPool) {
    let app = TestApp::new(db).await;
    let asset = asset(&app).await;
    let (session, address) = app.bound_session().await;
    deposit(&app, address, 100).await;
    let body = json!({ "amount": money(&asset, "60") });
    let made = app
        .post("/v1/withdrawals", &body)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let path = format!("/v1/withdrawals/{}", made.text("/id"));
    assert_eq!(made.header(header::LOCATION), path);
    assert_eq!(
        (made.text("/object"), made.text("/state")),
        ("withdrawal", "queued")
    );
    assert!(made.text("/id").starts_with("rel_"));
    assert_eq!(amounts(&app, &session).await, ["40", "60", "0", "0"]);

    // The contract's limits let a seal release a part.
    seal(&app, "first", 25).await;
    let found = app
        .get(&path)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (found.text("/state"), found.text("/released/amount")),
        ("queued", "25")
    );
    seal(&app, "second", 100).await;
    let found = app
        .get(&path)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (found.text("/state"), found.text("/released/amount")),
        ("released", "60")
    );
    assert!(found.json["released_at"].is_string());
    assert_eq!(amounts(&app, &session).await, ["40", "0", "0", "60"]);
    let refused = app
        .post(&format!("{path}/cancel"), &json!({}))
        .by(&session)
        .send()
        .await;
    refused.expect_problem(StatusCode::CONFLICT, "withdrawal_released");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_queued_withdrawal_is_cancelled_once_however_often_it_is_asked(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = app.bound_session().await;
    let id = make(&app, &session).await.remove(0);
    let path = format!("/v1/withdrawals/{id}/cancel");
    for _ in 0..2 {
        let cancelled = app
            .post(&path, &json!({}))
            .by(&session)
            .send()
            .await
            .expect(StatusCode::OK);
        assert_eq!(cancelled.text("/state"), "cancelled");
        assert_eq!(amounts(&app, &session).await, ["10", "0", "0", "0"]);
    }
    seal(&app, "later", 100).await;
    assert_eq!(amounts(&app, &session).await, ["10", "0", "0", "0"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_withdrawal_that_is_asked_for_twice_with_one_key_is_made_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let asset = asset(&app).await;
    let (session, address) = app.bound_session().await;
    deposit(&app, address, 100).await;
    let ask = |amount| {
        let body = json!({ "amount": money(&asset, amount) });
        app.post("/v1/withdrawals", &body)
            .idempotency_key("once")
            .by(&session)
    };
    let first = ask("60").send().await.expect(StatusCode::CREATED);
    let second = ask("60").send().await.expect(StatusCode::CREATED);
    assert_eq!(first.bytes, second.bytes);
    assert_eq!(
        second.header(header::HeaderName::from_static("idempotent-replayed")),
        "true"
    );
    ask("61")
        .send()
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused");
    assert_eq!(amounts(&app, &session).await, ["40", "60", "0", "0"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_withdrawal_that_cannot_be_is_refused_and_changes_nothing(db: PgPool) {
    let app = TestApp::new(db).await;
    let asset = asset(&app).await;
    let (session, address) = app.bound_session().await;
    deposit(&app, address, 100).await;
    let ask = async |amount: Value| {
        let body = json!({ "amount": amount });
        app.post("/v1/withdrawals", &body).by(&session).send().await
    };
    let short = ask(money(&asset, "101"))
        .await
        .expect_problem(StatusCode::PAYMENT_REQUIRED, "insufficient_funds");
    assert_eq!(short.text("/detail"), "100 base units are available");
    let nothing = ask(money(&asset, "0"))
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(nothing.text("/errors/0/pointer"), "/amount/amount");
    let mut other = money(&asset, "1");
    other["asset"] = "eip155:1/erc20:0x0000000000000000000000000000000000000001".into();
    let other = ask(other)
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(other.text("/errors/0/pointer"), "/amount/asset");
    // A number is not money.
    let mut number = money(&asset, "1");
    number["amount"] = 1.into();
    assert!(ask(number).await.status.is_client_error());
    assert_eq!(amounts(&app, &session).await, ["100", "0", "0", "0"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn withdrawals_are_listed_newest_first_page_by_page(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = app.bound_session().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.insert(0, make(&app, &session).await.remove(0));
    }
    let first = app
        .get("/v1/withdrawals?limit=2")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (first.text("/data/0/id"), first.text("/data/1/id")),
        (made[0].as_str(), made[1].as_str())
    );
    let next = format!(
        "/v1/withdrawals?limit=2&cursor={}",
        first.text("/next_cursor")
    );
    let rest = app
        .get(&next)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(rest.json["data"].as_array().unwrap().len(), 1);
    assert_eq!(
        (rest.text("/data/0/id"), &rest.json["has_more"]),
        (made[2].as_str(), &Value::Bool(false))
    );
    let (stranger, _) = app.bound_session().await;
    let none = app
        .get("/v1/withdrawals")
        .by(&stranger)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(none.json["data"], json!([]));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_statement_explains_the_balance_line_by_line(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, address) = app.bound_session().await;
    deposit(&app, address, 5).await;
    let withdrawal = make(&app, &session).await.remove(0);
    let mut lines = Vec::new();
    let mut path = "/v1/statement?limit=1".to_owned();
    loop {
        let page = app
            .get(&path)
            .by(&session)
            .send()
            .await
            .expect(StatusCode::OK);
        lines.extend(page.json["data"].as_array().unwrap().clone());
        let Some(cursor) = page.json["next_cursor"].as_str() else {
            break;
        };
        path = format!("/v1/statement?limit=1&cursor={cursor}");
    }
    let shown: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |pointer: &str| line.pointer(pointer).unwrap().as_str().unwrap().to_owned();
            (
                text("/kind"),
                text("/account"),
                text("/change/amount"),
                text("/balance_after/amount"),
            )
        })
        .collect();
    let line = |kind: &str, account: &str, change: &str, after: &str| {
        (
            kind.to_owned(),
            account.to_owned(),
            change.to_owned(),
            after.to_owned(),
        )
    };
    let (mut hold, deposits) = (shown[..2].to_vec(), &shown[2..]);
    hold.sort();
    assert_eq!(
        hold,
        [
            line("hold", "available", "-10", "5"),
            line("hold", "held", "10", "10")
        ]
    );
    assert_eq!(
        deposits,
        [
            line("deposit", "available", "10", "15"),
            line("deposit", "available", "5", "5")
        ]
    );
    assert_eq!(
        lines[0]["source"],
        json!({ "kind": "withdrawal", "id": withdrawal })
    );
    assert_eq!(lines[3]["source"]["kind"], "deposit");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn prices_are_those_of_the_moment(db: PgPool) {
    let app = TestApp::new(db).await;
    let asset = asset(&app).await;
    let publish = async |device, rate_nano, later| {
        let new = NewPrice {
            device,
            rate_nano: Rate::from_nano(rate_nano).unwrap(),
            minimum: Amount::from_base(3).unwrap(),
            platform_ppm: 50_000,
            effective_at: app.now() + later,
        };
        let mut connection = app.owner.acquire().await.unwrap();
        prices::publish(&mut connection, asset.id, new)
            .await
            .unwrap()
            .id
    };
    let cuda = publish(Device::Cuda, 9, Duration::ZERO).await;
    let first_version = publish(Device::Cpu, 7, Duration::ZERO).await;
    let raised = publish(Device::Cpu, 8, Duration::HOUR).await;
    app.pass(Duration::HOUR);
    let session = app.session().await;
    let first = app
        .get("/v1/prices?limit=1")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (
            &first.json["data"][0]["id"],
            first.text("/data/0/rate_nano")
        ),
        (&json!(raised), "8")
    );
    assert_eq!(first.json["data"][0]["minimum"], money(&asset, "3"));
    let next = format!("/v1/prices?limit=1&cursor={}", first.text("/next_cursor"));
    let rest = app
        .get(&next)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (&rest.json["data"][0]["id"], &rest.json["has_more"]),
        (&json!(cuda), &json!(false))
    );
    // A version that is no longer current is still there for those who were quoted it.
    let old = app
        .get(&format!("/v1/prices/{first_version}"))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (&old.json["id"], old.text("/rate_nano")),
        (&json!(first_version), "7")
    );
    for unknown in ["999999", "nobodys", "-1"] {
        let none = app
            .get(&format!("/v1/prices/{unknown}"))
            .by(&session)
            .send()
            .await;
        none.expect_problem(StatusCode::NOT_FOUND, "not_found");
    }
}
