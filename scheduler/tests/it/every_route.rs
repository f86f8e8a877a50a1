//! Who may call what: every operation of the committed document, by everybody who might try. Each call is one that its own
//! caller succeeds with, so that a refusal is one of the caller.

use std::collections::BTreeSet;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use comptoir_domain::{
    digest::Sha256,
    id::{AccountId, AttemptId, DatasetFileId},
    job::Tier,
};
use comptoir_http::{
    jwt::{Grant, SigningKey},
    key_ring::KeyRing,
};
use comptoir_scheduler::stub::{StubWorker, facts, tensor_file};
use comptoir_wire::{LEASE_TOKEN_HEADER, encoded::Base64, heartbeat::Held, join::JoinRequest};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::{
    datasets,
    harness::{Bench, held, lease, now, program, training},
};

const ISSUER: &str = "https://comptoir.test";

/// Operations that answer without credentials. This list only shrinks.
const PUBLIC: &[&str] = &[
    "GET /.well-known/jwks.json",
    "GET /healthz",
    "GET /readyz",
    "GET /version",
    "POST /v1/join",
    "POST /v1/worker-token",
];

/// Operations that are about the caller, and therefore open to every worker: what they show of others is tested.
const OWN: &[&str] = &["POST /v1/heartbeats", "POST /v1/work"];

/// Operations of hosts of models, about no attempt: who they are for is tested with calls.
const HOSTS: &[&str] = &["GET /v1/calls", "GET /v1/calls/blobs/{sha256}"];

struct Operation {
    method: Method,
    path: String,
}

impl Operation {
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

fn operations() -> Vec<Operation> {
    let committed = std::fs::read_to_string("../openapi/scheduler.json").unwrap();
    let document: Value = serde_json::from_str(&committed).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(|method| Operation {
            method: method.to_uppercase().parse().unwrap(),
            path: path.clone(),
        })
    });
    let operations: Vec<_> = operations.collect();
    let names: BTreeSet<_> = operations.iter().map(Operation::name).collect();
    let listed = PUBLIC.iter().chain(OWN);
    for name in listed {
        assert!(names.contains(*name), "{name} is no operation any more");
    }
    assert!(names.len() > PUBLIC.len() + OWN.len());
    operations
}

/// One attempt with its lease, its inputs, and what its holder would send.
struct Stage {
    bench: Bench,
    /// The key of tokens.
    pem: String,
    holder: StubWorker,
    held: Held,
    /// A file of the dataset that its job reads.
    file: DatasetFileId,
    join_token: String,
}

impl Stage {
    async fn set(db: PgPool) -> Self {
        let bench = Bench::new(db).await;
        let pem = SigningKey::generate_pem();
        let key = SigningKey::from_pem(&pem).unwrap();
        bench.state.keys.replace(KeyRing::of(key));
        let client = bench.client().await;
        let holder = bench.worker(0xa1).await;
        let (dataset, data) = datasets::offered(&bench).await;
        let spec = datasets::reading(&dataset, training());
        let submitted = bench.submit_on(client, &spec, Tier::None, data).await;
        submitted.unwrap();
        let held = held(&lease(&holder).await);
        let owner = bench.account(0xe1).await.account;
        let join_token = bench.join_token(owner, 100, now() + Duration::HOUR).await;
        Self {
            bench,
            pem,
            holder,
            held,
            file: dataset.file,
            join_token: join_token.reveal(),
        }
    }

    /// A call of this operation about the attempt, with its lease token, as its holder makes it.
    fn call(&self, operation: &Operation, about: AttemptId) -> reqwest::RequestBuilder {
        let checkpoint = tensor_file(&[0.0]);
        let digest = match operation.method {
            Method::PUT => Sha256::of(&checkpoint),
            _ => Sha256::of(&program()),
        };
        let path = operation
            .path
            .replace("{id}", &about.to_string())
            .replace("{sha256}", &digest.to_string())
            .replace("{file}", &self.file.to_string())
            .replace("{part}", "0");
        let url = format!("{}{path}", self.bench.base);
        let call = reqwest::Client::new().request(operation.method.clone(), url);
        let call = call.header(LEASE_TOKEN_HEADER, self.held.lease_token.to_string());
        let held = json!([{ "attempt_id": about, "lease_token": self.held.lease_token }]);
        match operation.name().as_str() {
            "POST /v1/join" => call.json(&self.join_request()),
            "POST /v1/worker-token" => call.json(&self.holder.token_request(later_ms())),
            "POST /v1/work" => call.json(&json!({ "wanted": 0, "wait_ms": 0, "held": held })),
            "POST /v1/heartbeats" => call.json(&json!({ "leases": held })),
            "POST /v1/attempts/{id}/events" => {
                let progress = json!({ "kind": "progress", "done": 1, "of": 2 });
                call.json(&json!({ "events": [{ "seq": 1, "event": progress }] }))
            }
            "POST /v1/attempts/{id}/segments" => {
                call.json(&json!({ "segment": 0, "checkpoint": Sha256::of(&checkpoint) }))
            }
            "PUT /v1/attempts/{id}/blobs/{sha256}" => call.body(checkpoint),
            "POST /v1/attempts/{id}/dataset" => call,
            name => {
                assert_eq!(operation.method, Method::GET, "{name} needs a body here");
                call
            }
        }
    }

