//! Moves blobs between the server and an attempt's scratch folder, over broken connections.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use comptoir_domain::{digest::Sha256, envelope};
use comptoir_wire::{dataset::SealedFile, heartbeat::Held, work::BlobSize};
use reqwest::{StatusCode, header};
use tokio_util::sync::CancellationToken;

use super::{
    backoff::Backoff,
    cache::{Cache, Hashed},
    client::{CallError, Client, Purpose},
};
use crate::engine::{Output, sealed};

/// How often a blob is fetched that turns out to be another.
const WRONG_DIGESTS_MAX: u32 = 3;

/// Why a call that was insisted on has no answer.
#[derive(Debug)]
pub enum GaveUp {
    /// The attempt ended meanwhile.
    Cancelled,
    /// Asking again would not help.
    Refused(CallError),
}

/// Repeats a call until it is answered or the attempt ends.
pub async fn insist<T, F>(
    cancel: &CancellationToken,
    what: &str,
    mut call: impl FnMut() -> F,
) -> Result<T, GaveUp>
where
    F: Future<Output = Result<T, CallError>>,
{
    let mut backoff = Backoff::default();
    let repeat = async {
        loop {
            match call().await {
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "{what} failed; trying again");
                    backoff.wait().await;
                }
                other => return other.map_err(GaveUp::Refused),
            }
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(GaveUp::Cancelled),
        answer = repeat => answer,
    }
}

/// Why a blob is not there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody needs it any more.
    #[error("cancelled")]
    Cancelled,
    /// The server does not give it.
    #[error("input {sha256}: {error}")]
    Refused {
        /// The blob.
        sha256: Sha256,
        /// What was said.
        error: CallError,
    },
    /// What came is another blob, again and again.
    #[error("input {0} arrives with other bytes than its digest and size say")]
    Corrupt(Sha256),
    /// The disk failed.
    #[error("keep an input: {0}")]
    Disk(#[from] io::Error),
}

/// Fetches blobs.
#[derive(Debug, Clone, Copy)]
pub struct Fetcher<'a> {
    /// Whom to ask.
    pub client: &'a Client,
    /// Where blobs may be already.
    pub cache: &'a Cache,
    /// What for.
    pub purpose: Purpose<'a>,
    /// Ends it.
    pub cancel: &'a CancellationToken,
}

impl Fetcher<'_> {
    /// Puts a blob into a new file.
    pub async fn fetch(&self, blob: BlobSize, to: &Path) -> Result<(), FetchError> {
        let BlobSize { sha256, .. } = blob;
        let (cache, target) = (self.cache.clone(), to.to_owned());
        if on_disk(move || cache.take(sha256, &target)).await? {
            return Ok(());
        }
        let mut wrong = 0;
        while !self.download(blob, to).await? {
            wrong += 1;
            tracing::warn!(%sha256, "an input arrived damaged");
            if wrong == WRONG_DIGESTS_MAX {
                return Err(FetchError::Corrupt(sha256));
            }
        }
        let (cache, from) = (self.cache.clone(), to.to_owned());
        if let Err(error) = on_disk(move || cache.keep(sha256, &from)).await {
            tracing::warn!(%sha256, %error, "an input cannot be kept for later");
        }
        Ok(())
    }

    /// Fetches all bytes, going on where a connection broke. Are they the right ones?
    async fn download(&self, blob: BlobSize, to: &Path) -> Result<bool, FetchError> {
        let mut file = Hashed::new(File::create(to)?);
        let mut backoff = Backoff::default();
        while file.bytes() < blob.bytes || (blob.bytes == 0 && file.bytes() == 0) {
            let before = file.bytes();
            let part = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(FetchError::Cancelled),
                part = self.part(blob, &mut file) => part,
            };
            match part {
                Ok(()) if blob.bytes == 0 => break,
                Ok(()) => {}
                Err(PartError::Restart) => file = Hashed::new(File::create(to)?),
                Err(PartError::TooMany) => return Ok(false),
                Err(PartError::Disk(error)) => return Err(error.into()),
                Err(PartError::Call(error)) if error.is_retryable() => {
                    tracing::warn!(%error, sha256 = %blob.sha256, "a download broke; going on");
                }
                Err(PartError::Call(error)) => {
                    return Err(FetchError::Refused {
                        sha256: blob.sha256,
                        error,
                    });
                }
            }
            if file.bytes() > before {
                backoff.reset();
            } else {
                tokio::select! {
                    () = self.cancel.cancelled() => return Err(FetchError::Cancelled),
                    () = backoff.wait() => {}
                }
            }
        }
        file.flush()?;
        Ok(file.finish().0 == blob.sha256)
    }

    /// One answer, to its end or until the connection breaks.
    async fn part(&self, blob: BlobSize, file: &mut Hashed<File>) -> Result<(), PartError> {
        let from = file.bytes();
        let mut response = self
            .client
            .download(self.purpose, blob.sha256, from)
            .await?;
        if from > 0 {
            let range = response
                .headers()
                .get(header::CONTENT_RANGE)
                .and_then(|range| range.to_str().ok());
            let goes_on = range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
            if response.status() != StatusCode::PARTIAL_CONTENT || !goes_on {
                return Err(PartError::Restart);
            }
        }
        while let Some(bytes) = Client::part(&mut response).await? {
            if file.bytes() + bytes.len() as u64 > blob.bytes {
                return Err(PartError::TooMany);
            }
            file.write_all(&bytes).map_err(PartError::Disk)?;
        }
        Ok(())
    }
}

