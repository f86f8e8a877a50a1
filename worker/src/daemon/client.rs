//! Calls to the server.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use comptoir_domain::digest::Sha256;
use comptoir_domain::id::{DatasetFileId, WorkerId};
use comptoir_wire::{
    LEASE_TOKEN_HEADER,
    attempt::{EventsReply, EventsRequest, SegmentReply, SegmentRequest},
    calls::TICKET_HEADER,
    dataset::SealedDataset,
    encoded::Base64,
    heartbeat::{HeartbeatReply, HeartbeatRequest, Held},
    join::{JoinReply, JoinRequest},
    token::{WorkerTokenReply, WorkerTokenRequest, token_signing_bytes},
    work::{WorkReply, WorkRequest},
};
use reqwest::{RequestBuilder, Response, StatusCode, header, redirect};
use serde::Deserialize;
use tokio::{sync::Mutex, time::timeout};
use url::Url;

use super::{
    answer::{printable, read, send},
    folder::Key,
};

pub use super::answer::CallError;

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
            // Connections of calls begin as HTTP/1.1, whatever else the server speaks.
            .http1_only()
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

    /// What a join token may call it: the SHA-256 of the canonical JSON of each of its keys, and of all its keys, as tokens once did.
    pub async fn fingerprints(&self) -> Result<Vec<Sha256>, CallError> {
        let call = self
            .http
            .get(self.at(".well-known/jwks.json"))
            .timeout(CALL_TIMEOUT);
        let set: serde_json::Value = read(send(call).await?).await?;
        let keys = set["keys"].as_array().map(Vec::as_slice);
        let named = keys.unwrap_or_default().iter().chain([&set]);
        let digests = named.map(Sha256::of_document).collect::<Result<_, _>>();
        digests.map_err(|error| CallError::Nonsense(error.to_string()))
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

/// What a blob is fetched for.
#[derive(Debug, Clone, Copy)]
pub enum Purpose<'a> {
    /// An attempt.
    Attempt(Held),
    /// A version that is hosted; its ticket, which a header can hold.
    Hosting(&'a str),
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

    /// Asks for a connection of another protocol; the answer may be of this one.
    pub async fn connect(
        &self,
        path: &str,
        headers: &header::HeaderMap,
    ) -> Result<Response, CallError> {
        let build = || Ok(self.get(path).headers(headers.clone()));
        timeout(CALL_TIMEOUT, self.authorized(build))
            .await
            .map_err(|_| CallError::Silent)?
    }

    /// Starts a download at a byte; the answer may start at the first all the same.
    pub async fn download(
        &self,
        purpose: Purpose<'_>,
        sha256: Sha256,
        from: u64,
    ) -> Result<Response, CallError> {
        let build = || {
            let call = match purpose {
                Purpose::Attempt(held) => {
                    self.attempt(reqwest::Method::GET, held, &format!("blobs/{sha256}"))
                }
                Purpose::Hosting(ticket) => {
                    let call = self.get(&format!("v1/calls/blobs/{sha256}"));
                    call.header(TICKET_HEADER, ticket)
                }
            };
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

    /// Opens the dataset of an attempt's job.
    pub async fn open_dataset(&self, held: Held) -> Result<SealedDataset, CallError> {
        let build = || {
            let call = self.attempt(reqwest::Method::POST, held, "dataset");
            Ok(call.timeout(CALL_TIMEOUT))
        };
        read(self.authorized(build).await?).await
    }

    /// A sealed part of a file of a dataset, which has so many bytes.
    pub async fn sealed_part(
        &self,
        held: Held,
        (file, part): (DatasetFileId, u32),
        bytes: u64,
    ) -> Result<Vec<u8>, CallError> {
        let path = format!("dataset/{file}/parts/{part}");
        let build = || Ok(self.attempt(reqwest::Method::GET, held, &path));
        let mut response = timeout(SILENCE_MAX, self.authorized(build))
            .await
            .map_err(|_| CallError::Silent)??;
        let mut sealed = Vec::new();
        while let Some(piece) = Self::part(&mut response).await? {
            sealed.extend_from_slice(&piece);
            if sealed.len() as u64 > bytes {
                break;
            }
        }
        if sealed.len() as u64 == bytes {
            Ok(sealed)
        } else {
            let reason = format!("a part of a dataset with other than {bytes} bytes");
            Err(CallError::Nonsense(reason))
        }
    }

    /// The next bytes of a download.
    pub async fn part(response: &mut Response) -> Result<Option<Bytes>, CallError> {
        let part = timeout(SILENCE_MAX, response.chunk()).await;
        Ok(part.map_err(|_| CallError::Silent)??)
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.server.http.get(self.server.at(path))
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
