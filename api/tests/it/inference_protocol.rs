//! `/v2`, the Open Inference Protocol: the same calls, in its words and with its errors.

use axum::http::{HeaderName, Method, StatusCode, header};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    calls::{PRICE, World, good},
    harness::Reply,
};

const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const BINARY: &str = "application/octet-stream";

impl World {
    /// Where the protocol has the model.
    fn v2(&self, rest: &str) -> String {
        format!("{}{rest}", self.path.replace("/v1/", "/v2/"))
    }

    async fn v2_infer(&self, body: &Value) -> Reply {
        let call = self.app.request(Method::POST, &self.v2("/infer"));
        call.json(body).by(&self.caller).send().await
    }

    async fn v2_infer_with(&self, json: &Value, bytes: &[u8]) -> Reply {
        let json = json.to_string();
        let call = self.app.request(Method::POST, &self.v2("/infer"));
        call.header(JSON_LENGTH, &json.len().to_string())
            .header(header::CONTENT_TYPE, BINARY)
            .body([json.as_bytes(), bytes].concat())
            .by(&self.caller)
            .send()
            .await
    }
}

/// So many rows of zeros, as numbers in one list.
fn flat(rows: usize) -> Value {
    json!({ "name": "x", "shape": [rows, 1, 8, 8], "datatype": "FP32", "data": vec![0.0; rows * 64] })
}

