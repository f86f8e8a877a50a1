use axum::http::{StatusCode, header};
use comptoir_domain::{digest::Sha256, tensors};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    harness::{Reply, Session, TestApp},
    market::{self, MINIMUM, RATE_NANO, example, quote, training, upload},
};

/// For the walk over every route.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    market::open(app).await;
    let spec = training(app, owner, "mlp.pt2").await;
    vec![
        quote(app, owner, &spec, "none")
            .await
            .text("/id")
            .to_owned(),
    ]
}

fn pointers(refused: &Reply) -> Vec<&str> {
    let errors = refused.json["errors"].as_array().unwrap();
    errors
        .iter()
        .map(|error| error["pointer"].as_str().unwrap())
        .collect()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_price_is_its_terms_to_the_last_fraction(db: PgPool) {
    let app = TestApp::new(db).await;
    market::open(&app).await;
    let session = app.session().await;
    let spec = training(&app, &session, "convnet.pt2").await;
    let quoted = quote(&app, &session, &spec, "replicated")
        .await
        .expect(StatusCode::CREATED);

    // 8x8 images through two convolutions and two linear layers, as PyTorch's flop counter counts them.
    let madds = 84_224_u128 * 1_437 * 5 * 3;
    let meter = json!({
        "kind": "training", "madds_per_row": "84224", "rows": 1437, "epochs": 5, "factor": 3, "replicas": 2,
        "madds": madds.to_string(),
    });
    assert_eq!(quoted.json["meter"], meter);
    let atto = madds * 2 * RATE_NANO;
    assert_ne!(
        atto % 10_u128.pow(18),
        0,
        "the price has a fraction, so rounding shows"
    );
    assert_eq!(quoted.text("/amount_atto"), atto.to_string());
    let hold = (atto / 10_u128.pow(18) + 1).to_string();
    assert_eq!(
        (quoted.text("/hold/amount"), quoted.text("/price/amount")),
        (hold.as_str(), hold.as_str())
    );
    assert_eq!(
        quoted.text("/price_version/rate_nano"),
        RATE_NANO.to_string()
    );
    assert_eq!(
        quoted.text("/price_version/minimum_base"),
        MINIMUM.to_string()
    );
    // What each tier costs: one run, a tenth more for audits, two runs, three.
    let tenths = [
        ("none", 10),
        ("sampled", 11),
        ("replicated", 20),
        ("quorum", 30),
    ];
    let tiers = quoted.json["tiers"].as_array().unwrap();
    assert_eq!(tiers.len(), tenths.len());
    for (tier, (name, tenths)) in tiers.iter().zip(tenths) {
        let price = (madds * RATE_NANO * tenths / 10).div_ceil(10_u128.pow(18));
        assert_eq!(
            (&tier["tier"], &tier["price"]["amount"]),
            (&json!(name), &json!(price.to_string()))
        );
    }
    assert_eq!(quoted.text("/expires_at"), "2026-11-22T09:15:00Z");
    let spec_sha256 = Sha256::of_document(&quoted.json["spec"]).unwrap();
    assert_eq!(quoted.text("/spec_sha256"), spec_sha256.to_string());

    let found = app
        .get(quoted.header(header::LOCATION))
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(found.json, quoted.json);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_small_job_costs_the_minimum(db: PgPool) {
    let app = TestApp::new(db).await;
    market::open(&app).await;
    let session = app.session().await;
    let mut spec = training(&app, &session, "mlp.pt2").await;
    spec["epochs"] = json!(1);
    let quoted = quote(&app, &session, &spec, "none")
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(quoted.json["meter"]["replicas"], 1);
    assert_eq!(quoted.text("/hold/amount"), MINIMUM.to_string());
    assert_eq!(
        quoted.text("/amount_atto"),
        (MINIMUM * 10_u128.pow(18)).to_string()
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_does_not_fit_is_refused_where_it_stands(db: PgPool) {
    let app = TestApp::new(db).await;
    market::open(&app).await;
    let session = app.session().await;
    let spec = training(&app, &session, "convnet.pt2").await;
    let input = spec["inputs"]
        .as_object()
        .unwrap()
        .keys()
        .next()
        .unwrap()
        .clone();
    let small = tensors::to_bytes([tensors::TensorView {
        name: "images",
        dtype: comptoir_domain::program::graph::ScalarType::F32,
        shape: &[1_437, 1],
        data: &[0; 4 * 1_437],
    }])
    .unwrap();
    for bytes in [
        &small,
        &example("test.safetensors"),
        &b"not tensors".to_vec(),
    ] {
        upload(&app, &session, bytes)
            .await
            .expect(StatusCode::CREATED);
    }
    let (small, test) = (
        json!(Sha256::of(&small)),
        json!(Sha256::of(&example("test.safetensors"))),
    );
    let text = json!(Sha256::of(b"not tensors"));
    let at_input = format!("/spec/inputs/{input}");
    let blob = format!("{at_input}/blob");
    let changes: Vec<(&str, Value, &str)> = vec![
        ("/epochs", json!(0), "/spec/epochs"),
        ("/output", json!(3), "/spec/output"),
        ("/batch_size", json!(0), "/spec/batch_size"),
        ("/target/tensor", json!("nothing"), "/spec/target/tensor"),
        ("/target/blob", test, "/spec/target"),
        ("/inputs", json!({}), "/spec/inputs"),
        ("/program", text.clone(), "/spec/program"),
        ("/weights", text, "/spec/weights"),
        (&blob[5..], small, &at_input),
    ];
    for (at, value, pointer) in changes {
        let mut wrong = spec.clone();
        wrong["output"] = json!(0);
        if at == "/weights" {
            wrong["weights"] = Value::Null;
        }
        *wrong.pointer_mut(at).unwrap() = value;
        let refused = quote(&app, &session, &wrong, "none").await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(pointers(&refused), [pointer], "{:?}", refused.json);
    }
    let mut unknown = spec.clone();
    unknown["epoch"] = json!(1);
    let refused = quote(&app, &session, &unknown, "none").await;
    refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let gpu = app
        .post("/v1/quotes", &json!({ "spec": spec, "device": "cuda" }))
        .by(&session)
        .send()
        .await;
    assert_eq!(
        pointers(&gpu.expect(StatusCode::UNPROCESSABLE_ENTITY)),
        ["/device"]
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_blob_of_another_account_is_as_unknown_as_none(db: PgPool) {
    let app = TestApp::new(db).await;
    market::open(&app).await;
    let (owner, stranger) = (app.session().await, app.session().await);
    let spec = training(&app, &owner, "mlp.pt2").await;
    quote(&app, &owner, &spec, "none")
        .await
        .expect(StatusCode::CREATED);
    let theirs = quote(&app, &stranger, &spec, "none").await;
    let theirs = theirs.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    let input = spec["inputs"].as_object().unwrap().keys().next().unwrap();
    let mut found = pointers(&theirs);
    found.sort_unstable();
    assert_eq!(
        found,
        [
            &format!("/spec/inputs/{input}/blob"),
            "/spec/program",
            "/spec/target/blob"
        ]
    );

    let nobodys: Value = {
        let text = spec.to_string();
        let digests = [example("mlp.pt2"), example("train.safetensors")]
            .map(|it| Sha256::of(&it).to_string());
        let text = text
            .replace(&digests[0], &"0".repeat(64))
            .replace(&digests[1], &"1".repeat(64));
        serde_json::from_str(&text).unwrap()
    };
    let nobodys = quote(&app, &stranger, &nobodys, "none").await;
    let sorted = |reply: &Reply| {
        let mut errors: Vec<String> = reply.json["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect();
        errors.sort();
        errors
    };
    assert_eq!(
        sorted(&theirs),
        sorted(&nobodys),
        "nothing tells them apart"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_program_that_no_worker_can_be_held_to_is_not_verified(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = market::client(&app, &asset, crate::jobs::RICH).await;
    let (owner, _) = app.bound_session().await;
    market::join(&app, &owner, &market::worker("a")).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let job = market::job(&app, &session, "none").await;
    let marks = async |class: &str| {
        sqlx::query("INSERT INTO unstable_classes VALUES ($1, $2, decode($3, 'hex'), $4)")
            .bind(
                job.text("/id")
                    .parse::<comptoir_domain::id::JobId>()
                    .unwrap()
                    .0,
            )
            .bind(class)
            .bind(spec["program"].as_str().unwrap())
            .bind(app.now())
            .execute(&app.owner)
            .await
            .unwrap();
    };
    let tries = async |tier: &str, status: StatusCode| {
        app.pass(time::Duration::seconds(10));
        quote(&app, &session, &spec, tier).await.expect(status)
    };
    marks("gone").await;
    tries("sampled", StatusCode::CREATED).await;
    marks("a").await;
    for tier in ["sampled", "replicated", "quorum"] {
        let refused = tries(tier, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert_eq!(pointers(&refused), ["/tier"]);
    }
    tries("none", StatusCode::CREATED).await;
    // Another program is none of it, and a worker of another class ends it.
    let other = training(&app, &session, "convnet.pt2").await;
    quote(&app, &session, &other, "sampled")
        .await
        .expect(StatusCode::CREATED);
    market::join(&app, &owner, &market::worker("b")).await;
    tries("sampled", StatusCode::CREATED).await;
}
