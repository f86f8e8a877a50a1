use axum::http::{HeaderName, StatusCode};
use comptoir_domain::{amount::Amount, id::JobId};
use comptoir_store::{queue, workers};
use futures::StreamExt as _;
use serde_json::json;
use sqlx::PgPool;
use time::Duration;

use crate::{
    harness::TestApp,
    jobs::{RICH, count},
    market::{self, balances, client, job, join, training, worker},
};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_waiting_reply_comes_when_the_job_has_ended_or_the_time_is_over(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "max_cost": "1000000" });
    let submit = |wait: &str, key: &str| {
        let call = app
            .post("/v1/jobs", &body)
            .by(&session)
            .idempotency_key(key);
        call.header(HeaderName::from_static("prefer"), wait).send()
    };
    let short = submit("respond-async, wait=0", "a")
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(short.text("/state"), "queued");
    let started = std::time::Instant::now();
    let cancel = async {
        loop {
            let jobs = app.get("/v1/jobs?state=queued").by(&session).send().await;
            let found = jobs.json["data"]
                .as_array()
                .unwrap()
                .iter()
                .find(|job| job["id"] != short.json["id"]);
            if let Some(id) = found.and_then(|job| job["id"].as_str()) {
                return app
                    .post(&format!("/v1/jobs/{id}/cancel"), &json!({}))
                    .by(&session)
                    .send()
                    .await;
            }
            tokio::task::yield_now().await;
        }
    };
    let (long, _) = tokio::join!(submit("wait=60", "b"), cancel);
    let long = long.expect(StatusCode::CREATED);
    assert!(started.elapsed().as_secs() < 30, "it was woken");
    assert_eq!(long.text("/state"), "cancelled");
    assert_eq!(
        long.header(HeaderName::from_static("preference-applied")),
        "wait=60"
    );
    let repeated = submit("wait=0", "b").await.expect(StatusCode::CREATED);
    assert_eq!(
        (&repeated.json["id"], repeated.text("/state")),
        (&long.json["id"], "cancelled")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_waiting_job_says_what_keeps_each_class_of_workers_from_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let (one, _) = client(&app, &asset, 0).await;
    let (two, _) = client(&app, &asset, 0).await;
    let ahead = job(&app, &session, "none").await;
    let body = json!({ "spec": ahead.json["spec"], "tier": "replicated", "max_cost": "1000000" });
    let waits = app
        .post("/v1/jobs", &body)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let explain = async || {
        let path = format!("/v1/jobs/{}/explain", waits.text("/id"));
        app.get(&path)
            .by(&session)
            .send()
            .await
            .expect(StatusCode::OK)
    };
    let said = explain().await;
    assert_eq!(
        (
            said.text("/status_reason"),
            said.json["queue_position"].as_i64()
        ),
        ("no_worker_with_capability", Some(1))
    );
    assert_eq!(
        (
            said.json["demand"]["replicas"].as_i64(),
            said.json["demand"]["one_class"].as_bool()
        ),
        (Some(2), Some(true))
    );

    let mut small = worker("small");
    small.memory_bytes = 1;
    let mut dear = worker("dear");
    dear.price_floor_nano = Amount::from_base(market::RATE_NANO + 1).unwrap();
    join(&app, &one, &small).await;
    join(&app, &one, &dear).await;
    let said = explain().await;
    assert_eq!(said.text("/status_reason"), "budget_below_floor");
    let classes = json!([
        { "device": "cpu", "numeric_class": "dear", "eligible_workers": 0, "obstacles": [{ "obstacle": "price_floor", "workers": 1 }] },
        { "device": "cpu", "numeric_class": "small", "eligible_workers": 0, "obstacles": [{ "obstacle": "memory", "workers": 1 }] },
    ]);
    assert_eq!(said.json["classes"], classes);

    join(&app, &one, &worker("a")).await;
    join(&app, &two, &worker("b")).await;
    let said = explain().await;
    assert_eq!(
        (
            said.text("/status_reason"),
            said.json["eligible_workers"].as_i64()
        ),
        ("no_class_peer", Some(2))
    );
    join(&app, &two, &worker("a")).await;
    assert_eq!(explain().await.text("/status_reason"), "waiting_for_turn");
    app.pass(Duration::seconds(61));
    let said = explain().await;
    assert_eq!(
        (
            said.text("/status_reason"),
            said.json["eligible_workers"].as_i64()
        ),
        ("workers_unhealthy", Some(0))
    );
    assert!(said.text("/hint").contains("hold goes back"));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_verified_job_says_that_the_classes_that_are_there_do_not_agree(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let (one, _) = client(&app, &asset, 0).await;
    join(&app, &one, &worker("a")).await;
    let plain = job(&app, &session, "none").await;
    let body = json!({ "spec": plain.json["spec"], "tier": "sampled", "max_cost": "1000000" });
    let sampled = app.post("/v1/jobs", &body).by(&session).send().await;
    let sampled = sampled.expect(StatusCode::CREATED);
    let said = async |job: &str| {
        let path = format!("/v1/jobs/{job}/explain");
        let explained = app.get(&path).by(&session).send().await;
        explained.expect(StatusCode::OK)
    };
    let reason = async |job: &str| said(job).await.text("/status_reason").to_owned();
    assert_eq!(reason(sampled.text("/id")).await, "waiting_for_turn");
    sqlx::query("INSERT INTO unstable_classes VALUES ($1, 'a', decode($2, 'hex'), $3)")
        .bind(plain.text("/id").parse::<JobId>().unwrap().0)
        .bind(plain.text("/spec/program"))
        .bind(app.now())
        .execute(&app.owner)
        .await
        .unwrap();
    let waits = said(sampled.text("/id")).await;
    assert_eq!(waits.text("/status_reason"), "no_stable_class");
    let classes = json!([{
        "device": "cpu", "numeric_class": "a", "eligible_workers": 0,
        "obstacles": [{ "obstacle": "unstable_class", "workers": 1 }],
    }]);
    assert_eq!(waits.json["classes"], classes);
    assert!(waits.text("/hint").contains("tier none"));
    let state = "/v1/jobs/".to_owned() + sampled.text("/id");
    let shown = app.get(&state).by(&session).send().await;
    assert_eq!(shown.text("/status_reason"), "no_stable_class");
    // What nobody verifies does not wait for it, and a worker of another class ends it.
    assert_eq!(reason(plain.text("/id")).await, "waiting_for_turn");
    join(&app, &one, &worker("b")).await;
    assert_eq!(reason(sampled.text("/id")).await, "waiting_for_turn");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn cancelling_while_workers_claim_leaves_no_lease_and_no_hold(db: PgPool) {
    const JOBS: usize = 24;
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, address) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "max_cost": "1000000" });
    let mut made = Vec::new();
    for _ in 0..JOBS {
        made.push(
            app.post("/v1/jobs", &body)
                .by(&session)
                .send()
                .await
                .text("/id")
                .to_owned(),
        );
    }
    let mut providers = Vec::new();
    for _ in 0..3 {
        let (provider, _) = client(&app, &asset, 0).await;
        let id = join(&app, &provider, &worker("a")).await;
        let mut connection = app.owner.acquire().await.unwrap();
        providers.push(workers::find(&mut connection, id).await.unwrap().unwrap());
    }
    let claims = providers.iter().map(async |provider| {
        let mut leases = 0;
        while count(&app, "queue WHERE lease_token IS NULL").await > 0 {
            let mut tx = app.owner.begin().await.unwrap();
            match queue::claim(&mut tx, provider, 2, app.now()).await {
                Ok(taken) => leases += taken.len(),
                Err(queue::ClaimError::Raced) => continue,
                Err(error) => panic!("{error:?}"),
            }
            tx.commit().await.unwrap();
            if leases == JOBS {
                break;
            }
        }
        leases
    });
    let cancels = futures::stream::iter(made.iter().rev()).for_each_concurrent(4, async |id| {
        let path = format!("/v1/jobs/{id}/cancel");
        let cancel = app.post(&path, &json!({})).by(&session).send().await;
        assert_eq!(cancel.expect(StatusCode::OK).text("/state"), "cancelled");
    });
    let (leases, ()) = tokio::join!(futures::future::join_all(claims), cancels);
    assert!(
        leases.iter().sum::<usize>() > 0,
        "some were claimed before they were cancelled"
    );
    for nothing in [
        "queue",
        "jobs WHERE state <> 'cancelled'",
        "holds WHERE ended_at IS NULL",
        "replicas WHERE state <> 'cancelled'",
        "attempts WHERE state <> 'cancelled'",
    ] {
        assert_eq!(count(&app, nothing).await, 0, "{nothing}");
    }
    assert_eq!(balances(&app, &asset, address).await.available.base(), RICH);
    let gapless = sqlx::query_scalar::<_, bool>(
        "SELECT bool_and(event_seq = (SELECT count(*) FROM job_events WHERE job_events.job_id = jobs.job_id)) FROM jobs",
    );
    assert!(gapless.fetch_one(&app.owner).await.unwrap());
}
