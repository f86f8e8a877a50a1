//! Blobs: upload and download with progress, checked against their digest.

use std::path::Path;

use anyhow::Context as _;
use comptoir_domain::digest::Sha256;
use futures::TryStreamExt as _;
use indicatif::ProgressBar;
use reqwest::{Body, Method, StatusCode};
use sha2::Digest as _;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
};
use tokio_util::io::ReaderStream;

use serde_json::json;

use super::{
    Context,
    http::{Api, ApiError},
};
use crate::{
    args::Blob,
    exit::{Exit, coded},
    output,
};

/// Bytes read from a file at a time.
pub(super) const CHUNK: usize = 256 << 10;

/// The blob verbs.
pub async fn run(context: &Context, verb: &Blob) -> anyhow::Result<()> {
    let api = context.api().await?;
    match verb {
        Blob::Put { file } => {
            let digest = upload(&api, file).await?;
            context.output.object(
                &json!({ "sha256": digest, "file": file }),
                &["sha256", "file"],
            );
        }
        Blob::Get { digest, out } => {
            let bytes = download(&api, digest.parse()?, out).await?;
            context
                .output
                .object(&json!({ "bytes": bytes, "file": out }), &["bytes", "file"]);
        }
    }
    Ok(())
}

/// Uploads a file, unless the service has it already.
///
/// # Errors
/// When the file cannot be read or the service refuses it.
pub async fn upload(api: &Api, path: &Path) -> anyhow::Result<Sha256> {
    let bytes = tokio::fs::metadata(path)
        .await
        .with_context(|| format!("read {}", path.display()))?
        .len();
    let digest = digest_of(path).await?;
    let location = format!("/v1/blobs/{digest}");
    match api.send(api.request(Method::HEAD, &location)).await {
        Ok(_) => return Ok(digest),
        Err(ApiError::Problem { status: 404, .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let bar = output::bar(bytes, &name, output::BYTES);
    let file = File::open(path).await?;
    let progress = bar.clone();
    let stream = ReaderStream::with_capacity(file, CHUNK)
        .inspect_ok(move |chunk| progress.inc(chunk.len() as u64));
    let request = api
        .request(Method::PUT, &location)
        .header(reqwest::header::CONTENT_LENGTH, bytes)
        .header(reqwest::header::CONTENT_TYPE, "application/octet-stream")
        .body(Body::wrap_stream(stream));
    api.send(request)
        .await
        .with_context(|| format!("upload {}", path.display()))?;
    bar.finish_and_clear();
    Ok(digest)
}

/// Downloads a blob into a file, which appears only when it is whole.
///
/// # Errors
/// When the blob is not there, or its bytes are not what its digest says.
pub async fn download(api: &Api, digest: Sha256, to: &Path) -> anyhow::Result<u64> {
    let response = api
        .send(api.request(Method::GET, &format!("/v1/blobs/{digest}")))
        .await?;
    debug_assert_eq!(response.status(), StatusCode::OK, "no range was asked for");
    let bar = response
        .content_length()
        .map_or_else(ProgressBar::new_spinner, |length| {
            output::bar(length, &digest.to_string()[..12], output::BYTES)
        });
    let partial = to.with_added_extension("partial");
    let mut file = File::create(&partial)
        .await
        .with_context(|| format!("create {}", partial.display()))?;
    let (mut hasher, mut bytes) = (sha2::Sha256::new(), 0);
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.try_next().await.context("download")? {
        hasher.update(&chunk);
        bytes += chunk.len() as u64;
        bar.inc(chunk.len() as u64);
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    bar.finish_and_clear();
    let found = Sha256(hasher.finalize().into());
    if found != digest {
        tokio::fs::remove_file(&partial).await?;
        return Err(coded(
            Exit::NotVerified,
            format!("the bytes have the digest {found}, not {digest}"),
        ));
    }
    tokio::fs::rename(&partial, to).await?;
    Ok(bytes)
}

/// The digest of a file.
///
/// # Errors
/// When it cannot be read.
pub(super) async fn digest_of(path: &Path) -> anyhow::Result<Sha256> {
    let mut file = File::open(path)
        .await
        .with_context(|| format!("open {}", path.display()))?;
    let (mut hasher, mut buffer) = (sha2::Sha256::new(), vec![0; CHUNK]);
    loop {
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            return Ok(Sha256(hasher.finalize().into()));
        }
        hasher.update(&buffer[..read]);
    }
}
