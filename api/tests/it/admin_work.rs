//! Stuck jobs, workers that are taken back, wake-ups that are sent again.

use axum::http::StatusCode;
use comptoir_domain::id::{JobId, WorkerId};
use comptoir_store::{attempts, attempts::HeldError, wake::Channel};
use serde_json::json;
use sqlx::PgPool;
use time::Duration;

use crate::{
    admin::{act, admin, claim, told},
    harness::{Session, TestApp},
    jobs::{RICH, count},
    market::{self, balances, client, join, worker},
};

/// A job that a worker of somebody else has a lease on.
async fn leased(app: &TestApp) -> (Session, JobId, Session, WorkerId) {
    let (asset, _) = market::open(app).await;
    let (session, _) = client(app, &asset, RICH).await;
    let job = market::job(app, &session, "none")
        .await
        .text("/id")
        .parse()
        .unwrap();
    let (provider, _) = client(app, &asset, 0).await;
    let worker = join(app, &provider, &worker("a")).await;
    assert_eq!(claim(app, worker).await, 1);
    (session, job, provider, worker)
}

/// What the worker finds when it reports on its only attempt.
async fn report(app: &TestApp, worker: WorkerId) -> Result<(), HeldError> {
    let (attempt, token): (uuid::Uuid, Option<uuid::Uuid>) = sqlx::query_as(
        "SELECT attempts.attempt_id, lease_token FROM attempts
         LEFT JOIN queue ON queue.attempt_id = attempts.attempt_id WHERE attempts.worker_id = $1",
    )
    .bind(worker.0)
    .fetch_one(&app.owner)
    .await
    .unwrap();
    let mut connection = app.owner.acquire().await.unwrap();
    let token = token.map(comptoir_domain::id::LeaseToken);
    attempts::held(
        &mut connection,
        worker,
        comptoir_domain::id::AttemptId(attempt),
        token,
    )
    .await
    .map(drop)
}