enum PartError {
    /// The server does not go on in the middle.
    Restart,
    /// More bytes than the blob has.
    TooMany,
    Disk(io::Error),
    Call(CallError),
}

impl From<CallError> for PartError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Why a file of a dataset is not there.
#[derive(Debug)]
pub enum SealedError {
    /// The server does not give it, or the attempt ended meanwhile.
    GaveUp(GaveUp),
    /// The disk failed.
    Disk(io::Error),
}

/// Puts the parts of a file of a dataset, sealed as they come, into a new file of a folder. Whether they are the right ones is seen when they
/// are opened.
pub async fn fetch_sealed(
    client: &Client,
    held: Held,
    (file, folder): (&SealedFile, &Path),
    cancel: &CancellationToken,
) -> Result<(), SealedError> {
    let name = folder.join(sealed::name(file.file_id));
    let mut to = File::create(name).map_err(SealedError::Disk)?;
    let parts = (0..).map_while(|part| Some((part, file.part_length(part)?)));
    for (part, length) in parts {
        let bytes = envelope::sealed_bytes(length);
        let fetch = || client.sealed_part(held, (file.file_id, part), bytes);
        let fetched = insist(cancel, "a part of a dataset", fetch).await;
        let fetched = fetched.map_err(SealedError::GaveUp)?;
        to.write_all(&fetched).map_err(SealedError::Disk)?;
    }
    to.flush().map_err(SealedError::Disk)
}

/// Uploads a file until the server has it.
pub async fn upload(
    client: &Client,
    held: Held,
    (sha256, file): (Sha256, &Path),
    cancel: &CancellationToken,
) -> Result<(), GaveUp> {
    let mut wrong = 0;
    loop {
        match insist(cancel, "an upload", || client.upload(held, sha256, file)).await {
            // Bytes may be damaged on their way; a file that is wrong stays wrong.
            Err(GaveUp::Refused(error))
                if error.code() == Some("digest_mismatch") && wrong < WRONG_DIGESTS_MAX =>
            {
                wrong += 1;
            }
            other => return other,
        }
    }
}

/// Uploads all outputs of an attempt.
pub async fn upload_outputs(
    client: &Client,
    held: Held,
    outputs: &[Output],
    cancel: &CancellationToken,
) -> Result<(), GaveUp> {
    for output in outputs {
        upload(client, held, (output.sha256, &output.path), cancel).await?;
    }
    Ok(())
}

/// Frees the space of a file that has been uploaded.
pub fn discard(file: &Path) {
    if let Err(error) = fs::remove_file(file) {
        tracing::debug!(%error, file = %file.display(), "a file stays until its attempt ends");
    }
}
