//! Who is an administrator, and what one does about accounts.

use axum::http::{Method, StatusCode, header};
use comptoir_domain::{digest::Sha256, id::AccountId, scope::Scopes, setup_token::SetupToken};
use comptoir_store::{admins, audit, queue, sessions, workers};
use serde_json::json;
use sqlx::PgPool;
use time::Duration;

use crate::{
    harness::{Reply, Session, TestApp},
    jobs::RICH,
    market::{self, client, join, worker},
};

/// Somebody who signed in and has the role.
pub async fn admin(app: &TestApp) -> Session {
    let session = app.session().await;
    make_admin(app, session.account).await;
    session
}

/// Gives somebody the role.
pub async fn make_admin(app: &TestApp, account: AccountId) {
    set_roles(app, account, "{user,platform}").await;
}

async fn set_roles(app: &TestApp, account: AccountId, roles: &str) {
    sqlx::query("UPDATE accounts SET roles = $2::text[] WHERE account_id = $1")
        .bind(account.0)
        .bind(roles)
        .execute(&app.owner)
        .await
        .unwrap();
}

/// What the audit log says of an action, newest first.
pub async fn told(app: &TestApp, action: &str) -> Vec<comptoir_domain::audit::Record> {
    let mut connection = app.owner.acquire().await.unwrap();
    let entries = audit::list(&mut connection, None, None, 1_000)
        .await
        .unwrap();
    let records = entries.into_iter().map(|it| it.record);
    records.filter(|it| it.action == action).collect()
}

/// A POST of an administrator with a reason.
pub async fn act(app: &TestApp, by: &Session, path: &str) -> Reply {
    let body = json!({ "reason": "because" });
    app.post(path, &body).by(by).send().await
}

