//! Deposits, receipts, batches and claims: what the settler writes, as clients see it.

use alloy_primitives::{Address, B256};
use axum::http::{StatusCode, header};
use bytes::Bytes;
use comptoir_domain::{
    asset::Asset,
    digest::Sha256,
    id::{BatchId, JobId, QuoteId, ReceiptId},
    job::Tier,
    price::{self, Meter, PriceVersion},
    settlement::{
        AccountDocument, BatchState, ReceiptDocument,
        event::{Event, Logged},
        file::{self, Opening},
    },
};
use comptoir_store::{
    batches::{self, NewBatch},
    chain::{self, Block},
    charges::{self, JobCharge},
    deposits,
    holds::{self, Hold, HoldSource},
    releases,
};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    harness::{Session, TestApp},
    market,
};

/// A receipt that the session's account paid.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let (asset, price) = market::open(app).await;
    let payer = address_of(app, owner).await;
    deposit(app, &asset, payer, 100).await;
    let receipt = pay(
        app,
        (&asset, &price),
        (owner, payer),
        10,
        Address::repeat_byte(0x77),
    )
    .await;
    vec![receipt.to_string()]
}

async fn address_of(app: &TestApp, session: &Session) -> Address {
    let address: Vec<u8> = sqlx::query_scalar("SELECT address FROM accounts WHERE account_id = $1")
        .bind(session.account.0)
        .fetch_one(&app.owner)
        .await
        .unwrap();
    Address::from_slice(&address)
}

fn block(number: u64) -> Block {
    let hash = |number: u64| B256::with_last_byte(u8::try_from(number).unwrap());
    Block {
        number,
        hash: hash(number),
        parent_hash: hash(number - 1),
    }
}

