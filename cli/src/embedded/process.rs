//! One child process that answers on a port, and ends with us.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{folder, leftover};

/// How long a service may take until it answers.
const START_MAX: Duration = Duration::from_mins(1);
/// How long a service may take to stop before it is killed.
pub(super) const STOP_MAX: Duration = Duration::from_secs(20);

/// A running child.
pub struct Process {
    name: &'static str,
    child: Child,
    stop_with: Signal,
    log: PathBuf,
    /// Where it is on record while it runs.
    record: PathBuf,
}

impl Process {
    /// Starts `command`, its output going to a log in `folder`, where it is also on record while it runs.
    ///
    /// The child gets a process group of its own, so that a Ctrl-C in the terminal reaches us alone
    /// and we can stop things in order.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(
        name: &'static str,
        mut command: Command,
        stop_with: Signal,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let log = folder.join(format!("{}.log", name.to_lowercase()));
        let record = leftover::file(folder, name);
        let output =
            std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        if let Some(pid) = child.id() {
            let program = command.as_std().get_program();
            leftover::record(&record, pid, Path::new(program), stop_with)
                .with_context(|| format!("start {name}: see {}", log.display()))?;
        }
        Ok(Self {
            name,
            child,
            stop_with,
            log,
            record,
        })
    }

    /// What it is.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its process id; 0 once it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Waits until something listens on `address`.
    ///
    /// # Errors
    /// When the child ends first, or takes longer than a minute.
    pub async fn wait_for_port(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let give_up = Instant::now() + START_MAX;
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended with {status}: see {}",
                    self.name,
                    self.log.display()
                );
            }
            if Instant::now() > give_up {
                bail!(
                    "{} does not answer on {address}: see {}",
                    self.name,
                    self.log.display()
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until it ends by itself; says how, and where its log is.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn ended(&mut self) -> anyhow::Result<String> {
        let status = self.child.wait().await?;
        Ok(format!("{status}, see {}", self.log.display()))
    }

    /// Asks it to stop, and waits.
    ///
    /// # Errors
    /// When it had to be killed.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let Some(pid) = self.child.id() else {
            return Ok(());
        };
        kill(Pid::from_raw(i32::try_from(pid)?), self.stop_with)
            .with_context(|| format!("stop {}", self.name))?;
        if let Ok(status) = timeout(STOP_MAX, self.child.wait()).await {
            status.with_context(|| format!("wait for {}", self.name))?;
            return folder::remove(&self.record);
        }
        self.child
            .kill()
            .await
            .with_context(|| format!("kill {}", self.name))?;
        folder::remove(&self.record)?;
        bail!(
            "{} did not stop within {} s and was killed",
            self.name,
            STOP_MAX.as_secs()
        )
    }
}

/// A loopback port that was free a moment ago.
///
/// # Errors
/// When the machine has none.
pub fn free_port() -> anyhow::Result<u16> {
    let listener =
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// `address:port` on loopback.
#[must_use]
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
