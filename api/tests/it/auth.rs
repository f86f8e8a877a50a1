//! Signing up and in, tokens, and what is refused.

use axum::http::StatusCode;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

use crate::harness::{NOW, Reply, Session, TestApp};

const EMAIL: &str = "Someone@Example.org";
const PASSWORD: &str = "a long enough password";

async fn sign_up(app: &TestApp) -> Reply {
    let body = json!({ "email": EMAIL, "password": PASSWORD });
    app.request(axum::http::Method::POST, "/v1/accounts")
        .json(&body)
        .send()
        .await
}

async fn post(app: &TestApp, path: &str, body: &Value) -> Reply {
    app.request(axum::http::Method::POST, path)
        .json(body)
        .send()
        .await
}

async fn sign_in(app: &TestApp, email: &str, password: &str) -> Reply {
    post(
        app,
        "/v1/auth/token",
        &json!({ "email": email, "password": password }),
    )
    .await
}

async fn refresh(app: &TestApp, token: &str) -> Reply {
    post(app, "/v1/auth/refresh", &json!({ "refresh_token": token })).await
}

async fn use_token(app: &TestApp, token: &str) -> Reply {
    let session = Session {
        account: comptoir_domain::id::AccountId::generate(),
        token: token.to_owned(),
        id: comptoir_domain::id::SessionId::generate(),
    };
    app.get("/v1/account").by(&session).send().await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whoever_signs_up_can_sign_in_and_see_the_account(db: PgPool) {
    let app = TestApp::new(db).await;
    let account = sign_up(&app).await.expect(StatusCode::CREATED);
    assert_eq!(account.text("/email"), "someone@example.org");
    assert_eq!(account.json["roles"], json!(["user"]));
    let tokens = sign_in(&app, "someone@EXAMPLE.org", PASSWORD)
        .await
        .expect(StatusCode::OK);
    assert_eq!(tokens.json["expires_in"], 900);
    assert_eq!(tokens.header(axum::http::header::CACHE_CONTROL), "no-store");
    let seen = use_token(&app, tokens.text("/access_token"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(seen.json, account.json);
    let stored: String = sqlx::query_scalar("SELECT password_hash FROM accounts")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    assert!(stored.starts_with("$argon2id$v=19$"), "{stored}");
    sign_up(&app)
        .await
        .expect_problem(StatusCode::CONFLICT, "email_taken");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_wrong_password_and_an_unknown_address_get_the_same_answer(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await.expect(StatusCode::CREATED);
    let answer = async |email: &str, password: &str| {
        let mut reply = sign_in(&app, email, password)
            .await
            .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
        reply.json.as_object_mut().unwrap().remove("request_id");
        reply.json
    };
    let wrong = answer(EMAIL, "another long password").await;
    assert_eq!(answer("nobody@example.org", PASSWORD).await, wrong);
    assert_eq!(answer("not an address", PASSWORD).await, wrong);
    assert_eq!(answer(EMAIL, &"x".repeat(10_000)).await, wrong);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_weak_password_or_a_bad_address_is_named(db: PgPool) {
    let app = TestApp::new(db).await;
    for (email, password, pointer) in [
        ("a@b.c", "eleven char", "/password"),
        ("a@b.c", &"x".repeat(129), "/password"),
        ("a@b", PASSWORD, "/email"),
    ] {
        let reply = post(
            &app,
            "/v1/accounts",
            &json!({ "email": email, "password": password }),
        )
        .await;
        let reply = reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(reply.text("/errors/0/pointer"), pointer);
    }
    let extra = json!({ "email": EMAIL, "password": PASSWORD, "roles": ["platform"] });
    let reply = post(&app, "/v1/accounts", &extra).await;
    reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_refresh_token_is_spent_once_and_reuse_ends_its_family(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await.expect(StatusCode::CREATED);
    let first = sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    let elsewhere = sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    let second = refresh(&app, first.text("/refresh_token"))
        .await
        .expect(StatusCode::OK);
    use_token(&app, second.text("/access_token"))
        .await
        .expect(StatusCode::OK);

    let reused = refresh(&app, first.text("/refresh_token")).await;
    reused.expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    let descendant = refresh(&app, second.text("/refresh_token")).await;
    descendant.expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    refresh(&app, elsewhere.text("/refresh_token"))
        .await
        .expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_access_token_ends_with_its_session_and_no_other(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await.expect(StatusCode::CREATED);
    let sign_in = async || sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    let refused = async |tokens: &Reply| {
        use_token(&app, tokens.text("/access_token"))
            .await
            .expect_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
    };
    let (signed_out, stolen, kept) = (sign_in().await, sign_in().await, sign_in().await);
    let body = json!({ "refresh_token": signed_out.text("/refresh_token") });
    post(&app, "/v1/auth/logout", &body)
        .await
        .expect(StatusCode::NO_CONTENT);
    refused(&signed_out).await;

    let next = refresh(&app, stolen.text("/refresh_token"))
        .await
        .expect(StatusCode::OK);
    refresh(&app, stolen.text("/refresh_token"))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    refused(&stolen).await;
    refused(&next).await;

    let session = Session {
        token: kept.text("/access_token").to_owned(),
        ..app.session().await
    };
    let end = || app.request(axum::http::Method::DELETE, "/v1/auth/session");
    use_token(&app, &session.token).await.expect(StatusCode::OK);
    end()
        .by(&session)
        .send()
        .await
        .expect(StatusCode::NO_CONTENT);
    refused(&kept).await;
    end()
        .by(&session)
        .send()
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_touches_a_sign_in_is_in_the_audit_log(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await.expect(StatusCode::CREATED);
    let tokens = sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    sign_in(&app, EMAIL, "another long password").await;
    sign_in(&app, "nobody@example.org", PASSWORD).await;
    refresh(&app, tokens.text("/refresh_token"))
        .await
        .expect(StatusCode::OK);
    refresh(&app, tokens.text("/refresh_token")).await;
    let mut connection = app.owner.acquire().await.unwrap();
    let log = comptoir_store::audit::list(&mut connection, None, None, 100)
        .await
        .unwrap();
    let known: Vec<_> = log
        .iter()
        .rev()
        .map(|entry| (entry.record.action.as_str(), entry.record.account.is_some()))
        .filter(|(action, _)| action.starts_with("session."))
        .collect();
    assert_eq!(
        known,
        [
            ("session.started", true),
            ("session.refused", true),
            ("session.refused", false),
            ("session.reused", true),
        ]
    );
    let text = format!("{log:?}");
    assert!(
        !text.contains("long password") && !text.contains("example.org"),
        "{text}"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_many_that_spend_a_refresh_token_at_once_one_succeeds(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await.expect(StatusCode::CREATED);
    let tokens = sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    let calls = (0..8).map(|_| refresh(&app, tokens.text("/refresh_token")));
    let replies = futures::future::join_all(calls).await;
    assert_eq!(
        replies
            .iter()
            .filter(|reply| reply.status == StatusCode::OK)
            .count(),
        1
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_refresh_token_ends_with_its_session_or_after_thirty_days(db: PgPool) {
    let app = TestApp::new(db).await;
    sign_up(&app).await.expect(StatusCode::CREATED);
    let tokens = sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    let body = json!({ "refresh_token": tokens.text("/refresh_token") });
    for _ in 0..2 {
        post(&app, "/v1/auth/logout", &body)
            .await
            .expect(StatusCode::NO_CONTENT);
    }
    refresh(&app, tokens.text("/refresh_token"))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");

    let tokens = sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    app.pass(Duration::days(30));
    refresh(&app, tokens.text("/refresh_token"))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    assert_eq!(
        comptoir_api::server::forget_expired(&app.state)
            .await
            .unwrap(),
        4,
        "both sign-ins, each with its token"
    );
    refresh(&app, "crt_unknown")
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_access_token_ends_after_fifteen_minutes(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    app.pass(Duration::minutes(15) + Duration::seconds(4));
    use_token(&app, &session.token).await.expect(StatusCode::OK);
    app.pass(Duration::SECOND);
    use_token(&app, &session.token)
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_published_keys_verify_our_tokens(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let published = app
        .get("/.well-known/jwks.json")
        .send()
        .await
        .expect(StatusCode::OK);
    let published: jsonwebtoken::jwk::JwkSet = serde_json::from_value(published.json).unwrap();
    let kid = jsonwebtoken::decode_header(&session.token)
        .unwrap()
        .kid
        .unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(published.find(&kid).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(Algorithm::EdDSA);
    validation.set_audience(&["comptoir-api"]);
    validation.validate_exp = false;
    let claims = jsonwebtoken::decode::<Value>(&session.token, &key, &validation)
        .unwrap()
        .claims;
    assert_eq!(claims["sub"], session.account.to_string());
    let lifetime = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(lifetime, 900);
    assert!(OffsetDateTime::from_unix_timestamp(claims["iat"].as_i64().unwrap()).unwrap() == NOW);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_signs_in_to_a_frozen_account(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = crate::admin::admin(&app).await;
    let account = sign_up(&app).await.expect(StatusCode::CREATED);
    let tokens = sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    let path = format!("/v1/admin/accounts/{}", account.text("/id"));
    let decide = async |what: &str| {
        let decided = crate::admin::act(&app, &admin, &format!("{path}/{what}")).await;
        decided.expect(StatusCode::OK);
    };
    decide("freeze").await;
    // What was signed in before is over: the access token, and what gives the next.
    use_token(&app, tokens.text("/access_token"))
        .await
        .expect(StatusCode::UNAUTHORIZED);
    refresh(&app, tokens.text("/refresh_token"))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    let refused = sign_in(&app, EMAIL, PASSWORD).await;
    let refused = refused.expect_problem(StatusCode::FORBIDDEN, "account_frozen");
    assert!(refused.text("/detail").contains("API keys"), "{refused:?}");
    // Whoever does not know the password is not told.
    sign_in(&app, EMAIL, "a wrong password")
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    let refusals = crate::admin::told(&app, "session.refused").await;
    assert_eq!(refusals.len(), 2, "both are in the audit log");
    decide("unfreeze").await;
    sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    use_token(&app, tokens.text("/access_token"))
        .await
        .expect(StatusCode::UNAUTHORIZED);
}
