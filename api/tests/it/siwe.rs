//! Signing in with a wallet: keys and contracts, nonces, and what a message must say.

use std::sync::Arc;

use alloy::{
    network::TransactionBuilder as _,
    providers::{Provider as _, ProviderBuilder, ext::AnvilApi as _},
    rpc::types::TransactionRequest,
    signers::{SignerSync as _, local::PrivateKeySigner},
};
use alloy_primitives::{Address, U256, hex};
use axum::http::{Method, StatusCode, header};
use comptoir_api::auth::contract_wallets::ContractWallets;
use comptoir_devchain::Anvil;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::{Duration, format_description::well_known::Rfc3339};

use crate::{
    accounts::register_asset,
    harness::{ORIGIN, Reply, Session, TestApp},
};

/// The parts of a message, ready to be changed.
struct Message {
    domain: String,
    address: Address,
    uri: String,
    version: String,
    chain_id: u64,
    nonce: String,
    times: String,
}

impl Message {
    async fn new(app: &TestApp, address: Address) -> Self {
        let nonce = app
            .request(Method::POST, "/v1/auth/siwe/nonce")
            .send()
            .await
            .expect(StatusCode::CREATED);
        assert_eq!(nonce.json["chain_ids"], json!([31_337]));
        Self {
            domain: nonce.text("/domain").to_owned(),
            address,
            uri: nonce.text("/uri").to_owned(),
            version: nonce.text("/version").to_owned(),
            chain_id: 31_337,
            nonce: nonce.text("/nonce").to_owned(),
            times: format!("Issued At: {}", nonce.text("/issued_at")),
        }
    }

    fn append(&mut self, line: &str, time: &str) {
        self.times.push_str(line);
        self.times.push_str(time);
    }

    fn text(&self) -> String {
        format!(
            "{} wants you to sign in with your Ethereum account:\n{}\n\nSigning moves no money.\n\nURI: {}\nVersion: {}\n\
             Chain ID: {}\nNonce: {}\n{}",
            self.domain,
            self.address,
            self.uri,
            self.version,
            self.chain_id,
            self.nonce,
            self.times,
        )
    }
}

fn sign(signer: &PrivateKeySigner, text: &str) -> String {
    let signature = signer.sign_message_sync(text.as_bytes()).unwrap();
    hex::encode_prefixed(signature.as_bytes())
}

async fn send(app: &TestApp, text: &str, signature: &str) -> Reply {
    let body = json!({ "message": text, "signature": signature });
    let call = app.request(Method::POST, "/v1/auth/siwe").json(&body);
    call.send().await
}

async fn sign_in(app: &TestApp, signer: &PrivateKeySigner) -> Reply {
    let text = Message::new(app, signer.address()).await.text();
    send(app, &text, &sign(signer, &text)).await
}

