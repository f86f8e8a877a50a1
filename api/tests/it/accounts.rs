//! The account, and the binding of its address.

use alloy::signers::{SignerSync as _, local::PrivateKeySigner};
use alloy_primitives::{Address, address};
use axum::http::{Method, StatusCode, header};
use comptoir_domain::asset::Asset;
use comptoir_store::assets::{self, NewAsset};
use serde_json::json;
use sqlx::PgPool;
use time::Duration;

use crate::harness::{Reply, Session, TestApp};

const TOKEN: Address = address!("0x1000000000000000000000000000000000000001");
const CONTRACT: Address = address!("0x1000000000000000000000000000000000000002");
const PLATFORM: Address = address!("0x1000000000000000000000000000000000000003");

pub async fn register_asset(app: &TestApp) -> Asset {
    let new = NewAsset {
        chain_id: 31_337,
        token: TOKEN,
        contract: CONTRACT,
        symbol: "CMP".to_owned(),
        decimals: 18,
        platform: PLATFORM,
    };
    assets::register(&mut app.owner.acquire().await.unwrap(), &new, app.now())
        .await
        .unwrap()
}

async fn challenge(app: &TestApp, session: &Session, address: Address) -> Reply {
    let body = json!({ "address": address.to_string() });
    app.request(Method::POST, "/v1/account/address/challenges")
        .json(&body)
        .by(session)
        .send()
        .await
}

async fn bind(
    app: &TestApp,
    session: &Session,
    challenge: &Reply,
    signer: &PrivateKeySigner,
) -> Reply {
    let signature = signer
        .sign_message_sync(challenge.text("/message").as_bytes())
        .unwrap();
    let signature = format!("0x{}", alloy_primitives::hex::encode(signature.as_bytes()));
    let body = json!({ "challenge_id": challenge.text("/id"), "signature": signature });
    app.request(Method::POST, "/v1/account/address")
        .json(&body)
        .by(session)
        .send()
        .await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_signed_challenge_binds_its_address_once(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let session = app.session().await;
    let signer = PrivateKeySigner::random();
    let asked = challenge(&app, &session, signer.address())
        .await
        .expect(StatusCode::CREATED);
    let message = asked.text("/message");
    for part in [
        "https://comptoir.test asks",
        &format!("Address: {}", signer.address()),
        &format!("Account: {}", session.account),
        "Chain ID: 31337",
        "Nonce: ",
        "Expires: 2026-11-22T09:05:00Z",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let account = bind(&app, &session, &asked, &signer)
        .await
        .expect(StatusCode::OK);
    assert_eq!(account.text("/address"), signer.address().to_string());
    assert_eq!(account.text("/address_bound_at"), "2026-11-22T09:00:00Z");

    bind(&app, &session, &asked, &signer)
        .await
        .expect_problem(StatusCode::CONFLICT, "challenge_spent");
    challenge(&app, &session, signer.address())
        .await
        .expect_problem(StatusCode::CONFLICT, "address_already_bound");
    let other = app.session().await;
    challenge(&app, &other, signer.address())
        .await
        .expect_problem(StatusCode::CONFLICT, "address_taken");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_challenge_binds_for_its_account_in_its_time_with_its_key_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let (session, other) = (app.session().await, app.session().await);
    let signer = PrivateKeySigner::random();
    let asked = challenge(&app, &session, signer.address())
        .await
        .expect(StatusCode::CREATED);

    bind(&app, &other, &asked, &signer)
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
    let wrong = bind(&app, &session, &asked, &PrivateKeySigner::random()).await;
    wrong.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "signature_mismatch");
    for signature in ["", "0x", "0x00", "zz", &format!("0x{}", "ff".repeat(65))] {
        let body = json!({ "challenge_id": asked.text("/id"), "signature": signature });
        let reply = app
            .request(Method::POST, "/v1/account/address")
            .json(&body)
            .by(&session)
            .send()
            .await;
        assert_eq!(
            reply.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{signature}"
        );
    }
    assert_eq!(
        comptoir_api::server::forget_expired(&app.state)
            .await
            .unwrap(),
        0
    );
    app.pass(Duration::minutes(5));
    bind(&app, &session, &asked, &signer)
        .await
        .expect_problem(StatusCode::CONFLICT, "challenge_spent");
    assert_eq!(
        comptoir_api::server::forget_expired(&app.state)
            .await
            .unwrap(),
        1
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_two_accounts_that_race_for_an_address_one_gets_it(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let (a, b) = (app.session().await, app.session().await);
    let signer = PrivateKeySigner::random();
    let asked_a = challenge(&app, &a, signer.address())
        .await
        .expect(StatusCode::CREATED);
    let asked_b = challenge(&app, &b, signer.address())
        .await
        .expect(StatusCode::CREATED);
    let replies = tokio::join!(
        bind(&app, &a, &asked_a, &signer),
        bind(&app, &b, &asked_b, &signer)
    );
    let mut statuses = [replies.0.status, replies.1.status];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::CONFLICT]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_address_that_nobody_can_own_is_refused(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let session = app.session().await;
    for address in [
        TOKEN,
        CONTRACT,
        PLATFORM,
        Address::ZERO,
        Address::with_last_byte(9),
    ] {
        let reply = challenge(&app, &session, address).await;
        reply.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "address_refused");
    }
    let wrong_checksum = json!({ "address": "0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed" });
    let reply = app
        .request(Method::POST, "/v1/account/address/challenges")
        .json(&wrong_checksum)
        .by(&session);
    let reply = reply
        .send()
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(reply.text("/errors/0/pointer"), "/address");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_address_is_bound_before_a_contract_is_registered(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let reply = challenge(&app, &session, PrivateKeySigner::random().address()).await;
    reply.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_account_is_changed_only_by_who_has_seen_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let seen = app
        .get("/v1/account")
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(seen.json["auto_release"], true);
    let tag = seen.header(header::ETAG);
    let unchanged = app
        .get("/v1/account")
        .by(&session)
        .header(header::IF_NONE_MATCH, tag)
        .send()
        .await;
    assert!(unchanged.expect(StatusCode::NOT_MODIFIED).bytes.is_empty());

    let patch = || {
        let call = app.request(Method::PATCH, "/v1/account").by(&session);
        call.header(header::CONTENT_TYPE, "application/merge-patch+json")
            .body(r#"{"auto_release":false}"#)
    };
    patch()
        .send()
        .await
        .expect_problem(StatusCode::PRECONDITION_REQUIRED, "precondition_required");
    let changed = patch()
        .header(header::IF_MATCH, tag)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(changed.json["auto_release"], false);
    assert_ne!(changed.header(header::ETAG), tag);
    let stale = patch().header(header::IF_MATCH, tag).send().await;
    stale.expect_problem(StatusCode::PRECONDITION_FAILED, "precondition_failed");

    for body in [
        r#"{"auto_release":null}"#,
        r#"{"roles":["platform"]}"#,
        r#"{"auto_release":"no"}"#,
    ] {
        let call = app
            .request(Method::PATCH, "/v1/account")
            .by(&session)
            .header(header::IF_MATCH, "*");
        let call = call
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let reply = call.send().await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    }
}
