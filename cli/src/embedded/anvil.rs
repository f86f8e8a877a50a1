//! A local chain that remembers: anvil, with its state in a file.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::process::Command;

use super::process::{Process, free_port, loopback};

/// EIP-155 id of the local chain.
pub const CHAIN_ID: u64 = 31_337;
/// A block each second, so that finality and windows pass without anybody sending transactions.
const BLOCK_TIME_S: &str = "1";

/// Where `anvil` is: `$ANVIL`, the packages of `contracts/`, or the PATH.
///
/// # Errors
/// When it is not installed; says what to run.
pub fn find() -> anyhow::Result<PathBuf> {
    comptoir_devchain::find()
        .context("anvil is missing: run `make setup`, or `npm install -g @foundry-rs/anvil`")
}

/// Starts it on a free port with its state under `folder`.
pub(super) async fn start(folder: &Path) -> anyhow::Result<(Process, String)> {
    let port = free_port()?;
    let program = std::path::absolute(find()?)?;
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .args([
            "--chain-id",
            &CHAIN_ID.to_string(),
            "--block-time",
            BLOCK_TIME_S,
        ])
        .arg("--state")
        .arg(folder.join("chain.json"))
        .args(["--state-interval", "5", "--quiet"]);
    let mut process = Process::spawn("anvil", command, Signal::SIGTERM, folder)?;
    process.wait_for_port(loopback(port)).await?;
    Ok((process, format!("http://127.0.0.1:{port}")))
}
