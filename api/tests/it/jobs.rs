use axum::http::{StatusCode, header};
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    job::{Cause, JobState, state::EndedAs},
};
use comptoir_store::{
    jobs::{self, Failure},
    objects::Stored,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::{
    harness::{Session, TestApp},
    market::{self, balances, client, job, quote, training},
};

/// Enough for every job of the example.
pub const RICH: u128 = 1_000_000;

/// For the walk over every route: a job that has ended, so that its events do too.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let (asset, _) = market::open(app).await;
    let mut tx = app.owner.begin().await.unwrap();
    let address = comptoir_store::accounts::find(&mut tx, owner.account)
        .await
        .unwrap()
        .unwrap()
        .address
        .unwrap();
    let source = format!("walk:{}", uuid::Uuid::now_v7());
    let amount = Amount::from_base(RICH).unwrap();
    comptoir_store::ledger::deposit(&mut tx, asset.id, address, amount, &source, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let id = job(app, owner, "none").await.text("/id").to_owned();
    app.post(&format!("/v1/jobs/{id}/cancel"), &json!({}))
        .by(owner)
        .send()
        .await
        .expect(StatusCode::OK);
    vec![id]
}

pub async fn count(app: &TestApp, table: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
        .fetch_one(&app.owner)
        .await
        .unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_holds_its_price_and_gives_it_back_when_cancelled(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, address) = client(&app, &asset, RICH).await;
    let made = job(&app, &session, "replicated").await;
    let path = made.header(header::LOCATION).to_owned();
    let hold: u128 = made.text("/quoted/amount").parse().unwrap();
    assert!(hold > market::MINIMUM);
    let held = balances(&app, &asset, address).await;
    assert_eq!(
        (held.available.base(), held.held.base()),
        (RICH - hold, hold)
    );
    assert_eq!(
        (made.text("/state"), made.text("/status_reason")),
        ("queued", "no_worker_with_capability")
    );
    assert_eq!(made.json["replicas"].as_array().unwrap().len(), 2);
    assert_eq!(count(&app, "queue").await, 2);

    let found = app
        .get(&path)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(found.json, made.json);
    let tag = found.header(header::ETAG).to_owned();
    let again = app
        .get(&path)
        .by(&session)
        .header(header::IF_NONE_MATCH, &tag)
        .send()
        .await;
    again.expect(StatusCode::NOT_MODIFIED);

    let cancel = || {
        app.post(&format!("{path}/cancel"), &json!({}))
            .by(&session)
            .send()
    };
    let cancelled = cancel().await.expect(StatusCode::OK);
    assert_eq!(
        (cancelled.text("/state"), &cancelled.json["status_reason"]),
        ("cancelled", &Value::Null)
    );
    assert_eq!(cancelled.text("/replicas/0/state"), "cancelled");
    assert_eq!(
        cancel().await.expect(StatusCode::OK).json,
        cancelled.json,
        "cancelling again changes nothing"
    );
    let released = balances(&app, &asset, address).await;
    assert_eq!((released.available.base(), released.held.base()), (RICH, 0));
    assert_eq!(count(&app, "queue").await, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_short_wallet_holds_nothing_and_makes_no_job(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, address) = client(&app, &asset, market::MINIMUM - 1).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000" });
    let refused = app.post("/v1/jobs", &body).by(&session).send().await;
    refused.expect_problem(StatusCode::PAYMENT_REQUIRED, "insufficient_funds");
    let balances = balances(&app, &asset, address).await;
    assert_eq!(
        (balances.available.base(), balances.held.base()),
        (market::MINIMUM - 1, 0)
    );
    for table in ["jobs", "quotes", "holds", "replicas", "queue", "job_events"] {
        assert_eq!(count(&app, table).await, 0, "{table}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn without_an_address_there_is_no_payer(db: PgPool) {
    let app = TestApp::new(db).await;
    market::open(&app).await;
    let session = app.session().await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "max_cost": "1000000" });
    let refused = app.post("/v1/jobs", &body).by(&session).send().await;
    refused.expect_problem(StatusCode::CONFLICT, "address_not_bound");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_quote_is_good_for_one_job_for_its_time_and_up_to_the_limit(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let (stranger, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let quoted = quote(&app, &session, &spec, "replicated").await;
    let hold: u128 = quoted.text("/hold/amount").parse().unwrap();
    let submit = |by: &Session, max_cost: Value| {
        let body = json!({ "quote_id": quoted.text("/id"), "max_cost": max_cost });
        app.post("/v1/jobs", &body).by(by).send()
    };
    let below = submit(&session, json!((hold - 1).to_string())).await;
    let below = below.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "max_cost_below_quote");
    assert_eq!(below.text("/errors/0/pointer"), "/max_cost");
    let mut other = quoted.json["hold"].clone();
    other["asset"] = json!("eip155:1/erc20:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed");
    let other = submit(&session, other)
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(other.text("/errors/0/pointer"), "/max_cost/asset");
    submit(&session, json!(hold))
        .await
        .expect(StatusCode::UNPROCESSABLE_ENTITY);
    submit(&stranger, json!("1000000"))
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
    submit(&session, quoted.json["hold"].clone())
        .await
        .expect(StatusCode::CREATED);
    submit(&session, json!("1000000"))
        .await
        .expect_problem(StatusCode::CONFLICT, "quote_used");
    assert_eq!(count(&app, "holds").await, 1);

    let late = quote(&app, &session, &spec, "replicated")
        .await
        .text("/id")
        .to_owned();
    app.pass(Duration::minutes(15));
    let body = json!({ "quote_id": late, "max_cost": "1000000" });
    let late = app.post("/v1/jobs", &body).by(&session).send().await;
    late.expect_problem(StatusCode::GONE, "quote_expired");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn sixty_four_equal_requests_make_one_job(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, address) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "max_cost": "1000000", "name": "once" });
    let submit = || {
        app.post("/v1/jobs", &body)
            .by(&session)
            .idempotency_key("one and the same")
            .send()
    };
    let replies = futures::future::join_all((0..64).map(|_| submit())).await;
    let made = submit().await.expect(StatusCode::CREATED);
    assert_eq!(
        made.header(axum::http::HeaderName::from_static("idempotent-replayed")),
        "true"
    );
    for reply in &replies {
        match reply.status {
            StatusCode::CREATED => assert_eq!(reply.json["id"], made.json["id"]),
            _ => assert_eq!(reply.code(), "idempotency_in_progress"),
        }
    }
    assert_eq!(
        (count(&app, "jobs").await, count(&app, "holds").await),
        (1, 1)
    );
    let hold: u128 = made.text("/quoted/amount").parse().unwrap();
    assert_eq!(balances(&app, &asset, address).await.held.base(), hold);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bad_request_is_told_what_is_wrong(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let quote = "quo_01h455vb4pex5vsknk084sn02q";
    let cases = [
        (json!({ "max_cost": "1" }), ""),
        (
            json!({ "quote_id": quote, "max_cost": "1", "tier": "none" }),
            "/quote_id",
        ),
        (json!({ "quote_id": quote, "max_cost": 1 }), "/max_cost"),
        (json!({ "quote_id": "quo_1", "max_cost": "1" }), "/quote_id"),
        (
            json!({ "quote_id": quote, "max_cost": "1", "name": "" }),
            "/name",
        ),
        (
            json!({ "quote_id": quote, "max_cost": "1", "name": "a\nb" }),
            "/name",
        ),
        (
            json!({ "quote_id": quote, "max_cost": "1", "deadline_at": "2026-11-22T09:00:30Z" }),
            "/deadline_at",
        ),
        (
            json!({ "quote_id": quote, "max_cost": "1", "deadline_at": "2027-11-22T09:00:30Z" }),
            "/deadline_at",
        ),
    ];
    for (body, pointer) in cases {
        let refused = app.post("/v1/jobs", &body).by(&session).send().await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), pointer, "{body}");
    }
    let keyless = app
        .request(axum::http::Method::POST, "/v1/jobs")
        .by(&session)
        .json(&json!({}))
        .send()
        .await;
    keyless.expect_problem(StatusCode::BAD_REQUEST, "idempotency_key_missing");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn jobs_are_listed_by_page_and_filter(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let mut made = Vec::new();
    for index in 0..3 {
        let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000", "name": format!("job {index}") });
        made.push(
            app.post("/v1/jobs", &body)
                .by(&session)
                .send()
                .await
                .text("/id")
                .to_owned(),
        );
        app.pass(Duration::minutes(1));
    }
    app.post(&format!("/v1/jobs/{}/cancel", made[1]), &json!({}))
        .by(&session)
        .send()
        .await;
    let list = async |query: &str| {
        let page = app
            .get(&format!("/v1/jobs?{query}"))
            .by(&session)
            .send()
            .await
            .expect(StatusCode::OK);
        let ids: Vec<String> = page.json["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect();
        (ids, page.json["next_cursor"].as_str().map(str::to_owned))
    };
    let (first, cursor) = list("limit=2").await;
    assert_eq!(first, [made[2].as_str(), made[1].as_str()]);
    let (second, end) = list(&format!("limit=2&cursor={}", cursor.unwrap())).await;
    assert_eq!((second, end), (vec![made[0].clone()], None));
    assert_eq!(list("state=cancelled").await.0, [made[1].as_str()]);
    assert_eq!(list("kind=inference").await.0, [""; 0]);
    let between =
        "created_after=2026-11-22T09:00:30Z&created_before=2026-11-22T09:01:30Z&kind=training";
    assert_eq!(list(between).await.0, [made[1].as_str()]);
    for query in [
        "state=lost",
        "kind=x",
        "created_after=yesterday",
        "owner=me",
    ] {
        let refused = app
            .get(&format!("/v1/jobs?{query}"))
            .by(&session)
            .send()
            .await;
        refused.expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn results_appear_with_completion_and_not_before(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let made = job(&app, &session, "none").await;
    let id = made.text("/id").parse().unwrap();
    let path = made.header(header::LOCATION).to_owned();
    let results = || app.get(&format!("{path}/results")).by(&session).send();
    results()
        .await
        .expect_problem(StatusCode::CONFLICT, "job_not_completed");

    let weights = Stored {
        sha256: Sha256::of(b"weights"),
        bytes: 7,
    };
    complete(&app, id, weights).await;
    let listed = results().await.expect(StatusCode::OK);
    let expected = json!([{ "name": "weights", "sha256": weights.sha256, "bytes": 7 }]);
    assert_eq!(listed.json["data"], expected);
    let done = app.get(&path).by(&session).send().await;
    assert_eq!(
        (done.text("/state"), &done.json["outputs"]),
        ("completed", &expected)
    );
    let cancel = app
        .post(&format!("{path}/cancel"), &json!({}))
        .by(&session)
        .send()
        .await;
    cancel.expect_problem(StatusCode::CONFLICT, "job_ended");
}

/// As the scheduler does it, without the money.
pub async fn complete(app: &TestApp, job: comptoir_domain::id::JobId, output: Stored) {
    let mut tx = app.owner.begin().await.unwrap();
    comptoir_store::blobs::register(&mut tx, output, app.now())
        .await
        .unwrap();
    sqlx::query("UPDATE jobs SET state = $2, finished_at = $3 WHERE job_id = $1")
        .bind(job.0)
        .bind(JobState::Completed.as_str())
        .bind(app.now())
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query("INSERT INTO job_outputs (job_id, name, sha256) VALUES ($1, 'weights', $2)")
        .bind(job.0)
        .bind(output.sha256.0)
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_failed_job_says_who_answers_for_it_and_costs_nothing(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, address) = client(&app, &asset, RICH).await;
    let made = job(&app, &session, "none").await;
    let failure = Failure {
        cause: Cause::Client,
        code: "non_finite_loss".into(),
        detail: Some("epoch 3".into()),
    };
    let mut tx = app.owner.begin().await.unwrap();
    jobs::end(
        &mut tx,
        made.text("/id").parse().unwrap(),
        EndedAs::Failed,
        Some(&failure),
        app.now(),
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let failed = app
        .get(made.header(header::LOCATION))
        .by(&session)
        .send()
        .await;
    let expected = json!({ "cause": "client", "code": "non_finite_loss", "detail": "epoch 3" });
    assert_eq!(
        (failed.text("/state"), &failed.json["failure"]),
        ("failed", &expected)
    );
    assert_eq!(balances(&app, &asset, address).await.available.base(), RICH);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_repetition_is_answered_when_the_job_could_no_longer_be_made(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body =
        json!({ "spec": spec, "max_cost": "1000000", "deadline_at": "2026-11-22T09:30:00Z" });
    let submit = async |session: &Session| {
        app.post("/v1/jobs", &body)
            .by(session)
            .idempotency_key("k")
            .send()
            .await
    };
    let made = submit(&session).await.expect(StatusCode::CREATED);
    app.pass(Duration::days(2));
    let repeated = submit(&app.renewed(&session))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(repeated.json["id"], made.json["id"]);
    assert_eq!(count(&app, "jobs").await, 1);
}
