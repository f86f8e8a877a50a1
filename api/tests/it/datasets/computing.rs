//! Jobs on files of datasets: who may, at what price, and who is given what comes out.

use alloy_primitives::Address;
use axum::http::StatusCode;
use comptoir_api::steps;
use comptoir_domain::{
    asset::Asset,
    digest::Sha256,
    id::{DatasetId, DatasetVersionId, JobId},
};
use comptoir_store::{blobs, objects::Stored};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use super::{act, draft, fill, get, published};
use crate::{
    harness::{Reply, Session, TestApp},
    market::{self, example},
};

const RICH: u128 = 1_000_000;
const PRICE: u128 = 1_234;

/// The digits as a listed dataset, and somebody with money.
struct Stage {
    app: TestApp,
    asset: Asset,
    seller: Session,
    client: Session,
    payer: Address,
    dataset: String,
    version: String,
    files: Vec<String>,
}

fn id(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

impl Stage {
    async fn set(db: PgPool) -> Self {
        let app = TestApp::new(db).await;
        let (asset, _) = market::open(&app).await;
        let (seller, _) = app.bound_session().await;
        let (client, payer) = market::client(&app, &asset, RICH).await;
        let train = example("train.safetensors");
        let files: [(&str, &[u8]); 2] = [("train.safetensors", &train), ("a.csv", b"a,b\n1,2\n")];
        let (dataset, version, files) = published(&app, &seller, &files).await;
        let listed = act(&app, &seller, &format!("{dataset}/list")).await;
        listed.expect(StatusCode::OK);
        Self {
            app,
            asset,
            seller,
            client,
            payer,
            dataset,
            version,
            files,
        }
    }

    fn money(&self, base: u128) -> Value {
        json!({ "amount": base.to_string(), "asset": self.asset.caip19(), "decimals": 18 })
    }

    /// Offers the dataset; the offer's path.
    async fn offer(&self, mut terms: Value, price: u128) -> String {
        terms["price"] = self.money(price);
        let path = format!("{}/offers", self.dataset);
        let seller = self.app.renewed(&self.seller);
        let made = self.app.post(&path, &terms).by(&seller).send().await;
        let made = made.expect(StatusCode::CREATED);
        format!("/v1/offers/{}", made.text("/id"))
    }

    /// Takes an offer; the purchase's identifier.
    async fn take(&self, offer: &str, price: u128, more: Value) -> String {
        let mut wish = json!({ "offer": id(offer), "expected_price": self.money(price) });
        if let (Some(wish), Value::Object(more)) = (wish.as_object_mut(), more) {
            wish.extend(more);
        }
        let taken = self.app.post("/v1/purchases", &wish).by(&self.client);
        let taken = taken.send().await.expect(StatusCode::CREATED);
        taken.text("/id").to_owned()
    }

    /// A training on plain blobs of the caller's.
    async fn plain(&self, by: &Session) -> Value {
        market::training(&self.app, by, "mlp.pt2").await
    }

    /// The same on the dataset; the caller has the program alone.
    async fn spec(&self, by: &Session) -> Value {
        let program = example("mlp.pt2");
        let uploaded = market::upload(&self.app, by, &program).await;
        let input = uploaded.text("/program/inputs/0/name").to_owned();
        let train = Sha256::of(&example("train.safetensors"));
        let tensor = |name: &str| json!({ "blob": train, "dataset_version": id(&self.version), "tensor": name });
        json!({
            "kind": "training",
            "program": Sha256::of(&program),
            "inputs": { input: tensor("images") },
            "target": tensor("labels"),
            "loss": "cross_entropy",
            "optimizer": { "type": "adam", "learning_rate": 0.003 },
            "epochs": 5, "batch_size": 32, "seed": 7,
        })
    }

    async fn quote(&self, by: &Session) -> Reply {
        let spec = self.spec(by).await;
        market::quote(&self.app, by, &spec, "none").await
    }

    async fn submit(&self, quoted: &Reply) -> Reply {
        let body = json!({ "quote_id": quoted.text("/id"), "max_cost": quoted.json["hold"] });
        let call = self.app.post("/v1/jobs", &body).by(&self.client);
        call.send().await
    }
}

fn open() -> Value {
    json!({ "kind": "compute_only", "output_bytes_max": 1 << 20 })
}

fn base(reply: &Reply, pointer: &str) -> u128 {
    reply.text(pointer).parse().unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn everybody_computes_under_an_open_offer_at_its_price_and_is_refused_the_bytes(db: PgPool) {
    let stage = Stage::set(db).await;
    let offer = stage.offer(open(), PRICE).await;
    let client = &stage.client;
    let plain = stage.plain(client).await;
    let plain = market::quote(&stage.app, client, &plain, "none").await;
    assert_eq!(plain.json["data"], Value::Null);
    let quoted = stage.quote(client).await.expect(StatusCode::CREATED);
    assert_eq!(quoted.text("/data/offer_id"), id(&offer));
    assert_eq!(quoted.text("/data/dataset_version"), id(&stage.version));
    assert_eq!(quoted.json["data"]["price_number"], 1);
    assert_eq!(base(&quoted, "/data/price/amount"), PRICE);
    assert_eq!(quoted.json["amount_atto"], plain.json["amount_atto"]);
    let work = base(&plain, "/hold/amount");
    assert_eq!(base(&quoted, "/hold/amount"), work + PRICE);
    for tier in 0..4 {
        let price = format!("/tiers/{tier}/price/amount");
        assert_eq!(base(&quoted, &price), base(&plain, &price) + PRICE);
    }
    let again = get(
        &stage.app,
        client,
        &format!("/v1/quotes/{}", quoted.text("/id")),
    )
    .await;
    assert_eq!(again.json, quoted.json);
    let job = stage.submit(&quoted).await.expect(StatusCode::CREATED);
    assert_eq!(base(&job, "/quoted/amount"), work + PRICE);
    let held = market::balances(&stage.app, &stage.asset, stage.payer)
        .await
        .held;
    assert_eq!(held.base(), work + PRICE);
    // To compute is not to read.
    let content = get(&stage.app, client, &format!("{}/content", stage.files[0])).await;
    content.expect_problem(StatusCode::FORBIDDEN, "not_entitled");
    let digest = Sha256::of(&example("train.safetensors"));
    let (stranger, _) = market::client(&stage.app, &stage.asset, RICH).await;
    let blob = get(&stage.app, &stranger, &format!("/v1/blobs/{digest}")).await;
    blob.expect_problem(StatusCode::NOT_FOUND, "not_found");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_seller_and_who_bought_the_data_compute_for_the_price_of_the_work(db: PgPool) {
    let stage = Stage::set(db).await;
    stage.offer(open(), PRICE).await;
    let plain = stage.plain(&stage.client).await;
    let plain = market::quote(&stage.app, &stage.client, &plain, "none").await;
    let work = base(&plain, "/hold/amount");
    let assert_free = |quoted: Reply| {
        let quoted = quoted.expect(StatusCode::CREATED);
        assert_eq!(quoted.json["data"]["offer_id"], Value::Null);
        assert_eq!(base(&quoted, "/data/price/amount"), 0);
        assert_eq!(base(&quoted, "/hold/amount"), work);
    };
    assert_free(stage.quote(&stage.seller).await);
    let offer = stage.offer(json!({ "kind": "buy" }), 5_000).await;
    stage.take(&offer, 5_000, json!({})).await;
    assert_free(stage.quote(&stage.client).await);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_has_no_right_is_told_so_and_why(db: PgPool) {
    let stage = Stage::set(db).await;
    let refused = stage.quote(&stage.client).await;
    refused.expect_problem(StatusCode::FORBIDDEN, "not_entitled");
    let mut terms = open();
    terms["programs"] = json!([Sha256::of(b"another program")]);
    let offer = stage.offer(terms, PRICE).await;
    let refused = stage.quote(&stage.client).await;
    let refused = refused.expect(StatusCode::FORBIDDEN);
    assert_eq!(refused.code(), "program_not_allowed");
    assert_eq!(refused.text("/errors/0/pointer"), "/spec/program");
    close(&stage, &offer).await;
    let terms =
        json!({ "kind": "compute_only", "output_bytes_max": 1 << 20, "answer_seconds": 86_400 });
    let offer = stage.offer(terms, PRICE).await;
    let refused = stage.quote(&stage.client).await;
    refused.expect_problem(StatusCode::FORBIDDEN, "not_entitled");
    let purchase = stage.take(&offer, 0, json!({})).await;
    let refused = stage.quote(&stage.client).await;
    refused.expect_problem(StatusCode::FORBIDDEN, "not_entitled");
    let approve = format!("/v1/sales/{purchase}/approve");
    let approved = stage.app.post(&approve, &json!({})).by(&stage.seller);
    approved.send().await.expect(StatusCode::OK);
    let quoted = stage.quote(&stage.client).await.expect(StatusCode::CREATED);
    assert_eq!(base(&quoted, "/data/price/amount"), PRICE);
    // Who was let in stays in, whatever becomes of the offer and of the listing.
    close(&stage, &offer).await;
    let withdrawn = act(
        &stage.app,
        &stage.seller,
        &format!("{}/withdraw", stage.dataset),
    )
    .await;
    withdrawn.expect(StatusCode::OK);
    let quoted = stage.quote(&stage.client).await.expect(StatusCode::CREATED);
    assert_eq!(quoted.text("/data/offer_id"), id(&offer));
    let (stranger, _) = market::client(&stage.app, &stage.asset, RICH).await;
    let unknown = stage.quote(&stranger).await;
    let unknown = unknown.expect(StatusCode::NOT_FOUND);
    let at = unknown.text("/errors/0/pointer");
    assert!(at.ends_with("/dataset_version"), "{at}");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_open_offer_of_a_frozen_seller_lets_nobody_compute(db: PgPool) {
    let stage = Stage::set(db).await;
    stage.offer(open(), PRICE).await;
    stage.quote(&stage.client).await.expect(StatusCode::CREATED);
    crate::purchases::freeze(&stage.app, stage.seller.account).await;
    let refused = stage.quote(&stage.client).await;
    refused.expect_problem(StatusCode::FORBIDDEN, "not_entitled");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_right_that_ended_is_gone(db: PgPool) {
    let stage = Stage::set(db).await;
    let rent = json!({ "kind": "rent", "period_seconds": 3_600, "minimum_seconds": 0 });
    let offer = stage.offer(rent, 1).await;
    stage.take(&offer, 60, json!({ "seconds": 60 })).await;
    let quoted = stage.quote(&stage.client).await.expect(StatusCode::CREATED);
    stage.app.pass(Duration::seconds(61));
    let client = stage.app.renewed(&stage.client);
    let gone = stage.quote(&client).await;
    gone.expect_problem(StatusCode::GONE, "entitlement_expired");
    // What was quoted before is no way around.
    let late = stage.submit(&quoted).await;
    late.expect_problem(StatusCode::GONE, "entitlement_expired");
    let held = market::balances(&stage.app, &stage.asset, stage.payer)
        .await
        .held;
    assert!(held.base() <= 60, "nothing is held for a job");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_quoted_price_is_the_jobs_and_an_offer_that_closed_ends_the_quote(db: PgPool) {
    let stage = Stage::set(db).await;
    let offer = stage.offer(open(), PRICE).await;
    let quoted = stage.quote(&stage.client).await.expect(StatusCode::CREATED);
    let second = stage.quote(&stage.client).await.expect(StatusCode::CREATED);
    let new = json!({ "price": stage.money(9_999) });
    let raised = stage.app.post(&format!("{offer}/prices"), &new);
    let raised = raised.by(&stage.seller).send().await;
    assert!(raised.status.is_success(), "{}", raised.json);
    let job = stage.submit(&quoted).await.expect(StatusCode::CREATED);
    assert_eq!(job.text("/quoted/amount"), quoted.text("/hold/amount"));
    let newer = stage.quote(&stage.client).await.expect(StatusCode::CREATED);
    assert_eq!(base(&newer, "/data/price/amount"), 9_999);
    assert_eq!(newer.json["data"]["price_number"], 2);
    close(&stage, &offer).await;
    let late = stage.submit(&second).await;
    late.expect_problem(StatusCode::GONE, "entitlement_expired");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn only_safetensors_files_of_one_ready_version_are_read(db: PgPool) {
    let stage = Stage::set(db).await;
    stage.offer(open(), PRICE).await;
    let client = &stage.client;
    let good = stage.spec(client).await;
    let refused = async |change: &dyn Fn(&mut Value)| {
        let mut spec = good.clone();
        change(&mut spec);
        market::quote(&stage.app, client, &spec, "none").await
    };
    let pointer = |reply: Reply| {
        let reply = reply.expect(StatusCode::UNPROCESSABLE_ENTITY);
        reply.text("/errors/0/pointer").to_owned()
    };
    let csv = json!(Sha256::of(b"a,b\n1,2\n"));
    let reply = refused(&|spec| spec["target"]["blob"] = csv.clone()).await;
    assert_eq!(pointer(reply), "/spec/target/blob");
    let absent = json!(Sha256::of(b"absent"));
    let reply = refused(&|spec| spec["target"]["blob"] = absent.clone()).await;
    assert_eq!(pointer(reply), "/spec/target/blob");
    let other = json!(DatasetVersionId::generate());
    let reply = refused(&|spec| spec["target"]["dataset_version"] = other.clone()).await;
    assert_eq!(pointer(reply), "/spec/target/dataset_version");
    let reply = refused(&|spec| {
        spec["target"]
            .as_object_mut()
            .unwrap()
            .remove("dataset_version");
    })
    .await;
    assert_eq!(pointer(reply), "/spec/inputs/x/blob");
    let reply = refused(&|spec| spec["target"]["dataset_version"] = json!("dsv_x")).await;
    assert!(reply.status.is_client_error(), "{}", reply.json);
    let reply = refused(&|spec| spec["target"]["tensor"] = json!("absent")).await;
    assert_eq!(pointer(reply), "/spec/target/tensor");
    let unready = draft(&stage.app, &stage.seller, &stage.dataset).await;
    let train = example("train.safetensors");
    fill(
        &stage.app,
        &stage.seller,
        &unready,
        &[("t.safetensors", &train)],
    )
    .await;
    let mut spec = stage.spec(&stage.seller).await;
    for tensor in spec["inputs"].as_object_mut().unwrap().values_mut() {
        tensor["dataset_version"] = id(&unready).into();
    }
    spec["target"]["dataset_version"] = id(&unready).into();
    let reply = market::quote(&stage.app, &stage.seller, &spec, "none").await;
    reply.expect_problem(StatusCode::CONFLICT, "version_not_ready");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_whose_results_would_pass_the_offers_limit_is_not_quoted(db: PgPool) {
    let stage = Stage::set(db).await;
    let terms = json!({ "kind": "compute_only", "output_bytes_max": 1_000 });
    stage.offer(terms, PRICE).await;
    let refused = stage.quote(&stage.client).await;
    let refused = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.text("/errors/0/pointer"), "/spec");
}

/// A completed job of somebody else's on the seller's dataset, whose one result waits for it.
async fn withheld(app: &TestApp, seller: &Session, client: &Session) -> (String, JobId, Sha256) {
    let (dataset, version, _) = published(app, seller, &[("a.csv", b"a,b\n1,2\n")]).await;
    let spec = market::training(app, client, "mlp.pt2").await;
    let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000" });
    let made = app.post("/v1/jobs", &body).by(client).send().await;
    let job: JobId = made
        .expect(StatusCode::CREATED)
        .text("/id")
        .parse()
        .unwrap();
    let output = app.state.objects.put(b"trained".to_vec().into()).await;
    let output: Stored = output.unwrap();
    let mut tx = app.owner.begin().await.unwrap();
    blobs::register(&mut tx, output, app.now()).await.unwrap();
    let (of, read) = (
        id(&dataset).parse::<DatasetId>(),
        id(&version).parse::<DatasetVersionId>(),
    );
    let completed =
        "UPDATE jobs SET state = 'completed', finished_at = created_at WHERE job_id = $1";
    let completed = sqlx::query(completed).bind(job.0);
    let delivered = "INSERT INTO job_outputs (job_id, name, sha256) VALUES ($1, 'weights', $2)";
    let delivered = sqlx::query(delivered).bind(job.0).bind(output.sha256.0);
    let withheld = sqlx::query(
        "INSERT INTO withheld_results (job_id, account_id, seller_id, dataset_id, version_id, kind, program, output_bytes, completed_at)
         SELECT job_id, jobs.account_id, d.account_id, d.dataset_id, $3, 'training', $4, 7, jobs.created_at
         FROM jobs, datasets d WHERE job_id = $1 AND d.dataset_id = $2",
    );
    let withheld = withheld
        .bind(job.0)
        .bind(of.unwrap().0)
        .bind(read.unwrap().0);
    for query in [completed, delivered, withheld.bind(output.sha256.0)] {
        let done = query.execute(&mut *tx).await.unwrap();
        assert_eq!(done.rows_affected(), 1);
    }
    tx.commit().await.unwrap();
    (dataset, job, output.sha256)
}

/// For the walk over every route.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let (asset, _) = market::open(app).await;
    let (client, _) = market::client(app, &asset, RICH).await;
    let (dataset, job, _) = withheld(app, owner, &client).await;
    vec![id(&dataset).to_owned(), job.to_string()]
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn results_wait_for_the_seller_who_sees_what_ran_and_not_what_came_out(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (seller, _) = app.bound_session().await;
    let (client, _) = market::client(&app, &asset, RICH).await;
    let (dataset, job, output) = withheld(&app, &seller, &client).await;
    let (job_path, blob) = (format!("/v1/jobs/{job}"), format!("/v1/blobs/{output}"));
    let shown = get(&app, &client, &job_path).await.expect(StatusCode::OK);
    assert_eq!(shown.json["awaits_release"], true);
    assert_eq!(shown.json["outputs"], json!([]));
    for path in [&blob, &format!("{job_path}/results")] {
        let refused = get(&app, &client, path).await;
        refused.expect_problem(StatusCode::FORBIDDEN, "awaiting_release");
    }
    let refused = get(&app, &seller, &blob).await;
    refused.expect_problem(StatusCode::NOT_FOUND, "not_found");
    let releases = format!("{dataset}/releases");
    let listed = get(&app, &seller, &releases).await.expect(StatusCode::OK);
    assert_eq!(listed.json["data"].as_array().unwrap().len(), 1);
    assert_eq!(listed.text("/data/0/job_id"), job.to_string());
    assert_eq!(listed.text("/data/0/program"), output.to_string());
    assert_eq!(listed.json["data"][0]["output_bytes"], 7);
    assert_eq!(listed.json["data"][0]["released_at"], Value::Null);
    assert!(!listed.json.to_string().contains("trained"));
    // Nobody else consents, and nobody else sees that something waits.
    let release = format!("{releases}/{job}");
    let (stranger, _) = market::client(&app, &asset, RICH).await;
    for other in [&client, &stranger] {
        let refused = act(&app, other, &release).await;
        refused.expect_problem(StatusCode::NOT_FOUND, "not_found");
        let refused = get(&app, other, &releases).await;
        refused.expect_problem(StatusCode::NOT_FOUND, "not_found");
    }
    let released = act(&app, &seller, &release).await.expect(StatusCode::OK);
    let again = act(&app, &seller, &release).await.expect(StatusCode::OK);
    assert_eq!(released.json, again.json);
    assert_ne!(released.json["released_at"], Value::Null);
    let shown = get(&app, &client, &job_path).await.expect(StatusCode::OK);
    assert_eq!(shown.json["awaits_release"], false);
    assert_eq!(shown.text("/outputs/0/sha256"), output.to_string());
    let bytes = get(&app, &client, &blob).await.expect(StatusCode::OK);
    assert_eq!(bytes.bytes, b"trained".as_slice());
    let refused = get(&app, &seller, &blob).await;
    refused.expect_problem(StatusCode::NOT_FOUND, "not_found");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn results_that_are_not_released_within_a_week_are_denied_for_good(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (seller, _) = app.bound_session().await;
    let (client, _) = market::client(&app, &asset, RICH).await;
    let (dataset, job, output) = withheld(&app, &seller, &client).await;
    let results = format!("/v1/jobs/{job}/results");
    let blob = format!("/v1/blobs/{output}");
    let release = format!("{dataset}/releases/{job}");
    app.pass(Duration::days(7) - Duration::MINUTE);
    steps::step(&app.state).await.unwrap();
    let waits = get(&app, &app.renewed(&client), &results).await;
    waits.expect_problem(StatusCode::FORBIDDEN, "awaiting_release");
    app.pass(Duration::MINUTE);
    steps::step(&app.state).await.unwrap();
    let (seller, client) = (app.renewed(&seller), app.renewed(&client));
    for path in [&results, &blob] {
        let denied = get(&app, &client, path).await;
        denied.expect_problem(StatusCode::FORBIDDEN, "release_denied");
    }
    let shown = get(&app, &client, &format!("/v1/jobs/{job}")).await;
    assert_eq!(
        (&shown.json["awaits_release"], &shown.json["release_denied"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(shown.json["outputs"], json!([]));
    let late = act(&app, &seller, &release).await;
    late.expect_problem(StatusCode::FORBIDDEN, "release_denied");
    let listed = get(&app, &seller, &format!("{dataset}/releases")).await;
    assert_eq!(
        listed.text("/data/0/denied_at"),
        listed.text("/data/0/due_at")
    );
}

async fn close(stage: &Stage, offer: &str) {
    let seller = stage.app.renewed(&stage.seller);
    let closed = act(&stage.app, &seller, &format!("{offer}/close")).await;
    closed.expect(StatusCode::OK);
}
