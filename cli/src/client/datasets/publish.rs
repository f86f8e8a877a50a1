//! Publishes a folder. What the service has already is not sent again: a run that broke off is repeated, and goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::SeekFrom,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use comptoir_domain::{
    dataset::{ANNOUNCED_MAX, FilePath, ManifestFile, part_length, root},
    digest::Sha256,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use reqwest::{Body, Method, header};
use serde_json::{Value, json};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};
use tokio_util::io::ReaderStream;

use super::{
    super::{
        blobs::{CHUNK, digest_of},
        http::{Api, ApiError},
        idempotency_key,
    },
    all,
    patience::{WAIT, WAITS_MAX, patiently},
    text,
};
use crate::{
    args::datasets::PublishArgs,
    exit::{Exit, coded},
    output,
};

/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// How often it is asked whether the files are checked.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A file of the folder.
struct Local {
    file: PathBuf,
    bytes: u64,
    sha256: Sha256,
}

/// Publishes a folder as the next version; what is ready in the end.
pub async fn publish(api: &Api, args: &PublishArgs) -> anyhow::Result<Value> {
    let local = read_folder(&args.folder).await?;
    for sample in &args.samples {
        if !local.keys().any(|path| path.as_str() == sample) {
            bail!("the folder has no {sample} to be a sample");
        }
    }
    let versions = format!("/v1/datasets/{}/versions", args.dataset);
    let path = if let Some(version) = submitted(api, &versions, args, &local).await? {
        format!("{versions}/{}", text(&version, "id")?)
    } else {
        let version = draft(api, &versions, args).await?;
        let path = format!("{versions}/{}", text(&version, "id")?);
        let files = announce(api, &path, &local, &args.samples).await?;
        upload(api, &path, &local, &files).await?;
        path
    };
    let version = wait(api, &path).await?;
    check(api, &path, &version, &local).await?;
    Ok(version)
}

