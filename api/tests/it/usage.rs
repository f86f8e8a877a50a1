//! What was used, over HTTP: sums, usage files and windows; and what a process left open when it fell silent.

use alloy_primitives::Address;
use axum::http::{Method, StatusCode, header};
use comptoir_api::steps;
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    digest::Sha256,
    id::{AllowanceId, ApiKeyId, CallId, ModelId, ModelVersionId, UsageWindowId, WorkerId},
    model::{Tariff, Usage},
    price::Rate,
    usage::{HEADER, UsageRecord},
};
use comptoir_store::{
    allowances::{self, NewAllowance},
    receipts,
    usage::{self, Recorded, UsageEvent},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    harness::{Reply, Session, TestApp},
    market::{self, client},
    models,
};

const OWNER: Address = Address::repeat_byte(0x77);

/// A public model at 7 base units a call, and somebody who calls it.
struct Calling<'a> {
    app: &'a TestApp,
    asset: Asset,
    caller: Session,
    payer: Address,
    model: ModelId,
    version: ModelVersionId,
}

impl<'a> Calling<'a> {
    async fn new(app: &'a TestApp, base: u128) -> Self {
        let (asset, _) = market::open(app).await;
        let (creator, _) = client(app, &asset, 0).await;
        let (caller, payer) = client(app, &asset, base).await;
        let path = models::shown(app, &creator).await;
        let reply = app
            .get(&format!("{path}/versions"))
            .by(&caller)
            .send()
            .await;
        let version = reply.text("/data/0/id").parse().unwrap();
        let model = path.rsplit('/').next().unwrap().parse().unwrap();
        Self {
            app,
            asset,
            caller,
            payer,
            model,
            version,
        }
    }

