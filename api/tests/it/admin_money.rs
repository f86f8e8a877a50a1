//! Refunds by two people, and prices to come.

use axum::http::{StatusCode, header};
use comptoir_domain::{
    asset::Asset,
    digest::Sha256,
    id::{DatasetId, JobId},
    price,
};
use comptoir_store::{
    charges::{self, JobCharge},
    jobs, prices,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::{Duration, format_description::well_known::Rfc3339};

use crate::{
    admin::{admin, told},
    harness::{Reply, Session, TestApp},
    jobs::RICH,
    market::{self, balances, client, quote, training},
};

/// A job of the example that was completed by somebody and paid for.
pub async fn paid_job(
    app: &TestApp,
    session: &Session,
    worker: alloy_primitives::Address,
) -> JobId {
    let id: JobId = market::job(app, session, "none")
        .await
        .text("/id")
        .parse()
        .unwrap();
    let mut tx = app.owner.begin().await.unwrap();
    let job = jobs::find(&mut tx, session.account, id)
        .await
        .unwrap()
        .unwrap();
    let version = prices::find(&mut tx, job.price_version).await.unwrap();
    let asset = comptoir_store::assets::current(&mut tx).await.unwrap();
    let charge = JobCharge {
        job: id,
        account: session.account,
        payer: job.payer,
        asset_id: asset.id,
        meter: job.meter,
        price: version,
        amount: price::amount(&job.meter, &version).unwrap(),
        shares: vec![(worker, 1)],
        data: None,
        input: Sha256::of(b"input"),
        result: Sha256::of(b"result"),
        verdict: Sha256::of(b"verdict"),
    };
    charges::settle_job(&mut tx, &charge, app.now())
        .await
        .unwrap();
    sqlx::query("DELETE FROM queue WHERE job_id = $1")
        .bind(id.0)
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query("UPDATE jobs SET state = 'completed', finished_at = $2 WHERE job_id = $1")
        .bind(id.0)
        .bind(app.now())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    id
}

pub fn money(asset: &Asset, base: u128) -> Value {
    json!({ "amount": base.to_string(), "asset": asset.caip19(), "decimals": 18 })
}

pub async fn propose(app: &TestApp, by: &Session, body: &Value) -> Reply {
    app.post("/v1/admin/refunds", body).by(by).send().await
}

pub async fn approve(app: &TestApp, by: &Session, id: &str) -> Reply {
    app.post(&format!("/v1/admin/refunds/{id}/approve"), &json!({}))
        .by(by)
        .send()
        .await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_refund_is_seen_by_whoever_gets_it_and_paid_by_the_platform(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (first, second) = (admin(&app).await, admin(&app).await);
    let (session, payer) = client(&app, &asset, RICH).await;
    let (_, worker) = client(&app, &asset, 0).await;
    let job = paid_job(&app, &session, worker).await;
    let before = (
        balances(&app, &asset, payer).await,
        balances(&app, &asset, worker).await,
    );
    let body = json!({ "job_id": job, "amount": money(&asset, 7), "reason": "unusable" });
    let proposed = propose(&app, &first, &body)
        .await
        .expect(StatusCode::CREATED);
    let id = proposed.text("/id").to_owned();
    assert_eq!(
        proposed.header(header::LOCATION),
        format!("/v1/admin/refunds/{id}")
    );
    let alone = approve(&app, &first, &id).await;
    alone.expect_problem(StatusCode::FORBIDDEN, "second_person_required");
    let posted = approve(&app, &second, &id).await.expect(StatusCode::OK);
    assert_eq!(
        (posted.text("/state"), posted.text("/decided_by")),
        ("posted", second.account.to_string().as_str())
    );

    let after = (
        balances(&app, &asset, payer).await,
        balances(&app, &asset, worker).await,
    );
    assert_eq!(after.0.available.base(), before.0.available.base() + 7);
    assert_eq!(after.1, before.1, "payees keep what they earned");
    let shown = app
        .get(&format!("/v1/jobs/{job}"))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(shown.text("/refunded/amount"), "7");
    let statement = app.get("/v1/statement?limit=1").by(&session).send().await;
    assert_eq!(
        (
            statement.text("/data/0/kind"),
            statement.text("/data/0/source/kind"),
            statement.text("/data/0/source/id")
        ),
        ("reversal", "refund", id.as_str())
    );
    assert_eq!(statement.text("/data/0/change/amount"), "7");
    for (action, by) in [("refund.proposed", &first), ("refund.approved", &second)] {
        let record = &told(&app, action).await[0];
        assert_eq!(
            (record.subject.clone(), record.actor.clone()),
            (id.clone(), by.account.to_string())
        );
        assert_eq!(
            (record.account, record.detail["amount_base"].clone()),
            (Some(session.account), json!("7"))
        );
    }
    let again = approve(&app, &second, &id).await;
    again.expect_problem(StatusCode::CONFLICT, "refund_decided");
    let list = app
        .get(&format!("/v1/admin/refunds?state=posted&job_id={job}"))
        .by(&first)
        .send()
        .await;
    assert_eq!(list.text("/data/0/id"), id);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_repeated_approval_is_answered_and_not_repeated(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (first, second) = (admin(&app).await, admin(&app).await);
    let (session, payer) = client(&app, &asset, RICH).await;
    let (_, worker) = client(&app, &asset, 0).await;
    let job = paid_job(&app, &session, worker).await;
    let body = json!({ "job_id": job, "amount": money(&asset, 7), "reason": "unusable" });
    let propose = || {
        app.post("/v1/admin/refunds", &body)
            .by(&first)
            .idempotency_key("one")
            .send()
    };
    let id = propose()
        .await
        .expect(StatusCode::CREATED)
        .text("/id")
        .to_owned();
    assert_eq!(propose().await.expect(StatusCode::CREATED).text("/id"), id);
    let path = format!("/v1/admin/refunds/{id}/approve");
    let before = balances(&app, &asset, payer).await.available.base();
    let approve = || {
        app.post(&path, &json!({}))
            .by(&second)
            .idempotency_key("two")
            .send()
    };
    let first = approve().await.expect(StatusCode::OK);
    let replayed = approve().await.expect(StatusCode::OK);
    assert_eq!(
        (
            replayed.header(
                "idempotent-replayed"
                    .parse::<axum::http::HeaderName>()
                    .unwrap()
            ),
            &replayed.json
        ),
        ("true", &first.json)
    );
    assert_eq!(
        balances(&app, &asset, payer).await.available.base(),
        before + 7
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_forfeited_to_who_paid_is_not_refunded_again(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (first, second) = (admin(&app).await, admin(&app).await);
    let (session, payer) = client(&app, &asset, RICH).await;
    let (seller, worker) = client(&app, &asset, 0).await;
    let job = paid_job(&app, &session, worker).await;
    let dataset = crate::datasets::dataset(&app, &seller).await;
    let dataset: DatasetId = dataset.rsplit('/').next().unwrap().parse().unwrap();
    let proposed = propose(&app, &first, &json!({ "job_id": job, "reason": "x" })).await;
    let whole = proposed.text("/amount/amount").to_owned();
    let forfeit = "INSERT INTO held_proceeds (source_kind, source_id, owner, dataset_id, asset_id, payer, amount_base, state, created_at, ended_at)
        VALUES ('job', $1, $2, $3, $4, $5, $6::numeric - 3, 'forfeited', now(), now())";
    sqlx::query(forfeit)
        .bind(job.0)
        .bind(worker.to_vec())
        .bind(dataset.0)
        .bind(asset.id)
        .bind(payer.to_vec())
        .bind(&whole)
        .execute(&app.owner)
        .await
        .unwrap();
    // What was proposed before is judged again when it is approved.
    let late = approve(&app, &second, proposed.text("/id")).await;
    late.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let path = format!("/v1/admin/refunds/{}/cancel", proposed.text("/id"));
    let cancelled = app.post(&path, &json!({})).by(&second).send().await;
    cancelled.expect(StatusCode::OK);
    let of = |base| json!({ "job_id": job, "amount": money(&asset, base), "reason": "x" });
    let more = propose(&app, &first, &of(4)).await;
    more.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let rest = propose(&app, &first, &of(3))
        .await
        .expect(StatusCode::CREATED);
    let posted = approve(&app, &second, rest.text("/id")).await;
    posted.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_refund_beyond_its_bounds_is_refused_with_the_reason(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (first, second) = (admin(&app).await, admin(&app).await);
    let (session, _) = client(&app, &asset, RICH).await;
    let (_, worker) = client(&app, &asset, 0).await;
    let open = market::job(&app, &session, "none").await;
    let body = json!({ "job_id": open.text("/id"), "reason": "x" });
    let uncharged = propose(&app, &first, &body).await;
    uncharged.expect_problem(StatusCode::CONFLICT, "job_not_charged");
    let job = paid_job(&app, &session, worker).await;
    let of = |base| json!({ "job_id": job, "amount": money(&asset, base), "reason": "x" });
    for base in [0, RICH] {
        propose(&app, &first, &of(base))
            .await
            .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    let silent = json!({ "job_id": job, "reason": " " });
    propose(&app, &first, &silent)
        .await
        .expect(StatusCode::UNPROCESSABLE_ENTITY);
    // The fees of the job are a tenth of it: the platform has no more.
    let all = propose(&app, &first, &json!({ "job_id": job, "reason": "x" }))
        .await
        .expect(StatusCode::CREATED);
    let waits = propose(&app, &second, &of(1)).await;
    waits.expect_problem(StatusCode::CONFLICT, "refund_waits");
    let id = all.text("/id").to_owned();
    approve(&app, &second, &id)
        .await
        .expect_problem(StatusCode::CONFLICT, "refund_not_funded");
    let path = format!("/v1/admin/refunds/{id}/cancel");
    let cancel = || app.post(&path, &json!({})).by(&second).send();
    assert_eq!(
        cancel().await.expect(StatusCode::OK).text("/state"),
        "cancelled"
    );
    cancel().await.expect(StatusCode::OK);
    propose(&app, &first, &of(1))
        .await
        .expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_price_to_come_binds_quotes_made_from_then_on_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, old) = market::open(&app).await;
    let admin = admin(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let starts = app.now() + Duration::minutes(10);
    let body = json!({
        "device": "cpu", "rate_nano": (market::RATE_NANO * 2).to_string(), "minimum": money(&asset, 1),
        "platform_ppm": 50_000, "effective_at": starts.format(&Rfc3339).unwrap(),
    });
    let publish = async |body: &Value| app.post("/v1/admin/prices", body).by(&admin).send().await;
    let mut never = body.clone();
    never["effective_at"] = json!("9999-12-31T23:59:59-23:59");
    publish(&never)
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let made = publish(&body).await.expect(StatusCode::CREATED);
    let new = made.json["id"].as_i64().unwrap();
    assert_eq!(made.json["in_force"], false);
    let before = quote(&app, &session, &spec, "none")
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(before.json["price_version"]["id"], old.id);
    app.pass(Duration::minutes(10));
    let after = quote(&app, &session, &spec, "none")
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(after.json["price_version"]["id"], new);
    // The quote of before is binding: the job holds what it said.
    let job = json!({ "quote_id": before.text("/id"), "max_cost": before.json["hold"] });
    let job = app
        .post("/v1/jobs", &job)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(job.json["quoted"], before.json["hold"]);
    let fresh = app.sign_in(admin.account).await;
    let list = app
        .get("/v1/admin/prices")
        .by(&fresh)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (
            list.json["data"][0]["id"].as_i64(),
            list.json["data"][0]["in_force"].as_bool()
        ),
        (Some(new), Some(true))
    );
    assert_eq!(list.json["data"][1]["id"], old.id);
    assert_eq!(told(&app, "price.published").await.len(), 1);

    let mut wrong = body.clone();
    wrong["platform_ppm"] = 200_001.into();
    wrong["rate_nano"] = "0".into();
    let refused = app.post("/v1/admin/prices", &wrong).by(&fresh).send().await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let pointers: Vec<_> = refused.json["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["pointer"].clone())
        .collect();
    // The time of the price has begun: a price of the past is none.
    assert_eq!(pointers, ["/rate_nano", "/platform_ppm"]);
    app.pass(Duration::minutes(1));
    let fresh = app.sign_in(admin.account).await;
    let past = app.post("/v1/admin/prices", &body).by(&fresh).send().await;
    past.expect(StatusCode::UNPROCESSABLE_ENTITY);
}
