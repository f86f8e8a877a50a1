//! Slow, many and departing clients.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    http::header,
    response::Response,
    routing::{get, post},
};
use comptoir_http::{
    finish,
    server::{Limits, serve},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// Nothing here takes this long unless it is broken.
const BROKEN_AFTER: Duration = Duration::from_secs(10);

struct Served {
    address: SocketAddr,
    shutdown: oneshot::Sender<()>,
    ended: JoinHandle<std::io::Result<()>>,
}

async fn start(routes: Router, limits: Limits) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, asked) = oneshot::channel();
    let ended = tokio::spawn(serve(listener, finish(routes, 1024), limits, async move {
        asked.await.unwrap();
    }));
    Served {
        address,
        shutdown,
        ended,
    }
}

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Everything that the server says before it closes.
async fn read_all(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let read = timeout(BROKEN_AFTER, stream.read_to_end(&mut text))
        .await
        .expect("the server closes");
    read.unwrap();
    String::from_utf8(text).unwrap()
}

/// What the server says until the text contains `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let mut part = [0; 1024];
        let read = timeout(BROKEN_AFTER, stream.read(&mut part))
            .await
            .expect("the server answers")
            .unwrap();
        assert_ne!(read, 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&part[..read]).unwrap());
    }
    text
}

const WHOLE: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
const KEPT: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn ok() -> Router {
    Router::new().route("/", get(async || "ok"))
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_head_is_cut_off() {
    let limits = Limits {
        head_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let served = start(ok(), limits).await;
    let slow = send(served.address, "GET / HTTP/1.1\r\nhost: a\r\nx-slow: ").await;
    assert!(!read_all(slow).await.contains("200 OK"));
    assert!(
        read_all(send(served.address, WHOLE).await)
            .await
            .ends_with("ok")
    );
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_refused() {
    let limits = Limits {
        head_bytes_max: 8192,
        ..Limits::default()
    };
    let served = start(ok(), limits).await;
    let large = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx-large: {}\r\n\r\n",
        "a".repeat(16 * 1024)
    );
    let reply = read_all(send(served.address, &large).await).await;
    assert!(reply.starts_with("HTTP/1.1 431"), "{reply}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let limits = Limits {
        connections_max: 1,
        ..Limits::default()
    };
    let served = start(ok(), limits).await;
    let mut first = send(served.address, KEPT).await;
    read_until(&mut first, "ok").await;
    let mut second = send(served.address, WHOLE).await;
    let early = timeout(Duration::from_millis(100), second.read_u8()).await;
    assert!(early.is_err(), "the second was answered beside the first");
    drop(first);
    assert!(read_all(second).await.ends_with("ok"));
}

#[tokio::test]
async fn a_request_that_is_being_answered_survives_shutdown() {
    static ARRIVED: Notify = Notify::const_new();
    static GO_ON: Notify = Notify::const_new();
    let routes = Router::new().route(
        "/",
        get(async || {
            ARRIVED.notify_one();
            GO_ON.notified().await;
            "done"
        }),
    );
    let served = start(routes, Limits::default()).await;
    let mut idle = send(
        served.address,
        KEPT.replace("GET /", "GET /nothing").as_str(),
    )
    .await;
    read_until(&mut idle, "no_such_route").await;
    let busy = send(served.address, KEPT).await;
    ARRIVED.notified().await;
    served.shutdown.send(()).unwrap();
    assert_eq!(read_all(idle).await, "", "an idle connection is closed");
    GO_ON.notify_one();
    assert!(read_all(busy).await.ends_with("done"));
    timeout(BROKEN_AFTER, served.ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn shutdown_ends_event_streams_and_cuts_what_does_not_end() {
    let routes = Router::new()
        .route(
            "/events",
            get(async || {
                let first = futures::stream::iter([Ok::<_, Infallible>(Bytes::from_static(
                    b"data: 1\n\n",
                ))]);
                let events = futures::StreamExt::chain(first, futures::stream::pending());
                Response::builder()
                    .header(header::CONTENT_TYPE, "text/event-stream")
                    .body(Body::from_stream(events))
                    .unwrap()
            }),
        )
        .route("/never", get(async || std::future::pending::<&str>().await));
    let limits = Limits {
        drain_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let served = start(routes, limits).await;
    let mut events = send(
        served.address,
        KEPT.replace("GET /", "GET /events").as_str(),
    )
    .await;
    read_until(&mut events, "data: 1").await;
    let _never = send(served.address, KEPT.replace("GET /", "GET /never").as_str()).await;
    served.shutdown.send(()).unwrap();
    let rest = read_all(events).await;
    assert!(
        rest.ends_with("0\r\n\r\n"),
        "the stream ends in order: {rest:?}"
    );
    timeout(BROKEN_AFTER, served.ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_body_that_is_too_large_or_ends_early_is_a_problem_of_the_client() {
    let read = async |_: comptoir_http::extract::Json<String>| "read";
    let served = start(Router::new().route("/", post(read)), Limits::default()).await;
    let head = |length: usize| {
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut large = send(served.address, &head(10_000)).await;
    large.write_all(&[b' '; 2000]).await.unwrap();
    let reply = read_until(&mut large, "payload_too_large").await;
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");

    let mut short = send(served.address, &head(20)).await;
    short.write_all(b"\"half").await.unwrap();
    short.shutdown().await.unwrap();
    let reply = read_all(short).await;
    assert!(!reply.contains("200 OK"), "{reply}");
}

/// A service that reads a JSON body whole.
fn reader() -> Router {
    let read = async |_: comptoir_http::extract::Json<serde_json::Value>| "read";
    Router::new().route("/", post(read))
}

#[tokio::test]
async fn a_body_in_chunks_has_the_limit_of_one_whose_length_is_told() {
    let served = start(reader(), Limits::default()).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut endless = send(served.address, head).await;
    // The service answers before the end, since there is none.
    for _ in 0..3 {
        let chunk = format!("200\r\n{}\r\n", " ".repeat(0x200));
        endless.write_all(chunk.as_bytes()).await.unwrap();
    }
    let reply = read_until(&mut endless, "payload_too_large").await;
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    let within = format!("{head}2\r\n{{}}\r\n0\r\n\r\n");
    let mut within = send(served.address, &within).await;
    let reply = read_until(&mut within, "\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[tokio::test]
async fn chunks_that_are_none_and_lengths_that_contradict_each_other_are_not_read() {
    let served = start(reader(), Limits::default()).await;
    let cases = [
        "transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "transfer-encoding: gzip\r\n\r\n{}",
        "content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
        "content-length: -1\r\n\r\n{}",
        "content-length: 99999999999999999999\r\n\r\n{}",
    ];
    for case in cases {
        let head =
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n";
        let stream = send(served.address, &format!("{head}{case}")).await;
        let reply = read_all(stream).await;
        assert!(!reply.starts_with("HTTP/1.1 2"), "{case:?}: {reply}");
        assert!(!reply.starts_with("HTTP/1.1 5"), "{case:?}: {reply}");
    }
}

#[tokio::test]
async fn no_body_is_inflated() {
    let served = start(reader(), Limits::default()).await;
    for (coding, expected) in [
        ("gzip", 415),
        ("deflate", 415),
        ("br", 415),
        ("identity, gzip", 415),
        ("identity", 200),
    ] {
        let text = format!(
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-encoding: {coding}\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        let reply = read_all(send(served.address, &text).await).await;
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {expected}")),
            "{coding}: {reply}"
        );
        if expected == 415 {
            assert!(reply.contains("application/problem+json"), "{reply}");
            assert!(reply.contains("accept-encoding: identity"), "{reply}");
        }
    }
}

#[tokio::test]
async fn a_head_has_a_limit_for_its_address_and_for_the_number_of_its_fields() {
    let served = start(ok(), Limits::default()).await;
    let fields = "x-a: b\r\n".repeat(200);
    for (what, head) in [
        (
            "fields",
            format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n"),
        ),
        (
            "address",
            format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(70_000)),
        ),
        (
            "query",
            format!("GET /?{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(70_000)),
        ),
    ] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        // The server may answer and close before it has read everything; then the answer may be lost with the connection.
        drop(stream.write_all(head.as_bytes()).await);
        let mut reply = [0; 12];
        let read = timeout(BROKEN_AFTER, stream.read_exact(&mut reply));
        let reply = match read.await.expect("the server answers or closes") {
            Ok(_) => String::from_utf8_lossy(&reply),
            Err(_) => continue,
        };
        assert!(
            reply.ends_with(" 431") || reply.ends_with(" 414"),
            "{what}: {reply}"
        );
    }
}
