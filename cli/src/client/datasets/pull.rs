//! Downloads a version: only what is missing, and nothing stays that is not what the manifest says.

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use comptoir_domain::{
    dataset::{FilePath, ManifestFile, root},
    digest::Sha256,
};
use futures::TryStreamExt as _;
use indicatif::ProgressBar;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    fs::{self, OpenOptions},
    io::AsyncWriteExt as _,
};

use super::{
    super::{
        blobs::digest_of,
        http::{Api, ApiError},
    },
    all,
    patience::patiently,
    ready, text,
};
use crate::{
    args::datasets::PullArgs,
    exit::{Exit, coded},
    output,
};

/// Downloads a version into a folder; says what is there then.
pub async fn pull(api: &Api, args: &PullArgs) -> anyhow::Result<Value> {
    let versions = format!("/v1/datasets/{}/versions", args.dataset);
    let version = ready(api, &args.dataset, args.number).await?;
    let path = format!("{versions}/{}", text(&version, "id")?);
    let mut files = manifest(api, &path, &version).await?;
    let root = root(&files);
    if args.samples {
        files.retain(|file| file.is_sample);
    }
    let mut ids = BTreeMap::new();
    for file in all(api, &format!("{path}/files")).await? {
        ids.insert(
            text(&file, "path")?.to_owned(),
            text(&file, "id")?.to_owned(),
        );
    }
    let bytes = files.iter().map(|file| file.bytes).sum();
    let bar = output::bar(bytes, "downloading", output::BYTES);
    for file in &files {
        let id = ids
            .get(file.path.as_str())
            .context("a file of the manifest is not listed")?;
        let from = format!("{path}/files/{id}/content");
        let to = args.out.join(file.path.as_str());
        let partial = partial(&to, root, file.sha256);
        let fetched = fetch(api, &from, (&to, &partial), file, &bar).await;
        fetched.map_err(|error| {
            explained(error, args.number.is_some(), &version["number"], &file.path)
        })?;
    }
    bar.finish_and_clear();
    Ok(json!({
        "version": version["number"],
        "files": files.len(),
        "bytes": bytes,
        "manifest_root": version["manifest_root"],
        "folder": args.out,
    }))
}

/// Which version, and which file of it by its digest, a path names.
pub async fn find_file(
    api: &Api,
    (dataset, number): (&str, Option<u32>),
    path: &str,
) -> anyhow::Result<(String, Sha256)> {
    let version = ready(api, dataset, number).await?;
    let id = text(&version, "id")?.to_owned();
    let address = format!("/v1/datasets/{dataset}/versions/{id}");
    let files = manifest(api, &address, &version).await?;
    let file = files.into_iter().find(|file| file.path.as_str() == path);
    let file =
        file.ok_or_else(|| coded(Exit::NotFound, format!("the version has no file {path}")))?;
    Ok((id, file.sha256))
}

/// Says which file it was. Whoever has a right to an earlier version than the newest hears how to name it.
fn explained(error: anyhow::Error, named: bool, number: &Value, file: &FilePath) -> anyhow::Error {
    let refused = matches!(
        error.downcast_ref(),
        Some(ApiError::Problem {
            status: 402 | 403,
            ..
        })
    );
    let others = number.as_u64() > Some(1);
    let hint = if refused && !named && others {
        format!(" of version {number} (an earlier one is named with --number)")
    } else {
        String::new()
    };
    error.context(format!("download {file}{hint}"))
}

/// The files of a version, which are those that its root names.
async fn manifest(api: &Api, path: &str, version: &Value) -> anyhow::Result<Vec<ManifestFile>> {
    let manifest = api.get(&format!("{path}/manifest")).await?;
    let files: Vec<ManifestFile> = serde_json::from_value(manifest["files"].clone())?;
    if version["manifest_root"] == root(&files).to_string() {
        return Ok(files);
    }
    Err(coded(
        Exit::NotVerified,
        "the manifest is not the one that its root names".to_owned(),
    ))
}

/// Where a file is until it is whole: beside its place, under a name that is short, and that no file of the version can have, since the root
/// follows from their names.
fn partial(to: &Path, root: impl Display, file: Sha256) -> PathBuf {
    to.with_file_name(format!(".{root}-{file}.partial"))
}

/// Downloads what is missing of a file, which appears under its name when it is whole.
async fn fetch(
    api: &Api,
    from: &str,
    (to, partial): (&Path, &Path),
    file: &ManifestFile,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let length = async |path: &Path| fs::metadata(path).await.map_or(0, |it| it.len());
    if length(to).await == file.bytes && digest_of(to).await? == file.sha256 {
        bar.inc(file.bytes);
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).await?;
    }
    let mut have = length(partial).await;
    if have > file.bytes {
        fs::remove_file(partial).await?;
        have = 0;
    }
    bar.inc(have);
    if have < file.bytes {
        let request = api
            .request(Method::GET, from)
            .header(header::RANGE, format!("bytes={have}-"))
            .header(header::IF_RANGE, format!("\"{}\"", file.sha256));
        let response = patiently(api, &request).await?;
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT;
        let mut options = OpenOptions::new();
        options
            .create(true)
            .write(true)
            .append(goes_on)
            .truncate(!goes_on);
        let mut partial = options.open(partial).await?;
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces
            .try_next()
            .await
            .context("the same command goes on where this one ended")?
        {
            partial.write_all(&piece).await?;
            bar.inc(piece.len() as u64);
        }
        partial.sync_all().await?;
    }
    let found = digest_of(partial).await?;
    if found != file.sha256 {
        fs::remove_file(partial).await?;
        let message = format!("the bytes have the digest {found}, not {}", file.sha256);
        return Err(coded(Exit::NotVerified, message));
    }
    fs::rename(partial, to).await?;
    Ok(())
}
