//! The guardian of a local node: a process of its own with its own key, as it would run on a machine of its own.

use std::{net::SocketAddr, path::Path};

use alloy::primitives::Address;
use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    audit::source::LeafSource,
    embedded::{Process, free_port, loopback},
    service::parts::Running,
};

/// Milliseconds between two looks: blocks come each second.
const POLL_MS: &str = "1000";
/// Of a window of 20 seconds, a machine that is busy has so many to publish a leaf file,
const UNAVAILABLE_AFTER_S: &str = "15";
/// and a batch that cannot be judged is acted upon in so many, the last ones.
const MARGIN_S: &str = "3";

/// Starts it; it ends when `stop` is cancelled, and cancels it when it ends by itself.
///
/// # Errors
/// When it does not come up.
pub async fn start(
    folder: &Path,
    (api, rpc): (&Url, &str),
    (contract, platform): (Address, Address),
    stop: CancellationToken,
) -> anyhow::Result<Running> {
    let metrics = loopback(free_port()?);
    let program = std::env::current_exe()?.with_file_name("comptoir");
    let mut command = Command::new(program);
    command
        .args(["guardian", "--rpc", rpc, "--poll-ms", POLL_MS])
        .args(["--contract", &contract.to_string()])
        .args(["--platform", &platform.to_string()])
        .args(["--leaves", &LeafSource::service(api).to_string()])
        .args(["--unavailable-after-s", UNAVAILABLE_AFTER_S])
        .args(["--margin-s", MARGIN_S])
        .args(["--metrics-listen", &metrics.to_string()])
        .arg("--keep")
        .arg(folder.join("leaves"))
        .arg("--key-file")
        .arg(folder.join("keys/guardian.key"));
    let mut process = Process::spawn("guardian", command, Signal::SIGTERM, folder)?;
    process.wait_for_port(metrics).await?;
    Ok(Running::spawn("guardian", metrics, async move {
        tokio::select! {
            () = stop.cancelled() => process.stop().await,
            ended = process.ended() => {
                stop.cancel();
                bail!("it ended by itself: {}", ended?);
            }
        }
    }))
}

/// What the guardian has found so far, by its own metrics: batches that are right, and batches that are not.
///
/// # Errors
/// When it does not answer.
pub async fn judged(metrics: SocketAddr) -> anyhow::Result<(u64, u64)> {
    let told = reqwest::get(format!("http://{metrics}/metrics")).await;
    let told = told.context("ask the guardian")?.text().await?;
    let count = |verdict: &str| {
        let label = format!("guardian_judged_batches_total{{verdict=\"{verdict}\"}} ");
        let line = told.lines().find_map(|line| line.strip_prefix(&label));
        line.map_or(Ok(0), |count| count.trim().parse())
    };
    Ok((count("right")?, count("false")?))
}