/// The operations below `/v1/admin` that need an administrator: method, path with parameters that name nothing.
fn operations(app: &TestApp) -> Vec<(Method, String)> {
    let document = serde_json::to_value(&app.openapi).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, definition) in item.as_object().unwrap() {
            if path.starts_with("/v1/admin/") && path != "/v1/admin/setup" {
                assert_eq!(
                    definition["security"],
                    json!([{ "admin": [] }]),
                    "{method} {path}"
                );
                let nobodys = path
                    .replace(
                        "/v1/admin/accounts/{id}",
                        &format!("/v1/admin/accounts/{}", AccountId::generate()),
                    )
                    .replace("{id}", "nobodys");
                operations.push((method.to_uppercase().parse().unwrap(), nobodys));
            }
        }
    }
    assert!(operations.len() > 25, "{}", operations.len());
    operations
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_admin_operation_refuses_users_owners_keys_and_wallets(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let user = app.session().await;
    let (owner, _) = client(&app, &asset, RICH).await;
    join(&app, &owner, &worker("a")).await;
    let admin = admin(&app).await;
    let key = app.api_key(&admin, &Scopes::all()).await;
    // An administrator's wallet is not enough: the session must have begun with the password.
    let wallet = {
        let now = app.now();
        let cookie = sessions::Credential::RefreshToken(Sha256([9; 32]));
        let mut tx = app.owner.begin().await.unwrap();
        let who = (admin.account, sessions::Method::Siwe);
        let session = sessions::start(&mut tx, who, cookie, now, now + Duration::DAY)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        Session {
            account: admin.account,
            token: app.state.keys.access_token(admin.account, session, now),
            id: session,
        }
    };
    for (method, path) in operations(&app) {
        let call = async |by: &Session| {
            let call = app.request(method.clone(), &path).by(by);
            let call = call.idempotency_key("walk").header(header::IF_MATCH, "*");
            match method {
                Method::GET => call.send().await,
                _ => call.json(&json!({ "reason": "x" })).send().await,
            }
        };
        for by in [&user, &owner, &key] {
            let refused = call(by).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{method} {path}");
            assert_eq!(refused.code(), "admin_required", "{method} {path}");
        }
        let refused = call(&wallet).await;
        assert_eq!(refused.code(), "fresh_sign_in_required", "{method} {path}");
        let allowed = call(&admin).await;
        assert_ne!(allowed.code(), "admin_required", "{method} {path}");
        assert!(
            allowed.status.as_u16() < 500,
            "{method} {path}: {:?}",
            allowed.json
        );
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_role_ends_with_the_next_request(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = admin(&app).await;
    let list = async || app.get("/v1/admin/admins").by(&admin).send().await;
    let admins = list().await.expect(StatusCode::OK);
    assert_eq!(admins.text("/data/0/id"), admin.account.to_string());
    set_roles(&app, admin.account, "{user}").await;
    list()
        .await
        .expect_problem(StatusCode::FORBIDDEN, "admin_required");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_acts_has_signed_in_in_the_last_fifteen_minutes(db: PgPool) {
    let app = TestApp::new(db).await;
    let admin = admin(&app).await;
    let user = app.session().await;
    let path = format!("/v1/admin/accounts/{}/freeze", user.account);
    app.pass(Duration::minutes(15));
    // The refresh token has given a token of now; the sign-in is as old as before.
    let renewed = app.renewed(&admin);
    app.get("/v1/admin/admins")
        .by(&renewed)
        .send()
        .await
        .expect(StatusCode::OK);
    let refused = act(&app, &renewed, &path).await;
    let refused = refused.expect_problem(StatusCode::UNAUTHORIZED, "fresh_sign_in_required");
    assert_eq!(
        refused.header(header::WWW_AUTHENTICATE),
        r#"Bearer error="insufficient_user_authentication", max_age=900"#
    );
    assert!(told(&app, "account.frozen").await.is_empty());
    let fresh = app.sign_in(admin.account).await;
    act(&app, &fresh, &path).await.expect(StatusCode::OK);
}

/// A setup token for this e-mail address, as `comptoir admin bootstrap` makes it.
pub async fn setup_token(app: &TestApp, email: &str, seed: u8) -> SetupToken {
    let token = SetupToken::from_random([seed; 32]);
    let mut tx = app.owner.begin().await.unwrap();
    let expires_at = app.now() + comptoir_domain::setup_token::LIFETIME;
    admins::issue_setup_token(
        &mut tx,
        &email.parse().unwrap(),
        token.sha256(),
        app.now(),
        expires_at,
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    token
}

pub async fn redeem(app: &TestApp, token: &SetupToken, password: &str) -> Reply {
    let body = json!({ "token": token.reveal(), "password": password });
    app.request(Method::POST, "/v1/admin/setup")
        .json(&body)
        .send()
        .await
}

async fn sign_in(app: &TestApp, email: &str, password: &str) -> Reply {
    let body = json!({ "email": email, "password": password });
    app.request(Method::POST, "/v1/auth/token")
        .json(&body)
        .send()
        .await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_setup_token_makes_one_administrator_once_and_in_time(db: PgPool) {
    const EMAIL: &str = "operator@example.org";
    const PASSWORD: &str = "a long enough password";
    let app = TestApp::new(db).await;
    let replaced = setup_token(&app, EMAIL, 1).await;
    let token = setup_token(&app, EMAIL, 2).await;
    let refused = async |token: &SetupToken| {
        let reply = redeem(&app, token, PASSWORD).await;
        reply.expect_problem(StatusCode::UNAUTHORIZED, "setup_token_refused");
    };
    refused(&replaced).await;
    refused(&SetupToken::from_random([3; 32])).await;
    redeem(&app, &token, "short")
        .await
        .expect(StatusCode::UNPROCESSABLE_ENTITY);
    let made = redeem(&app, &token, PASSWORD).await.expect(StatusCode::OK);
    assert_eq!(
        (made.text("/object"), made.text("/email")),
        ("admin", EMAIL)
    );
    refused(&token).await;
    let late = setup_token(&app, EMAIL, 4).await;
    app.pass(comptoir_domain::setup_token::LIFETIME);
    refused(&late).await;

    let tokens = sign_in(&app, EMAIL, PASSWORD).await.expect(StatusCode::OK);
    let bearer = format!("Bearer {}", tokens.text("/access_token"));
    let admins = app
        .get("/v1/admin/admins")
        .header(header::AUTHORIZATION, &bearer);
    assert_eq!(
        admins.send().await.expect(StatusCode::OK).json["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let granted = told(&app, "account.platform_role_granted").await;
    assert_eq!(granted.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whoever_took_the_operators_address_before_is_shut_out(db: PgPool) {
    const EMAIL: &str = "operator@example.org";
    let app = TestApp::new(db).await;
    let body = json!({ "email": EMAIL, "password": "the thief's own words" });
    app.request(Method::POST, "/v1/accounts")
        .json(&body)
        .send()
        .await
        .expect(StatusCode::CREATED);
    let thief = sign_in(&app, EMAIL, "the thief's own words")
        .await
        .expect(StatusCode::OK);
    let bearer = format!("Bearer {}", thief.text("/access_token"));
    let account = app
        .get("/v1/account")
        .header(header::AUTHORIZATION, &bearer);
    let account: AccountId = account.send().await.text("/id").parse().unwrap();
    let key = app
        .api_key(&app.sign_in(account).await, &Scopes::all())
        .await;

    let token = setup_token(&app, EMAIL, 1).await;
    redeem(&app, &token, "the operator's own words")
        .await
        .expect(StatusCode::OK);
    let old = app
        .get("/v1/account")
        .header(header::AUTHORIZATION, &bearer)
        .send()
        .await;
    old.expect(StatusCode::UNAUTHORIZED);
    app.get("/v1/account")
        .by(&key)
        .send()
        .await
        .expect(StatusCode::UNAUTHORIZED);
    sign_in(&app, EMAIL, "the thief's own words")
        .await
        .expect(StatusCode::UNAUTHORIZED);
    sign_in(&app, EMAIL, "the operator's own words")
        .await
        .expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn one_administrator_stays(db: PgPool) {
    let app = TestApp::new(db).await;
    let (first, second) = (admin(&app).await, admin(&app).await);
    let remove = async |by: &Session, whom: &Session| {
        let path = format!("/v1/admin/admins/{}/remove", whom.account);
        app.post(&path, &json!({})).by(by).send().await
    };
    // Both at once: one of them is the last.
    let (one, other) = tokio::join!(remove(&first, &second), remove(&second, &first));
    let mut statuses = [one.status, other.status];
    statuses.sort();
    assert_eq!(statuses[0], StatusCode::NO_CONTENT, "{one:?} {other:?}");
    assert!(
        matches!(statuses[1], StatusCode::CONFLICT | StatusCode::FORBIDDEN),
        "{one:?} {other:?}"
    );
    let stays = if one.status == StatusCode::NO_CONTENT {
        &first
    } else {
        &second
    };
    remove(stays, stays)
        .await
        .expect_problem(StatusCode::CONFLICT, "last_admin");
    let user = app.session().await;
    remove(stays, &user).await.expect(StatusCode::NOT_FOUND);
    assert_eq!(told(&app, "account.platform_role_revoked").await.len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_service_role_makes_an_administrator(db: PgPool) {
    let app = TestApp::new(db).await;
    let user = app.session().await;
    let error = sqlx::query("UPDATE accounts SET roles = '{user,platform}' WHERE account_id = $1")
        .bind(user.account.0)
        .execute(&app.state.db)
        .await
        .expect_err("the api gives no role");
    assert!(error.to_string().contains("platform"), "{error}");
}

/// How many leases the worker gets, as the scheduler gives them.
pub async fn claim(app: &TestApp, worker: comptoir_domain::id::WorkerId) -> usize {
    let mut tx = app.owner.begin().await.unwrap();
    let worker = workers::find(&mut tx, worker).await.unwrap().unwrap();
    let leases = queue::claim(&mut tx, &worker, 8, app.now())
        .await
        .unwrap()
        .len();
    tx.commit().await.unwrap();
    leases
}
