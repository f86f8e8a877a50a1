//! What administrators know and decide about accounts.

use axum::http::{Method, StatusCode, header};
use comptoir_domain::{id::AccountId, scope::Scopes};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    admin::{act, admin, claim, told},
    harness::{Reply, Session, TestApp},
    jobs::RICH,
    market::{self, client, join, worker},
};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn accounts_are_found_by_what_is_known_of_them(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let admin = admin(&app).await;
    let (rich, address) = client(&app, &asset, 500).await;
    let key = app.api_key(&rich, &Scopes::all()).await;
    let get = async |path: &str| app.get(path).by(&admin).send().await.expect(StatusCode::OK);
    let page = get("/v1/admin/accounts?limit=1").await;
    assert_eq!(page.text("/data/0/id"), rich.account.to_string());
    let next = format!(
        "/v1/admin/accounts?limit=1&cursor={}",
        page.text("/next_cursor")
    );
    assert_eq!(
        get(&next).await.text("/data/0/id"),
        admin.account.to_string()
    );
    let found = get(&format!("/v1/admin/accounts?address={address}")).await;
    assert_eq!(found.json["data"].as_array().unwrap().len(), 1);
    let admins = get("/v1/admin/accounts?role=platform&frozen=false").await;
    assert_eq!(admins.text("/data/0/id"), admin.account.to_string());
    let email = found.text("/data/0/email")[..20].to_uppercase();
    let by_email = get(&format!("/v1/admin/accounts?email={email}")).await;
    assert!(
        by_email.json["data"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["id"] == rich.account.to_string())
    );

    let shown = get(&format!("/v1/admin/accounts/{}", rich.account)).await;
    assert_eq!(shown.text("/balance/available/amount"), "500");
    assert_eq!(shown.json["usage"]["api_keys"], 1);
    assert_eq!(
        shown.json["limits"]["open_jobs"],
        json!({ "limit": 1_000, "own": false })
    );
    assert!(!shown.json.to_string().contains("password"));
    drop(key);
    let nobody = format!("/v1/admin/accounts/{}", AccountId::generate());
    app.get(&nobody)
        .by(&admin)
        .send()
        .await
        .expect(StatusCode::NOT_FOUND);
}