fn binary(rows: usize) -> Value {
    json!({ "name": "x", "shape": [rows, 1, 8, 8], "datatype": "FP32", "parameters": { "binary_data_size": rows * 256 } })
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_call_takes_and_gives_tensors_as_numbers_or_bytes_and_is_charged_once(db: PgPool) {
    let mut world = World::new(db, 1_000, vec![good()]).await;
    world.call(1).await.expect(StatusCode::OK);
    let body = json!({ "id": "mine", "inputs": [flat(2)], "unknown": true });
    let numbers = world.v2_infer(&body).await.expect(StatusCode::OK);
    assert_eq!(numbers.text("/id"), "mine");
    assert_eq!(
        numbers.text("/model_name"),
        world.path.replace("/v1/models/", "")
    );
    let output = &numbers.json["outputs"][0];
    assert_eq!(output["name"], "linear_2");
    assert_eq!(
        (&output["datatype"], &output["shape"]),
        (&json!("FP32"), &json!([2, 10]))
    );
    assert_eq!(output["data"], json!([vec![0.5; 10], vec![0.5; 10]]));
    assert_eq!(numbers.text("/parameters/cost"), "7");
    let receipt = numbers.header(HeaderName::from_static("comptoir-receipt"));
    assert_eq!(numbers.text("/parameters/receipt"), receipt);

    let nested = json!({ "name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [[vec![vec![0.0; 8]; 8]]] });
    world
        .v2_infer(&json!({ "inputs": [nested] }))
        .await
        .expect(StatusCode::OK);

    let wanted = json!([{ "name": "linear_2", "parameters": { "binary_data": true } }]);
    let body = json!({ "inputs": [binary(1)], "outputs": wanted });
    let bytes = world
        .v2_infer_with(&body, &[0; 256])
        .await
        .expect(StatusCode::OK);
    assert_eq!(bytes.header(header::CONTENT_TYPE), BINARY);
    let length: usize = bytes.header(JSON_LENGTH).parse().unwrap();
    let (json, data) = bytes.bytes.split_at(length);
    let json: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 40);
    assert!(json["outputs"][0].get("data").is_none());
    assert_eq!(data, 0.5_f32.to_le_bytes().repeat(10));
    assert_eq!(world.settled().await, (1_000 - 4 * PRICE, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_refused_is_told_as_the_protocol_says_and_never_leaves(db: PgPool) {
    let mut world = World::new(db, 1_000, vec![good()]).await;
    world.call(1).await.expect(StatusCode::OK);
    let input = |change: &str, to: Value| {
        let mut input = flat(1);
        input[change] = to;
        json!({ "inputs": [input] })
    };
    for (wrong, body) in [
        ("no input", json!({ "inputs": [] })),
        ("twice", json!({ "inputs": [flat(1), flat(1)] })),
        ("another name", input("name", json!("y"))),
        ("another type", input("datatype", json!("FP64"))),
        ("another shape", input("shape", json!([1, 64]))),
        ("no rows", input("shape", json!([0, 1, 8, 8]))),
        (
            "a shape above any",
            input("shape", json!([u64::MAX, 1, 8, 8])),
        ),
        ("too few numbers", input("data", json!([1.0]))),
        ("no data", input("data", Value::Null)),
        (
            "shared memory",
            input("parameters", json!({ "shared_memory_region": "r" })),
        ),
        (
            "an unknown output",
            json!({ "inputs": [flat(1)], "outputs": [{ "name": "z" }] }),
        ),
        (
            "a long id",
            json!({ "inputs": [flat(1)], "id": "x".repeat(201) }),
        ),
    ] {
        let refused = world.v2_infer(&body).await;
        assert_eq!(
            refused.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{wrong}: {:?}",
            refused.json
        );
        assert_eq!(refused.header(header::CONTENT_TYPE), "application/json");
        assert_eq!(refused.code(), "invalid_request", "{wrong}");
        let said = refused.json.as_object().unwrap();
        assert!(
            said.len() == 1 && said["error"].is_string(),
            "{wrong}: {said:?}"
        );
    }
    for (json, bytes) in [
        (json!({ "inputs": [binary(1)] }), 255),
        (json!({ "inputs": [binary(1)] }), 257),
    ] {
        let refused = world.v2_infer_with(&json, &vec![0; bytes]).await;
        assert!(refused.status.is_client_error(), "{bytes}");
    }
    for length in ["99999", "-1", "x"] {
        let call = world.app.request(Method::POST, &world.v2("/infer"));
        let call = call
            .header(JSON_LENGTH, length)
            .body("{}")
            .by(&world.caller);
        let refused = call.send().await;
        refused.expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
    }
    assert_eq!(world.asked(), 1, "nothing of it reached a worker");
    assert_eq!(world.settled().await, (1_000 - PRICE, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_problem_below_v2_has_the_form_of_the_protocol(db: PgPool) {
    let world = World::new(db, 0, vec![good()]).await;
    let none = world.v2("/infer").replace("mdl_", "mdl_x");
    for (method, path, status) in [
        (Method::POST, world.v2("/infer"), StatusCode::UNAUTHORIZED),
        (Method::GET, "/v2/nothing".to_owned(), StatusCode::NOT_FOUND),
        (
            Method::PUT,
            "/v2".to_owned(),
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (Method::POST, none, StatusCode::UNAUTHORIZED),
    ] {
        let reply = world.app.request(method, &path).send().await.expect(status);
        assert!(reply.json["error"].is_string(), "{path}: {:?}", reply.json);
        assert_ne!(reply.code(), "");
    }
    // And nowhere else.
    let reply = world.app.get("/v1/nothing").send().await;
    reply.expect_problem(StatusCode::NOT_FOUND, "no_such_route");
    // Who has no money is told how much there is.
    loop {
        let poor = world.v2_infer(&json!({ "inputs": [flat(1)] })).await;
        if poor.code() != "no_worker" {
            let poor = poor.expect(StatusCode::PAYMENT_REQUIRED);
            assert_eq!(poor.code(), "insufficient_funds");
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_client_asks_whether_the_server_and_a_model_are_ready_and_what_it_takes(db: PgPool) {
    let world = World::new(db, 1_000, vec![good()]).await;
    let public = async |path: &str| world.app.get(path).send().await;
    public("/v2/health/live").await.expect(StatusCode::OK);
    let server = public("/v2").await.expect(StatusCode::OK);
    assert_eq!(server.json["extensions"], json!(["binary_tensor_data"]));
    world.call(1).await.expect(StatusCode::OK);
    public("/v2/health/ready").await.expect(StatusCode::OK);
    let own = async |rest: &str| {
        let call = world.app.get(&world.v2(rest)).by(&world.caller);
        call.send().await
    };
    own("/ready").await.expect(StatusCode::OK);
    let model = own("").await.expect(StatusCode::OK);
    let x = json!({ "name": "x", "datatype": "FP32", "shape": [-1, 1, 8, 8] });
    assert_eq!(model.json["inputs"], json!([x]));
    let version = model.text("/versions/0").to_owned();
    let pinned = own(&format!("/versions/{version}")).await;
    assert_eq!(pinned.expect(StatusCode::OK).json, model.json);
    own(&format!("/versions/{version}/ready"))
        .await
        .expect(StatusCode::OK);
}
