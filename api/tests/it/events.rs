use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, Request, StatusCode, header},
};
use comptoir_domain::{id::JobId, job::state::EndedAs};
use comptoir_store::{
    events, jobs,
    wake::{Channel, Wake},
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use tower::ServiceExt as _;

use crate::{
    harness::{Session, TestApp},
    market::{self, client, job},
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const RICH: u128 = 1_000_000;
const SOON: Duration = Duration::from_secs(20);

/// Appends a metrics event, as the scheduler does, and says so if somebody listens.
async fn happen(app: &TestApp, job: JobId, epoch: u32, wake: Option<&Wake>) {
    let mut tx = app.owner.begin().await.unwrap();
    let data = json!({ "epoch": epoch });
    events::append(&mut tx, job, events::kind::METRICS, &data, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    if let Some(wake) = wake {
        wake.publish(Channel::Job(job));
    }
}

async fn end(app: &TestApp, job: JobId) {
    let mut tx = app.owner.begin().await.unwrap();
    jobs::end(&mut tx, job, EndedAs::Expired, None, app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    app.state.wake.publish(Channel::Job(job));
}

/// Number, kind and data of each whole event.
fn parse(text: &str) -> Vec<(u64, String, Value)> {
    let field = |block: &str, name: &str| {
        block
            .lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    };
    let blocks = text.split("\n\n").filter_map(|block| {
        let id = field(block, "id")?.parse().unwrap();
        Some((
            id,
            field(block, "event").unwrap(),
            serde_json::from_str(&field(block, "data").unwrap()).unwrap(),
        ))
    });
    blocks.collect()
}

fn kinds(text: &str) -> Vec<(u64, String)> {
    parse(text)
        .into_iter()
        .map(|(id, kind, _)| (id, kind))
        .collect()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_stream_tells_everything_once_in_order_and_ends_with_the_job(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let made = job(&app, &session, "none").await;
    let id: JobId = made.text("/id").parse().unwrap();
    let path = format!("/v1/jobs/{id}/events");
    for epoch in 0..150 {
        happen(&app, id, epoch, None).await;
    }
    end(&app, id).await;

    let stream = app
        .get(&path)
        .by(&session)
        .send()
        .await
        .expect(StatusCode::OK);
    assert_eq!(stream.header(header::CONTENT_TYPE), "text/event-stream");
    assert_eq!(stream.header(header::CACHE_CONTROL), "no-store");
    assert_eq!(
        stream.header(HeaderName::from_static("x-accel-buffering")),
        "no"
    );
    let text = String::from_utf8(stream.bytes).unwrap();
    assert!(text.starts_with("retry: 3000\n\n"), "{text}");
    let events = parse(&text);
    assert!(
        events.iter().map(|event| event.0).eq(1..=152),
        "more than one read, no gap"
    );
    assert_eq!(
        (
            events[0].1.as_str(),
            events[1].1.as_str(),
            events[151].1.as_str()
        ),
        ("queued", "metrics", "expired")
    );
    assert_eq!(
        events[1].2,
        json!({ "epoch": 0, "created_at": "2026-11-22T09:00:00Z" })
    );

    let resumed = app
        .get(&path)
        .by(&session)
        .header(LAST_EVENT_ID, "150")
        .send()
        .await;
    let resumed = String::from_utf8(resumed.bytes).unwrap();
    assert_eq!(
        kinds(&resumed),
        [(151, "metrics".into()), (152, "expired".into())]
    );
    let over = app
        .get(&path)
        .by(&session)
        .header(LAST_EVENT_ID, "152")
        .send()
        .await;
    over.expect(StatusCode::NO_CONTENT);
    for bad in ["x", "-1", "1.5", ""] {
        let refused = app
            .get(&path)
            .by(&session)
            .header(LAST_EVENT_ID, bad)
            .send()
            .await;
        refused.expect_problem(StatusCode::BAD_REQUEST, "malformed_request");
    }
}

/// A client that follows a job, and reads whatever comes at once, as a connection does.
struct Follower {
    chunks: tokio::sync::mpsc::UnboundedReceiver<Bytes>,
    text: String,
}

impl Follower {
    async fn start(app: &TestApp, session: &Session, id: JobId) -> Self {
        // A router of its own, with the wake-ups that the state has now.
        let (router, _) = comptoir_api::app(app.state.clone());
        let request = Request::get(format!("/v1/jobs/{id}/events"))
            .header(header::AUTHORIZATION, format!("Bearer {}", session.token))
            .body(Body::empty())
            .unwrap();
        let mut body = router
            .oneshot(request)
            .await
            .unwrap()
            .into_body()
            .into_data_stream();
        let (sender, chunks) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(chunk)) = body.next().await {
                if sender.send(chunk).is_err() {
                    break;
                }
            }
        });
        Self {
            chunks,
            text: String::new(),
        }
    }

    /// Reads until so many events have come.
    async fn until(&mut self, wanted: usize) {
        while parse(&self.text).len() < wanted {
            let chunk = tokio::time::timeout(SOON, self.chunks.recv()).await;
            let chunk = chunk.expect("an event comes").expect("the stream goes on");
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_event_that_nobody_announces_is_found_by_looking(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let id: JobId = job(&app, &session, "none")
        .await
        .text("/id")
        .parse()
        .unwrap();
    let mut follower = Follower::start(&app, &session, id).await;
    follower.until(1).await;
    happen(&app, id, 0, None).await;
    follower.until(2).await;
    assert_eq!(
        kinds(&follower.text),
        [(1, "queued".into()), (2, "metrics".into())]
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_event_of_another_process_arrives_through_redis(db: PgPool) {
    const ROUNDS: usize = 20;
    let redis = Redis::start();
    let mut app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let id: JobId = job(&app, &session, "none")
        .await
        .text("/id")
        .parse()
        .unwrap();
    app.state.wake = Wake::start(&redis.url(), "test").unwrap();
    let elsewhere = Wake::start(&redis.url(), "test").unwrap();
    for wake in [&app.state.wake, &elsewhere] {
        tokio::time::timeout(SOON, async {
            while wake.is_connected() != Some(true) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("Redis answers");
    }
    let mut follower = Follower::start(&app, &session, id).await;
    follower.until(1).await;
    let started = std::time::Instant::now();
    for round in 0..ROUNDS {
        // Time for the stream to look once more and begin to wait; without it this would prove less, not fail.
        tokio::time::sleep(Duration::from_millis(50)).await;
        happen(&app, id, 0, Some(&elsewhere)).await;
        follower.until(round + 2).await;
    }
    // Looking once a second alone would take about twenty seconds.
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

/// A Redis of the test's own.
struct Redis {
    port: u16,
    child: std::process::Child,
}

impl Redis {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let options = [
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ];
        let child = std::process::Command::new("redis-server")
            .args(options)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self { port, child }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
