//! A worker without libtorch: it speaks the whole protocol over HTTP and computes nothing. Tests steer it exchange by
//! exchange; the throughput of the service is measured with [`StubWorker::run`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_lc_rs::{
    rand,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use bytes::Bytes;
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{AttemptId, DatasetFileId, WorkerId},
    job::Device,
    program::graph::ScalarType,
    tensors::{TensorView, to_bytes},
};
use comptoir_wire::{
    LEASE_TOKEN_HEADER, LEASES_MAX, OUTPUT_CHECKPOINT,
    attempt::{EventsReply, EventsRequest, SegmentReply, SegmentRequest},
    dataset::SealedDataset,
    encoded::Base64,
    heartbeat::{HeartbeatReply, HeartbeatRequest, Held},
    join::{JoinReply, JoinRequest, WorkerFacts},
    seal::{output_of, result_sha256, seal},
    token::{WorkerTokenReply, WorkerTokenRequest, token_signing_bytes},
    work::{Lease, Reveal, Seal, WorkReply, WorkRequest},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Client, Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// How many blobs a stub uploads at once.
const UPLOADS_AT_ONCE: usize = 8;
/// How long a stub waits for an answer beyond what it asked for.
const PATIENCE: Duration = Duration::from_mins(1);

/// How often a request is sent that the service cannot answer, and the pause between.
const REPEATS_MAX: u32 = 50;
const REPEAT_AFTER: Duration = Duration::from_millis(100);

/// A worker that computes nothing.
#[derive(Debug, Clone)]
pub struct StubWorker {
    client: Client,
    base: String,
    key: Arc<Ed25519KeyPair>,
    /// Its identity.
    pub id: WorkerId,
    token: String,
}

/// Why a request of a stub did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// The service refused it.
    #[error("{status} {code}: {body}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The problem's code; empty when the body is no problem document.
        code: String,
        /// The whole body.
        body: String,
    },
    /// It did not get through.
    #[error("send a request")]
    Http(#[from] reqwest::Error),
}

impl StubError {
    /// The code of the problem; empty when the request did not get through.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Http(_) => "",
        }
    }
}

/// What a stub gives out as the result of an attempt, and the salt of its seal.
#[derive(Debug, Clone)]
pub struct StubResult {
    /// The attempt.
    pub held: Held,
    /// The random part of the seal.
    pub salt: [u8; 32],
    /// Blob by output name.
    pub outputs: BTreeMap<String, Sha256>,
}

impl StubResult {
    /// The result of an attempt whose one output, the one of its kind, is this blob.
    #[must_use]
    pub fn of(lease: &Lease, output: Sha256) -> Self {
        let mut salt = [0; 32];
        rand::fill(&mut salt).expect("the system has randomness");
        Self {
            held: Held {
                attempt_id: lease.attempt_id,
                lease_token: lease.lease_token,
            },
            salt,
            outputs: BTreeMap::from([(output_name(lease).to_owned(), output)]),
        }
    }

    /// Commits to it.
    #[must_use]
    pub fn seal(&self, worker: WorkerId) -> Seal {
        let Held {
            attempt_id,
            lease_token,
        } = self.held;
        let seal = seal(worker, attempt_id, &self.salt, result_sha256(&self.outputs));
        Seal {
            attempt_id,
            lease_token,
            seal,
            compute_ms: 0,
        }
    }

    /// Shows it.
    #[must_use]
    pub fn reveal(&self) -> Reveal {
        let Held {
            attempt_id,
            lease_token,
        } = self.held;
        let result_sha256 = result_sha256(&self.outputs);
        Reveal {
            attempt_id,
            lease_token,
            salt: Base64(self.salt),
            result_sha256,
            outputs: self.outputs.clone(),
        }
    }
}

/// A replay is taken to end with a checkpoint; who replays the end of a run renames its output.
const fn output_name(lease: &Lease) -> &'static str {
    match lease.until_step {
        Some(_) => OUTPUT_CHECKPOINT,
        None => output_of(&lease.job),
    }
}

/// A file of one fp32 tensor.
#[must_use]
pub fn tensor_file(values: &[f32]) -> Bytes {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let shape = [values.len() as u64];
    let tensor = TensorView {
        name: "output_0",
        dtype: ScalarType::F32,
        shape: &shape,
        data: &data,
    };
    to_bytes([tensor])
        .expect("one small tensor is a file")
        .into()
}

/// The facts of a small CPU worker of this numeric class.
#[must_use]
pub fn facts(numeric_class: &str) -> WorkerFacts {
    WorkerFacts {
        device: Device::Cpu,
        device_name: "stub".to_owned(),
        memory_bytes: 8 << 30,
        threads: 1,
        numeric_class: numeric_class.to_owned(),
        libtorch: "none".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        price_floor_nano: Amount::ZERO,
        unsandboxed: false,
    }
}

