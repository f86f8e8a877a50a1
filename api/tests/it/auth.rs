//! Signing up and in, tokens, and what is refused.

use axum::http::StatusCode;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use comptoir_http::jwt::{Grant, SigningKey};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

use crate::harness::{NOW, ORIGIN, Reply, Session, TestApp};

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
        2,
        "both sign-ins"
    );
    refresh(&app, "crt_unknown")
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
}

/// A token with these parts, signed by our key unless the header says otherwise.
fn forge(app: &TestApp, header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let pem: String = app
        .signing_pem
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let der = base64::prelude::BASE64_STANDARD.decode(pem).unwrap();
    let key = EncodingKey::from_ed_der(&der);
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::EdDSA).unwrap();
    format!("{signed}.{signature}")
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn only_a_token_exactly_like_ours_is_believed(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let now = NOW.unix_timestamp();
    let kid = jsonwebtoken::decode_header(&session.token)
        .unwrap()
        .kid
        .unwrap();
    let header = json!({ "typ": "JWT", "alg": "EdDSA", "kid": kid });
    let claims = json!({
        "iss": ORIGIN, "aud": "comptoir-api", "sub": session.account.to_string(), "jti": "1",
        "iat": now, "nbf": now, "exp": now + 900,
    });
    use_token(&app, &forge(&app, &header, &claims))
        .await
        .expect(StatusCode::OK);

    let with = |base: &Value, name: &str, value: Value| {
        let mut changed = base.clone();
        changed[name] = value;
        changed
    };
    let without = |name: &str| {
        let mut changed = claims.clone();
        changed.as_object_mut().unwrap().remove(name);
        changed
    };
    let mut refused: Vec<(String, String)> = Vec::new();
    for name in ["iss", "aud", "sub", "jti", "iat", "nbf", "exp"] {
        refused.push((format!("no {name}"), forge(&app, &header, &without(name))));
    }
    for (name, value) in [
        ("iss", json!("https://elsewhere.test")),
        ("aud", json!("comptoir-worker")),
        ("sub", json!("wrk_01h455vb4pex5vsknk084sn02q")),
        (
            "sub",
            json!(comptoir_domain::id::AccountId::generate().to_string()),
        ),
        ("exp", json!(now - 5)),
        ("exp", json!((now + 900).to_string())),
        ("exp", json!(1e12)),
        ("nbf", json!(now + 6)),
        ("nbf", json!(now.to_string())),
    ] {
        refused.push((
            format!("{name} {value}"),
            forge(&app, &header, &with(&claims, name, value)),
        ));
    }
    for (name, value) in [
        ("alg", json!("none")),
        ("alg", json!("None")),
        ("alg", json!("HS256")),
        ("kid", json!("unknown")),
        ("kid", json!("../../jwt.pem")),
        ("kid", Value::Null),
        ("jku", json!("https://elsewhere.test/jwks.json")),
    ] {
        refused.push((
            format!("{name} {value}"),
            forge(&app, &with(&header, name, value), &claims),
        ));
    }
    refused.push(("alg none, unsigned".into(), unsigned(&claims)));
    refused.push((
        "HS256 with the public key".into(),
        confused(&app, &kid, &claims),
    ));
    refused.push(("another key".into(), signed_elsewhere(&session)));
    refused.push(("a megabyte".into(), "a".repeat(1 << 20)));
    for (what, token) in refused {
        let reply = use_token(&app, &token).await;
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::UNAUTHORIZED, "unauthenticated"),
            "{what}"
        );
    }
}

fn unsigned(claims: &Value) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"none"}"#);
    format!(
        "{header}.{}.",
        BASE64_URL_SAFE_NO_PAD.encode(claims.to_string())
    )
}

fn confused(app: &TestApp, kid: &str, claims: &Value) -> String {
    let public = SigningKey::from_pem(&app.signing_pem).unwrap().public();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(kid.to_owned());
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(&public)).unwrap()
}

fn signed_elsewhere(session: &Session) -> String {
    let key = SigningKey::from_pem(&SigningKey::generate_pem()).unwrap();
    let subject = session.account.to_string();
    let grant = Grant {
        issuer: ORIGIN,
        audience: "comptoir-api",
        subject: &subject,
    };
    key.sign(&grant, NOW, Duration::minutes(15))
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
