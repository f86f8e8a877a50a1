//! The address that an account is paid at, when it changes.

use alloy::signers::{SignerSync as _, local::PrivateKeySigner};
use alloy_primitives::{Address, hex};
use axum::http::{Method, StatusCode};
use comptoir_api::steps;
use comptoir_domain::scope::Scopes;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::{
    harness::{Reply, Session, TestApp},
    market,
    passwords::letters,
};

async fn post(app: &TestApp, session: &Session, path: &str, body: &Value) -> Reply {
    let call = app.request(Method::POST, path).json(body).by(session);
    call.send().await
}

/// Signs for an address of the signer's, whatever that does.
async fn bind(app: &TestApp, session: &Session, signer: &PrivateKeySigner) -> Reply {
    let body = json!({ "address": signer.address().to_string() });
    let asked = post(app, session, "/v1/account/address/challenges", &body).await;
    if asked.status != StatusCode::CREATED {
        return asked;
    }
    let signature = signer.sign_message_sync(asked.text("/message").as_bytes());
    let signature = hex::encode_prefixed(signature.unwrap().as_bytes());
    let body = json!({ "challenge_id": asked.text("/id"), "signature": signature });
    post(app, session, "/v1/account/address", &body).await
}

async fn cancel(app: &TestApp, session: &Session) -> Reply {
    post(app, session, "/v1/account/address/cancel", &json!({})).await
}

async fn step(app: &TestApp) {
    steps::step(&app.state).await.unwrap();
}

