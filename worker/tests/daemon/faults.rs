//! What a worker does when the network or the server fails.

use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    http::{Method, StatusCode},
    routing::post,
};
use comptoir_domain::{id::WorkerId, job::JobState};
use comptoir_wire::token::WorkerTokenRequest;
use comptoir_worker::daemon::{
    client::{Client, Server},
    folder::Key,
};
use serde_json::json;
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::{
    harness::{Bench, inference, training},
    proxy::{Seen, Spoil},
};

fn is_token(seen: &Seen) -> bool {
    seen.is(&Method::POST, "/v1/worker-token")
}

fn is_poll(seen: &Seen) -> bool {
    seen.is(&Method::POST, "/v1/work") && seen.body["wanted"] != 0
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whatever_answer_is_lost_a_job_is_run_once_and_completes(db: PgPool) {
    let bench = Bench::new(db).await;
    bench.proxy.spoil(1, Spoil::LoseAnswer, is_token);
    bench
        .proxy
        .spoil(1, Spoil::LoseAnswer, |seen| seen.reports("seals"));
    bench
        .proxy
        .spoil(1, Spoil::LoseAnswer, |seen| seen.reports("reveals"));
    for (method, end) in [
        (Method::GET, "/blobs"),
        (Method::PUT, "/blobs"),
        (Method::POST, "/events"),
        (Method::POST, "/segments"),
    ] {
        bench
            .proxy
            .spoil(1, Spoil::LoseAnswer, move |seen| seen.is(&method, end));
    }
    let worker = bench.worker("worker", 1).await;
    let job = bench.submit(&training(3)).await;
    bench.ends(job, JobState::Completed).await;
    assert_eq!(bench.attempts().await, [("accepted".to_owned(), None)]);
    assert_eq!(bench.segments().await, [0, 0, 0]);
    let epochs: Vec<i64> = sqlx::query_scalar(
        "SELECT (data ->> 'epoch')::bigint FROM job_events WHERE kind = 'metrics' ORDER BY seq",
    )
    .fetch_all(&bench.owner)
    .await
    .unwrap();
    assert_eq!(epochs, [0, 1, 2]);
    bench.proxy.until(2, |seen| seen.reports("reveals")).await;
    worker.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_refused_token_is_renewed_once_and_the_call_repeated(db: PgPool) {
    let bench = Bench::new(db).await;
    bench
        .proxy
        .spoil(1, Spoil::Refuse(StatusCode::UNAUTHORIZED), is_poll);
    let worker = bench.worker("worker", 1).await;
    let job = bench.submit(&inference()).await;
    bench.ends(job, JobState::Completed).await;
    assert_eq!(bench.proxy.count(is_token), 2);
    worker.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_outlives_a_server_that_fails_or_talks_nonsense(db: PgPool) {
    let bench = Bench::new(db).await;
    bench
        .proxy
        .spoil(1, Spoil::Refuse(StatusCode::SERVICE_UNAVAILABLE), is_poll);
    // The order for an attempt that nobody holds is the only one that makes sense; it changes nothing.
    let nonsense = [
        "{",
        r#"{"leases":[],"acks":[],"reveal":[],"cancel":["att_01h455vb4pex5vsknk084sn02q"]}"#,
        "\"\\u001b[2J\"",
        r#"{"leases":[{}],"acks":[],"reveal":[],"cancel":[]}"#,
    ];
    bench.proxy.spoil(1, Spoil::Answer("{}"), is_token);
    for answer in nonsense {
        bench.proxy.spoil(1, Spoil::Answer(answer), is_poll);
    }
    let worker = bench.worker("worker", 1).await;
    bench.proxy.until(nonsense.len() + 2, is_poll).await;
    let job = bench.submit(&inference()).await;
    bench.ends(job, JobState::Completed).await;
    worker.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_input_with_other_bytes_than_its_digest_says_is_never_run(db: PgPool) {
    let bench = Bench::new(db).await;
    // The first answer breaks off, the second goes on behind it: together they are not the blob, so it is fetched again.
    let is_download = |seen: &Seen| seen.is(&Method::GET, "/blobs");
    bench
        .proxy
        .spoil(1, Spoil::Answer("other bytes"), is_download);
    runs_once(&bench).await;
    assert_eq!(bench.proxy.count(is_download), 4);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_download_that_cannot_go_on_starts_again(db: PgPool) {
    let bench = Bench::new(db).await;
    let is_download = |seen: &Seen| seen.is(&Method::GET, "/blobs");
    bench
        .proxy
        .spoil(2, Spoil::Answer("other bytes"), is_download);
    runs_once(&bench).await;
    assert_eq!(bench.proxy.count(is_download), 4);
}

async fn runs_once(bench: &Bench) {
    let worker = bench.worker("worker", 1).await;
    let job = bench.submit(&inference()).await;
    bench.ends(job, JobState::Completed).await;
    assert_eq!(bench.attempts().await, [("accepted".to_owned(), None)]);
    worker.stop().await.unwrap();
}

/// A server that gives tokens of this life and takes heartbeats; the moments at which tokens were asked for.
async fn token_server(life_s: u32) -> (Client, Arc<Mutex<Vec<u64>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let issue = async move |Json(request): Json<WorkerTokenRequest>| {
        noted.lock().unwrap().push(request.issued_at_ms);
        Json(json!({ "token": format!("of {}", request.issued_at_ms), "expires_in_s": life_s }))
    };
    let router = Router::new().route("/v1/worker-token", post(issue)).route(
        "/v1/heartbeats",
        post(async || Json(json!({ "leases": [] }))),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let server = Server::new(url.parse().unwrap()).unwrap();
    (
        Client::new(server, WorkerId::generate(), Key::generate()),
        asked,
    )
}

#[tokio::test]
async fn a_token_is_used_while_it_lives_and_renewed_before_it_ends() {
    for (life_s, requests) in [(3_600, 1), (0, 3)] {
        let (client, asked) = token_server(life_s).await;
        for _ in 0..3 {
            client.heartbeat(Vec::new()).await.unwrap();
        }
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), requests);
        assert!(
            asked.is_sorted_by(|earlier, later| earlier < later),
            "{asked:?}"
        );
    }
}
