//! Calls to the server. What it answers is limited in size and never trusted to make sense.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use comptoir_domain::digest::Sha256;
use comptoir_domain::id::WorkerId;
use comptoir_wire::{
    LEASE_TOKEN_HEADER,
    attempt::{EventsReply, EventsRequest, SegmentReply, SegmentRequest},
    encoded::Base64,
    heartbeat::{HeartbeatReply, HeartbeatRequest, Held},
    join::{JoinReply, JoinRequest},
    token::{WorkerTokenReply, WorkerTokenRequest, token_signing_bytes},
    work::{WorkReply, WorkRequest},
};
use reqwest::{RequestBuilder, Response, StatusCode, header, redirect};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{sync::Mutex, time::timeout};
use url::Url;

use super::folder::Key;

/// Largest reply that is read whole, blobs aside.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// Largest problem document.
const PROBLEM_BYTES_MAX: usize = 1 << 16;
/// Longest text of a server that is shown to people, in characters.
const TEXT_CHARS_MAX: usize = 300;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may be silent in the middle of a blob.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// For a small call from start to end.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A heartbeat that takes longer is sent again while its lease still lives.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);
/// An upload slower than this is given up and begun again.
const UPLOAD_BYTES_PER_S_MIN: u64 = 64 << 10;
/// Longest life of a token that is believed.
const TOKEN_LIFE_MAX: Duration = Duration::from_hours(24);

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer.
    #[error("no answer from the server: {}", chain(.0))]
    Network(#[from] reqwest::Error),
    /// No answer for too long.
    #[error("the server fell silent")]
    Silent,
    /// An address that no HTTP server has.
    #[error("{0} is not the address of a service: it starts with https:// or http://")]
    Address(Url),
    /// A refusal.
    #[error("the server refused with {status}: {problem}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        problem: Problem,
    },
    /// An answer that is not one.
    #[error("the server's answer is not one: {0}")]
    Nonsense(String),
    /// What was to be sent cannot be read.
    #[error("read what is to be sent: {0}")]
    Disk(#[from] std::io::Error),
}

impl CallError {
    /// Can the same call succeed later?
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Network(_) | Self::Nonsense(_) | Self::Silent => true,
            Self::Refused { status, problem } => {
                let may_pass = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                let of_time = ["clock_skewed", "token_request_replayed"];
                status.is_server_error()
                    || may_pass.contains(status)
                    || of_time.contains(&problem.code.as_str())
                    // With a token that was just issued: a server that is being replaced.
                    || self.code() == Some("unauthenticated")
            }
            Self::Disk(_) | Self::Address(_) => false,
        }
    }

    /// The word for a refusal.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { problem, .. } => Some(&problem.code),
            Self::Network(_)
            | Self::Silent
            | Self::Address(_)
            | Self::Nonsense(_)
            | Self::Disk(_) => None,
        }
    }

    /// Does the server no longer know this worker?
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.code(), Some("worker_revoked" | "signature_refused"))
    }

    /// Is the attempt somebody else's, or nobody's?
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.code() == Some("stale_lease")
    }

    /// Was it refused with this status?
    #[must_use]
    pub fn has_status(&self, expected: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == expected)
    }
}

fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What a server says about a refusal.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The kind in one word.
    pub code: String,
    /// The kind in a sentence.
    pub title: String,
    /// What is particular.
    pub detail: Option<String>,
    errors: Vec<FieldError>,
}

#[derive(Debug, Clone, Deserialize)]
struct FieldError {
    pointer: String,
    detail: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = if self.code.is_empty() {
            "no reason given".to_owned()
        } else {
            self.title.clone()
        };
        if let Some(detail) = &self.detail {
            text = format!("{text}. {detail}");
        }
        if let Some(field) = self.errors.first() {
            text = format!("{text} ({}: {})", field.pointer, field.detail);
        }
        f.write_str(&printable(&text))
    }
}

/// Text of a server, for a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(TEXT_CHARS_MAX)
        .collect()
}

/// A server, as anyone can call it.
#[derive(Debug, Clone)]
pub struct Server {
    http: reqwest::Client,
    url: Url,
}