async fn address_of(app: &TestApp, session: &Session) -> String {
    let seen = app
        .get("/v1/account")
        .by(&app.renewed(session))
        .send()
        .await;
    seen.expect(StatusCode::OK).text("/address").to_owned()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_bound_address_changes_a_day_later_and_its_owner_is_told(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    app.with_mail(folder.path());
    market::open(&app).await;
    let session = app.session().await;
    let (old, new) = (PrivateKeySigner::random(), PrivateKeySigner::random());
    let first = bind(&app, &session, &old).await.expect(StatusCode::OK);
    assert_eq!(first.text("/address"), old.address().to_string());
    let asked = bind(&app, &session, &new).await.expect(StatusCode::OK);
    assert_eq!(asked.text("/address"), old.address().to_string());
    assert_eq!(
        asked.text("/address_change/address"),
        new.address().to_string()
    );
    assert_eq!(
        asked.text("/address_change/effective_at"),
        "2026-11-23T09:00:00Z"
    );
    step(&app).await;
    let [told] = letters(folder.path()).try_into().unwrap();
    assert!(told.contains(&new.address().to_string()), "{told}");
    assert!(told.contains("2026-11-23T09:00:00Z"), "{told}");

    app.pass(Duration::hours(24) - Duration::SECOND);
    step(&app).await;
    assert_eq!(address_of(&app, &session).await, old.address().to_string());
    app.pass(Duration::SECOND);
    step(&app).await;
    assert_eq!(address_of(&app, &session).await, new.address().to_string());
    let [told] = letters(folder.path()).try_into().unwrap();
    assert!(told.contains("Your payout address has changed"), "{told}");
    let actions: Vec<String> = sqlx::query_scalar(
        "SELECT body::jsonb ->> 'action' FROM audit_events WHERE body::jsonb ->> 'action' LIKE 'address.%' ORDER BY seq",
    )
    .fetch_all(&app.owner)
    .await
    .unwrap();
    assert_eq!(
        actions,
        [
            "address.bound",
            "address.change_requested",
            "address.changed"
        ]
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_change_is_taken_back_until_its_time_has_come(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    app.with_mail(folder.path());
    market::open(&app).await;
    let session = app.session().await;
    let old = PrivateKeySigner::random();
    bind(&app, &session, &old).await.expect(StatusCode::OK);
    bind(&app, &session, &PrivateKeySigner::random())
        .await
        .expect(StatusCode::OK);
    bind(&app, &session, &PrivateKeySigner::random())
        .await
        .expect_problem(StatusCode::CONFLICT, "address_change_pending");
    for _ in 0..2 {
        let left = cancel(&app, &session).await.expect(StatusCode::OK);
        assert_eq!(left.json["address_change"], Value::Null);
    }
    step(&app).await;
    assert_eq!(letters(folder.path()).len(), 2, "asked for, and taken back");
    app.pass(Duration::hours(25));
    step(&app).await;
    assert_eq!(address_of(&app, &session).await, old.address().to_string());

    let session = app.renewed(&session);
    bind(&app, &session, &PrivateKeySigner::random())
        .await
        .expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_api_key_binds_changes_or_takes_back_an_address(db: PgPool) {
    let app = TestApp::new(db).await;
    market::open(&app).await;
    let session = app.session().await;
    let key = app.api_key(&session, &Scopes::all()).await;
    let address = json!({ "address": Address::repeat_byte(0x42).to_string() });
    let challenge =
        json!({ "challenge_id": "chal_01h455vb4pex5vsknk084sn02q", "signature": "0x00" });
    for (path, body) in [
        ("/v1/account/address/challenges", address),
        ("/v1/account/address", challenge),
        ("/v1/account/address/cancel", json!({})),
    ] {
        post(&app, &key, path, &body)
            .await
            .expect_problem(StatusCode::FORBIDDEN, "session_required");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_address_that_another_account_took_meanwhile_is_not_changed_to(db: PgPool) {
    let mut app = TestApp::new(db).await;
    let folder = tempfile::tempdir().unwrap();
    app.with_mail(folder.path());
    market::open(&app).await;
    let (session, other) = (app.session().await, app.session().await);
    let (old, wanted) = (PrivateKeySigner::random(), PrivateKeySigner::random());
    bind(&app, &session, &old).await.expect(StatusCode::OK);
    bind(&app, &session, &wanted).await.expect(StatusCode::OK);
    bind(&app, &other, &wanted).await.expect(StatusCode::OK);
    step(&app).await;
    letters(folder.path());
    app.pass(Duration::hours(24));
    step(&app).await;
    assert_eq!(address_of(&app, &session).await, old.address().to_string());
    let [told] = letters(folder.path()).try_into().unwrap();
    assert!(
        told.contains("another account has taken that address"),
        "{told}"
    );
    let taken = bind(&app, &app.renewed(&session), &wanted).await;
    taken.expect_problem(StatusCode::CONFLICT, "address_taken");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_left_under_the_old_address_becomes_claimable_there(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, old) = market::client(&app, &asset, 1_000).await;
    let new = PrivateKeySigner::random();
    bind(&app, &session, &new).await.expect(StatusCode::OK);
    app.pass(Duration::hours(24));
    step(&app).await;
    let releases = async || {
        let rows: Vec<(Vec<u8>, String)> = sqlx::query_as(
            "SELECT owner, amount_base::text FROM releases WHERE kind = 'withdrawal'",
        )
        .fetch_all(&app.owner)
        .await
        .unwrap();
        rows
    };
    assert_eq!(releases().await, [(old.to_vec(), "1000".to_owned())]);
    let held = market::balances(&app, &asset, old).await;
    assert!(held.available.is_zero());
    step(&app).await;
    assert_eq!(releases().await.len(), 1);
    let late = comptoir_domain::amount::Amount::from_base(7).unwrap();
    let mut tx = app.owner.begin().await.unwrap();
    comptoir_store::ledger::deposit(&mut tx, asset.id, old, late, "test:late", app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    step(&app).await;
    assert_eq!(releases().await.len(), 2, "what comes later follows");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_database_changes_no_bound_address_without_a_change_whose_time_came(db: PgPool) {
    let app = TestApp::new(db).await;
    market::open(&app).await;
    let (session, _) = app.bound_session().await;
    let refused = sqlx::query("UPDATE accounts SET address = $2 WHERE account_id = $1")
        .bind(session.account.0)
        .bind(&[0x42_u8; 20][..])
        .execute(&app.state.db)
        .await
        .unwrap_err();
    let refused = refused.into_database_error().unwrap();
    assert_eq!(refused.constraint(), Some("accounts_address_guarded"));
    let unbound = sqlx::query(
        "UPDATE accounts SET address = NULL, address_bound_at = NULL WHERE account_id = $1",
    )
    .bind(session.account.0)
    .execute(&app.state.db)
    .await
    .unwrap_err();
    let unbound = unbound.into_database_error().unwrap();
    assert_eq!(unbound.constraint(), Some("accounts_address_guarded"));
}
