//! Calls of texts: tokens are counted here, and what the version declares is made of the outputs.

use std::sync::Arc;

use axum::http::StatusCode;
use comptoir_domain::program::graph::ScalarType;
use comptoir_wire::calls::{Answer, Ask, Call, Outputs, Tensor};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    calls::{Behaviour, World, good},
    models,
};

/// Tokens of a row of the model, and of its vocabulary.
const WIDTH: u64 = 16;
const WORDS: u64 = 17;

/// A vector for each token, which has 1 at the token's number: in the mean are the shares of each word.
pub fn counting() -> Arc<Behaviour> {
    Arc::new(|call| vec![answer(call, 1.0)])
}

fn answer(call: &Call, one: f32) -> Answer {
    let Ask::Infer(inputs) = &call.ask else {
        panic!("a text is asked for")
    };
    let size = usize::try_from(inputs[0].dtype.size()).unwrap();
    let ids = inputs[0]
        .bytes
        .chunks_exact(size)
        .map(|it| u64::from(it[0]));
    let number = |id, at| if id == at { one } else { 0.0 };
    let hidden = ids.flat_map(|id| (0..WORDS).map(move |at| number(id, at)));
    Answer::Outputs(Outputs {
        tensors: vec![Tensor {
            dtype: ScalarType::F32,
            shape: vec![inputs[0].rows().unwrap(), WIDTH, WORDS],
            bytes: hidden.flat_map(f32::to_le_bytes).collect(),
        }],
        batch_rows: 1,
        compute_us: 5,
        was_cold: false,
    })
}

/// Somebody with a thousand base units before a model of texts.
pub async fn reading(db: PgPool, worker: Arc<Behaviour>, result: Option<Value>) -> World {
    let mut world = World::new(db, 1_000, vec![worker]).await;
    world.path = models::shown_reader(&world.app, &world.creator, result).await;
    world
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_text_becomes_what_the_version_declares_and_its_tokens_alone_are_paid(db: PgPool) {
    let mut world = reading(db, counting(), None).await;
    let body = json!({ "texts": ["w1 w2", "w3", [3, 3, 3]] });
    let reply = world.once_hosted(async || world.infer(&body).await).await;
    let reply = reply.expect(StatusCode::OK);
    let results = reply.json["results"].as_array().unwrap();
    let half = 0.5_f64.sqrt();
    for (place, expected) in [(0, 0.0), (1, half), (2, half), (3, 0.0)] {
        let found = results[0][place].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-6, "{found} at {place}");
    }
    assert_eq!((&results[1], &results[1][3]), (&results[2], &json!(1.0)));
    assert_eq!(reply.json.get("outputs"), None);
    let usage = &reply.json["usage"];
    assert_eq!(
        (&usage["rows"], &usage["input_tokens"]),
        (&json!(3), &json!(6))
    );
    assert_eq!(reply.text("/usage/cost"), "6", "what fills a row is free");
    assert_eq!(world.settled().await, (994, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn tensors_for_a_version_of_texts_cost_their_tokens_too(db: PgPool) {
    let mut world = reading(db, counting(), None).await;
    let body = json!({ "inputs": { "tokens": [vec![1; 16], vec![2; 16]] } });
    let reply = world.once_hosted(async || world.infer(&body).await).await;
    let reply = reply.expect(StatusCode::OK);
    assert_eq!(
        reply.json["usage"]["input_tokens"], 32,
        "no mask says what fills"
    );
    assert!(reply.json["outputs"].is_object());
    assert_eq!(
        reply.json.get("results"),
        None,
        "nobody says which are text"
    );
    assert_eq!(world.settled().await, (968, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn classes_are_ranked_and_named_as_the_version_says(db: PgPool) {
    let result = json!({ "pooling": "last", "softmax": true, "top_k": 2 });
    let mut world = reading(db, counting(), Some(result)).await;
    let body = json!({ "texts": "w1 w5" });
    let reply = world.once_hosted(async || world.infer(&body).await).await;
    let reply = reply.expect(StatusCode::OK);
    let ranked = &reply.json["results"][0];
    assert_eq!(ranked.as_array().unwrap().len(), 2);
    assert_eq!(
        (&ranked[0]["index"], &ranked[0]["label"]),
        (&json!(5), &json!("class 5"))
    );
    assert!(ranked[0]["score"].as_f64() > ranked[1]["score"].as_f64());
    assert_eq!(world.settled().await, (998, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn texts_that_do_not_fit_are_refused_at_their_place_and_never_leave(db: PgPool) {
    let mut world = reading(db, counting(), None).await;
    let long = "w1 ".repeat(17);
    let many = vec!["w1"; 2_049];
    for (body, pointer) in [
        (json!({ "texts": ["w1", long] }), "/texts/1"),
        (json!({ "texts": "" }), "/texts/0"),
        (json!({ "texts": [[1], [17]] }), "/texts/1"),
        (json!({ "texts": [[]] }), "/texts/0"),
        (json!({ "texts": many }), "/texts"),
        (json!({ "texts": [] }), "/texts"),
        (json!({ "texts": [-1] }), "/texts"),
        (json!({ "texts": ["w1", 1] }), "/texts"),
        (json!({ "texts": { "w1": 1 } }), "/texts"),
        (json!({ "texts": "w1", "inputs": {} }), "/texts"),
        (json!({ "texts": "w1", "truncate": 1 }), "/truncate"),
        (
            json!({ "inputs": { "tokens": [vec![1; 16]] }, "truncate": true }),
            "/truncate",
        ),
    ] {
        let refused = world.infer(&body).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), pointer, "{body}");
    }
    assert_eq!(world.asked(), 0);
    let cut = json!({ "texts": long, "truncate": true });
    let reply = world.once_hosted(async || world.infer(&cut).await).await;
    assert_eq!(
        reply.expect(StatusCode::OK).json["usage"]["input_tokens"],
        16
    );
    assert_eq!(world.settled().await, (984, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_version_that_takes_tensors_alone_says_so(db: PgPool) {
    let world = World::new(db, 1_000, vec![good()]).await;
    let refused = world.infer(&json!({ "texts": "w1" })).await;
    let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(refused.text("/errors/0/pointer"), "/texts");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn numbers_of_which_nothing_can_be_made_are_no_answer_and_cost_nothing(db: PgPool) {
    let broken: Arc<Behaviour> = Arc::new(|call| vec![answer(call, f32::NAN)]);
    let mut world = reading(db, broken, None).await;
    let body = json!({ "texts": "w1" });
    let refused = world.once_hosted(async || world.infer(&body).await).await;
    refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "not_computed");
    assert_eq!(world.settled().await, (1_000, 0));
}