impl Server {
    /// A server at a base address.
    pub fn new(mut url: Url) -> Result<Self, CallError> {
        if !["http", "https"].contains(&url.scheme()) {
            return Err(CallError::Address(url));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let is_local = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if url.scheme() == "http" && !is_local {
            tracing::warn!(%url, "without TLS anyone on the way can read and change what is said");
        }
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("comptoir-worker/", env!("CARGO_PKG_VERSION")))
            // A token goes to the server that was named and to no other.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        if is_local {
            http = http.no_proxy();
        }
        Ok(Self {
            http: http.build()?,
            url,
        })
    }

    /// Where it is.
    #[must_use]
    pub const fn url(&self) -> &Url {
        &self.url
    }

    fn at(&self, path: &str) -> Url {
        self.url
            .join(path)
            .expect("paths are made of identifiers and digests")
    }

    /// The SHA-256 of the canonical JSON of its key set.
    pub async fn fingerprint(&self) -> Result<Sha256, CallError> {
        let call = self
            .http
            .get(self.at(".well-known/jwks.json"))
            .timeout(CALL_TIMEOUT);
        let keys: serde_json::Value = read(send(call).await?).await?;
        Sha256::of_document(&keys).map_err(|error| CallError::Nonsense(error.to_string()))
    }

    /// Its version.
    pub async fn version(&self) -> Result<String, CallError> {
        #[derive(Deserialize)]
        struct Version {
            name: String,
            version: String,
        }
        let call = self.http.get(self.at("version")).timeout(CALL_TIMEOUT);
        let version: Version = read(send(call).await?).await?;
        Ok(printable(&format!("{} {}", version.name, version.version)))
    }

    /// Asks for an identity.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinReply, CallError> {
        read(
            send(
                self.http
                    .post(self.at("v1/join"))
                    .timeout(CALL_TIMEOUT)
                    .json(request),
            )
            .await?,
        )
        .await
    }
}

/// A server, as a worker calls it.
#[derive(Debug)]
pub struct Client {
    server: Server,
    worker: WorkerId,
    key: Key,
    token: Mutex<Tokens>,
}

#[derive(Debug, Default)]
struct Tokens {
    current: Option<Token>,
    /// The moment of the last request; the next one names a later.
    last_issued_at_ms: u64,
}

#[derive(Debug, Clone)]
struct Token {
    text: Arc<str>,
    renew_at: Instant,
    ends_at: Instant,
}

impl Client {
    /// The calls of one worker.
    #[must_use]
    pub fn new(server: Server, worker: WorkerId, key: Key) -> Self {
        Self {
            server,
            worker,
            key,
            token: Mutex::default(),
        }
    }

    /// Who calls.
    #[must_use]
    pub const fn worker(&self) -> WorkerId {
        self.worker
    }

    /// The exchange.
    pub async fn work(&self, request: &WorkRequest) -> Result<WorkReply, CallError> {
        let timeout = CALL_TIMEOUT + Duration::from_millis(u64::from(request.wait_ms));
        let build = || {
            Ok(self
                .server
                .http
                .post(self.server.at("v1/work"))
                .timeout(timeout)
                .json(request))
        };
        read(self.authorized(build).await?).await
    }

    /// Keeps leases.
    pub async fn heartbeat(&self, leases: Vec<Held>) -> Result<HeartbeatReply, CallError> {
        let request = HeartbeatRequest { leases };
        let url = self.server.at("v1/heartbeats");
        let build = || {
            Ok(self
                .server
                .http
                .post(url.clone())
                .timeout(HEARTBEAT_TIMEOUT)
                .json(&request))
        };
        read(self.authorized(build).await?).await
    }

    /// Reports events.
    pub async fn report(
        &self,
        held: Held,
        request: &EventsRequest,
    ) -> Result<EventsReply, CallError> {
        let build = || {
            Ok(self
                .attempt(reqwest::Method::POST, held, "events")
                .timeout(CALL_TIMEOUT)
                .json(request))
        };
        read(self.authorized(build).await?).await
    }

    /// Reports a checkpoint, uploaded before.
    pub async fn record(
        &self,
        held: Held,
        request: &SegmentRequest,
    ) -> Result<SegmentReply, CallError> {
        let build = || {
            Ok(self
                .attempt(reqwest::Method::POST, held, "segments")
                .timeout(CALL_TIMEOUT)
                .json(request))
        };
        read(self.authorized(build).await?).await
    }