impl StubWorker {
    /// Joins with a join token and gets its first worker token. `base` is the scheduler's URL, without a slash at the end.
    pub async fn join(
        base: &str,
        join_token: &str,
        name: &str,
        facts: WorkerFacts,
        now: OffsetDateTime,
    ) -> Result<Self, StubError> {
        let key = Arc::new(Ed25519KeyPair::generate().expect("the system has randomness"));
        let public_key = key
            .public_key()
            .as_ref()
            .try_into()
            .expect("an Ed25519 key has 32 bytes");
        let mut request = JoinRequest {
            token: join_token.to_owned(),
            public_key: Base64(public_key),
            name: name.to_owned(),
            facts,
            signature: Base64([0; 64]),
        };
        request.signature = sign(
            &key,
            &request
                .signing_bytes()
                .expect("a join request has a JSON form"),
        );
        let client = Client::builder().timeout(PATIENCE).build()?;
        let reply: JoinReply = read(client.post(format!("{base}/v1/join")).json(&request)).await?;
        let mut worker = Self {
            client,
            base: base.to_owned(),
            key,
            id: reply.worker_id,
            token: String::new(),
        };
        worker.refresh(now).await?;
        Ok(worker)
    }

    /// Goes on at another scheduler, with a token of that one.
    pub async fn move_to(&mut self, base: &str, now: OffsetDateTime) -> Result<(), StubError> {
        base.clone_into(&mut self.base);
        self.refresh(now).await
    }

    /// Gets a fresh worker token.
    pub async fn refresh(&mut self, now: OffsetDateTime) -> Result<(), StubError> {
        let issued_at_ms =
            u64::try_from(now.unix_timestamp_nanos() / 1_000_000).expect("time is past 1970");
        let request = self.token_request(issued_at_ms);
        let reply: WorkerTokenReply = read(
            self.client
                .post(format!("{}/v1/worker-token", self.base))
                .json(&request),
        )
        .await?;
        self.token = reply.token;
        Ok(())
    }

    /// A signed request for a token.
    #[must_use]
    pub fn token_request(&self, issued_at_ms: u64) -> WorkerTokenRequest {
        let signature = sign(&self.key, &token_signing_bytes(self.id, issued_at_ms));
        WorkerTokenRequest {
            worker_id: self.id,
            issued_at_ms,
            signature,
        }
    }

    /// One exchange.
    pub async fn work(&self, request: &WorkRequest) -> Result<WorkReply, StubError> {
        self.post("/v1/work", request).await
    }

    /// Renews leases.
    pub async fn heartbeat(&self, leases: Vec<Held>) -> Result<HeartbeatReply, StubError> {
        self.post("/v1/heartbeats", &HeartbeatRequest { leases })
            .await
    }

    /// Reports events of an attempt.
    pub async fn report(
        &self,
        held: Held,
        request: &EventsRequest,
    ) -> Result<EventsReply, StubError> {
        let path = format!("/v1/attempts/{}/events", held.attempt_id);
        read(
            self.request(Method::POST, &path)
                .header(LEASE_TOKEN_HEADER, held.lease_token.to_string())
                .json(request),
        )
        .await
    }

    /// Keeps a checkpoint.
    pub async fn checkpoint(
        &self,
        held: Held,
        request: &SegmentRequest,
    ) -> Result<SegmentReply, StubError> {
        let path = format!("/v1/attempts/{}/segments", held.attempt_id);
        read(
            self.request(Method::POST, &path)
                .header(LEASE_TOKEN_HEADER, held.lease_token.to_string())
                .json(request),
        )
        .await
    }

    /// Uploads a blob of an attempt.
    pub async fn upload(&self, held: Held, content: Bytes) -> Result<Sha256, StubError> {
        let sha256 = Sha256::of(&content);
        self.upload_as(held, sha256, content).await.map(|()| sha256)
    }

    /// Uploads a blob of an attempt under a name.
    pub async fn upload_as(
        &self,
        held: Held,
        sha256: Sha256,
        content: Bytes,
    ) -> Result<(), StubError> {
        let request = self
            .request(Method::PUT, &blob_path(held.attempt_id, sha256))
            .header(LEASE_TOKEN_HEADER, held.lease_token.to_string())
            .body(content);
        accepted(request).await.map(drop)
    }

    /// Fetches a blob of an attempt.
    pub async fn download(&self, held: Held, sha256: Sha256) -> Result<Bytes, StubError> {
        let request = self
            .request(Method::GET, &blob_path(held.attempt_id, sha256))
            .header(LEASE_TOKEN_HEADER, held.lease_token.to_string());
        Ok(accepted(request).await?.bytes().await?)
    }

