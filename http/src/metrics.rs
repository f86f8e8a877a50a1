//! What Prometheus reads, on a listener of its own.

use std::time::Duration;

use axum::{Router, routing::get};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::server::{self, Limits};

/// Requests answered, by method, matched route and status.
pub const REQUESTS: &str = "http_requests_total";
/// Seconds until the head of the answer, by method and matched route.
pub const REQUEST_SECONDS: &str = "http_request_duration_seconds";
/// Requests being answered.
pub const IN_FLIGHT: &str = "http_requests_in_flight";
/// Connections open.
pub const CONNECTIONS: &str = "http_connections";
/// Handlers that panicked.
pub const PANICS: &str = "http_panics_total";

/// How often old samples are folded.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Bounds of latency histograms, in seconds.
const BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The process's recorder of metrics.
#[derive(Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    /// Installs the recorder; once per process.
    ///
    /// # Errors
    /// When the process has one already.
    pub fn install() -> Result<Self, BuildError> {
        let handle = PrometheusBuilder::new()
            .set_buckets(BUCKETS)?
            .install_recorder()?;
        metrics::describe_counter!(REQUESTS, "Requests answered");
        metrics::describe_histogram!(
            REQUEST_SECONDS,
            metrics::Unit::Seconds,
            "Time until the head of the answer"
        );
        metrics::describe_gauge!(IN_FLIGHT, "Requests being answered");
        metrics::describe_gauge!(CONNECTIONS, "Connections open");
        metrics::describe_counter!(PANICS, "Handlers that panicked");
        Ok(Self { handle })
    }

    /// What Prometheus reads now.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Serves `/metrics` until `shutdown` resolves.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> std::io::Result<()> {
        let upkeep = self.handle.clone();
        let folding = tokio::spawn(async move {
            let mut every = tokio::time::interval(UPKEEP_EVERY);
            loop {
                every.tick().await;
                upkeep.run_upkeep();
            }
        });
        let router = Router::new().route("/metrics", get(async move || self.render()));
        let served = server::serve(listener, router, Limits::default(), shutdown).await;
        folding.abort();
        served
    }
}