    /// Uploads a file.
    pub async fn upload(&self, held: Held, sha256: Sha256, file: &Path) -> Result<(), CallError> {
        let build = || {
            let file = fs::File::open(file)?;
            let bytes = file.metadata()?.len();
            let timeout = SILENCE_MAX + Duration::from_secs(bytes / UPLOAD_BYTES_PER_S_MIN);
            Ok(self
                .attempt(reqwest::Method::PUT, held, &format!("blobs/{sha256}"))
                .timeout(timeout)
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, bytes)
                .body(tokio::fs::File::from_std(file)))
        };
        self.authorized(build).await.map(drop)
    }

    /// Starts a download at a byte; the answer may start at the first all the same.
    pub async fn download(
        &self,
        held: Held,
        sha256: Sha256,
        from: u64,
    ) -> Result<Response, CallError> {
        let build = || {
            let call = self.attempt(reqwest::Method::GET, held, &format!("blobs/{sha256}"));
            Ok(if from == 0 {
                call
            } else {
                call.header(header::RANGE, format!("bytes={from}-"))
            })
        };
        timeout(SILENCE_MAX, self.authorized(build))
            .await
            .map_err(|_| CallError::Silent)?
    }

    /// The next bytes of a download.
    pub async fn part(response: &mut Response) -> Result<Option<Bytes>, CallError> {
        let part = timeout(SILENCE_MAX, response.chunk()).await;
        Ok(part.map_err(|_| CallError::Silent)??)
    }

    fn attempt(&self, method: reqwest::Method, held: Held, rest: &str) -> RequestBuilder {
        let url = self
            .server
            .at(&format!("v1/attempts/{}/{rest}", held.attempt_id));
        self.server
            .http
            .request(method, url)
            .header(LEASE_TOKEN_HEADER, held.lease_token.to_string())
    }

    /// Calls with a token; once more with a new one when that is refused.
    async fn authorized(
        &self,
        build: impl Fn() -> Result<RequestBuilder, CallError>,
    ) -> Result<Response, CallError> {
        let token = self.token(None).await?;
        match send(build()?.bearer_auth(&token)).await {
            Err(error) if error.has_status(StatusCode::UNAUTHORIZED) => {
                let token = self.token(Some(&token)).await?;
                send(build()?.bearer_auth(&token)).await
            }
            other => other,
        }
    }

    /// A token that still lives for a while, other than a refused one.
    pub async fn token(&self, refused: Option<&str>) -> Result<Arc<str>, CallError> {
        let mut tokens = self.token.lock().await;
        if tokens
            .current
            .as_ref()
            .is_some_and(|it| Some(&*it.text) == refused)
        {
            tokens.current = None;
        }
        let now = Instant::now();
        if let Some(token) = &tokens.current
            && now < token.renew_at
        {
            return Ok(Arc::clone(&token.text));
        }
        let at = unix_ms().max(tokens.last_issued_at_ms + 1);
        tokens.last_issued_at_ms = at;
        match self.issue(at, now).await {
            Ok(token) => {
                let text = Arc::clone(&token.text);
                tokens.current = Some(token);
                Ok(text)
            }
            // The old one serves to its end.
            Err(error) if error.is_retryable() => match &tokens.current {
                Some(token) if now < token.ends_at => Ok(Arc::clone(&token.text)),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    async fn issue(&self, issued_at_ms: u64, now: Instant) -> Result<Token, CallError> {
        let signature = self
            .key
            .sign(&token_signing_bytes(self.worker, issued_at_ms));
        let request = WorkerTokenRequest {
            worker_id: self.worker,
            issued_at_ms,
            signature: Base64(signature),
        };
        let call = self
            .server
            .http
            .post(self.server.at("v1/worker-token"))
            .timeout(CALL_TIMEOUT)
            .json(&request);
        let reply: WorkerTokenReply = read(send(call).await?).await?;
        if header::HeaderValue::from_str(&reply.token).is_err() {
            return Err(CallError::Nonsense(
                "a token that no header can hold".to_owned(),
            ));
        }
        let life = Duration::from_secs(u64::from(reply.expires_in_s)).min(TOKEN_LIFE_MAX);
        Ok(Token {
            text: reply.token.into(),
            renew_at: now + life * 5 / 6,
            ends_at: now + life,
        })
    }
}

/// The worker's clock, the only one that the server asks for.
fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2)
}

async fn send(call: RequestBuilder) -> Result<Response, CallError> {
    let response = call.send().await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    // A refusal counts even when its reasons get lost.
    let problem = match read_limited(response, PROBLEM_BYTES_MAX).await {
        Ok(body) => serde_json::from_slice(&body).unwrap_or_default(),
        Err(_) => Problem::default(),
    };
    Err(CallError::Refused { status, problem })
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, CallError> {
    let body = read_limited(response, REPLY_BYTES_MAX).await?;
    serde_json::from_slice(&body)
        .map_err(|error| CallError::Nonsense(printable(&error.to_string())))
}

async fn read_limited(mut response: Response, limit: usize) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await? {
        if body.len() + part.len() > limit {
            return Err(CallError::Nonsense(format!("more than {limit} bytes")));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: StatusCode, code: &str) -> CallError {
        CallError::Refused {
            status,
            problem: Problem {
                code: code.to_owned(),
                ..Problem::default()
            },
        }
    }

    #[test]
    fn only_what_can_pass_is_tried_again() {
        assert!(refused(StatusCode::SERVICE_UNAVAILABLE, "unavailable").is_retryable());
        assert!(refused(StatusCode::BAD_GATEWAY, "").is_retryable());
        assert!(refused(StatusCode::UNPROCESSABLE_ENTITY, "clock_skewed").is_retryable());
        assert!(!refused(StatusCode::CONFLICT, "stale_lease").is_retryable());
        assert!(!refused(StatusCode::FORBIDDEN, "worker_revoked").is_retryable());
        assert!(refused(StatusCode::FORBIDDEN, "worker_revoked").is_final());
    }

    #[test]
    fn what_a_server_says_cannot_command_a_terminal() {
        let problem = Problem {
            code: "x".to_owned(),
            title: format!("a\u{1b}[2J{}", "b".repeat(999)),
            ..Problem::default()
        };
        let text = problem.to_string();
        assert!(
            text.starts_with("a[2Jb") && text.len() == TEXT_CHARS_MAX,
            "{text}"
        );
    }
}
