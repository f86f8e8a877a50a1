use axum::http::StatusCode;
use comptoir_domain::join_token::JoinToken;
use comptoir_store::workers::{self, JoinError};
use serde_json::json;
use sqlx::PgPool;
use time::Duration;

use crate::{
    harness::{Session, TestApp},
    market::{join, join_token, worker},
};

/// For the walk over every route.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    vec![join(app, owner, &worker("walk")).await.to_string()]
}

/// For the walk over every route.
pub async fn make_token(app: &TestApp, owner: &Session) -> Vec<String> {
    vec![join_token(app, owner).await.id.to_string()]
}

async fn try_join(app: &TestApp, token: &JoinToken) -> Result<(), JoinError> {
    let mut tx = app.owner.begin().await.unwrap();
    workers::join(
        &mut tx,
        token.id,
        token.secret_sha256(),
        &worker("a"),
        app.now(),
    )
    .await?;
    tx.commit().await.unwrap();
    Ok(())
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_join_token_is_shown_once_and_names_the_server(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = app.bound_session().await;
    let body = json!({ "name": "rack 1" });
    let made = app
        .post("/v1/join-tokens", &body)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let token: JoinToken = made.text("/token").parse().unwrap();
    assert_eq!(token.server, app.state.keys.jwks().fingerprint());
    let command = format!(
        "comptoir-worker join --url {} --token {}",
        app.state.config.scheduler_url,
        made.text("/token")
    );
    assert_eq!(made.text("/command"), command);
    assert_eq!(
        (made.text("/expires_at"), made.json["max_uses"].as_i64()),
        ("2026-11-23T09:00:00Z", Some(1))
    );

    let shown = app
        .get(made.header(axum::http::header::LOCATION))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    let list = app.get("/v1/join-tokens").by(&session).send().await;
    assert_eq!(list.json["data"][0], shown.json);
    let secret = made.text("/token").rsplit('.').next().unwrap();
    assert!(!list.json.to_string().contains(secret));
    let account = app.get("/v1/account").by(&session).send().await;
    assert_eq!(account.json["roles"], json!(["user", "provider"]));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn earnings_need_an_address_to_go_to(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let refused = app
        .post("/v1/join-tokens", &json!({ "name": "a" }))
        .by(&session)
        .send()
        .await;
    refused.expect_problem(StatusCode::CONFLICT, "address_not_bound");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_token_beyond_its_bounds_is_not_made(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = app.bound_session().await;
    let body = json!({ "name": "", "max_uses": 0, "expires_in_s": 86_401 });
    let refused = app.post("/v1/join-tokens", &body).by(&session).send().await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let pointers: Vec<_> = refused.json["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["pointer"].clone())
        .collect();
    assert_eq!(pointers, ["/name", "/max_uses", "/expires_in_s"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_token_joins_until_it_is_used_up_expired_or_revoked(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = app.bound_session().await;
    let make = async |uses: u16| -> JoinToken {
        let body = json!({ "name": "a", "max_uses": uses, "expires_in_s": 60 });
        let made = app.post("/v1/join-tokens", &body).by(&session).send().await;
        made.expect(StatusCode::CREATED)
            .text("/token")
            .parse()
            .unwrap()
    };
    let (once, revoked, late) = (make(1).await, make(9).await, make(9).await);
    try_join(&app, &once).await.unwrap();
    assert!(matches!(try_join(&app, &once).await, Err(JoinError::Token)));
    try_join(&app, &revoked).await.unwrap();
    let path = format!("/v1/join-tokens/{}/revoke", revoked.id);
    let reply = app
        .post(&path, &json!({}))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (reply.text("/revoked_at"), reply.json["uses"].as_i64()),
        ("2026-11-22T09:00:00Z", Some(1))
    );
    assert!(matches!(
        try_join(&app, &revoked).await,
        Err(JoinError::Token)
    ));
    app.pass(Duration::seconds(60));
    assert!(matches!(try_join(&app, &late).await, Err(JoinError::Token)));
    let again = app.post(&path, &json!({})).by(&session).send().await;
    assert_eq!(
        again.text("/revoked_at"),
        "2026-11-22T09:00:00Z",
        "revoking again changes nothing"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_owner_sees_how_workers_are_and_takes_them_out(db: PgPool) {
    let app = TestApp::new(db).await;
    let (session, _) = app.bound_session().await;
    let first = join(&app, &session, &worker("a")).await;
    let second = join(&app, &session, &worker("b")).await;
    let page = app
        .get("/v1/workers?limit=1")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (page.text("/data/0/id"), page.text("/data/0/state")),
        (second.to_string().as_str(), "idle")
    );
    let next = format!("/v1/workers?limit=1&cursor={}", page.text("/next_cursor"));
    assert_eq!(
        app.get(&next).by(&session).send().await.text("/data/0/id"),
        first.to_string()
    );

    let path = format!("/v1/workers/{first}");
    let revoke = || {
        app.post(&format!("{path}/revoke"), &json!({}))
            .by(&session)
            .send()
    };
    let revoked = revoke().await.expect(StatusCode::OK);
    assert_eq!(
        (revoked.text("/state"), revoked.text("/revoked_at")),
        ("revoked", "2026-11-22T09:00:00Z")
    );
    app.pass(Duration::seconds(61));
    assert_eq!(revoke().await.json, revoked.json);
    let other = app
        .get(&format!("/v1/workers/{second}"))
        .by(&session)
        .send()
        .await;
    assert_eq!(other.text("/state"), "offline");
    let known = workers::find(&mut app.owner.acquire().await.unwrap(), first)
        .await
        .unwrap()
        .unwrap();
    assert!(known.revoked);
}
