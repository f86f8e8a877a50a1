//! Models over HTTP: cards, versions that are pinned, prices with notice, and who may see what.

use axum::http::{Method, StatusCode, header};
use comptoir_domain::{
    digest::Sha256,
    fit::ProgramFacts,
    program::{Archive, graph::ScalarType},
    tensors::{self, TensorView},
};
use comptoir_store::objects::Stored;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::{
    harness::{Reply, Session, TestApp},
    market::{self, client, example, training, upload},
};

/// For the walk over every route: a model with a version.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let model = model(app, owner).await;
    let made = publish(app, owner, &model, &digits(app, owner).await).await;
    let version = made.expect(StatusCode::CREATED);
    [&model, version.header(header::LOCATION)]
        .map(|path| path.rsplit('/').next().unwrap().to_owned())
        .to_vec()
}

/// A model's path.
pub async fn model(app: &TestApp, creator: &Session) -> String {
    let name = uuid::Uuid::now_v7().to_string();
    let card = json!({ "name": name, "title": "Digits", "licence": "MIT" });
    let made = app.post("/v1/models", &card).by(creator).send().await;
    made.expect(StatusCode::CREATED)
        .header(header::LOCATION)
        .to_owned()
}

/// A manifest of the example's program alone, which is uploaded.
async fn digits(app: &TestApp, creator: &Session) -> Value {
    let program = example("mlp.pt2");
    upload(app, creator, &program).await;
    json!({ "programs": { "infer": Sha256::of(&program) } })
}

pub async fn publish(app: &TestApp, creator: &Session, model: &str, manifest: &Value) -> Reply {
    let body = json!({ "manifest": manifest });
    let call = app.post(&format!("{model}/versions"), &body);
    call.by(creator).send().await
}

async fn price(app: &TestApp, creator: &Session, model: &str, call_nano: u64) -> Reply {
    let body = json!({ "tariff": { "call_nano": call_nano.to_string() } });
    let call = app.post(&format!("{model}/prices"), &body);
    call.by(creator).send().await
}

pub async fn show(app: &TestApp, creator: &Session, model: &str, visibility: &str) -> Reply {
    let body = json!({ "visibility": visibility });
    let call = app.post(&format!("{model}/visibility"), &body);
    call.by(creator).send().await
}

async fn get(app: &TestApp, caller: &Session, path: &str) -> Reply {
    app.get(path).by(caller).send().await
}

/// A public model with a version and a price; its path.
pub async fn shown(app: &TestApp, creator: &Session) -> String {
    let model = model(app, creator).await;
    let manifest = digits(app, creator).await;
    publish(app, creator, &model, &manifest)
        .await
        .expect(StatusCode::CREATED);
    price(app, creator, &model, 7_000_000_000)
        .await
        .expect(StatusCode::CREATED);
    show(app, creator, &model, "public")
        .await
        .expect(StatusCode::OK);
    model
}

fn pointers(refused: &Reply) -> Vec<&str> {
    let errors = refused.json["errors"].as_array().unwrap();
    let pointers = errors.iter().map(|it| it["pointer"].as_str().unwrap());
    pointers.collect()
}

