//! What surrounds every route: identifiers, log lines, metrics, limits, and problems for what no
//! route answers.

use std::{
    any::Any,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{
        HeaderName, HeaderValue, Method, StatusCode,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tower_http::{catch_panic::CatchPanicLayer, cors::CorsLayer, timeout::TimeoutBody};
use tracing::Instrument as _;

use crate::{
    client_ip,
    metrics::{IN_FLIGHT, PANICS, REQUEST_SECONDS, REQUESTS},
    problem::Problem,
    rate_limit::{self, RateLimits},
    request_id::{self, RequestId},
};

/// A body may not stand still for longer.
const BODY_IDLE_MAX: Duration = Duration::from_secs(30);
/// The route of requests that no route answers; the path itself would be an unbounded label.
const UNMATCHED: &str = "unmatched";
/// How long a browser may keep what CORS allows.
const CORS_KEPT_FOR: Duration = Duration::from_hours(1);

/// What a deployment decides about who may call, from where, and how often.
#[derive(Debug, Clone, Default)]
pub struct Edge {
    /// Proxies of ours in front of the service, each of which adds to `X-Forwarded-For`.
    pub trusted_proxy_hops: usize,
    /// How often a client may call; none: as often as it can.
    pub limits: Option<RateLimits>,
    /// Origins whose pages may call with a credential of their own; cookies are for our own pages alone.
    pub cors_origins: Vec<HeaderValue>,
}

/// Makes a service of some routes: problems for unknown routes and methods, `body_bytes_max` for
/// bodies that are read whole, request ids, log lines, metrics, and a 500 instead of a panic.
pub fn finish(routes: Router, body_bytes_max: usize) -> Router {
    finish_with(routes, body_bytes_max, &Edge::default())
}

/// As [`finish`], with what the deployment decides.
pub fn finish_with(routes: Router, body_bytes_max: usize, edge: &Edge) -> Router {
    let mut routes = routes
        .fallback(async || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "no_such_route",
                "There is no such route",
            )
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "The route does not take this method",
            )
        })
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(middleware::from_fn(refuse_encoded))
        .layer(CatchPanicLayer::custom(panicked));
    if let Some(limits) = edge.limits.clone() {
        routes = routes.layer(middleware::from_fn_with_state(limits, rate_limit::limit));
    }
    // Around the limits, so that a browser can read that it must wait.
    if !edge.cors_origins.is_empty() {
        routes = routes.layer(cors(edge.cors_origins.clone()));
    }
    routes.layer(middleware::from_fn_with_state(
        edge.trusted_proxy_hops,
        observe,
    ))
}

fn cors(origins: Vec<HeaderValue>) -> CorsLayer {
    const SENT: [&str; 8] = [
        "authorization",
        "content-type",
        "idempotency-key",
        "if-match",
        "if-none-match",
        "last-event-id",
        "traceparent",
        "x-request-id",
    ];
    const READ: [&str; 9] = [
        "etag",
        "idempotent-replayed",
        "link",
        "location",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "www-authenticate",
        "x-request-id",
    ];
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_headers(SENT.map(HeaderName::from_static))
        .expose_headers(READ.map(HeaderName::from_static))
        .max_age(CORS_KEPT_FOR)
}

/// No route inflates a body: a limit that is kept by what was sent would be passed by what becomes of it. A blob that is a gzip
/// file is sent as the bytes that it is.
async fn refuse_encoded(request: Request, next: Next) -> Response {
    let mut codings = request.headers().get_all(CONTENT_ENCODING).iter();
    if codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return next.run(request).await;
    }
    Problem::unsupported_media_type("The body must be sent without a content coding")
        .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
        .into_response()
}

async fn observe(State(hops): State<usize>, request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let method = method_label(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| UNMATCHED.to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!(
        "request",
        request_id = id.as_str(),
        trace_id = request_id::trace_id(request.headers()),
        method,
        route,
    );
    let header = id.to_header();
    let client = client_ip::of(&request, hops);
    let answer = async move {
        let started = Instant::now();
        metrics::gauge!(IN_FLIGHT).increment(1.0);
        let answering = Answering;
        let mut response = id
            .scope(client_ip::scope(client, admit(request, next)))
            .await;
        drop(answering);
        let elapsed = started.elapsed();
        record(method, route, &response, elapsed);
        let headers = response.headers_mut();
        headers.insert(request_id::HEADER, header);
        // What tenants uploaded must not become a page of ours because a browser guessed.
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    };
    answer.instrument(span).await
}

/// Counts down when the answer is there, or when the client went away before.
struct Answering;

impl Drop for Answering {
    fn drop(&mut self) {
        metrics::gauge!(IN_FLIGHT).decrement(1.0);
    }
}

async fn admit(request: Request, next: Next) -> Response {
    // Postgres holds no NUL in text; no name of ours contains one.
    let uri = request.uri();
    if uri.path().contains("%00") || uri.query().is_some_and(|query| query.contains("%00")) {
        return Problem::malformed("The address contains the character U+0000").into_response();
    }
    next.run(request.map(|body| Body::new(TimeoutBody::new(BODY_IDLE_MAX, body))))
        .await
}

fn record(method: &'static str, route: String, response: &Response, elapsed: Duration) {
    let status = response.status();
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(status = status.as_u16(), elapsed_ms, "request answered");
    metrics::counter!(REQUESTS, "method" => method, "route" => route.clone(), "status" => status.as_str().to_owned())
        .increment(1);
    metrics::histogram!(REQUEST_SECONDS, "method" => method, "route" => route)
        .record(elapsed.as_secs_f64());
}

/// Clients may invent methods; labels may not grow with them.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that the layer calls"
)]
fn panicked(cause: Box<dyn Any + Send + 'static>) -> Response {
    let message = cause
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    tracing::error!(panic = message, "handler panicked");
    metrics::counter!(PANICS).increment(1);
    Problem::unexpected().into_response()
}