    /// Opens the dataset of an attempt's job.
    pub async fn open_dataset(&self, held: Held) -> Result<SealedDataset, StubError> {
        let path = format!("/v1/attempts/{}/dataset", held.attempt_id);
        read(
            self.request(Method::POST, &path)
                .header(LEASE_TOKEN_HEADER, held.lease_token.to_string()),
        )
        .await
    }

    /// Fetches a sealed part of a file of a dataset.
    pub async fn part(
        &self,
        held: Held,
        file: DatasetFileId,
        part: u32,
    ) -> Result<Bytes, StubError> {
        let path = format!(
            "/v1/attempts/{}/dataset/{file}/parts/{part}",
            held.attempt_id
        );
        let request = self
            .request(Method::GET, &path)
            .header(LEASE_TOKEN_HEADER, held.lease_token.to_string());
        Ok(accepted(request).await?.bytes().await?)
    }

    /// A request of this worker, for whatever has no method here.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, StubError> {
        read(self.request(Method::POST, path).json(body)).await
    }

    /// Runs whatever it gets, up to `at_once` attempts in an exchange, until it is cancelled: each result is one small
    /// tensor. How many results it has shown.
    pub async fn run(&self, at_once: u16, until: &CancellationToken) -> Result<u64, StubError> {
        let wanted = at_once.min(u16::try_from(LEASES_MAX).unwrap_or(u16::MAX));
        let content = tensor_file(&[0.0]);
        let mut sealed: BTreeMap<AttemptId, StubResult> = BTreeMap::new();
        let mut shown = 0;
        let mut next = WorkRequest {
            wanted,
            wait_ms: 1_000,
            ..WorkRequest::default()
        };
        while !until.is_cancelled() {
            let reply = Self::patiently(|| self.work(&next)).await?;
            let (mut seals, mut reveals) = (Vec::new(), Vec::new());
            for attempt in &reply.cancel {
                sealed.remove(attempt);
            }
            for order in &reply.reveal {
                reveals.extend(
                    sealed
                        .remove(&order.attempt_id)
                        .map(|result| result.reveal()),
                );
            }
            shown += reveals.len() as u64;
            for result in self.compute(&reply.leases, &content).await? {
                seals.push(result.seal(self.id));
                sealed.insert(result.held.attempt_id, result);
            }
            let held = sealed.values().map(|result| result.held).collect();
            let wait_ms = if seals.is_empty() && reveals.is_empty() {
                1_000
            } else {
                0
            };
            next = WorkRequest {
                wanted,
                wait_ms,
                held,
                seals,
                reveals,
                failures: Vec::new(),
            };
        }
        Ok(shown)
    }

    async fn compute(
        &self,
        leases: &[Lease],
        content: &Bytes,
    ) -> Result<Vec<StubResult>, StubError> {
        let results: Vec<_> = leases
            .iter()
            .map(|lease| self.compute_one(lease, content.clone()))
            .collect();
        let results: Vec<_> = stream::iter(results)
            .buffer_unordered(UPLOADS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(results.into_iter().flatten().collect())
    }

    /// Repeats a request while the service cannot answer; every request may be repeated.
    async fn patiently<T, F: Future<Output = Result<T, StubError>>>(
        request: impl Fn() -> F,
    ) -> Result<T, StubError> {
        for _ in 1..REPEATS_MAX {
            match request().await {
                Err(StubError::Refused {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    ..
                }) => {
                    tokio::time::sleep(REPEAT_AFTER).await;
                }
                answered => return answered,
            }
        }
        request().await
    }

    /// The result of an attempt; none where the lease was lost meanwhile.
    async fn compute_one(
        &self,
        lease: &Lease,
        content: Bytes,
    ) -> Result<Option<StubResult>, StubError> {
        let held = Held {
            attempt_id: lease.attempt_id,
            lease_token: lease.lease_token,
        };
        match Self::patiently(|| self.upload(held, content.clone())).await {
            Ok(output) => Ok(Some(StubResult::of(lease, output))),
            Err(error) if error.code() == "stale_lease" => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn blob_path(attempt: AttemptId, sha256: Sha256) -> String {
    format!("/v1/attempts/{attempt}/blobs/{sha256}")
}

fn sign(key: &Ed25519KeyPair, bytes: &[u8]) -> Base64<64> {
    Base64(
        key.sign(bytes)
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature has 64 bytes"),
    )
}

async fn read<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, StubError> {
    Ok(accepted(request).await?.json().await?)
}

async fn accepted(request: reqwest::RequestBuilder) -> Result<reqwest::Response, StubError> {
    let response = request.send().await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.text().await?;
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let code = problem["code"].as_str().unwrap_or_default().to_owned();
    Err(StubError::Refused { status, code, body })
}
