//! `join`: trades a join token for an identity, once per folder.

use std::path::PathBuf;

use comptoir_domain::{
    amount::Amount, digest::Sha256, id::WorkerId, job::Device, join_token::JoinToken, name::is_name,
};
use comptoir_wire::{
    NAME_CHARS_MAX,
    encoded::Base64,
    join::{JoinRequest, WorkerFacts},
};
use url::Url;

use super::{
    backoff::Backoff,
    client::{CallError, Server},
    folder::{Folder, FolderError, Identity, Key},
    measure::{self, MeasureError},
};
use crate::{engine::Launcher, sandbox::Unsandboxed};

/// Tries of each call; a person is waiting.
const TRIES_MAX: u32 = 6;

/// What `join` is told.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The server.
    pub url: Url,
    /// The join token.
    pub token: JoinToken,
    /// What to call the worker.
    pub name: String,
    /// Where its identity goes.
    pub folder: PathBuf,
    /// What its jobs run on.
    pub device: Device,
    /// Threads of each job.
    pub threads: u16,
    /// Memory of each job, if not the usual.
    pub memory_bytes: Option<u64>,
    /// The lowest rate.
    pub price_floor_nano: Amount,
}

/// Why a worker does not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its machine.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// Somebody else answers.
    #[error(
        "{url} is not the server that this token is for: none of its keys has the fingerprint {expected}, which the token names. \
         The token was not sent. Check --url, or ask for a new token if the server's keys were replaced more than once"
    )]
    WrongServer {
        /// Who was asked.
        url: Box<Url>,
        /// The server of the token.
        expected: Sha256,
    },
    /// The server.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It cannot wall jobs in.
    #[error(transparent)]
    Unsandboxed(#[from] Unsandboxed),
    /// No such device.
    #[error("there is no CUDA device here: {0}")]
    NoDevice(String),
    /// How much memory there is cannot be found out.
    #[error("how much memory there is cannot be found out; say it with --memory")]
    NoMemory,
    /// A name the server would refuse.
    #[error("a name has 1 to {NAME_CHARS_MAX} characters, no control characters")]
    Name,
}

/// Joins.
pub async fn join(options: &JoinOptions, launcher: &Launcher) -> Result<Identity, JoinError> {
    if !is_name(&options.name, NAME_CHARS_MAX) {
        return Err(JoinError::Name);
    }
    launcher.sandbox().check()?;
    let folder = Folder::open(&options.folder)?;
    folder.ensure_not_joined()?;
    let server = Server::new(options.url.clone())?;
    let found = patiently(|| server.fingerprints()).await?;
    if !found.contains(&options.token.server) {
        return Err(JoinError::WrongServer {
            url: Box::new(server.url().clone()),
            expected: options.token.server,
        });
    }
    let facts = gather(options, launcher, &folder).await?;
    let request = sign(options, facts, &folder.make_key()?);
    let worker_id: WorkerId = patiently(|| server.join(&request)).await?.worker_id;
    let identity = Identity {
        worker_id,
        url: server.url().clone(),
        server: options.token.server,
        name: request.name,
        facts: request.facts,
    };
    folder.keep_identity(&identity)?;
    Ok(identity)
}

async fn gather(
    options: &JoinOptions,
    launcher: &Launcher,
    folder: &Folder,
) -> Result<WorkerFacts, JoinError> {
    let scratch = folder.open_scratch()?;
    let found = measure::facts(launcher, &scratch).await?;
    if options.device == Device::Cuda && found.cuda_memory_bytes.is_empty() {
        return Err(JoinError::NoDevice(found.cuda_missing.unwrap_or_default()));
    }
    let class = measure::class(launcher, options.device, options.threads, &scratch).await?;
    let memory_bytes = options
        .memory_bytes
        .or_else(|| measure::memory_bytes(options.device, &found));
    Ok(WorkerFacts {
        device: options.device,
        device_name: measure::device_name(options.device),
        memory_bytes: memory_bytes.ok_or(JoinError::NoMemory)?,
        threads: u32::from(options.threads),
        numeric_class: class.to_string(),
        libtorch: found.libtorch,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        price_floor_nano: options.price_floor_nano,
        unsandboxed: !launcher.sandbox().is_complete(),
    })
}

fn sign(options: &JoinOptions, facts: WorkerFacts, key: &Key) -> JoinRequest {
    let mut request = JoinRequest {
        token: options.token.reveal(),
        public_key: Base64(key.public()),
        name: options.name.clone(),
        facts,
        signature: Base64([0; 64]),
    };
    let signed = request
        .signing_bytes()
        .expect("a join request has a JSON form");
    request.signature = Base64(key.sign(&signed));
    request
}

/// Tries a call a few times. The server takes a repeated `join` for the same one.
async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let mut backoff = Backoff::default();
    let mut tries = 1;
    loop {
        match call().await {
            Err(error) if error.is_retryable() && tries < TRIES_MAX => {
                tracing::warn!(%error, "trying again");
                tries += 1;
                backoff.wait().await;
            }
            other => return other,
        }
    }
}
