//! A private Redis. It may be stopped or emptied at any moment, so nothing of it is kept on disk.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comptoir_devchain::find_program;
use nix::sys::signal::Signal;
use tokio::process::Command;

use super::process::{Process, free_port, loopback};

/// Where `redis-server` is.
///
/// # Errors
/// When Redis is not installed; says what to install.
pub fn find() -> anyhow::Result<PathBuf> {
    find_program("redis-server", &[])
        .context("Redis is missing: install it with `apt-get install redis-server`")
}

/// Starts it on a free port.
pub(super) async fn start(folder: &Path) -> anyhow::Result<(Process, String)> {
    let port = free_port()?;
    let password = crate::secret::read_or_create(&folder.join("redis.password"))?;
    let settings = folder.join("redis.conf");
    // The password goes by file: arguments are visible to every user of the machine.
    crate::secret::write(&settings, &format!("requirepass {password}\n"))?;
    let mut command = Command::new(find()?);
    command
        .current_dir(folder)
        .arg(&settings)
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--maxmemory", "128mb", "--port", &port.to_string()]);
    let mut process = Process::spawn("Redis", command, Signal::SIGTERM, folder)?;
    process.wait_for_port(loopback(port)).await?;
    Ok((process, format!("redis://:{password}@127.0.0.1:{port}")))
}