    /// A join of a fresh key.
    fn join_request(&self) -> JoinRequest {
        let key = Ed25519KeyPair::generate().unwrap();
        let mut request = JoinRequest {
            token: self.join_token.clone(),
            public_key: Base64(key.public_key().as_ref().try_into().unwrap()),
            name: "walk".into(),
            facts: facts("x"),
            signature: Base64([0; 64]),
        };
        let signed = key.sign(&request.signing_bytes().unwrap());
        request.signature = Base64(signed.as_ref().try_into().unwrap());
        request
    }

    /// Credentials that open nothing here, by what they are.
    fn strangers(&self) -> Vec<(&'static str, String)> {
        let sign = |pem: &str, audience, subject: &str, life| {
            let grant = Grant {
                issuer: ISSUER,
                audience,
                subject,
                session: None,
            };
            SigningKey::from_pem(pem).unwrap().sign(&grant, now(), life)
        };
        let (worker, hour) = (self.holder.id.to_string(), Duration::HOUR);
        let account = AccountId::generate().to_string();
        let nobody = comptoir_domain::id::WorkerId::generate().to_string();
        let other = SigningKey::generate_pem();
        let ours = self.pem.as_str();
        vec![
            ("no credential", String::new()),
            (
                "a client's token",
                sign(ours, "comptoir-api", &account, hour),
            ),
            (
                "a worker's name in a client's token",
                sign(ours, "comptoir-api", &worker, hour),
            ),
            (
                "an account in a worker's token",
                sign(ours, "comptoir-worker", &account, hour),
            ),
            (
                "a worker that is not there",
                sign(ours, "comptoir-worker", &nobody, hour),
            ),
            (
                "an ended token",
                sign(ours, "comptoir-worker", &worker, -hour),
            ),
            (
                "a key of somebody else's",
                sign(&other, "comptoir-worker", &worker, hour),
            ),
            ("a join token", self.join_token.clone()),
            ("a lease token", self.held.lease_token.to_string()),
            ("an API key", format!("ck_test_{}", "0".repeat(35))),
            ("nonsense", "a.b.c".to_owned()),
        ]
    }

    /// Rows that a call could add.
    async fn rows(&self) -> Vec<i64> {
        let mut counts = Vec::new();
        for table in [
            "attempt_blobs",
            "segments",
            "job_events",
            "blobs",
            "attempts",
        ] {
            let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            let count = sqlx::query_scalar(count).fetch_one(&self.bench.owner);
            counts.push(count.await.unwrap());
        }
        counts
    }
}

/// Token requests name a later moment each time.
fn later_ms() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static STEP: AtomicU64 = AtomicU64::new(1);
    let now = u64::try_from(now().unix_timestamp_nanos() / 1_000_000).unwrap();
    now + 1_000 + STEP.fetch_add(1, Ordering::Relaxed)
}

