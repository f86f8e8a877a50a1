//! Joining, tokens, and workers that are taken out.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use comptoir_domain::id::AccountId;
use comptoir_scheduler::stub::{StubError, StubWorker, facts};
use comptoir_wire::{encoded::Base64, join::JoinRequest, work::WorkRequest};
use sqlx::PgPool;
use time::Duration;

use crate::harness::{Bench, ask, now};

async fn join(bench: &Bench, token: &str) -> Result<StubWorker, StubError> {
    StubWorker::join(&bench.base, token, "bench", facts("x"), now()).await
}

fn refusal(joined: Result<StubWorker, StubError>) -> String {
    joined.unwrap_err().code().to_owned()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_join_token_joins_as_many_workers_as_it_says_until_it_ends(db: PgPool) {
    let bench = Bench::new(db).await;
    let owner = bench.account(0xa1).await.account;
    let token = bench
        .join_token(owner, 2, now() + Duration::HOUR)
        .await
        .reveal();
    join(&bench, &token).await.unwrap();
    let second = join(&bench, &token).await.unwrap();
    assert_eq!(refusal(join(&bench, &token).await), "join_token_refused");
    assert_eq!(ask(&second, 1).await.leases, []);

    let ended = bench
        .join_token(owner, 2, now() - Duration::SECOND)
        .await
        .reveal();
    assert_eq!(refusal(join(&bench, &ended).await), "join_token_refused");
    let open = bench
        .join_token(owner, 2, now() + Duration::HOUR)
        .await
        .reveal();
    let guessed = format!("{}{}", &open[..open.len() - 64], "0".repeat(64));
    for wrong in ["", "cwj_", guessed.as_str()] {
        assert_eq!(
            refusal(join(&bench, wrong).await),
            "join_token_refused",
            "{wrong}"
        );
    }
    sqlx::query("UPDATE join_tokens SET revoked_at = now()")
        .execute(&bench.owner)
        .await
        .unwrap();
    assert_eq!(refusal(join(&bench, &open).await), "join_token_refused");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn joining_needs_an_address_to_pay_to(db: PgPool) {
    let bench = Bench::new(db).await;
    let owner = AccountId::generate();
    sqlx::query(
        "INSERT INTO accounts (account_id, email, password_hash, created_at) VALUES ($1, 'a@example.org', 'x', now())",
    )
    .bind(owner.0)
    .execute(&bench.owner)
    .await
    .unwrap();
    let token = bench
        .join_token(owner, 1, now() + Duration::HOUR)
        .await
        .reveal();
    assert_eq!(refusal(join(&bench, &token).await), "address_not_bound");
    let uses: i32 = sqlx::query_scalar("SELECT uses FROM join_tokens")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(uses, 0);
}

/// A signed join request of a fresh key.
fn request(token: &str, key: &Ed25519KeyPair) -> JoinRequest {
    let mut request = JoinRequest {
        token: token.to_owned(),
        public_key: Base64(key.public_key().as_ref().try_into().unwrap()),
        name: "bench".into(),
        facts: facts("x"),
        signature: Base64([0; 64]),
    };
    request.signature = Base64(
        key.sign(&request.signing_bytes().unwrap())
            .as_ref()
            .try_into()
            .unwrap(),
    );
    request
}

async fn post(bench: &Bench, request: &JoinRequest) -> (u16, serde_json::Value) {
    let reply = reqwest::Client::new()
        .post(format!("{}/v1/join", bench.base))
        .json(request)
        .send()
        .await
        .unwrap();
    (reply.status().as_u16(), reply.json().await.unwrap())
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_repeated_join_is_answered_with_the_same_worker(db: PgPool) {
    let bench = Bench::new(db).await;
    let owner = bench.account(0xa1).await.account;
    let token = bench
        .join_token(owner, 1, now() + Duration::HOUR)
        .await
        .reveal();
    let key = Ed25519KeyPair::generate().unwrap();
    let first = post(&bench, &request(&token, &key)).await;
    assert_eq!(first.0, 201);
    assert_eq!(post(&bench, &request(&token, &key)).await, first);
    let other = bench
        .join_token(owner, 1, now() + Duration::HOUR)
        .await
        .reveal();
    assert_eq!(
        post(&bench, &request(&other, &key)).await.1["code"],
        "worker_key_taken"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_join_request_is_signed_whole_by_its_key(db: PgPool) {
    let bench = Bench::new(db).await;
    let owner = bench.account(0xa1).await.account;
    let token = bench
        .join_token(owner, 1, now() + Duration::HOUR)
        .await
        .reveal();
    let key = Ed25519KeyPair::generate().unwrap();
    let mut changed = request(&token, &key);
    changed.facts.memory_bytes += 1;
    let (status, problem) = post(&bench, &changed).await;
    assert_eq!(
        (status, problem["code"].as_str()),
        (401, Some("signature_refused"))
    );
    let mut nameless = request(&token, &key);
    nameless.name = String::new();
    let (status, problem) = post(&bench, &nameless).await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (422, &"/name".into())
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_token_request_is_answered_once_and_in_time_only(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker(0xa1).await;
    let ms = |time: time::OffsetDateTime| {
        u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap()
    };
    let issue = async |worker: &StubWorker, issued_at_ms, signed_at_ms| {
        let mut request = worker.token_request(issued_at_ms);
        request.signature = worker.token_request(signed_at_ms).signature;
        let url = format!("{}/v1/worker-token", bench.base);
        let reply = reqwest::Client::new()
            .post(url)
            .json(&request)
            .send()
            .await
            .unwrap();
        let status = reply.status().as_u16();
        let body: serde_json::Value = reply.json().await.unwrap();
        (status, body["code"].as_str().unwrap_or_default().to_owned())
    };
    let later = ms(now()) + 30_000;
    assert_eq!(issue(&worker, later, later).await.0, 200);
    assert_eq!(
        issue(&worker, later, later).await,
        (409, "token_request_replayed".into())
    );
    assert_eq!(
        issue(&worker, later - 1, later - 1).await,
        (409, "token_request_replayed".into())
    );
    assert_eq!(
        issue(&worker, later + 1, later).await,
        (401, "signature_refused".into())
    );
    let far = ms(now() + Duration::minutes(2));
    assert_eq!(issue(&worker, far, far).await, (422, "clock_skewed".into()));
    let mut forger = bench.worker(0xb0).await;
    forger.id = worker.id;
    assert_eq!(
        issue(&forger, later + 1, later + 1).await,
        (401, "signature_refused".into())
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_is_taken_out_gets_and_gives_nothing_more(db: PgPool) {
    let bench = Bench::new(db).await;
    let mut worker = bench.worker(0xa1).await;
    sqlx::query("UPDATE workers SET revoked_at = now()")
        .execute(&bench.owner)
        .await
        .unwrap();
    let refused = worker.work(&WorkRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), "worker_revoked");
    let refused = worker.refresh(now() + Duration::SECOND).await.unwrap_err();
    assert_eq!(refused.code(), "worker_revoked");
}
