//! Where an API key may be used from, what its jobs may cost, and how many there are.

use axum::http::StatusCode;
use comptoir_domain::{
    digest::Sha256,
    id::JobId,
    ip_list::IpList,
    job::Tier,
    price::{self, Meter},
};
use comptoir_store::{
    api_keys::{self, KEYS_MAX},
    charges::{self, JobCharge},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::{Duration, format_description::well_known::Rfc3339};

use crate::{
    harness::{Reply, Session, TestApp},
    jobs::count,
    market,
};

async fn make(app: &TestApp, session: &Session, body: Value) -> Reply {
    app.post("/v1/keys", &body).by(session).send().await
}

fn holder(session: &Session, made: &Reply) -> Session {
    Session {
        token: made.text("/key").to_owned(),
        ..session.clone()
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_works_from_its_networks_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let networks = json!(["203.0.113.0/24", "2001:db8::7"]);
    let body = json!({ "name": "office", "scopes": ["account:read"], "allowed_ips": networks });
    let made = make(&app, &session, body).await.expect(StatusCode::CREATED);
    assert_eq!(
        made.json["allowed_ips"],
        json!(["203.0.113.0/24", "2001:db8::7/128"])
    );
    let key = holder(&session, &made);
    let from = async |address: &str| {
        let call = app.get("/v1/account").by(&key).called_from(address);
        call.send().await
    };
    for address in ["203.0.113.9", "::ffff:203.0.113.9", "2001:db8::7"] {
        from(address).await.expect(StatusCode::OK);
    }
    for address in ["203.0.114.9", "2001:db8::8", "127.0.0.1"] {
        from(address)
            .await
            .expect_problem(StatusCode::FORBIDDEN, "ip_refused");
    }
    let forged = app
        .get("/v1/account")
        .by(&key)
        .called_from("198.51.100.1")
        .header(
            axum::http::HeaderName::from_static("x-forwarded-for"),
            "203.0.113.9",
        );
    forged
        .send()
        .await
        .expect_problem(StatusCode::FORBIDDEN, "ip_refused");
    let refusals: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_events WHERE body::jsonb ->> 'action' = 'api_key.refused'",
    )
    .fetch_one(&app.owner)
    .await
    .unwrap();
    assert_eq!(refusals, 4);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn networks_that_are_none_are_named(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let networks = json!(["203.0.113.0/24", "203.0.113.1/24", "localhost"]);
    let body = json!({ "name": "a", "scopes": ["jobs:read"], "allowed_ips": networks });
    let reply = make(&app, &session, body).await;
    let reply = reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(reply.text("/errors/0/pointer"), "/allowed_ips/1");
    assert_eq!(reply.text("/errors/1/pointer"), "/allowed_ips/2");
    let many: Vec<_> = (0..33).map(|last| format!("203.0.113.{last}")).collect();
    let body = json!({ "name": "a", "scopes": ["jobs:read"], "allowed_ips": many });
    let reply = make(&app, &session, body).await;
    reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
}

/// A key, the amount of the token, and the price of the example's job.
struct Spender {
    app: TestApp,
    owner: Session,
    key: Session,
    hold: u128,
}

impl Spender {
    /// A key whose limit is so many times the hold of one job of the example.
    async fn new(app: TestApp, period: &str, jobs: u128) -> Self {
        let (asset, _) = market::open(&app).await;
        let (owner, _) = market::client(&app, &asset, 1_000_000).await;
        let spec = market::training(&app, &owner, "mlp.pt2").await;
        let quoted = market::quote(&app, &owner, &spec, "none").await;
        let mut limit = quoted.json["hold"].clone();
        let hold: u128 = limit["amount"].as_str().unwrap().parse().unwrap();
        limit["amount"] = (hold * jobs).to_string().into();
        let body = json!({
            "name": "spender", "scopes": ["jobs:read", "jobs:write", "blobs:read"],
            "spend_limit": { "amount": limit, "period": period },
        });
        let made = make(&app, &owner, body).await.expect(StatusCode::CREATED);
        assert_eq!(made.json["spend_limit"]["period"], period);
        let key = holder(&owner, &made);
        Self {
            app,
            owner,
            key,
            hold,
        }
    }

    async fn submit(&self) -> Reply {
        let spec = market::training(&self.app, &self.owner, "mlp.pt2").await;
        let quoted = market::quote(&self.app, &self.owner, &spec, "none").await;
        let body = json!({ "quote_id": quoted.text("/id"), "max_cost": quoted.json["hold"] });
        self.app.post("/v1/jobs", &body).by(&self.key).send().await
    }

    /// What the key's own page says was spent and is left.
    async fn standing(&self) -> (u128, u128) {
        let page = self.app.get("/v1/key").by(&self.key).send().await;
        let page = page.expect(StatusCode::OK);
        let amount = |pointer: &str| page.text(pointer).parse().unwrap();
        (amount("/usage/amount"), amount("/remaining/amount"))
    }

    async fn cancel(&self, job: &Reply) {
        let cancel = format!("/v1/jobs/{}/cancel", job.text("/id"));
        let call = self.app.post(&cancel, &json!({})).by(&self.key);
        call.send().await.expect(StatusCode::OK);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_spends_up_to_its_limit_and_what_comes_back_counts_no_more(db: PgPool) {
    let spender = Spender::new(TestApp::new(db).await, "lifetime", 2).await;
    let hold = spender.hold;
    assert_eq!(spender.standing().await, (0, 2 * hold));
    let first = spender.submit().await.expect(StatusCode::CREATED);
    spender.submit().await.expect(StatusCode::CREATED);
    assert_eq!(spender.standing().await, (2 * hold, 0));
    let holds = count(&spender.app, "holds").await;
    let refused = spender.submit().await;
    refused.expect_problem(StatusCode::PAYMENT_REQUIRED, "spend_limit_reached");
    assert_eq!(count(&spender.app, "holds").await, holds, "nothing is held");

    spender.cancel(&first).await;
    assert_eq!(spender.standing().await, (hold, hold));
    spender.submit().await.expect(StatusCode::CREATED);
    assert_eq!(spender.standing().await, (2 * hold, 0));
    spender.app.pass(Duration::days(400));
    let refused = spender.submit_later().await;
    refused.expect_problem(StatusCode::PAYMENT_REQUIRED, "spend_limit_reached");
}

impl Spender {
    /// Submits after the owner's first token has ended.
    async fn submit_later(&self) -> Reply {
        let owner = self.app.sign_in(self.owner.account).await;
        let spec = market::training(&self.app, &owner, "mlp.pt2").await;
        let quoted = market::quote(&self.app, &owner, &spec, "none").await;
        let body = json!({ "quote_id": quoted.text("/id"), "max_cost": quoted.json["hold"] });
        self.app.post("/v1/jobs", &body).by(&self.key).send().await
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_days_limit_is_whole_again_at_midnight(db: PgPool) {
    let spender = Spender::new(TestApp::new(db).await, "day", 1).await;
    spender.submit().await.expect(StatusCode::CREATED);
    let refused = spender.submit().await;
    refused.expect_problem(StatusCode::PAYMENT_REQUIRED, "spend_limit_reached");
    let page = spender.app.get("/v1/key").by(&spender.key).send().await;
    assert_eq!(page.text("/resets_at"), "2026-11-23T00:00:00Z");
    spender.app.pass(Duration::hours(15));
    assert_eq!(spender.standing().await, (0, spender.hold));
    let later = spender.submit_later().await;
    later.expect(StatusCode::CREATED);
    assert_eq!(spender.standing().await, (spender.hold, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_charged_job_counts_what_it_was_charged(db: PgPool) {
    let app = TestApp::new(db).await;
    let spender = Spender::new(app, "day", 2).await;
    let job = spender.submit().await.expect(StatusCode::CREATED);
    let charged = charge(&spender, &job).await;
    assert!(charged < spender.hold, "{charged} of {}", spender.hold);
    let left = 2 * spender.hold - charged;
    assert_eq!(spender.standing().await, (charged, left));
    spender.submit().await.expect(StatusCode::CREATED);
    let standing = (charged + spender.hold, left - spender.hold);
    assert_eq!(spender.standing().await, standing);
}

/// Settles the job for the smallest charge; says that.
async fn charge(spender: &Spender, job: &Reply) -> u128 {
    let app = &spender.app;
    let id: JobId = job.text("/id").parse().unwrap();
    let mut tx = app.owner.begin().await.unwrap();
    let stored = comptoir_store::jobs::find(&mut tx, spender.owner.account, id)
        .await
        .unwrap()
        .unwrap();
    let asset = comptoir_store::assets::current(&mut tx).await.unwrap();
    let version = comptoir_store::prices::find(&mut tx, stored.price_version)
        .await
        .unwrap();
    let meter = Meter::inference(1, 1, Tier::None).unwrap();
    let charge = JobCharge {
        job: id,
        account: spender.owner.account,
        payer: stored.payer,
        asset_id: asset.id,
        meter,
        price: version,
        amount: price::amount(&meter, &version).unwrap(),
        shares: vec![(alloy_primitives::Address::repeat_byte(0x77), 1)],
        data: None,
        input: Sha256([1; 32]),
        result: Sha256([2; 32]),
        verdict: Sha256([3; 32]),
    };
    charges::settle_job(&mut tx, &charge, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    market::MINIMUM
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn jobs_at_once_do_not_pass_the_limit_together(db: PgPool) {
    let spender = Spender::new(TestApp::new(db).await, "day", 3).await;
    let mut quotes = Vec::new();
    for _ in 0..8 {
        let spec = market::training(&spender.app, &spender.owner, "mlp.pt2").await;
        let quoted = market::quote(&spender.app, &spender.owner, &spec, "none").await;
        quotes.push(json!({ "quote_id": quoted.text("/id"), "max_cost": quoted.json["hold"] }));
    }
    let calls = quotes
        .iter()
        .map(|body| spender.app.post("/v1/jobs", body).by(&spender.key).send());
    let replies = futures::future::join_all(calls).await;
    let made = replies
        .iter()
        .filter(|reply| reply.status == StatusCode::CREATED);
    assert_eq!(made.count(), 3);
    assert_eq!(spender.standing().await, (3 * spender.hold, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_without_a_limit_shows_none(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let body = json!({ "name": "plain", "scopes": ["jobs:read"] });
    let made = make(&app, &session, body).await.expect(StatusCode::CREATED);
    let page = app.get("/v1/key").by(&holder(&session, &made)).send().await;
    for member in ["spend_limit", "limit", "remaining", "usage", "resets_at"] {
        assert_eq!(page.json[member], Value::Null, "{member}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_restricted_key_makes_no_key_without_its_restriction(db: PgPool) {
    let app = TestApp::new(db).await;
    market::open(&app).await;
    let session = app.session().await;
    let price = app.get("/v1/prices").by(&session).send().await;
    let asset = price.text("/data/0/minimum/asset").to_owned();
    let amount = json!({ "amount": "1", "asset": asset, "decimals": 18 });
    let tomorrow = (app.now() + Duration::DAY).format(&Rfc3339).unwrap();
    for restriction in [
        json!({ "expires_at": tomorrow }),
        json!({ "allowed_ips": ["203.0.113.7"] }),
        json!({ "spend_limit": { "amount": amount, "period": "day" } }),
    ] {
        let mut body = json!({ "name": "maker", "scopes": ["keys:write"] });
        for (member, value) in restriction.as_object().unwrap() {
            body[member] = value.clone();
        }
        let made = make(&app, &session, body).await.expect(StatusCode::CREATED);
        let wanted = json!({ "name": "free", "scopes": ["keys:write"] });
        let call = app.post("/v1/keys", &wanted).called_from("203.0.113.7");
        let refused = call.by(&holder(&session, &made)).send().await;
        refused.expect_problem(StatusCode::FORBIDDEN, "key_restricted");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_account_has_so_many_working_keys_and_no_more(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let scopes = [comptoir_domain::scope::Scope::JobsRead]
        .into_iter()
        .collect();
    let mut tx = app.state.db.begin().await.unwrap();
    for _ in 0..KEYS_MAX {
        let new = api_keys::NewApiKey {
            name: "one of many",
            prefix: "ck_test_0000",
            hmac: comptoir_api::auth::keys::random(),
            scopes: &scopes,
            allowed_ips: &IpList::default(),
            spend_limit: None,
            expires_at: Some(app.now() + Duration::HOUR),
        };
        api_keys::create(&mut tx, session.account, &new, app.now())
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    let body = || json!({ "name": "one more", "scopes": ["jobs:read"] });
    make(&app, &session, body())
        .await
        .expect_problem(StatusCode::CONFLICT, "too_many_keys");
    app.pass(Duration::HOUR);
    let session = app.renewed(&session);
    make(&app, &session, body())
        .await
        .expect(StatusCode::CREATED);
}
