//! A service with a token and a price, clients with money, and the example's files.

use std::path::Path;

use alloy_primitives::Address;
use axum::http::{Method, StatusCode};
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    digest::Sha256,
    id::WorkerId,
    job::Device,
    join_token::JoinToken,
    price::{PriceVersion, Rate},
};
use comptoir_store::{
    assets::{self, NewAsset},
    ledger::{self, Balances},
    prices::{self, NewPrice},
    workers::{self, NewWorker},
};
use serde_json::{Value, json};

use crate::harness::{Reply, Session, TestApp};

/// Atto base units per multiply-add: jobs of the example cost some hundred base units, and a fraction.
pub const RATE_NANO: u128 = 1_000_000_000_007;
/// The least that a job costs.
pub const MINIMUM: u128 = 50;

/// Registers the token and publishes the price of the CPU; nothing is published for GPUs.
pub async fn open(app: &TestApp) -> (Asset, PriceVersion) {
    let mut connection = app.owner.acquire().await.unwrap();
    let new = NewAsset {
        chain_id: 31_337,
        token: Address::repeat_byte(0x11),
        contract: Address::repeat_byte(0x22),
        symbol: "CMP".into(),
        decimals: 18,
        platform: Address::repeat_byte(0x33),
    };
    let asset = assets::register(&mut connection, &new, app.now())
        .await
        .unwrap();
    let price = NewPrice {
        device: Device::Cpu,
        rate_nano: Rate::from_nano(RATE_NANO).unwrap(),
        minimum: Amount::from_base(MINIMUM).unwrap(),
        platform_ppm: 100_000,
        effective_at: app.now(),
    };
    let price = prices::publish(&mut connection, asset.id, price)
        .await
        .unwrap();
    (asset, price)
}

/// Somebody with an address and so many base units.
pub async fn client(app: &TestApp, asset: &Asset, base: u128) -> (Session, Address) {
    let (session, address) = app.bound_session().await;
    if let Some(amount) = Amount::from_base(base).filter(|it| !it.is_zero()) {
        let mut tx = app.owner.begin().await.unwrap();
        let source = format!("test:{address}");
        ledger::deposit(&mut tx, asset.id, address, amount, &source, app.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    (session, address)
}

pub async fn balances(app: &TestApp, asset: &Asset, owner: Address) -> Balances {
    ledger::balances(&mut app.owner.acquire().await.unwrap(), owner, asset.id)
        .await
        .unwrap()
}

/// A file of the example.
pub fn example(path: &str) -> Vec<u8> {
    std::fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples/digits")
            .join(path),
    )
    .unwrap()
}

pub async fn upload(app: &TestApp, session: &Session, bytes: &[u8]) -> Reply {
    let path = format!("/v1/blobs/{}", Sha256::of(bytes));
    app.request(Method::PUT, &path)
        .by(session)
        .body(bytes.to_vec())
        .send()
        .await
}

/// A training job on the example's images, its files uploaded.
pub async fn training(app: &TestApp, session: &Session, program: &str) -> Value {
    let (program, train) = (example(program), example("train.safetensors"));
    let uploaded = upload(app, session, &program).await;
    upload(app, session, &train).await;
    let input = uploaded.text("/program/inputs/0/name").to_owned();
    json!({
        "kind": "training",
        "program": Sha256::of(&program),
        "inputs": { input: { "blob": Sha256::of(&train), "tensor": "images" } },
        "target": { "blob": Sha256::of(&train), "tensor": "labels" },
        "loss": "cross_entropy",
        "optimizer": { "type": "adam", "learning_rate": 0.003 },
        "epochs": 5, "batch_size": 32, "seed": 7,
    })
}

pub async fn quote(app: &TestApp, session: &Session, spec: &Value, tier: &str) -> Reply {
    app.post("/v1/quotes", &json!({ "spec": spec, "tier": tier }))
        .by(session)
        .send()
        .await
}

/// A submitted job of the example.
pub async fn job(app: &TestApp, session: &Session, tier: &str) -> Reply {
    let spec = training(app, session, "mlp.pt2").await;
    let quoted = quote(app, session, &spec, tier)
        .await
        .expect(StatusCode::CREATED);
    let body = json!({ "quote_id": quoted.text("/id"), "max_cost": quoted.json["hold"] });
    app.post("/v1/jobs", &body)
        .by(session)
        .send()
        .await
        .expect(StatusCode::CREATED)
}

/// A fresh join token of the account.
pub async fn join_token(app: &TestApp, session: &Session) -> JoinToken {
    let body = json!({ "name": "rack 1", "max_uses": 100 });
    let made = app.post("/v1/join-tokens", &body).by(session).send().await;
    made.expect(StatusCode::CREATED)
        .text("/token")
        .parse()
        .unwrap()
}

/// What a worker of this class says when it joins.
pub fn worker(class: &str) -> NewWorker {
    NewWorker {
        name: "bench".into(),
        public_key: comptoir_api::auth::keys::random(),
        device: Device::Cpu,
        device_name: "test".into(),
        memory_bytes: 4 << 30,
        threads: 1,
        numeric_class: class.into(),
        libtorch: "2.13.0".into(),
        version: "0.1.0".into(),
        price_floor_nano: Amount::ZERO,
        unsandboxed: false,
    }
}

/// Joins a worker, as the scheduler does it.
pub async fn join(app: &TestApp, owner: &Session, worker: &NewWorker) -> WorkerId {
    let token = join_token(app, owner).await;
    let mut tx = app.owner.begin().await.unwrap();
    let id = workers::join(&mut tx, token.id, token.secret_sha256(), worker, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    id
}