/// Sets limits as the administrator saw them.
async fn set_limits(app: &TestApp, admin: &Session, account: AccountId, changes: &Value) -> Reply {
    let path = format!("/v1/admin/accounts/{account}/limits");
    let seen = app.get(&path).by(admin).send().await.expect(StatusCode::OK);
    let tag = seen.header(header::ETAG).to_owned();
    let call = app
        .request(Method::PATCH, &path)
        .by(admin)
        .header(header::IF_MATCH, &tag);
    call.json(changes).send().await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn limits_stand_in_the_way_of_jobs_and_blobs_and_can_be_lifted(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let admin = admin(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = market::training(&app, &session, "mlp.pt2").await;
    let submit = async || {
        let body = json!({ "spec": spec, "max_cost": "1000000" });
        app.post("/v1/jobs", &body).by(&session).send().await
    };
    let set = async |patch: Value| {
        set_limits(&app, &admin, session.account, &patch)
            .await
            .expect(StatusCode::OK)
    };
    let first = submit().await.expect(StatusCode::CREATED);
    let limits = set(json!({ "open_jobs": 1 })).await;
    assert_eq!(limits.json["open_jobs"], json!({ "limit": 1, "own": true }));
    let refused = submit()
        .await
        .expect_problem(StatusCode::FORBIDDEN, "limit_reached");
    assert!(
        refused
            .text("/detail")
            .starts_with("1 jobs that have not ended"),
        "{refused:?}"
    );
    let cancel = format!("/v1/jobs/{}/cancel", first.text("/id"));
    app.post(&cancel, &json!({}))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    submit().await.expect(StatusCode::CREATED);
    set(json!({ "open_jobs": null, "jobs_per_day": 3 })).await;
    submit().await.expect(StatusCode::CREATED);
    submit()
        .await
        .expect_problem(StatusCode::FORBIDDEN, "limit_reached");

    let stored = app
        .get(&format!("/v1/admin/accounts/{}", session.account))
        .by(&admin)
        .send()
        .await;
    let stored = stored.json["usage"]["storage_bytes"].as_u64().unwrap();
    set(json!({ "storage_bytes": stored + 4 })).await;
    let upload = async |bytes: &[u8]| market::upload(&app, &session, bytes).await;
    upload(b"five!")
        .await
        .expect_problem(StatusCode::FORBIDDEN, "limit_reached");
    upload(b"four").await.expect(StatusCode::CREATED);
    upload(b"four").await.expect(StatusCode::OK);
    upload(b"x")
        .await
        .expect_problem(StatusCode::FORBIDDEN, "limit_reached");
    set(json!({ "storage_bytes": null })).await;
    upload(b"x").await.expect(StatusCode::CREATED);
    assert_eq!(told(&app, "account.limited").await.len(), 4);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn submissions_of_one_moment_do_not_pass_a_limit_together(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let admin = admin(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = market::training(&app, &session, "mlp.pt2").await;
    set_limits(&app, &admin, session.account, &json!({ "open_jobs": 5 }))
        .await
        .expect(StatusCode::OK);
    let body = json!({ "spec": spec, "max_cost": "1000000" });
    let submits = (0..24).map(|_| app.post("/v1/jobs", &body).by(&session).send());
    let replies = futures::future::join_all(submits).await;
    let made = replies
        .iter()
        .filter(|it| it.status == StatusCode::CREATED)
        .count();
    assert_eq!(made, 5);
    assert!(
        replies
            .iter()
            .all(|it| it.status == StatusCode::CREATED || it.code() == "limit_reached")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_change_of_limits_that_another_made_is_not_lost(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = admin(&app).await;
    let user = app.session().await;
    let path = format!("/v1/admin/accounts/{}/limits", user.account);
    let patch = |tag: Option<&str>| {
        let call = app.request(Method::PATCH, &path).by(&admin);
        let call = match tag {
            Some(tag) => call.header(header::IF_MATCH, tag),
            None => call,
        };
        call.json(&json!({ "open_jobs": 7 })).send()
    };
    patch(None).await.expect(StatusCode::PRECONDITION_REQUIRED);
    let seen = app.get(&path).by(&admin).send().await;
    let tag = seen.header(header::ETAG).to_owned();
    patch(Some(&tag)).await.expect(StatusCode::OK);
    patch(Some(&tag))
        .await
        .expect(StatusCode::PRECONDITION_FAILED);
    let bounds = app
        .request(Method::PATCH, &path)
        .by(&admin)
        .header(header::IF_MATCH, "*");
    bounds
        .json(&json!({ "open_jobs": 1_u64 << 60 }))
        .send()
        .await
        .expect(StatusCode::UNPROCESSABLE_ENTITY);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_frozen_account_reads_and_does_nothing_else(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let admin = admin(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = market::training(&app, &session, "mlp.pt2").await;
    let job = market::job(&app, &session, "none").await;
    let worker = join(&app, &session, &worker("a")).await;
    let key = app.api_key(&session, &Scopes::all()).await;
    let path = format!("/v1/admin/accounts/{}", session.account);
    let frozen = act(&app, &admin, &format!("{path}/freeze"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(frozen.text("/frozen_reason"), "because");

    let money = json!({ "amount": "1", "asset": asset.caip19(), "decimals": 18 });
    let writes = [
        ("/v1/jobs", json!({ "spec": spec, "max_cost": "1000000" })),
        ("/v1/withdrawals", json!({ "amount": money })),
        ("/v1/keys", json!({ "name": "a", "scopes": ["jobs:read"] })),
        ("/v1/join-tokens", json!({ "name": "a" })),
    ];
    // Its sessions are over; what is left is its API keys.
    app.get("/v1/account")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::UNAUTHORIZED);
    let write = async |(path, body): &(&str, Value)| app.post(path, body).by(&key).send().await;
    for it in &writes {
        write(it)
            .await
            .expect_problem(StatusCode::FORBIDDEN, "account_frozen");
    }
    market::upload(&app, &key, b"x")
        .await
        .expect_problem(StatusCode::FORBIDDEN, "account_frozen");
    for read in [
        "/v1/account",
        "/v1/balance",
        "/v1/statement",
        "/v1/jobs",
        "/v1/workers",
    ] {
        app.get(read).by(&key).send().await.expect(StatusCode::OK);
    }
    let cancel = format!("/v1/jobs/{}/cancel", job.text("/id"));
    app.post(&cancel, &json!({}))
        .by(&key)
        .send()
        .await
        .expect(StatusCode::OK);
    // Its workers get nothing of others.
    let (other, _) = client(&app, &asset, RICH).await;
    market::job(&app, &other, "none").await;
    assert_eq!(claim(&app, worker).await, 0);

    act(&app, &admin, &format!("{path}/unfreeze"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(claim(&app, worker).await, 1);
    for it in &writes {
        write(it).await.expect(StatusCode::CREATED);
    }
    let record = &told(&app, "account.frozen").await[0];
    assert_eq!(
        (record.actor.clone(), record.account),
        (admin.account.to_string(), Some(session.account))
    );
    assert_eq!(record.detail["reason"], "because");
    assert_eq!(record.detail["sessions_ended"], 1);
    // An administrator is not frozen by another.
    let path = format!("/v1/admin/accounts/{}/freeze", admin.account);
    act(&app, &admin, &path)
        .await
        .expect_problem(StatusCode::CONFLICT, "account_is_admin");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn administrators_read_the_whole_audit_log(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = admin(&app).await;
    let (one, other) = (app.session().await, app.session().await);
    for user in [&one, &other] {
        let path = format!("/v1/admin/accounts/{}/freeze", user.account);
        act(&app, &admin, &path).await.expect(StatusCode::OK);
    }
    let get = async |path: &str| app.get(path).by(&admin).send().await.expect(StatusCode::OK);
    let page = get("/v1/admin/audit-events?limit=1").await;
    assert_eq!(
        (page.text("/data/0/action"), page.text("/data/0/subject")),
        ("account.frozen", other.account.to_string().as_str())
    );
    let next = format!(
        "/v1/admin/audit-events?limit=1&cursor={}",
        page.text("/next_cursor")
    );
    assert_eq!(
        get(&next).await.text("/data/0/account_id"),
        one.account.to_string()
    );
    let of_one = get(&format!(
        "/v1/admin/audit-events?account_id={}",
        one.account
    ))
    .await;
    let actions: Vec<_> = of_one.json["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["action"].clone())
        .collect();
    assert!(actions.contains(&json!("account.frozen")), "{actions:?}");
    assert!(!of_one.json.to_string().contains(&other.account.to_string()));
}
