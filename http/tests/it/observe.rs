//! Metrics, log lines and identifiers of requests.

use std::{
    io,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Body, http::Request, routing::get};
use comptoir_http::{finish, metrics::Exporter, request_id};
use tokio::{net::TcpListener, sync::oneshot};
use tower::ServiceExt as _;
use tracing_subscriber::fmt::MakeWriter;

fn routes() -> Router {
    finish(
        Router::new().route("/things/{id}", get(async || "ok")),
        1024,
    )
}

async fn call(path: &str) {
    routes()
        .oneshot(Request::get(path).body(Body::empty()).unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn requests_are_counted_by_route_on_a_listener_of_their_own() {
    let exporter = Exporter::install().unwrap();
    call("/things/1").await;
    call("/things/2").await;
    call("/elsewhere/3").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let (shutdown, asked) = oneshot::channel::<()>();
    let served = tokio::spawn(exporter.serve(listener, async move { asked.await.unwrap() }));
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    for line in [
        r#"http_requests_total{method="GET",route="/things/{id}",status="200"} 2"#,
        r#"http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
        r#"http_request_duration_seconds_count{method="GET",route="/things/{id}"} 2"#,
        "http_requests_in_flight 0",
        "# TYPE http_request_duration_seconds histogram",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    shutdown.send(()).unwrap();
    served.await.unwrap().unwrap();
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_log_line_names_the_request_and_its_trace() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(lines.clone())
        .finish();
    let logging = tracing::subscriber::set_default(subscriber);
    let request = Request::get("/things/1")
        .header(request_id::HEADER, "mine-1")
        .header(
            request_id::TRACEPARENT,
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        .body(Body::empty())
        .unwrap();
    routes().oneshot(request).await.unwrap();
    drop(logging);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["fields"]["status"], 200);
    let span = &line["span"];
    assert_eq!(span["request_id"], "mine-1");
    assert_eq!(span["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(span["route"], "/things/{id}");
}
