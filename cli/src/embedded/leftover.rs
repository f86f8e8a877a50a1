//! Children that outlived a killed parent: each is on record in a file `<name>.pid`, and the next parent stops it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::process::STOP_MAX;

/// Where a process with a number of its own has its start time among the fields of `/proc/<pid>/stat` that follow
/// the program's name.
const STARTED_FIELD: usize = 19;

/// One child, so that no other process can be taken for it: process ids are used again.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pid: i32,
    /// Clock ticks between the machine's start and the child's.
    started: u64,
    /// File name of its program, which its command line must contain.
    program: String,
    /// The signal that makes it shut down in order.
    stop_with: i32,
}

/// Where the child of that name is on record.
pub(super) fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{}.pid", name.to_lowercase()))
}

/// Puts a child on record that was just started.
pub(super) fn record(
    file: &Path,
    pid: u32,
    program: &Path,
    stop_with: Signal,
) -> anyhow::Result<()> {
    let pid = i32::try_from(pid)?;
    let record = Record {
        pid,
        started: started(pid).context("the child ended at once")?,
        program: program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        stop_with: stop_with as i32,
    };
    fs::write(file, serde_json::to_vec(&record)?)
        .with_context(|| format!("write {}", file.display()))
}

/// Stops every child on record that still runs. Only for the holder of the folder's lock.
pub(super) async fn stop_all(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        if file.extension().is_some_and(|it| it == "pid") {
            stop(&file)
                .await
                .with_context(|| format!("stop what an earlier run left: {}", file.display()))?;
        }
    }
    Ok(())
}

async fn stop(file: &Path) -> anyhow::Result<()> {
    // A file that is cut off, or not ours, names no child of ours.
    let Ok(record) = serde_json::from_slice::<Record>(&fs::read(file)?) else {
        return Ok(());
    };
    if record.runs() {
        tracing::warn!(pid = record.pid, program = %record.program, "stops what an earlier run left");
        record
            .signal(Signal::try_from(record.stop_with)?)
            .context("stop it")?;
        if !record.ends_within(STOP_MAX).await {
            record.signal(Signal::SIGKILL).context("kill it")?;
            if !record.ends_within(STOP_MAX).await {
                bail!("process {} does not end", record.pid);
            }
        }
    }
    fs::remove_file(file).context("remove the record")
}

impl Record {
    fn runs(&self) -> bool {
        let command = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        started(self.pid) == Some(self.started)
            && String::from_utf8_lossy(&command).contains(&self.program)
    }

    fn signal(&self, signal: Signal) -> nix::Result<()> {
        match kill(Pid::from_raw(self.pid), signal) {
            Err(Errno::ESRCH) => Ok(()),
            outcome => outcome,
        }
    }

    async fn ends_within(&self, limit: Duration) -> bool {
        let give_up = Instant::now() + limit;
        while self.runs() {
            if Instant::now() > give_up {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

/// When a process started; `None` where there is none, or only its exit status is left.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses, and may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if fields.clone().next() == Some("Z") {
        return None;
    }
    fields.nth(STARTED_FIELD)?.parse().ok()
}