    async fn open(&self, key: Option<ApiKeyId>, base: u128) -> AllowanceId {
        let base = Amount::from_base(base).unwrap();
        let new = NewAllowance {
            id: AllowanceId::generate(),
            account: self.caller.account,
            key,
            payer: self.payer,
            asset_id: self.asset.id,
            process: Uuid::now_v7(),
            least: base,
            wanted: base,
        };
        let mut tx = self.app.state.db.begin().await.unwrap();
        allowances::open(&mut tx, &new, self.app.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        new.id
    }

    /// So many calls, a second apart, that were answered from `at` on.
    async fn call(
        &self,
        allowance: AllowanceId,
        key: Option<ApiKeyId>,
        at: OffsetDateTime,
        calls: u32,
    ) {
        let usage = Usage {
            rows: 2,
            input_tokens: 3,
            output_tokens: 0,
            madds: 1 << 70,
        };
        let tariff = Tariff {
            call_nano: Rate::from_nano(7_000_000_000).unwrap(),
            ..Tariff::default()
        };
        let event = |number: u32| UsageEvent {
            call: CallId::generate(),
            allowance: Some(allowance),
            account: self.caller.account,
            key,
            model: self.model,
            version: self.version,
            price: 1,
            worker: WorkerId(Uuid::nil()),
            worker_owner: OWNER,
            usage,
            cost: tariff.cost(&usage).unwrap(),
            at: at + Duration::seconds(number.into()),
            duration_us: 900,
        };
        let events: Vec<_> = (0..calls).map(event).collect();
        let mut tx = self.app.state.db.begin().await.unwrap();
        let taken = usage::record(&mut tx, &events).await.unwrap();
        assert!(!taken.contains(&Recorded::Refused));
        tx.commit().await.unwrap();
    }

    async fn close(&self, allowance: AllowanceId) {
        let mut tx = self.app.state.db.begin().await.unwrap();
        allowances::close(&mut tx, allowance, self.app.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    async fn get(&self, path: &str) -> Reply {
        self.app.get(path).by(&self.caller).send().await
    }

    async fn csv(&self, query: &str) -> String {
        let path = format!("/v1/usage/events{query}");
        let call = self.app.get(&path).by(&self.caller);
        let reply = call.header(header::ACCEPT, "text/csv").send().await;
        let reply = reply.expect(StatusCode::OK);
        assert_eq!(
            reply.header(header::CONTENT_TYPE),
            "text/csv; charset=utf-8"
        );
        String::from_utf8(reply.bytes.clone()).unwrap()
    }

    async fn key(&self) -> ApiKeyId {
        let scopes = [comptoir_domain::scope::Scope::UsageRead];
        let scopes = scopes.into_iter().collect();
        self.app.api_key(&self.caller, &scopes).await;
        let reply = self.get("/v1/keys").await;
        reply.text("/data/0/id").parse().unwrap()
    }
}

fn text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap()
}

fn rows(reply: &Reply) -> &[Value] {
    reply.json["data"].as_array().unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_used_is_summed_by_time_key_model_and_version(db: PgPool) {
    let app = TestApp::new(db).await;
    let it = Calling::new(&app, 1_000).await;
    let key = it.key().await;
    let noon = app.now().replace_time(time::macros::time!(12:00));
    let (own, keyed) = (it.open(None, 100).await, it.open(Some(key), 100).await);
    it.call(own, None, noon, 3).await;
    it.call(own, None, noon + Duration::minutes(61), 2).await;
    it.call(keyed, Some(key), noon + Duration::seconds(30), 4)
        .await;
    let time = format!("from={}&to={}", text(noon), text(noon + Duration::hours(3)));
    let sums = async |query: &str| {
        let reply = it.get(&format!("/v1/usage?{time}&{query}")).await;
        let reply = reply.expect(StatusCode::OK);
        let sums = rows(&reply).iter().map(|row| {
            let key = row["key_id"].as_str().map(str::to_owned);
            (
                row["from"].as_str().unwrap()[11..16].to_owned(),
                key,
                row["calls"].as_u64().unwrap(),
            )
        });
        sums.collect::<Vec<_>>()
    };
    let at = |time: &str, key: Option<ApiKeyId>, calls: u64| {
        (time.to_owned(), key.map(|it| it.to_string()), calls)
    };
    assert_eq!(sums("window=1d").await, [at("00:00", None, 9)]);
    assert_eq!(
        sums("window=1h").await,
        [at("13:00", None, 2), at("12:00", None, 7)]
    );
    assert_eq!(
        sums("window=1m&group_by=key,model").await,
        [
            at("13:01", None, 2),
            at("12:00", None, 3),
            at("12:00", Some(key), 4)
        ]
    );
    assert_eq!(
        sums(&format!("window=1d&key={key}")).await,
        [at("00:00", None, 4)]
    );
    let other = ModelId::generate();
    assert_eq!(sums(&format!("model={other}")).await, []);
    // Exactly, whatever the numbers.
    let reply = it
        .get(&format!("/v1/usage?{time}&group_by=model,version"))
        .await;
    let sum = &rows(&reply)[0];
    assert_eq!(
        (&sum["rows"], &sum["input_tokens"]),
        (&18.into(), &27.into())
    );
    assert_eq!(sum["madds"], (9_u128 << 70).to_string());
    assert_eq!(
        (&sum["cost_base"], &sum["cost_atto"]),
        (&"63".into(), &"63000000000000000000".into())
    );
    assert_eq!(sum["model_id"], it.model.to_string());
    assert_eq!(sum["version_id"], it.version.to_string());
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn pages_of_sums_have_each_once_and_times_are_bounded(db: PgPool) {
    let app = TestApp::new(db).await;
    let it = Calling::new(&app, 1_000).await;
    let key = it.key().await;
    let (own, keyed) = (it.open(None, 100).await, it.open(Some(key), 100).await);
    let from = app.now() - Duration::hours(1);
    for minute in 0..4 {
        let at = from + Duration::minutes(minute);
        it.call(own, None, at, 1).await;
        it.call(keyed, Some(key), at, 2).await;
    }
    let all = format!(
        "/v1/usage?window=1m&group_by=key&from={}&to={}",
        text(from),
        text(app.now())
    );
    let whole = it.get(&all).await.expect(StatusCode::OK);
    assert_eq!(rows(&whole).len(), 8);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = it.get(&format!("{all}&limit=3{cursor}")).await;
        let page = page.expect(StatusCode::OK);
        seen.extend(rows(&page).to_vec());
        match page.json["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, rows(&whole));
    for (query, pointer) in [
        ("window=1m&from=2026-01-01T00:00:00Z", "?from"),
        ("from=2999-01-01T00:00:00Z", "?from"),
        ("group_by=model,owner", "?group_by"),
    ] {
        let reply = it.get(&format!("/v1/usage?{query}")).await;
        let reply = reply.expect(StatusCode::BAD_REQUEST);
        assert_eq!(reply.text("/errors/0/pointer"), pointer, "{query}");
    }
    for query in ["window=1s", "from=yesterday", "model=x"] {
        let reply = it.get(&format!("/v1/usage?{query}")).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{query}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_usage_file_of_a_window_is_the_one_that_its_receipt_names(db: PgPool) {
    let app = TestApp::new(db).await;
    let it = Calling::new(&app, 100_000).await;
    let allowance = it.open(None, 20_000).await;
    // More than one piece of it.
    it.call(allowance, None, app.now(), 2_001).await;
    let open = it.get("/v1/usage/windows?state=open").await;
    assert_eq!(open.text("/data/0/state"), "open");
    assert!(open.json["data"][0]["charged"].is_null());
    it.close(allowance).await;
    let windows = it.get("/v1/usage/windows").await.expect(StatusCode::OK);
    let [window] = rows(&windows) else {
        panic!("{:?}", windows.json)
    };
    assert_eq!(
        (&window["calls"], &window["charged"]["amount"]),
        (&2_001.into(), &"14007".into())
    );
    let none = it.get("/v1/usage/windows?state=open").await;
    assert_eq!(rows(&none), [] as [Value; 0]);
    let id: UsageWindowId = window["id"].as_str().unwrap().parse().unwrap();
    let file = it.csv(&format!("?window={id}")).await;
    let mut lines = file.lines();
    assert_eq!(lines.next(), Some(HEADER));
    let records: Vec<UsageRecord> = lines.map(|line| line.parse().unwrap()).collect();
    assert_eq!(records.len(), 2_001);
    assert!(records.is_sorted_by_key(|it| it.call));
    let receipt = window["receipt_id"].as_str().unwrap();
    let mut connection = app.owner.acquire().await.unwrap();
    let stored = receipts::find(&mut connection, receipt.parse().unwrap()).await;
    assert_eq!(stored.unwrap().unwrap().result, Sha256::of(file.as_bytes()));
    let shown = it.get(&format!("/v1/receipts/{receipt}")).await;
    assert_eq!(
        (shown.text("/kind"), shown.text("/window_id")),
        ("calls", id.to_string().as_str())
    );
    assert_eq!(shown.json["bill"]["counted"]["calls"], 2_001);
    // As pages, and by time.
    let page = it
        .get(&format!("/v1/usage/events?window={id}&limit=2"))
        .await;
    assert_eq!(page.text("/data/0/id"), records[0].call.to_string());
    let next = page.text("/next_cursor").to_owned();
    let page = it
        .get(&format!(
            "/v1/usage/events?window={id}&limit=2&cursor={next}"
        ))
        .await;
    assert_eq!(page.text("/data/0/id"), records[2].call.to_string());
    let to = app.now() + Duration::seconds(10);
    let time = format!("?from={}&to={}", text(app.now()), text(to));
    assert_eq!(it.csv(&time).await.lines().count(), 11);
    let page = it.get(&format!("/v1/usage/events{time}")).await;
    assert_eq!(rows(&page).len(), 10);
    assert_eq!(
        it.csv(&format!("{time}&model={}", ModelId::generate()))
            .await,
        format!("{HEADER}\n")
    );
    // Nobody else's, and nothing beside it.
    let (stranger, _) = app.bound_session().await;
    let path = format!("/v1/usage/events?window={id}");
    let reply = app.get(&path).by(&stranger).send().await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    let reply = it.get(&format!("{path}&model={}", it.model)).await;
    assert_eq!(reply.text("/errors/0/pointer"), "?window");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_made_a_model_does_not_see_who_calls_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let it = Calling::new(&app, 1_000).await;
    let allowance = it.open(None, 100).await;
    it.call(allowance, None, app.now() - Duration::MINUTE, 3)
        .await;
    let creator: Uuid = sqlx::query_scalar("SELECT account_id FROM models")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    let creator = app.sign_in(comptoir_domain::id::AccountId(creator)).await;
    for path in ["/v1/usage", "/v1/usage/events", "/v1/usage/windows"] {
        let seen = app.get(path).by(&creator).send().await;
        assert_eq!(
            rows(&seen.expect(StatusCode::OK)),
            [] as [Value; 0],
            "{path}"
        );
        assert!(!rows(&it.get(path).await).is_empty(), "{path}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_silent_process_left_open_is_charged_by_a_step_and_one_that_fails_hinders_no_other(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let it = Calling::new(&app, 1_000).await;
    let (broken, good) = (it.open(None, 100).await, it.open(None, 100).await);
    it.call(broken, None, app.now(), 1).await;
    it.call(good, None, app.now(), 2).await;
    // The hold of one is gone, as only an error of ours could make it.
    sqlx::query("UPDATE holds SET ended_at = $2 WHERE source_id = $1")
        .bind(broken.0)
        .bind(app.now())
        .execute(&app.owner)
        .await
        .unwrap();
    let charged = async || -> Vec<Option<sqlx::types::BigDecimal>> {
        sqlx::query_scalar("SELECT charged_base FROM allowances ORDER BY allowance_id")
            .fetch_all(&app.owner)
            .await
            .unwrap()
    };
    steps::step(&app.state).await.unwrap();
    assert_eq!(charged().await, [None, None]);
    app.pass(Duration::seconds(61));
    steps::step(&app.state).await.unwrap();
    assert_eq!(charged().await, [None, Some(14.into())]);
    let balance = app
        .get("/v1/balance")
        .by(&app.renewed(&it.caller))
        .send()
        .await;
    assert_eq!(balance.text("/available/amount"), "886");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_allowance_that_makes_the_balance_low_says_so(db: PgPool) {
    let app = TestApp::new(db).await;
    let it = Calling::new(&app, 1_000).await;
    let endpoint = json!({ "url": "https://example.org/" });
    crate::webhooks::create(&app, &it.caller, &endpoint).await;
    let threshold = json!({ "amount": "500", "asset": it.asset.caip19(), "decimals": 18 });
    let call = app.request(Method::PUT, "/v1/balance/alert").by(&it.caller);
    let set = call.json(&json!({ "threshold": threshold })).send().await;
    set.expect(StatusCode::OK);
    it.open(None, 500).await;
    assert_eq!(rows(&it.get("/v1/events").await), [] as [Value; 0]);
    it.open(None, 1).await;
    let events = it.get("/v1/events").await;
    assert_eq!(events.text("/data/0/type"), "balance.low");
    assert_eq!(events.text("/data/0/data/available/amount"), "499");
}