async fn last_event(app: &TestApp, job: JobId) -> (String, serde_json::Value) {
    let mut connection = app.owner.acquire().await.unwrap();
    let events = comptoir_store::events::after(&mut connection, job, 0, 100)
        .await
        .unwrap();
    let failed = events
        .into_iter()
        .rev()
        .find(|it| it.kind == "attempt_failed")
        .unwrap();
    (failed.kind, failed.data)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_in_quarantine_loses_its_leases_at_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, job, _, worker) = leased(&app).await;
    let admin = admin(&app).await;
    report(&app, worker).await.unwrap();
    let path = format!("/v1/admin/workers/{worker}");
    let shown = act(&app, &admin, &format!("{path}/quarantine"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (shown.text("/control"), shown.text("/control_reason")),
        ("quarantined", "because")
    );
    assert!(matches!(report(&app, worker).await, Err(HeldError::Stale)));
    assert_eq!(count(&app, "queue WHERE lease_token IS NULL").await, 1);
    let shown = app
        .get(&format!("/v1/jobs/{job}"))
        .by(&session)
        .send()
        .await;
    assert_eq!(shown.text("/state"), "queued");
    let (_, data) = last_event(&app, job).await;
    assert_eq!(
        (data["cause"].clone(), data["code"].clone()),
        (json!("operator"), json!("worker_withdrawn"))
    );
    assert_eq!(claim(&app, worker).await, 0);
    let listed = app
        .get("/v1/admin/workers?control=quarantined")
        .by(&admin)
        .send()
        .await;
    assert_eq!(listed.text("/data/0/id"), worker.to_string());
    // Restored, it may take the job again.
    act(&app, &admin, &format!("{path}/restore"))
        .await
        .expect(StatusCode::OK);
    sqlx::query("UPDATE queue SET ready_at = ready_at - interval '2 minutes'")
        .execute(&app.owner)
        .await
        .unwrap();
    assert_eq!(claim(&app, worker).await, 1);
    for action in ["worker.quarantined", "worker.restored"] {
        assert_eq!(told(&app, action).await[0].subject, worker.to_string());
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_drains_finishes_what_it_has(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _, _, worker) = leased(&app).await;
    let admin = admin(&app).await;
    let path = format!("/v1/admin/workers/{worker}/drain");
    let shown = act(&app, &admin, &path).await.expect(StatusCode::OK);
    assert_eq!(shown.text("/control"), "draining");
    report(&app, worker).await.unwrap();
    market::job(&app, &session, "none").await;
    assert_eq!(claim(&app, worker).await, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_is_taken_out_loses_its_leases_whoever_does_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, job, provider, worker) = leased(&app).await;
    let path = format!("/v1/workers/{worker}/revoke");
    let revoked = app
        .post(&path, &json!({}))
        .by(&provider)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(revoked.text("/state"), "revoked");
    assert!(matches!(report(&app, worker).await, Err(HeldError::Stale)));
    let shown = app
        .get(&format!("/v1/jobs/{job}"))
        .by(&session)
        .send()
        .await;
    assert_eq!(shown.text("/state"), "queued");

    let (other, _) = app.bound_session().await;
    let second = join(&app, &other, &market::worker("b")).await;
    sqlx::query("UPDATE queue SET ready_at = ready_at - interval '2 minutes'")
        .execute(&app.owner)
        .await
        .unwrap();
    assert_eq!(claim(&app, second).await, 1);
    let admin = admin(&app).await;
    let path = format!("/v1/admin/workers/{second}");
    let disabled = act(&app, &admin, &format!("{path}/disable"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(disabled.text("/control"), "disabled");
    assert!(matches!(report(&app, second).await, Err(HeldError::Stale)));
    assert_eq!(count(&app, "queue WHERE lease_token IS NULL").await, 1);
    let restore = act(&app, &admin, &format!("{path}/restore")).await;
    restore.expect_problem(StatusCode::CONFLICT, "worker_disabled");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn jobs_that_wait_or_loop_are_listed_with_their_reason(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let admin = admin(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(
            market::job(&app, &session, "none")
                .await
                .text("/id")
                .to_owned(),
        );
    }
    let list = async |query: &str| {
        let page = app
            .get(&format!("/v1/admin/jobs/stuck{query}"))
            .by(&admin)
            .send()
            .await
            .expect(StatusCode::OK);
        let row = |it: &serde_json::Value| {
            (
                it["id"].as_str().unwrap().to_owned(),
                it["stuck"].as_str().unwrap().to_owned(),
            )
        };
        let rows: Vec<_> = page.json["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(row)
            .collect();
        (page, rows)
    };
    assert!(list("").await.1.is_empty());
    let id = |place: usize| made[place].parse::<JobId>().unwrap().0;
    let change = async |sql: &'static str, job: uuid::Uuid| {
        sqlx::query(sql)
            .bind(job)
            .execute(&app.owner)
            .await
            .unwrap();
    };
    change(
        "UPDATE queue SET ready_at = ready_at - interval '16 minutes' WHERE job_id = $1",
        id(0),
    )
    .await;
    change("UPDATE queue SET attempt = 3 WHERE job_id = $1", id(1)).await;
    change(
        "UPDATE jobs SET state = 'verifying' WHERE job_id = $1",
        id(2),
    )
    .await;
    app.pass(Duration::minutes(10));
    let (page, rows) = list("").await;
    let named = |place: usize, stuck: &str| (made[place].clone(), stuck.to_owned());
    assert_eq!(
        rows,
        [named(2, "silent"), named(1, "looping"), named(0, "waiting")]
    );
    assert_eq!(
        page.json["data"][2]["status_reason"],
        "no_worker_with_capability"
    );
    assert!(page.text("/data/2/hint").starts_with("No worker"));
    assert_eq!(list("?waiting_s=3600&attempts=9&silent_s=3600").await.1, []);
    assert_eq!(list("?waiting_s=0&limit=1").await.1.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_stuck_job_is_sent_back_or_ended_with_all_its_money(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, job, _, worker) = leased(&app).await;
    let admin = admin(&app).await;
    let path = format!("/v1/admin/jobs/{job}");
    let requeued = act(&app, &admin, &format!("{path}/requeue"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(requeued.json["leases_taken_back"], 1);
    assert!(matches!(report(&app, worker).await, Err(HeldError::Stale)));
    let (_, data) = last_event(&app, job).await;
    assert_eq!(data["code"], "requeued");
    assert_eq!(
        count(
            &app,
            "queue WHERE lease_token IS NULL AND ready_at <= clock_timestamp()"
        )
        .await,
        1
    );

    act(&app, &admin, &format!("{path}/fail"))
        .await
        .expect(StatusCode::OK);
    let shown = app
        .get(&format!("/v1/jobs/{job}"))
        .by(&session)
        .send()
        .await;
    assert_eq!(
        (
            shown.text("/state"),
            shown.text("/failure/cause"),
            shown.text("/failure/code"),
            shown.text("/failure/detail")
        ),
        ("failed", "operator", "ended_by_operator", "because")
    );
    let asset = comptoir_store::assets::current(&mut app.owner.acquire().await.unwrap())
        .await
        .unwrap();
    let address = app.get("/v1/account").by(&session).send().await;
    let address = address.text("/address").parse().unwrap();
    let has = balances(&app, &asset, address).await;
    assert_eq!((has.available.base(), has.held.base()), (RICH, 0));
    for action in ["requeue", "fail"] {
        let ended = act(&app, &admin, &format!("{path}/{action}")).await;
        ended.expect_problem(StatusCode::CONFLICT, "job_ended");
        let nobody = format!("/v1/admin/jobs/{}/{action}", JobId::generate());
        act(&app, &admin, &nobody)
            .await
            .expect(StatusCode::NOT_FOUND);
    }
    assert_eq!(told(&app, "job.unstuck").await.len(), 2);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_replay_wakes_everybody_who_waits(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, job, _, worker) = leased(&app).await;
    let admin = admin(&app).await;
    let shown = app
        .get("/v1/admin/outbox")
        .by(&admin)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (
            shown.json["open_jobs"].as_i64(),
            shown.json["busy_workers"].as_i64()
        ),
        (Some(1), Some(1))
    );
    let channels = [Channel::Work, Channel::Job(job), Channel::Worker(worker)];
    let mut waiting = channels.map(|channel| app.state.wake.subscribe(channel));
    act(&app, &admin, "/v1/admin/outbox/wake-ups/replay")
        .await
        .expect(StatusCode::NO_CONTENT);
    for subscription in &mut waiting {
        let at_most = std::time::Duration::from_mins(1);
        let waited = subscription.wait(at_most);
        tokio::time::timeout(std::time::Duration::from_secs(5), waited)
            .await
            .expect("it is woken");
    }
    assert_eq!(
        told(&app, "outbox.replayed").await[0].detail["reason"],
        "because"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn messages_that_were_not_sent_are_sent_again(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = admin(&app).await;
    let user = app.session().await;
    let write = async |kind: &str, sent: Option<i64>, given_up: Option<i64>| {
        let at = |hours: Option<i64>| hours.map(|hours| app.now() - Duration::hours(hours));
        sqlx::query(
            "INSERT INTO notices (notice_id, account_id, recipient, kind, facts, created_at, attempts, next_attempt_at, sent_at,
                 given_up_at)
             VALUES (gen_random_uuid(), $1, 'a@example.org', $2, '{}', coalesce($4, $3), 7, $3 + interval '1 hour', $5, $4)",
        )
        .bind(user.account.0)
        .bind(kind)
        .bind(app.now())
        .bind(at(given_up))
        .bind(at(sent))
        .execute(&app.owner)
        .await
        .unwrap();
    };
    write("waits", None, None).await;
    write("given_up", None, Some(1)).await;
    write("given_up_long_ago", None, Some(8 * 24)).await;
    write("password_reset", None, Some(1)).await;
    write("sent", Some(1), None).await;
    let replayed = act(&app, &admin, "/v1/admin/outbox/notices/replay")
        .await
        .expect(StatusCode::OK);
    assert_eq!(replayed.json["notices"], 2);
    let due: Vec<(String, i16)> = sqlx::query_as(
        "SELECT kind, attempts FROM notices WHERE sent_at IS NULL AND given_up_at IS NULL AND next_attempt_at <= $1 ORDER BY kind",
    )
    .bind(app.now())
    .fetch_all(&app.owner)
    .await
    .unwrap();
    assert_eq!(due, [("given_up".to_owned(), 0), ("waits".to_owned(), 7)]);
    let shown = app
        .get("/v1/admin/outbox")
        .by(&admin)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (
            shown.json["notices"]["count"].as_i64(),
            shown.json["notices_given_up"]["count"].as_i64()
        ),
        (Some(2), Some(2))
    );
    assert_eq!(told(&app, "outbox.replayed").await[0].subject, "notices");
}