fn ids(listed: &Reply) -> Vec<String> {
    let data = listed.json["data"].as_array().unwrap();
    let paths = data
        .iter()
        .map(|it| format!("/v1/models/{}", it["id"].as_str().unwrap()));
    paths.collect()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_is_what_its_digest_names_and_says_what_calls_take_and_give(db: PgPool) {
    let app = TestApp::new(db).await;
    let creator = app.session().await;
    let model = model(&app, &creator).await;
    let mut manifest = digits(&app, &creator).await;
    let first = publish(&app, &creator, &model, &manifest).await;
    let first = first.expect(StatusCode::CREATED);

    let expected = Sha256::of_document(&manifest).unwrap();
    assert_eq!(first.text("/digest"), expected.to_string());
    assert_eq!(first.json["manifest"], manifest);
    assert_eq!(
        (first.json["number"].as_i64(), first.text("/licence")),
        (Some(1), "MIT")
    );
    assert_eq!(first.json["schema"]["inputs"][0]["row"], json!([1, 8, 8]));
    assert_eq!(first.json["schema"]["outputs"][0]["row"], json!([10]));
    let path = first.header(header::LOCATION);
    assert_eq!(get(&app, &creator, path).await.json, first.json);

    let again = publish(&app, &creator, &model, &manifest).await;
    let again = again.expect_problem(StatusCode::CONFLICT, "model_version_exists");
    assert_eq!(again.text("/detail"), first.text("/id"));

    let output = first.text("/schema/outputs/0/name").to_owned();
    let names: Vec<String> = (0..10).map(|it| it.to_string()).collect();
    manifest["labels"] = json!({ "output": output, "names": names });
    let second = publish(&app, &creator, &model, &manifest).await;
    let second = second.expect(StatusCode::CREATED);
    assert_eq!(second.json["number"], 2);
    assert_ne!(second.text("/digest"), first.text("/digest"));
    let listed = get(&app, &creator, &format!("{model}/versions")).await;
    let numbers = listed.json["data"].as_array().unwrap().iter();
    let numbers: Vec<_> = numbers.map(|it| it["number"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [2, 1], "newest first");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_does_not_fit_together_is_refused_with_its_place(db: PgPool) {
    let app = TestApp::new(db).await;
    let creator = app.session().await;
    let model = model(&app, &creator).await;
    let good = digits(&app, &creator).await;
    let tensors = example("test.safetensors");
    upload(&app, &creator, &tensors).await;
    let convnet = example("convnet.pt2");
    upload(&app, &creator, &convnet).await;
    let (tensors, convnet) = (Sha256::of(&tensors), Sha256::of(&convnet));
    let absent = Sha256::of(b"nobody has it");
    let infer = &good["programs"]["infer"];
    let cases = [
        (
            json!({ "programs": { "infer": absent } }),
            vec!["/manifest/programs/infer"],
        ),
        (
            json!({ "programs": { "infer": tensors } }),
            vec!["/manifest/programs/infer"],
        ),
        (
            json!({ "programs": { "infer": infer }, "weights": absent }),
            vec!["/manifest/weights"],
        ),
        (
            json!({ "programs": { "infer": infer }, "weights": infer }),
            vec!["/manifest/weights"],
        ),
        (
            json!({ "programs": { "infer": infer, "train": convnet } }),
            vec!["/manifest/weights"],
        ),
        (
            json!({ "programs": { "infer": infer }, "labels": { "output": "no", "names": ["a"] } }),
            vec!["/manifest/labels/output"],
        ),
    ];
    for (manifest, expected) in cases {
        let refused = publish(&app, &creator, &model, &manifest).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(pointers(&refused), expected, "{manifest}");
    }
    let other = json!({ "programs": { "infer": infer }, "weights": tensors });
    let refused = publish(&app, &creator, &model, &other).await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert!(
        pointers(&refused)
            .iter()
            .all(|it| *it == "/manifest/weights")
    );
    for body in [
        json!({}),
        json!({ "manifest": good, "job": "job_01h455vb4pex5vsknk084sn02q" }),
    ] {
        let call = app.post(&format!("{model}/versions"), &body);
        let refused = call.by(&creator).send().await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(pointers(&refused), ["/manifest"], "{body}");
    }
    let listed = get(&app, &creator, &format!("{model}/versions")).await;
    assert_eq!(
        listed.json["data"],
        json!([]),
        "nothing of all that was published"
    );
}

/// A tokenizer of so many words.
fn words(count: usize) -> Vec<u8> {
    let vocabulary = (0..count).map(|it| (format!("w{it}"), json!(it)));
    let vocabulary: serde_json::Map<_, _> = vocabulary.collect();
    let model = json!({ "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" });
    let cutter = json!({ "type": "Whitespace" });
    let document = json!({ "version": "1.0", "pre_tokenizer": cutter, "model": model });
    document.to_string().into_bytes()
}

/// A manifest of the example's encoder, which reads 16 of 17 pixels as tokens.
async fn reader(app: &TestApp, creator: &Session, tokenizer: &[u8]) -> Value {
    let program = example("encoder.pt2");
    upload(app, creator, &program).await;
    upload(app, creator, tokenizer).await;
    let archive = Archive::open(std::io::Cursor::new(&program)).unwrap();
    let facts = ProgramFacts::of(archive.program()).unwrap();
    json!({
        "programs": { "infer": Sha256::of(&program) },
        "text": { "tokenizer": Sha256::of(tokenizer), "ids": "tokens", "pad_id": 0 },
        "result": { "output": facts.outputs[0].name, "pooling": "mean", "normalise": true },
    })
}

/// A public model of texts of the words `w0` to `w16`, at a base unit for each token that is read; its path. `result` is what it says of its output.
pub async fn shown_reader(app: &TestApp, creator: &Session, result: Option<Value>) -> String {
    let model = model(app, creator).await;
    let mut manifest = reader(app, creator, &words(17)).await;
    let output = manifest["result"]["output"].clone();
    if let Some(mut result) = result {
        result["output"] = output.clone();
        let names: Vec<_> = (0..17).map(|it| format!("class {it}")).collect();
        manifest["labels"] = json!({ "output": output, "names": names });
        manifest["result"] = result;
    }
    let made = publish(app, creator, &model, &manifest).await;
    made.expect(StatusCode::CREATED);
    let body = json!({ "tariff": { "input_token_nano": "1000000000" } });
    let call = app.post(&format!("{model}/prices"), &body);
    call.by(creator).send().await.expect(StatusCode::CREATED);
    show(app, creator, &model, "public")
        .await
        .expect(StatusCode::OK);
    model
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_of_texts_says_how_long_they_may_be_and_what_becomes_of_them(db: PgPool) {
    let app = TestApp::new(db).await;
    let creator = app.session().await;
    let model = model(&app, &creator).await;
    let mut manifest = reader(&app, &creator, &words(17)).await;
    let made = publish(&app, &creator, &model, &manifest).await;
    let made = made.expect(StatusCode::CREATED);
    let expected = Sha256::of_document(&manifest).unwrap();
    assert_eq!(made.text("/digest"), expected.to_string());
    assert_eq!(made.json["schema"]["text"], json!({ "tokens_max": 16 }));
    let result = json!({ "type": "embedding", "dimensions": 17, "normalised": true });
    assert_eq!(made.json["schema"]["result"], result);
    let path = made.header(header::LOCATION);
    assert_eq!(get(&app, &creator, path).await.json, made.json);

    let output = manifest["result"]["output"].clone();
    manifest["result"] =
        json!({ "output": output, "pooling": "last", "softmax": true, "top_k": 3 });
    let made = publish(&app, &creator, &model, &manifest).await;
    let made = made.expect(StatusCode::CREATED);
    let result = json!({
        "type": "classes", "classes": 17, "top_k": 3, "probabilities": true, "labelled": false,
    });
    assert_eq!(made.json["schema"]["result"], result);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_said_of_texts_fits_the_program_and_its_tokenizer(db: PgPool) {
    let app = TestApp::new(db).await;
    let creator = app.session().await;
    let model = model(&app, &creator).await;
    let good = reader(&app, &creator, &words(17)).await;
    let (large, absent) = (words(100), Sha256::of(b"nobody has it"));
    upload(&app, &creator, &large).await;
    let infer = &good["programs"]["infer"];
    let long = vec![b' '; (32 << 20) + 1];
    upload(&app, &creator, &long).await;
    let cases = [
        ("/text/tokenizer", json!(absent), "/text/tokenizer"),
        ("/text/tokenizer", infer.clone(), "/text/tokenizer"),
        (
            "/text/tokenizer",
            json!(Sha256::of(&long)),
            "/text/tokenizer",
        ),
        (
            "/text/tokenizer",
            json!(Sha256::of(&large)),
            "/text/tokenizer",
        ),
        ("/text/pad_id", json!(17), "/text/pad_id"),
        ("/text/mask", json!("mask"), "/text/mask"),
        ("/text/zeros", json!(["tokens"]), "/text/zeros/0"),
        ("/result/output", json!("no"), "/result/output"),
        ("/result/softmax", json!(true), "/result/normalise"),
        ("/result/pooling", json!(null), "/result/output"),
    ];
    for (place, value, expected) in cases {
        let mut manifest = good.clone();
        let (part, field) = place[1..].split_once('/').unwrap();
        manifest[part][field] = value;
        let refused = publish(&app, &creator, &model, &manifest).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(
            pointers(&refused),
            [format!("/manifest{expected}")],
            "{manifest}"
        );
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn blobs_of_others_are_nobodys_to_publish(db: PgPool) {
    let app = TestApp::new(db).await;
    let (owner, thief) = (app.session().await, app.session().await);
    let manifest = digits(&app, &owner).await;
    let model = model(&app, &thief).await;
    let refused = publish(&app, &thief, &model, &manifest).await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(pointers(&refused), ["/manifest/programs/infer"]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_trained_job_becomes_a_version_in_one_call_once_it_is_completed(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (creator, _) = client(&app, &asset, 1 << 60).await;
    let made = market::job(&app, &creator, "none").await;
    let job = made.text("/id").to_owned();
    let model = model(&app, &creator).await;
    let body = json!({ "job": job });
    let attempt = || {
        app.post(&format!("{model}/versions"), &body)
            .by(&creator)
            .send()
    };
    let refused = attempt().await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(pointers(&refused), ["/job"], "it still runs");

    let weights = trained();
    let stored = upload(&app, &creator, &weights).await;
    stored.expect(StatusCode::CREATED);
    let output = Stored {
        sha256: Sha256::of(&weights),
        bytes: weights.len() as u64,
    };
    crate::jobs::complete(&app, job.parse().unwrap(), output).await;
    let version = attempt().await.expect(StatusCode::CREATED);
    let spec = training(&app, &creator, "mlp.pt2").await;
    let expected = json!({
        "programs": { "infer": spec["program"], "train": spec["program"] },
        "weights": Sha256::of(&weights),
    });
    assert_eq!(version.json["manifest"], expected);
    assert_eq!(version.text("/job"), job);

    let stranger = app.session().await;
    let theirs = self::model(&app, &stranger).await;
    let call = app.post(&format!("{theirs}/versions"), &body).by(&stranger);
    let refused = call.send().await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(pointers(&refused), ["/job"], "jobs of others are not there");
}

/// Weights that fit the example's program: as many zeros as it has.
fn trained() -> Vec<u8> {
    let archive = Archive::open(std::io::Cursor::new(example("mlp.pt2"))).unwrap();
    let facts = ProgramFacts::of(archive.program()).unwrap();
    let needed = facts.weights.iter();
    let needed = needed.filter(|(name, it)| it.is_needed && **name == it.saved_as);
    let zeros: Vec<_> = needed
        .map(|(name, it)| {
            let elements: u64 = it.sizes.iter().product();
            (
                name,
                &it.sizes,
                vec![0; usize::try_from(elements * 4).unwrap()],
            )
        })
        .collect();
    let views = zeros.iter().map(|(name, shape, data)| TensorView {
        name,
        dtype: ScalarType::F32,
        shape,
        data,
    });
    tensors::to_bytes(views.collect::<Vec<_>>()).unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn others_find_a_model_once_it_is_shown_and_it_is_shown_with_a_version_and_a_price(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (creator, _) = client(&app, &asset, 0).await;
    let other = app.session().await;
    let model = model(&app, &creator).await;
    let refused = show(&app, &creator, &model, "public").await;
    refused.expect_problem(StatusCode::CONFLICT, "no_version");
    let manifest = digits(&app, &creator).await;
    let version = publish(&app, &creator, &model, &manifest).await;
    let version = version
        .expect(StatusCode::CREATED)
        .header(header::LOCATION)
        .to_owned();
    let refused = show(&app, &creator, &model, "unlisted").await;
    refused.expect_problem(StatusCode::CONFLICT, "no_price");
    price(&app, &creator, &model, 7)
        .await
        .expect(StatusCode::CREATED);

    let paths = [
        model.clone(),
        version,
        format!("{model}/prices"),
        format!("{model}/versions"),
    ];
    let seen = async |expected: StatusCode, listed: bool| {
        for path in &paths {
            get(&app, &other, path).await.expect(expected);
        }
        let found = ids(&get(&app, &other, "/v1/models").await);
        assert_eq!(found.contains(&model), listed);
    };
    seen(StatusCode::NOT_FOUND, false).await;
    show(&app, &creator, &model, "unlisted")
        .await
        .expect(StatusCode::OK);
    seen(StatusCode::OK, false).await;
    show(&app, &creator, &model, "public")
        .await
        .expect(StatusCode::OK);
    seen(StatusCode::OK, true).await;
    let own = ids(&get(&app, &other, "/v1/models?own=true").await);
    assert!(own.is_empty(), "public ones are not one's own");
    show(&app, &creator, &model, "private")
        .await
        .expect(StatusCode::OK);
    seen(StatusCode::NOT_FOUND, false).await;
    assert_eq!(
        ids(&get(&app, &creator, "/v1/models").await),
        [model.as_str()]
    );
    let own = ids(&get(&app, &creator, "/v1/models?own=true").await);
    assert_eq!(own, [model.as_str()]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn pages_of_models_hold_each_once_newest_first(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (creator, _) = client(&app, &asset, 0).await;
    let (other, _) = client(&app, &asset, 0).await;
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push(shown(&app, &creator).await);
        expected.push(shown(&app, &other).await);
        expected.push(model(&app, &other).await);
        model(&app, &creator).await;
    }
    expected.reverse();
    let (mut found, mut next) = (Vec::new(), "/v1/models?limit=2".to_owned());
    loop {
        let page = get(&app, &other, &next).await.expect(StatusCode::OK);
        found.extend(ids(&page));
        match page.json["next_cursor"].as_str() {
            Some(cursor) => next = format!("/v1/models?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(found, expected);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_dearer_price_waits_a_week_for_those_who_could_call_and_a_cheaper_one_counts_at_once(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (creator, address) = client(&app, &asset, 0).await;
    let model = model(&app, &creator).await;
    let manifest = digits(&app, &creator).await;
    publish(&app, &creator, &model, &manifest)
        .await
        .expect(StatusCode::CREATED);
    let waits = async |call_nano: u64| {
        let made = price(&app, &creator, &model, call_nano)
            .await
            .expect(StatusCode::CREATED);
        made.text("/effective_at") != made.text("/created_at")
    };
    assert!(
        !waits(7).await && !waits(9).await,
        "nobody could call it yet"
    );
    show(&app, &creator, &model, "unlisted")
        .await
        .expect(StatusCode::OK);
    assert!(waits(10).await && !waits(9).await && !waits(8).await);
    // Taken back from everybody and shown again, it has the callers that it had.
    show(&app, &creator, &model, "private")
        .await
        .expect(StatusCode::OK);
    assert!(waits(9).await);
    let listed = get(&app, &creator, &format!("{model}/prices")).await;
    let newest = &listed.json["data"][0];
    assert_eq!(
        (&newest["number"], &newest["worker_ppm"]),
        (&json!(6), &json!(100_000))
    );
    assert_eq!(
        newest["payees"],
        json!([{ "address": address.to_string(), "weight": 1 }])
    );
    assert_eq!(newest["platform_ppm"], app.state.config.market_ppm);
    let effective = newest["effective_at"].as_str().unwrap();
    let notice =
        time::OffsetDateTime::parse(effective, &time::format_description::well_known::Rfc3339)
            .unwrap()
            - app.now();
    assert_eq!(notice.whole_seconds(), Duration::days(7).whole_seconds());
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_announced_price_counts_from_its_time_on_and_not_a_second_before(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (creator, _) = client(&app, &asset, 0).await;
    let model = shown(&app, &creator).await;
    let dearer = price(&app, &creator, &model, 9_000_000_000).await;
    dearer.expect(StatusCode::CREATED);
    let call = async || {
        let found = get(&app, &app.renewed(&creator), "/v1/catalog?kind=model").await;
        let found = found.expect(StatusCode::OK);
        found.text("/data/0/call_price/tariff/call_nano").to_owned()
    };
    app.pass(Duration::days(7) - Duration::SECOND);
    assert_eq!(call().await, "7000000000");
    app.pass(Duration::SECOND);
    assert_eq!(call().await, "9000000000");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn shares_and_prices_out_of_bounds_are_refused_with_their_place(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (creator, _) = client(&app, &asset, 0).await;
    let model = model(&app, &creator).await;
    let path = format!("{model}/prices");
    let (one, zero) = (
        format!("0x{}", "11".repeat(20)),
        format!("0x{}", "00".repeat(20)),
    );
    let cases = [
        (
            json!({ "worker_ppm": 49_999, "payees": [{ "address": one, "weight": 1 }] }),
            "/shares/worker_ppm",
        ),
        (
            json!({ "worker_ppm": 700_001, "payees": [{ "address": one, "weight": 1 }] }),
            "/shares/worker_ppm",
        ),
        (
            json!({ "worker_ppm": 100_000, "payees": [] }),
            "/shares/payees",
        ),
        (
            json!({ "worker_ppm": 100_000, "payees": [{ "address": one, "weight": 0 }] }),
            "/shares/payees/0/weight",
        ),
        (
            json!({ "worker_ppm": 100_000, "payees": [{ "address": zero, "weight": 1 }] }),
            "/shares/payees/0/address",
        ),
    ];
    for (shares, pointer) in cases {
        let body = json!({ "tariff": {}, "shares": shares });
        let refused = app.post(&path, &body).by(&creator).send().await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(pointers(&refused), [pointer], "{shares}");
    }
    for amount in [
        "-1",
        "1.5",
        "1e3",
        "",
        "1329227995784915872903807060280344577",
    ] {
        let body = json!({ "tariff": { "row_nano": amount } });
        let refused = app.post(&path, &body).by(&creator).send().await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{amount}");
    }
    let unbound = app.session().await;
    let theirs = self::model(&app, &unbound).await;
    let refused = price(&app, &unbound, &theirs, 7).await;
    refused.expect_problem(StatusCode::CONFLICT, "address_not_bound");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn callers_hear_of_a_retirement_thirty_days_before_and_it_is_not_brought_forward(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (creator, _) = client(&app, &asset, 0).await;
    let model = shown(&app, &creator).await;
    let listed = get(&app, &creator, &format!("{model}/versions")).await;
    let version = format!("{model}/versions/{}", listed.text("/data/0/id"));
    let retire = async |days: i64| {
        let at = (app.now() + Duration::days(days))
            .replace_nanosecond(0)
            .unwrap();
        let at = at
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap();
        let body = json!({ "message": "use the next one", "retires_at": at });
        let call = app.post(&format!("{version}/deprecate"), &body);
        call.by(&creator).send().await
    };
    let refused = retire(29).await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(pointers(&refused), ["/retires_at"]);
    retire(60).await.expect(StatusCode::OK);
    retire(60).await.expect(StatusCode::OK);
    let refused = retire(40).await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(pointers(&refused), ["/retires_at"]);
    let put_off = retire(90).await.expect(StatusCode::OK);
    assert_eq!(put_off.text("/deprecation"), "use the next one");
    let call = app.request(Method::POST, &format!("{version}/undeprecate"));
    let back = call.by(&creator).send().await.expect(StatusCode::OK);
    assert_eq!(
        (&back.json["deprecation"], &back.json["retires_at"]),
        (&Value::Null, &Value::Null)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_published_does_not_change_in_the_database_either(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (creator, _) = client(&app, &asset, 0).await;
    shown(&app, &creator).await;
    for statement in [
        "UPDATE model_versions SET manifest = '{}'",
        "UPDATE model_versions SET licence = 'MIT AND ISC'",
        "DELETE FROM model_versions",
        "TRUNCATE model_versions",
        "UPDATE model_prices SET call_nano = 0",
        "DELETE FROM model_prices",
        "UPDATE models SET visibility = 'public', shown_at = NULL",
    ] {
        let refused = sqlx::query(statement).execute(&app.owner).await;
        assert!(refused.is_err(), "{statement}");
    }
}