async fn account(app: &TestApp, tokens: &Reply) -> Value {
    let session = Session {
        token: tokens.text("/access_token").to_owned(),
        ..app.session().await
    };
    let account = app.get("/v1/account").by(&session).send().await;
    account.expect(StatusCode::OK).json
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_wallet_signs_in_to_the_account_of_its_address(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let signer = PrivateKeySigner::random();
    let first = sign_in(&app, &signer).await.expect(StatusCode::OK);
    let made = account(&app, &first).await;
    assert_eq!(made["address"], signer.address().to_string());
    assert_eq!(made["email"], Value::Null);
    let again = sign_in(&app, &signer).await.expect(StatusCode::OK);
    assert_eq!(account(&app, &again).await["id"], made["id"]);
    let other = sign_in(&app, &PrivateKeySigner::random()).await;
    let other = account(&app, &other.expect(StatusCode::OK)).await;
    assert_ne!(other["id"], made["id"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_nonce_is_good_once_and_for_five_minutes(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let signer = PrivateKeySigner::random();
    let text = Message::new(&app, signer.address()).await.text();
    let signature = sign(&signer, &text);
    send(&app, &text, &signature).await.expect(StatusCode::OK);
    send(&app, &text, &signature)
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");

    let text = Message::new(&app, signer.address()).await.text();
    app.pass(Duration::minutes(5));
    send(&app, &text, &sign(&signer, &text))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");

    let mut made_up = Message::new(&app, signer.address()).await;
    made_up.nonce = "0123456789abcdef".to_owned();
    let text = made_up.text();
    send(&app, &text, &sign(&signer, &text))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_many_that_show_one_signature_at_once_one_signs_in(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let signer = PrivateKeySigner::random();
    let text = Message::new(&app, signer.address()).await.text();
    let signature = sign(&signer, &text);
    let calls = (0..6).map(|_| send(&app, &text, &signature));
    let replies = futures::future::join_all(calls).await;
    let signed_in = replies.iter().filter(|it| it.status == StatusCode::OK);
    assert_eq!(signed_in.count(), 1);
}

/// What is changed of a message, and how.
type Change<'a> = (&'a str, Box<dyn Fn(&mut Message) + 'a>);

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_message_is_for_this_site_this_chain_and_this_time(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let signer = PrivateKeySigner::random();
    let at = |time: time::OffsetDateTime| time.format(&Rfc3339).unwrap();
    let past = at(app.now() - Duration::SECOND);
    let future = at(app.now() + Duration::HOUR);
    let changes: Vec<Change<'_>> = vec![
        (
            "domain",
            Box::new(|it| it.domain = "comptoir.evil".to_owned()),
        ),
        ("port", Box::new(|it| it.domain += ":8443")),
        (
            "uri",
            Box::new(|it| it.uri = "https://comptoir.evil".to_owned()),
        ),
        (
            "uri that begins alike",
            Box::new(|it| it.uri = format!("{ORIGIN}.evil/")),
        ),
        ("chain", Box::new(|it| it.chain_id = 1)),
        (
            "expired",
            Box::new(|it| it.append("\nExpiration Time: ", &past)),
        ),
        (
            "too early",
            Box::new(|it| it.append("\nNot Before: ", &future)),
        ),
    ];
    for (what, change) in changes {
        let mut message = Message::new(&app, signer.address()).await;
        change(&mut message);
        let text = message.text();
        let reply = send(&app, &text, &sign(&signer, &text)).await;
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::UNAUTHORIZED, "invalid_grant"),
            "{what}: {text}"
        );
    }
    let mut message = Message::new(&app, signer.address()).await;
    message.uri += "/sign-in";
    message.append("\nExpiration Time: ", &future);
    let text = message.text();
    send(&app, &text, &sign(&signer, &text))
        .await
        .expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_message_is_written_exactly_and_signed_by_its_address(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let signer = PrivateKeySigner::random();
    let message = Message::new(&app, signer.address()).await;
    let text = message.text();
    let stranger = sign(&PrivateKeySigner::random(), &text);
    for signature in [stranger.as_str(), "0x00", &format!("0x{}", "ff".repeat(65))] {
        send(&app, &text, signature)
            .await
            .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    }
    for signature in ["", "0x", "zz", "0xf", &format!("0x{}", "00".repeat(4097))] {
        send(&app, &text, signature)
            .await
            .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    for written in [
        text.replace("\n\nSigning", "\nYou win a prize\nSigning"),
        text.replace("Version: 1", "Version: 2"),
        text.replace("wants you", "asks you"),
        text.replace('\n', "\r\n"),
        text.to_lowercase(),
        format!("{text}\nUnexpected"),
        format!("{text}{}", " ".repeat(5_000)),
        String::new(),
    ] {
        let reply = send(&app, &written, &sign(&signer, &written)).await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{written}");
    }
    send(&app, &text, &sign(&signer, &text))
        .await
        .expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_address_that_nobody_can_own_gets_no_account(db: PgPool) {
    let app = TestApp::new(db).await;
    let asset = register_asset(&app).await;
    let signer = PrivateKeySigner::random();
    sqlx::query("UPDATE assets SET platform = $1 WHERE asset_id = $2")
        .bind(signer.address().as_slice())
        .bind(asset.id)
        .execute(&app.owner)
        .await
        .unwrap();
    sign_in(&app, &signer)
        .await
        .expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "address_refused");
}

/// Code of a wallet that takes the signatures of one key for its own (EIP-1271): it recovers the signer of the hash by the
/// precompile, compares, and answers the selector or zero.
fn wallet_of(owner: Address) -> Vec<u8> {
    let recover = hex!("600435600052" "60a43560001a602052" "606435604052" "608435606052" "602060006080600060015afa50");
    let compare = [hex!("60005173").as_slice(), owner.as_slice(), &hex!("14")].concat();
    let answer = hex!("631626ba7e02" "60e01b" "600052" "60206000f3");
    let code = [recover.as_slice(), &compare, &answer].concat();
    let length = u8::try_from(code.len()).unwrap();
    let copy = [
        0x60, length, 0x60, 0x0c, 0x60, 0x00, 0x39, 0x60, length, 0x60, 0x00, 0xf3,
    ];
    [copy.as_slice(), &code].concat()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_contract_signs_in_by_its_own_rules(db: PgPool) {
    let anvil = Anvil::start(&[]).await;
    let mut app = TestApp::new(db).await;
    register_asset(&app).await;
    let (owner, payer) = (PrivateKeySigner::random(), PrivateKeySigner::random());
    let node = ProviderBuilder::new()
        .wallet(payer.clone())
        .connect_http(anvil.url.clone());
    node.anvil_set_balance(payer.address(), U256::from(10).pow(U256::from(18)))
        .await
        .unwrap();
    let deploy = TransactionRequest::default().with_deploy_code(wallet_of(owner.address()));
    let deployed = node.send_transaction(deploy).await.unwrap();
    let deployed = deployed.get_receipt().await.unwrap();
    let wallet = deployed.contract_address.unwrap();

    let text = Message::new(&app, wallet).await.text();
    send(&app, &text, &sign(&owner, &text))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");

    app.with_contract_wallets(Arc::new(ContractWallets::new(anvil.url.clone())));
    let tokens = send(&app, &text, &sign(&owner, &text)).await;
    let made = account(&app, &tokens.expect(StatusCode::OK)).await;
    assert_eq!(made["address"], wallet.to_string());

    let text = Message::new(&app, wallet).await.text();
    let stranger = PrivateKeySigner::random();
    send(&app, &text, &sign(&stranger, &text))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    let no_contract = Message::new(&app, Address::repeat_byte(0x99)).await.text();
    send(&app, &no_contract, &sign(&owner, &no_contract))
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "invalid_grant");
    drop(anvil);
    let text = Message::new(&app, wallet).await.text();
    send(&app, &text, &sign(&owner, &text))
        .await
        .expect_problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
}

/// The cookie of a reply, as a browser sends it back.
fn cookie(reply: &Reply) -> String {
    let set = reply.header(header::SET_COOKIE);
    for part in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/"] {
        assert!(set.split("; ").any(|it| it == part), "{part} in {set}");
    }
    assert!(!set.contains("Domain"), "{set}");
    set.split(';').next().unwrap().to_owned()
}

async fn browse(app: &TestApp, signer: &PrivateKeySigner, origin: Option<&str>) -> Reply {
    let text = Message::new(app, signer.address()).await.text();
    let body = json!({ "message": text, "signature": sign(signer, &text), "session": "cookie" });
    let call = app.request(Method::POST, "/v1/auth/siwe").json(&body);
    match origin {
        Some(origin) => call.header(header::ORIGIN, origin).send().await,
        None => call.send().await,
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_cookie_is_taken_from_our_own_pages_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let signer = PrivateKeySigner::random();
    for origin in [None, Some("null"), Some("https://comptoir.evil")] {
        browse(&app, &signer, origin)
            .await
            .expect_problem(StatusCode::FORBIDDEN, "origin_refused");
    }
    let signed_in = browse(&app, &signer, Some(ORIGIN))
        .await
        .expect(StatusCode::OK);
    assert!(signed_in.json.get("access_token").is_none());
    let cookie = cookie(&signed_in);
    let stored: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sessions WHERE cookie_sha256 IS NOT NULL")
            .fetch_one(&app.owner)
            .await
            .unwrap();
    assert_eq!(stored, 1);

    let read = app.get("/v1/account").header(header::COOKIE, &cookie);
    read.send().await.expect(StatusCode::OK);
    let change = |origin: Option<&str>| {
        let body = json!({ "name": "a", "scopes": ["jobs:read"] });
        let call = app.post("/v1/keys", &body).header(header::COOKIE, &cookie);
        match origin {
            Some(origin) => call.header(header::ORIGIN, origin),
            None => call,
        }
    };
    for origin in [
        None,
        Some("null"),
        Some("https://comptoir.evil"),
        Some("http://comptoir.test"),
        Some("https://comptoir.test.evil"),
    ] {
        change(origin)
            .send()
            .await
            .expect_problem(StatusCode::FORBIDDEN, "origin_refused");
    }
    change(Some(ORIGIN))
        .send()
        .await
        .expect(StatusCode::CREATED);
    let twice = change(Some(ORIGIN)).header(header::ORIGIN, "https://comptoir.evil");
    twice
        .send()
        .await
        .expect_problem(StatusCode::FORBIDDEN, "origin_refused");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_cookie_ends_with_its_session_and_none_is_adopted(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let signer = PrivateKeySigner::random();
    let first = cookie(&browse(&app, &signer, Some(ORIGIN)).await);
    // Whoever plants a cookie before the sign-in does not share the session after it.
    let text = Message::new(&app, signer.address()).await.text();
    let body = json!({ "message": text, "signature": sign(&signer, &text), "session": "cookie" });
    let fixed = app
        .request(Method::POST, "/v1/auth/siwe")
        .json(&body)
        .header(header::ORIGIN, ORIGIN)
        .header(header::COOKIE, "__Host-comptoir=planted")
        .send()
        .await;
    let second = cookie(&fixed.expect(StatusCode::OK));
    assert!(!second.contains("planted") && first != second);
    let read = async |cookie: &str| {
        let call = app.get("/v1/account").header(header::COOKIE, cookie);
        call.send().await.status
    };
    assert_eq!(
        read("__Host-comptoir=planted").await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        read(&format!("{first}; {second}")).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(read(&format!("theme=dark; {first}")).await, StatusCode::OK);

    let end = app
        .request(Method::DELETE, "/v1/auth/session")
        .header(header::ORIGIN, ORIGIN)
        .header(header::COOKIE, &first);
    let ended = end.send().await.expect(StatusCode::NO_CONTENT);
    assert!(ended.header(header::SET_COOKIE).contains("Max-Age=0"));
    assert_eq!(read(&first).await, StatusCode::UNAUTHORIZED);
    assert_eq!(read(&second).await, StatusCode::OK);
    app.pass(Duration::days(7));
    assert_eq!(read(&second).await, StatusCode::UNAUTHORIZED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_wallet_does_not_sign_in_to_a_frozen_account(db: PgPool) {
    let app = TestApp::new(db).await;
    register_asset(&app).await;
    let admin = crate::admin::admin(&app).await;
    let signer = PrivateKeySigner::random();
    let tokens = sign_in(&app, &signer).await.expect(StatusCode::OK);
    let id = account(&app, &tokens).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/admin/accounts/{id}/freeze");
    crate::admin::act(&app, &admin, &path)
        .await
        .expect(StatusCode::OK);
    sign_in(&app, &signer)
        .await
        .expect_problem(StatusCode::FORBIDDEN, "account_frozen");
}
