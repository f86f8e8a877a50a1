//! Routes that clients of `OpenAI` know: the same calls, in their words and with their errors.

use axum::http::{HeaderName, Method, StatusCode, header};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    calls::{World, good},
    harness::Reply,
    texts::{counting, reading},
};

impl World {
    fn model(&self) -> &str {
        self.path.strip_prefix("/v1/models/").unwrap()
    }

    /// Embeds what the body says, with the world's model where it names none.
    async fn embed(&self, mut body: Value) -> Reply {
        if body.get("model").is_none() {
            body["model"] = json!(self.model());
        }
        self.once_hosted(async || self.embed_once(&body).await)
            .await
    }

    async fn embed_once(&self, body: &Value) -> Reply {
        let call = self.app.request(Method::POST, "/v1/embeddings");
        call.json(body).by(&self.caller).send().await
    }
}

#[track_caller]
fn assert_error(reply: &Reply, status: StatusCode, (kind, code): (&str, &str)) {
    assert_eq!(reply.status, status, "{reply:?}");
    let error = &reply.json["error"];
    assert_eq!(
        (error["type"].as_str(), error["code"].as_str()),
        (Some(kind), Some(code))
    );
    assert_ne!(reply.text("/error/message"), "");
    assert!(error.get("param").is_some());
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn texts_and_tokens_alone_or_several_have_their_vectors_in_either_form(db: PgPool) {
    let mut world = reading(db, counting(), None).await;
    let one = world
        .embed(json!({ "input": "w3", "user": "me", "no": {} }))
        .await;
    let one = one.expect(StatusCode::OK);
    assert_eq!(
        (one.text("/object"), one.text("/model")),
        ("list", world.model())
    );
    let vector = one.json["data"][0]["embedding"].clone();
    assert_eq!(
        (vector.as_array().unwrap().len(), &vector[3]),
        (17, &json!(1.0))
    );
    let usage = json!({ "prompt_tokens": 1, "total_tokens": 1, "cost": "1" });
    assert_eq!(one.json["usage"], usage);
    let said = |name| one.header(HeaderName::from_static(name)).to_owned();
    assert!(said("comptoir-call").starts_with("call_"));
    assert_eq!(said("comptoir-cost"), "1");
    assert!(said("comptoir-receipt").starts_with("rcpt_"));

    for (input, texts) in [
        (json!(["w3", "w3"]), 2),
        (json!([3]), 1),
        (json!([[3], [3, 3], "w3"]), 3),
    ] {
        let reply = world
            .embed(json!({ "input": input, "dimensions": 17 }))
            .await;
        let reply = reply.expect(StatusCode::OK);
        let data = reply.json["data"].as_array().unwrap();
        assert_eq!(data.len(), texts, "{input}");
        for (place, it) in data.iter().enumerate() {
            assert_eq!((&it["index"], &it["embedding"]), (&json!(place), &vector));
        }
    }
    let encoded = world
        .embed(json!({ "input": "w3", "encoding_format": "base64" }))
        .await;
    let bytes = BASE64_STANDARD
        .decode(encoded.text("/data/0/embedding"))
        .unwrap();
    assert_eq!(
        (bytes.len(), &bytes[12..16]),
        (4 * 17, &1.0_f32.to_le_bytes()[..])
    );
    assert_eq!(
        world.settled().await,
        (1_000 - 9, 0),
        "a unit for each token"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_refusal_is_an_error_as_these_clients_read_it(db: PgPool) {
    let mut world = reading(db, counting(), None).await;
    let invalid = ("invalid_request_error", "invalid_request");
    for (body, param) in [
        (json!({ "input": "w1 ".repeat(17) }), "input"),
        (json!({ "input": "w1", "dimensions": 5 }), "dimensions"),
        (
            json!({ "input": "w1", "encoding_format": "hex" }),
            "encoding_format",
        ),
        (json!({ "input": {} }), "input"),
        (json!({ "input": "w1", "model": 7 }), "model"),
    ] {
        let refused = world.embed(body).await;
        assert_error(&refused, StatusCode::BAD_REQUEST, invalid);
        assert_eq!(refused.text("/error/param"), param);
    }
    let missing = ("invalid_request_error", "not_found");
    for model in ["gpt-4", "mdl_01h455vb4pex5vsknk084sn02q", ""] {
        let refused = world.embed(json!({ "input": "w1", "model": model })).await;
        assert_error(&refused, StatusCode::NOT_FOUND, missing);
    }
    let send = |body: Vec<u8>| {
        let call = world
            .app
            .request(Method::POST, "/v1/embeddings")
            .by(&world.caller);
        call.header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .send()
    };
    let malformed = ("invalid_request_error", "malformed_request");
    assert_error(
        &send(b"{".to_vec()).await,
        StatusCode::BAD_REQUEST,
        malformed,
    );
    let large = ("invalid_request_error", "payload_too_large");
    let refused = send(vec![b' '; (8 << 20) + 1]).await;
    assert_error(&refused, StatusCode::PAYLOAD_TOO_LARGE, large);
    let refused = world
        .app
        .get("/v1/embeddings")
        .by(&world.caller)
        .send()
        .await;
    let wrong = ("invalid_request_error", "method_not_allowed");
    assert_error(&refused, StatusCode::METHOD_NOT_ALLOWED, wrong);
    let stranger = world.app.post("/v1/embeddings", &json!({})).send().await;
    let unknown = ("authentication_error", "unauthenticated");
    assert_error(&stranger, StatusCode::UNAUTHORIZED, unknown);
    assert_eq!(world.asked(), 0);
    let poor = json!({ "model": world.model(), "input": vec![vec![1; 16]; 63] });
    let refused = world.embed_once(&poor).await;
    let funds = ("insufficient_quota", "insufficient_funds");
    assert_error(&refused, StatusCode::PAYMENT_REQUIRED, funds);
    assert_eq!(world.settled().await, (1_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_there_is_an_error_that_says_when_to_come_back(db: PgPool) {
    let world = World::new(db, 1_000, Vec::new()).await;
    let path = crate::models::shown_reader(&world.app, &world.creator, None).await;
    let model = path.strip_prefix("/v1/models/").unwrap();
    let refused = world
        .embed_once(&json!({ "model": model, "input": "w1" }))
        .await;
    let nobody = ("server_error", "no_worker");
    assert_error(&refused, StatusCode::SERVICE_UNAVAILABLE, nobody);
    assert_eq!(refused.header(header::RETRY_AFTER), "5");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_model_that_makes_no_embedding_of_a_text_is_refused(db: PgPool) {
    let ranked = json!({ "pooling": "last", "top_k": 2 });
    let mut world = reading(db, counting(), Some(ranked)).await;
    let digits = crate::models::shown(&world.app, &world.creator).await;
    for path in [world.path.clone(), digits] {
        world.path = path;
        let refused = world.embed(json!({ "input": "w1" })).await;
        let invalid = ("invalid_request_error", "invalid_request");
        assert_error(&refused, StatusCode::BAD_REQUEST, invalid);
        assert_eq!(refused.text("/error/param"), "model");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn models_are_listed_for_both_and_problems_there_are_read_by_both(db: PgPool) {
    let world = World::new(db, 0, vec![good()]).await;
    let listed = world.app.get("/v1/models").by(&world.caller).send().await;
    assert_eq!(listed.text("/object"), "list");
    let model = &listed.json["data"][0];
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!(world.model()), &json!("model"))
    );
    assert!(model["created"].is_u64() && model["owned_by"].is_string());

    let missing = world
        .app
        .get("/v1/models/gpt-4")
        .by(&world.caller)
        .send()
        .await;
    assert_error(
        &missing,
        StatusCode::NOT_FOUND,
        ("invalid_request_error", "not_found"),
    );
    let missing = missing.expect_problem(StatusCode::NOT_FOUND, "not_found");
    assert_eq!(missing.text("/type"), "/problems/not_found");
    let stranger = world.app.get("/v1/models").send().await;
    assert_error(
        &stranger,
        StatusCode::UNAUTHORIZED,
        ("authentication_error", "unauthenticated"),
    );
    let ours = world.app.post("/v1/models", &json!({})).send().await;
    assert_eq!(
        ours.json.get("error"),
        None,
        "nobody else's client makes models"
    );
}