async fn answer(call: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let reply = call.send().await.unwrap();
    let (status, headers) = (reply.status(), reply.headers().clone());
    let bytes = reply.bytes().await.unwrap();
    let mut body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if !status.is_success() {
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        body.as_object_mut().unwrap().remove("request_id");
    }
    (status, body)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn only_who_an_operation_is_for_succeeds_with_it(db: PgPool) {
    let stage = Stage::set(db).await;
    let operations = operations();
    let guarded = || operations.iter().filter(|it| !is(it, PUBLIC));
    let before = stage.rows().await;
    for operation in guarded() {
        for (who, token) in stage.strangers() {
            let call = stage.call(operation, stage.held.attempt_id);
            let call = call.header(header::AUTHORIZATION, format!("Bearer {token}"));
            let (status, body) = answer(call).await;
            assert_eq!(
                (status, &body["code"]),
                (StatusCode::UNAUTHORIZED, &"unauthenticated".into()),
                "{} by {who}",
                operation.name()
            );
        }
    }
    let sibling = stage.bench.sibling(&stage.holder).await;
    let other = stage.bench.worker(0xb0).await;
    let revoked = stage.bench.worker(0xb1).await;
    sqlx::query("UPDATE workers SET revoked_at = now() WHERE worker_id = $1")
        .bind(revoked.id.0)
        .execute(&stage.bench.owner)
        .await
        .unwrap();
    for operation in guarded() {
        let name = operation.name();
        let (status, body) = by(&stage, operation, &revoked, stage.held.attempt_id).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::FORBIDDEN, &"worker_revoked".into()),
            "{name}"
        );
        if is(operation, HOSTS) {
            continue;
        }
        for worker in [&sibling, &other] {
            let theirs = by(&stage, operation, worker, stage.held.attempt_id).await;
            let nobodys = by(&stage, operation, worker, AttemptId::generate()).await;
            if is(operation, OWN) {
                assert_shows_nothing(&name, &theirs, &nobodys);
            } else {
                assert_eq!(theirs.0, StatusCode::NOT_FOUND, "{name}: {}", theirs.1);
                assert_eq!(theirs, nobodys, "{name} tells whose attempt it is");
            }
        }
    }
    assert_eq!(stage.rows().await, before, "nobody changed anything");
    // The same calls are their holder's, and then succeed: it was the caller that was refused. A checkpoint is uploaded
    // before it is kept.
    let of_attempts = guarded().filter(|it| !is(it, HOSTS));
    for operation in sorted(of_attempts.collect()) {
        let (status, body) = by(&stage, operation, &stage.holder, stage.held.attempt_id).await;
        assert!(status.is_success(), "{}: {status} {body}", operation.name());
    }
    for operation in operations.iter().filter(|it| is(it, PUBLIC)) {
        let (status, body) = answer(stage.call(operation, stage.held.attempt_id)).await;
        assert!(status.is_success(), "{}: {status} {body}", operation.name());
    }
}

fn is(operation: &Operation, list: &[&str]) -> bool {
    list.contains(&operation.name().as_str())
}

fn sorted(mut operations: Vec<&Operation>) -> Vec<&Operation> {
    operations.sort_by_key(|it| it.method != Method::PUT);
    operations
}

/// The operation about this attempt, by this worker with the holder's lease token.
async fn by(
    stage: &Stage,
    operation: &Operation,
    worker: &StubWorker,
    attempt: AttemptId,
) -> (StatusCode, Value) {
    let unsigned = worker.request(Method::GET, "/").build().unwrap();
    let token = unsigned.headers()[header::AUTHORIZATION].clone();
    let call = stage.call(operation, attempt);
    answer(call.header(header::AUTHORIZATION, token)).await
}

/// A worker hears of another's attempt what it hears of one that never was.
fn assert_shows_nothing(name: &str, theirs: &(StatusCode, Value), nobodys: &(StatusCode, Value)) {
    assert_eq!(theirs.0, StatusCode::OK, "{name}: {}", theirs.1);
    for list in ["leases", "acks", "reveal", "cancel"] {
        let items = |reply: &Value| {
            let mut items = reply[list].as_array().cloned().unwrap_or_default();
            for item in &mut items {
                match item.as_object_mut() {
                    Some(fields) => drop(fields.remove("attempt_id")),
                    None => *item = Value::Null,
                }
            }
            items
        };
        assert_eq!(items(&theirs.1), items(&nobodys.1), "{name}: {list}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_operation_refuses_a_parameter_that_it_does_not_document(db: PgPool) {
    let stage = Stage::set(db).await;
    for operation in operations() {
        let call = stage.call(&operation, stage.held.attempt_id);
        let call = call.query(&[("surprise", "1")]).bearer_auth("nobody");
        let reply = call.send().await.unwrap();
        let name = operation.name();
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{name}");
        let problem: Value = reply.json().await.unwrap();
        assert_eq!(problem["errors"][0]["pointer"], "?surprise", "{name}");
    }
}