/// The version of the same files that a run before this one handed over, and that is being checked.
async fn submitted(
    api: &Api,
    versions: &str,
    args: &PublishArgs,
    local: &BTreeMap<FilePath, Local>,
) -> anyhow::Result<Option<Value>> {
    if args.new {
        return Ok(None);
    }
    let found = all(api, versions).await?;
    for version in found.into_iter().filter(|it| it["state"] == "checking") {
        let path = format!("{versions}/{}", text(&version, "id")?);
        let files = all(api, &format!("{path}/files")).await?;
        let mut is_same = files.len() == local.len();
        for file in &files {
            let path = text(file, "path")?.parse::<FilePath>()?;
            is_same &= is_known(file, local.get(&path), is_sample(&path, &args.samples));
        }
        if is_same {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

fn is_sample(path: &FilePath, samples: &[String]) -> bool {
    samples.iter().any(|it| it == path.as_str())
}

/// Is a file of the service this one of the folder?
fn is_known(file: &Value, local: Option<&Local>, is_sample: bool) -> bool {
    local.is_some_and(|it| {
        file["sha256"] == json!(it.sha256)
            && file["bytes"] == it.bytes
            && file["is_sample"] == is_sample
    })
}

/// The draft that a run before this one began, or a new one.
async fn draft(api: &Api, versions: &str, args: &PublishArgs) -> anyhow::Result<Value> {
    if !args.new {
        let found = all(api, versions).await?;
        if let Some(draft) = found.into_iter().find(|it| it["state"] == "draft") {
            return Ok(draft);
        }
    }
    let body = json!({ "notes": args.notes });
    Ok(api.create(versions, &idempotency_key(), &body).await?)
}

async fn read_folder(folder: &Path) -> anyhow::Result<BTreeMap<FilePath, Local>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries =
            std::fs::read_dir(&next).with_context(|| format!("read {}", next.display()))?;
        for entry in entries {
            let entry = entry?;
            let (kind, file) = (entry.file_type()?, entry.path());
            if kind.is_dir() {
                folders.push(file);
            } else if kind.is_file() {
                let name = file.strip_prefix(folder).unwrap_or(&file);
                let name = name
                    .to_str()
                    .with_context(|| format!("{} is not UTF-8", file.display()))?;
                let path = name
                    .parse::<FilePath>()
                    .with_context(|| format!("publish {name}"))?;
                found.insert(path, (entry.metadata()?.len(), file));
            } else {
                bail!("{} is neither a file nor a folder", file.display());
            }
        }
    }
    if found.is_empty() {
        bail!("{} has no files", folder.display());
    }
    let bar = output::bar(
        found.values().map(|(bytes, _)| bytes).sum(),
        "reading",
        output::BYTES,
    );
    let mut local = BTreeMap::new();
    for (path, (bytes, file)) in found {
        if bytes == 0 {
            bail!(
                "{} is empty, and a dataset has no empty files",
                file.display()
            );
        }
        let sha256 = digest_of(&file).await?;
        bar.inc(bytes);
        local.insert(
            path,
            Local {
                file,
                bytes,
                sha256,
            },
        );
    }
    bar.finish_and_clear();
    Ok(local)
}

/// Tells the service of files that it does not know yet, and takes others back; all as it knows them then.
async fn announce(
    api: &Api,
    version: &str,
    local: &BTreeMap<FilePath, Local>,
    samples: &[String],
) -> anyhow::Result<Vec<Value>> {
    let files = format!("{version}/files");
    let mut known = Vec::new();
    for file in all(api, &files).await? {
        let path = text(&file, "path")?.parse::<FilePath>()?;
        if is_known(&file, local.get(&path), is_sample(&path, samples)) {
            known.push(file);
        } else {
            let path = format!("{files}/{}", text(&file, "id")?);
            patiently(api, &api.request(Method::DELETE, &path)).await?;
        }
    }
    let names: BTreeSet<_> = known
        .iter()
        .filter_map(|it| it["path"].as_str().map(str::to_owned))
        .collect();
    let new: Vec<Value> = local
        .iter()
        .filter(|(path, _)| !names.contains(path.as_str()))
        .map(|(path, it)| json!({ "path": path, "bytes": it.bytes, "sha256": it.sha256, "is_sample": is_sample(path, samples) }))
        .collect();
    for some in new.chunks(ANNOUNCED_MAX) {
        let body = json!({ "files": some });
        let mut made = api.create(&files, &idempotency_key(), &body).await?;
        if let Some(data) = made["data"].as_array_mut() {
            known.append(data);
        }
    }
    Ok(known)
}

/// Sends the parts that are missing.
async fn upload(
    api: &Api,
    version: &str,
    local: &BTreeMap<FilePath, Local>,
    files: &[Value],
) -> anyhow::Result<()> {
    let bar = output::bar(
        local.values().map(|it| it.bytes).sum(),
        "uploading",
        output::BYTES,
    );
    for file in files {
        let path = text(file, "path")?.parse::<FilePath>()?;
        let from = local.get(&path).context("a file that nobody announced")?;
        let place = format!("{version}/files/{}", text(file, "id")?);
        let part_bytes = file["part_bytes"]
            .as_u64()
            .and_then(|it| u32::try_from(it).ok());
        let part_bytes = part_bytes.context("the service told no `part_bytes`")?;
        if file["parts_stored"] == file["parts"] {
            bar.inc(from.bytes);
            continue;
        }
        let found = patiently(api, &api.request(Method::GET, &place)).await?;
        let found: Value = found.json().await?;
        let missing: Vec<u32> = serde_json::from_value(found["missing_parts"].clone())?;
        let length = |part: &u32| part_length(from.bytes, part_bytes, *part).unwrap_or_default();
        bar.inc(from.bytes.saturating_sub(missing.iter().map(length).sum()));
        stream::iter(missing.into_iter().map(Ok::<u32, anyhow::Error>))
            .try_for_each_concurrent(PARTS_AT_ONCE, |part| {
                let to = format!("{place}/parts/{part}");
                let start = u64::from(part) * u64::from(part_bytes);
                let range = (start, length(&part));
                let (bar, file) = (bar.clone(), from.file.clone());
                async move { send(api, &to, &file, range, bar).await }
            })
            .await
            .with_context(|| {
                format!("upload {path}; the same command goes on where this one ended")
            })?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Sends a part, and again where the service asks to wait, or a session has to be renewed: a stream is sent once, so whoever sends it does.
async fn send(
    api: &Api,
    to: &str,
    from: &Path,
    range: (u64, u64),
    bar: ProgressBar,
) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        let at = Arc::new(AtomicU64::new(0));
        match put(api, to, from, range, (bar.clone(), Arc::clone(&at))).await? {
            Err(ApiError::Problem { status: 429, .. }) if tries < WAITS_MAX => {
                tokio::time::sleep(WAIT).await;
            }
            Err(ApiError::Problem { status: 401, .. }) if tries == 0 => {
                // Everything but a stream renews it.
                api.get("/v1/account").await?;
            }
            sent => {
                sent?;
                return Ok(());
            }
        }
        bar.dec(at.load(Ordering::Relaxed));
        tries += 1;
    }
}

async fn put(
    api: &Api,
    to: &str,
    from: &Path,
    (start, length): (u64, u64),
    (bar, sent): (ProgressBar, Arc<AtomicU64>),
) -> anyhow::Result<Result<(), ApiError>> {
    let mut file = File::open(from).await?;
    file.seek(SeekFrom::Start(start)).await?;
    let body = ReaderStream::with_capacity(file.take(length), CHUNK).inspect_ok(move |chunk| {
        bar.inc(chunk.len() as u64);
        sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    });
    let request = api
        .request(Method::PUT, to)
        .header(header::CONTENT_LENGTH, length)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(Body::wrap_stream(body.boxed()));
    Ok(api.send(request).await.map(drop))
}

/// Submits the version, and waits until its files are checked.
async fn wait(api: &Api, version: &str) -> anyhow::Result<Value> {
    let spinner = output::spinner("the service checks the files");
    let mut now = api.post(&format!("{version}/publish"), &json!({})).await?;
    while now["state"] == "checking" {
        tokio::time::sleep(ASK_EVERY).await;
        now = api.get(version).await?;
    }
    spinner.finish_and_clear();
    if now["state"] == "ready" {
        return Ok(now);
    }
    let refusals = now["refusals"].as_array().into_iter().flatten();
    let reasons: Vec<_> = refusals
        .filter_map(|it| {
            Some(format!(
                "{}: {}",
                it["path"].as_str()?,
                it["reason"].as_str()?
            ))
        })
        .collect();
    Err(coded(
        Exit::Refused,
        format!("the version is {}: {}", now["state"], reasons.join("; ")),
    ))
}

/// What is published is what is in the folder.
async fn check(
    api: &Api,
    path: &str,
    version: &Value,
    local: &BTreeMap<FilePath, Local>,
) -> anyhow::Result<()> {
    let manifest = api.get(&format!("{path}/manifest")).await?;
    let files: Vec<ManifestFile> = serde_json::from_value(manifest["files"].clone())?;
    let is_same = |it: &ManifestFile| {
        local
            .get(&it.path)
            .is_some_and(|own| own.sha256 == it.sha256 && own.bytes == it.bytes)
    };
    let is_whole = files.len() == local.len() && files.iter().all(is_same);
    if is_whole && version["manifest_root"] == root(&files).to_string() {
        return Ok(());
    }
    Err(coded(
        Exit::NotVerified,
        "what the service published is not what is in the folder".to_owned(),
    ))
}