/// Shows a deposit in the next block, and makes that block final.
pub async fn deposit(app: &TestApp, asset: &Asset, account: Address, amount: u128) {
    let number = show_deposit(app, asset, account, amount).await;
    let mut tx = app.owner.begin().await.unwrap();
    chain::make_final(
        &mut tx,
        asset.id,
        (number, block(number).hash),
        Some(3),
        app.now(),
    )
    .await
    .unwrap();
    deposits::credit(&mut tx, asset, number, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn show_deposit(app: &TestApp, asset: &Asset, account: Address, amount: u128) -> u64 {
    let mut tx = app.owner.begin().await.unwrap();
    if chain::cursor(&mut tx, asset.id).await.unwrap().is_none() {
        chain::begin(&mut tx, asset.id, &block(1), app.now())
            .await
            .unwrap();
    }
    let cursor = chain::cursor(&mut tx, asset.id).await.unwrap().unwrap();
    let next = block(cursor.head_number + 1);
    let event_seq = cursor.head_event_seq + 1;
    let logged = Logged {
        block_number: next.number,
        block_hash: next.hash,
        tx_hash: B256::repeat_byte(9),
        log_index: 0,
        event_seq,
        event: Event::Deposited {
            account,
            from: account,
            deposit_seq: event_seq,
            amount,
        },
    };
    chain::append(&mut tx, asset.id, &next, &[logged], app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    next.number
}

/// Settles a job of so many multiply-adds, done by `worker`.
async fn pay(
    app: &TestApp,
    (asset, price): (&Asset, &PriceVersion),
    (session, payer): (&Session, Address),
    madds: u128,
    worker: Address,
) -> ReceiptId {
    let meter = Meter::inference(madds, 1, Tier::None).unwrap();
    let amount = price::amount(&meter, price).unwrap();
    let (quote, job) = (QuoteId::generate(), JobId::generate());
    sqlx::query(
        "INSERT INTO quotes (quote_id, account_id, asset_id, spec, spec_sha256, tier, device, meter, madds,
             price_version_id, amount_atto, hold_base, min_memory_bytes, created_at, expires_at)
         VALUES ($1, $2, $3, '{}', $4, 'none', 'cpu', '{}', 1, $5, 1, 1, 0, $6, $6)",
    )
    .bind(quote.0)
    .bind(session.account.0)
    .bind(asset.id)
    .bind(&[0_u8; 32][..])
    .bind(price.id)
    .bind(app.now())
    .execute(&app.owner)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO jobs (job_id, account_id, quote_id, payer, asset_id, kind, tier, max_cost_base, state, deadline_at, created_at)
         VALUES ($1, $2, $3, $4, $5, 'inference', 'none', 1, 'verifying', $6, $6)",
    )
    .bind(job.0)
    .bind(session.account.0)
    .bind(quote.0)
    .bind(payer.as_slice())
    .bind(asset.id)
    .bind(app.now())
    .execute(&app.owner)
    .await
    .unwrap();
    let charge = JobCharge {
        job,
        account: session.account,
        payer,
        asset_id: asset.id,
        meter,
        price: *price,
        amount,
        shares: vec![(worker, 1)],
        data: None,
        input: Sha256::of(b"input"),
        result: Sha256::of(b"result"),
        verdict: Sha256::of(b"verdict"),
    };
    let hold = Hold {
        source: HoldSource::Job(job),
        owner: payer,
        asset_id: asset.id,
        amount: amount.ceil(),
    };
    let mut tx = app.owner.begin().await.unwrap();
    holds::place(&mut tx, &hold, app.now()).await.unwrap();
    let receipt = charges::settle_job(&mut tx, &charge, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    receipt
}

/// Seals everything that waits, as batch 1; returns it with the leaf file.
pub async fn seal(app: &TestApp, asset: &Asset) -> (BatchId, Vec<u8>) {
    let id = BatchId::generate();
    let mut tx = app.owner.begin().await.unwrap();
    let all = comptoir_domain::amount::Amount::MAX;
    releases::release_queued(&mut tx, asset.id, &id.to_string(), all, app.now())
        .await
        .unwrap();
    let snapshot = batches::snapshot(&mut tx, asset.id).await.unwrap();
    let receipts = snapshot.receipt_ids();
    let account_count = snapshot.accounts.len() as u64;
    let opening = Opening {
        chain_id: asset.chain_id,
        contract: asset.contract,
        id: 1,
        generation: 0,
        deposit_seq_seen: snapshot.deposit_seq_seen,
        prev_hash: B256::ZERO,
        audit_head: snapshot.audit_head,
    };
    let (sealed, bytes) = file::seal(&opening, snapshot.receipts, snapshot.accounts).unwrap();
    let domain = comptoir_domain::settlement::Domain::new(asset.chain_id, asset.contract);
    let leaves = sealed.receipts.iter().map(|receipt| receipt.leaf(&domain));
    let items: Vec<_> = receipts.into_iter().zip(leaves).collect();
    let (header, hash) = (sealed.header, sealed.hash);
    let batch = NewBatch {
        id,
        header,
        hash,
        data_bytes: bytes.len() as u64,
        account_count,
        items: &items,
    };
    batches::insert(&mut tx, asset.id, &batch, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    app.state
        .objects
        .put(Bytes::from(bytes.clone()))
        .await
        .unwrap();
    (id, bytes)
}

pub async fn advance(app: &TestApp, batch: BatchId, state: BatchState) {
    let mut tx = app.owner.begin().await.unwrap();
    batches::advance(&mut tx, batch, state, Some(app.now()), app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn get(app: &TestApp, session: &Session, path: &str) -> Value {
    app.get(path)
        .by(session)
        .send()
        .await
        .expect(StatusCode::OK)
        .json
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn instructions_say_where_to_deposit_and_when_it_counts(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, address) = app.bound_session().await;
    let before = get(&app, &session, "/v1/deposits/instructions").await;
    assert_eq!(
        (&before["head_block"], &before["finality_blocks"]),
        (&Value::Null, &Value::Null)
    );
    deposit(&app, &asset, address, 5).await;
    let told = get(&app, &session, "/v1/deposits/instructions").await;
    assert_eq!(told["contract"], asset.contract.to_string());
    assert_eq!(told["account"], address.to_string());
    assert_eq!(told["finality_blocks"], 3);
    assert_eq!(
        (&told["head_block"], &told["final_block"]),
        (&json!(2), &json!(2))
    );
    let data = told["deposit"]["data"].as_str().unwrap();
    // deposit(address,uint256)
    assert!(
        data.starts_with("0x47e7ef24") && data.contains(&format!("{address:x}")[2..]),
        "{data}"
    );
    let nobody = app.session().await;
    let refused = app
        .get("/v1/deposits/instructions")
        .by(&nobody)
        .send()
        .await;
    refused.expect_problem(StatusCode::CONFLICT, "address_not_bound");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_deposit_is_listed_as_pending_and_then_as_credited(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, address) = app.bound_session().await;
    deposit(&app, &asset, address, 5).await;
    show_deposit(&app, &asset, address, 7).await;
    show_deposit(&app, &asset, Address::repeat_byte(1), 9).await;
    let listed = get(&app, &session, "/v1/deposits").await;
    let shown: Vec<_> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            (
                it["amount"]["amount"].as_str().unwrap(),
                it["state"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(shown, [("7", "pending"), ("5", "credited")]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_receipt_has_its_proof_once_its_batch_is_anchored(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, price) = market::open(&app).await;
    let (client, payer) = app.bound_session().await;
    let (provider, worker) = app.bound_session().await;
    deposit(&app, &asset, payer, 1_000).await;
    let receipt = pay(&app, (&asset, &price), (&client, payer), 100, worker).await;
    let path = format!("/v1/receipts/{receipt}");
    let fresh = get(&app, &client, &path).await;
    assert_eq!(
        (&fresh["batch"], &fresh["document"]),
        (&Value::Null, &Value::Null)
    );

    let (batch, _) = seal(&app, &asset).await;
    let sealed = get(&app, &client, &path).await;
    assert_eq!(
        (sealed["batch"]["state"].as_str(), &sealed["document"]),
        (Some("sealed"), &Value::Null)
    );
    advance(&app, batch, BatchState::Anchored).await;

    let paid = get(&app, &client, &path).await;
    assert_eq!(paid["batch"]["number"], 1);
    let document: ReceiptDocument = serde_json::from_value(paid["document"].clone()).unwrap();
    let verified = document.verify().unwrap();
    let public = app
        .get(&format!("/v1/batches/{batch}"))
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(public.text("/hash"), verified.header_hash.to_string());
    assert_eq!(document.input.unwrap().sha256, Sha256::of(b"input"));

    // Whoever was paid may read it, but is not told what was computed on.
    let earned = get(&app, &provider, &path).await;
    assert_eq!(earned["document"]["input"], Value::Null);
    assert_eq!(earned["document"]["result"], Value::Null);
    let document: ReceiptDocument = serde_json::from_value(earned["document"].clone()).unwrap();
    assert_eq!(document.verify().unwrap(), verified);

    let (stranger, _) = app.bound_session().await;
    for (session, count) in [(&client, 1), (&provider, 1), (&stranger, 0)] {
        let listed = get(&app, session, "/v1/receipts").await;
        assert_eq!(listed["data"].as_array().unwrap().len(), count);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn batches_and_their_leaf_files_are_everybodys(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, price) = market::open(&app).await;
    let (client, payer) = app.bound_session().await;
    deposit(&app, &asset, payer, 1_000).await;
    pay(
        &app,
        (&asset, &price),
        (&client, payer),
        100,
        Address::repeat_byte(0x77),
    )
    .await;
    let (id, bytes) = seal(&app, &asset).await;
    let listed = app
        .get("/v1/batches?limit=1")
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(listed.text("/data/0/id"), id.to_string());
    for name in [id.to_string(), "1".to_owned()] {
        let leaves = app
            .get(&format!("/v1/batches/{name}/leaves"))
            .send()
            .await
            .expect(StatusCode::OK);
        assert_eq!(leaves.bytes, bytes);
        let tag = format!("\"{}\"", Sha256::of(&bytes));
        assert_eq!(leaves.header(header::ETAG), tag);
        let again = app
            .get(&format!("/v1/batches/{name}/leaves"))
            .header(header::IF_NONE_MATCH, &tag)
            .send()
            .await;
        assert_eq!(
            (again.status, again.bytes.len()),
            (StatusCode::NOT_MODIFIED, 0)
        );
    }
    for name in ["2", "bat_nobody", "..", "18446744073709551616"] {
        let none = app.get(&format!("/v1/batches/{name}")).send().await;
        none.expect_problem(StatusCode::NOT_FOUND, "not_found");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn claims_follow_the_money_to_the_wallet(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, price) = market::open(&app).await;
    let (client, payer) = app.bound_session().await;
    let (provider, worker) = app.bound_session().await;
    deposit(&app, &asset, payer, 1_000).await;
    pay(&app, (&asset, &price), (&client, payer), 100, worker).await;
    let sums = async || {
        let claims = get(&app, &provider, "/v1/claims").await;
        let sum = |name: &str| {
            claims[name]["amount"]
                .as_str()
                .unwrap()
                .parse::<u128>()
                .unwrap()
        };
        let sums = [
            "queued",
            "released",
            "batched",
            "anchored",
            "claimable",
            "claimed",
            "claimable_now",
        ]
        .map(sum);
        (sums, claims["document"].clone())
    };
    let receipts = get(&app, &provider, "/v1/receipts").await;
    let payee = asset.caip10(worker);
    let splits = receipts["data"][0]["splits"].as_array().unwrap();
    let earned = splits.iter().find(|split| split["payee"] == payee).unwrap();
    let earned: u128 = earned["amount"]["amount"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(earned > 0);
    let all = |marks: [u128; 7]| marks.map(|mark| mark * earned);
    assert_eq!(sums().await, (all([1, 0, 0, 0, 0, 0, 0]), Value::Null));
    let (batch, _) = seal(&app, &asset).await;
    assert_eq!(sums().await, (all([0, 1, 1, 0, 0, 0, 0]), Value::Null));
    advance(&app, batch, BatchState::Anchored).await;
    assert_eq!(sums().await, (all([0, 1, 1, 1, 0, 0, 0]), Value::Null));
    advance(&app, batch, BatchState::Claimable).await;
    let (now, document) = sums().await;
    assert_eq!(now, all([0, 1, 1, 1, 1, 0, 1]));
    let document: AccountDocument = serde_json::from_value(document).unwrap();
    assert_eq!(
        (document.account.account, document.account.payable),
        (worker, earned)
    );
    document.verify().unwrap();

    let mut tx = app.owner.begin().await.unwrap();
    let cursor = chain::cursor(&mut tx, asset.id).await.unwrap().unwrap();
    let next = block(cursor.head_number + 1);
    let claimed = Logged {
        block_number: next.number,
        block_hash: next.hash,
        tx_hash: B256::repeat_byte(8),
        log_index: 0,
        event_seq: cursor.head_event_seq + 1,
        event: Event::Claimed {
            account: worker,
            batch: 1,
            amount: earned,
            cumulative: earned,
        },
    };
    chain::append(&mut tx, asset.id, &next, &[claimed], app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(sums().await.0, all([0, 1, 1, 1, 1, 1, 0]));
}
