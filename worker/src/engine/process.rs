//! What jobs and hosts have in common: a child as a process of this machine, that is watched and ended.

use std::{io, os::unix::process::ExitStatusExt, path::Path, process::ExitStatus, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Child,
};

use super::failure::{Code, Failure};

/// How long a cancelled child may take to end by itself, and one that fell silent.
pub const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked how full the scratch folder is, and how large the child.
pub(super) const WATCH_EVERY: Duration = Duration::from_millis(500);
/// What is kept of a child's standard error.
const STDERR_BYTES_MAX: usize = 4_096;

/// The group of processes that a child leads.
pub(super) fn group(child: &Child) -> Option<Pid> {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    id.map(Pid::from_raw)
}

/// Bytes of the files of a folder. A child cannot make folders in it.
pub(super) fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let files = entries.filter_map(|entry| entry.ok()?.metadata().ok());
    files.map(|file| file.len()).fold(0, u64::saturating_add)
}

pub(super) fn kill_group(group: Option<Pid>) {
    if let Some(group) = group {
        // An empty group is what is wanted, and an error.
        killpg(group, Signal::SIGKILL).ok();
    }
}

pub(super) async fn end(child: &mut Child, group: Option<Pid>) -> io::Result<ExitStatus> {
    kill_group(group);
    child.start_kill().ok();
    child.wait().await
}

/// The end of what a child says on standard error.
pub(super) async fn read_tail(mut from: impl AsyncRead + Unpin) -> String {
    let (mut tail, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..read]);
        let over = tail.len().saturating_sub(STDERR_BYTES_MAX);
        tail.drain(..over);
    }
    String::from_utf8_lossy(&tail).into_owned()
}

/// Why a child ended without a last event.
pub(super) fn autopsy(status: io::Result<ExitStatus>, said: &str) -> Failure {
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return Failure::new(Code::Machine, format_args!("wait for the child: {error}"));
        }
    };
    let is_memory = ["memory allocation of", "bad_alloc"]
        .iter()
        .any(|sign| said.contains(sign));
    let signal = status
        .signal()
        .and_then(|number| Signal::try_from(number).ok());
    let code = match signal {
        Some(Signal::SIGXCPU) => Code::TimeLimit,
        // Nobody here sends it to a child that still works: the kernel does when the machine's memory is full.
        Some(Signal::SIGKILL) => Code::OutOfMemory,
        _ if is_memory => Code::OutOfMemory,
        _ => Code::Crashed,
    };
    let last_words = said
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing");
    Failure::new(
        code,
        format_args!("the child ended with {status}: {last_words}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_child_says_who_answers() {
        let code = |raw, said: &str| autopsy(Ok(ExitStatus::from_raw(raw)), said).code;
        assert_eq!(code(Signal::SIGXCPU as i32, ""), Code::TimeLimit);
        assert_eq!(code(Signal::SIGKILL as i32, ""), Code::OutOfMemory);
        assert_eq!(
            code(
                Signal::SIGABRT as i32,
                "memory allocation of 8 bytes failed"
            ),
            Code::OutOfMemory
        );
        assert_eq!(code(Signal::SIGSEGV as i32, ""), Code::Crashed);
        assert_eq!(code(256, "thread 'main' panicked"), Code::Crashed);
    }
}
