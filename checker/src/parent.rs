//! The parent's side: starts a child, gives it the bytes it asks for, and hears its verdict.

use std::{error::Error as StdError, io, path::PathBuf, process::Stdio, time::Duration};

use bytes::Bytes;
use comptoir_domain::{
    dataset::{Facts, Format},
    job::Device,
};
use comptoir_sandbox::{Sandbox, Unsandboxed, limits::Limits};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    child::Found,
    message::{HEAD_BYTES, Said},
};

/// Memory of a child, beyond what it takes to start.
const MEMORY_BYTES: u64 = 512 << 20;
/// Time that every file may take, and beside it a second for so many bytes.
const TIME_LEAST: Duration = Duration::from_mins(2);
const BYTES_PER_SECOND: u64 = 4 << 20;
/// Time that a child has to end after it said what it found.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 500;

/// How a file was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is what it says it is; `None` where nothing was looked for.
    Accepted(Option<Facts>),
    /// It is not, for this reason.
    Refused(String),
}

/// Why a file was not judged. It says nothing about the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A wall is missing on this machine.
    #[error("files are not checked here: a wall around whoever reads them is missing")]
    Unsandboxed(#[from] Unsandboxed),
    /// The child could not be started or talked to.
    #[error("run the child that checks a file")]
    Child(#[from] io::Error),
    /// The child says that it could not work. That is the machine's fault, or the file's, where it took the child over.
    #[error("the child could not work")]
    Failed,
    /// The bytes could not be read.
    #[error("read the file to check")]
    Source(#[source] Box<dyn StdError + Send + Sync>),
}

/// Checks files in children.
#[derive(Debug, Clone)]
pub struct Checker {
    executable: PathBuf,
    arguments: Vec<String>,
    sandbox: fn() -> Sandbox,
}

impl Checker {
    /// Children of this program, which takes these arguments before those of [`crate::child::CheckArgs`].
    #[must_use]
    pub fn new(executable: PathBuf, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
        Self {
            executable,
            arguments,
            sandbox: || Sandbox::detect(false),
        }
    }

    /// Behind these walls, whatever the machine offers.
    #[must_use]
    pub fn behind(self, sandbox: fn() -> Sandbox) -> Self {
        Self { sandbox, ..self }
    }

    /// Can files be checked on this machine at all?
    ///
    /// # Errors
    /// When a wall is missing.
    pub fn ready(&self) -> Result<(), Unsandboxed> {
        (self.sandbox)().check()
    }

    /// Reads a file of so many bytes as this format; `read` gives it ranges of bytes. Call it on a thread that lives as long as the runtime: the
    /// kernel ends a child with the thread that started it.
    ///
    /// # Errors
    /// When no child can be started, or the bytes cannot be read.
    pub async fn check<E: Into<Box<dyn StdError + Send + Sync>> + Send + 'static>(
        &self,
        format: Format,
        bytes: u64,
        read: impl Fn(u64, u32) -> BoxFuture<'static, Result<Bytes, E>> + Send,
    ) -> Result<Verdict, CheckError> {
        if format == Format::Other {
            return Ok(Verdict::Accepted(None));
        }
        let sandbox = (self.sandbox)();
        sandbox.check()?;
        let wall = TIME_LEAST.saturating_add(Duration::from_secs(bytes / BYTES_PER_SECOND));
        let scratch = tempfile::tempdir()?;
        let limits = Limits {
            memory_bytes: MEMORY_BYTES,
            wall,
            file_bytes: 0,
        };
        let mut child = Command::new(&self.executable)
            .args(&self.arguments)
            .args(limits.arguments(Device::Cpu, 1, scratch.path()))
            .args(sandbox.arguments())
            .arg(format!("--format={format}"))
            .arg(format!("--bytes={bytes}"))
            .env_clear()
            .current_dir(scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let verdict = match timeout(wall, converse(&mut child, bytes, read)).await {
            Ok(verdict) => verdict?,
            Err(_) => Some(Verdict::Refused(format!(
                "reading it takes more than {} s",
                wall.as_secs()
            ))),
        };
        let ended = timeout(END_WITHIN, child.wait()).await;
        if ended.is_err() {
            child.kill().await?;
        }
        if let Some(verdict) = verdict {
            return Ok(verdict);
        }
        match ended {
            Ok(Ok(status)) if status.code() == Some(1) => Err(CheckError::Failed),
            _ => Ok(Verdict::Refused(
                "reading it as its format ends the reader".to_owned(),
            )),
        }
    }
}

/// Gives a child what it asks for, until it says what it found; `None` where it ended, or said what makes no sense.
async fn converse<E: Into<Box<dyn StdError + Send + Sync>> + Send + 'static>(
    child: &mut Child,
    bytes: u64,
    read: impl Fn(u64, u32) -> BoxFuture<'static, Result<Bytes, E>> + Send,
) -> Result<Option<Verdict>, CheckError> {
    let (Some(mut to), Some(mut from)): (Option<ChildStdin>, Option<ChildStdout>) =
        (child.stdin.take(), child.stdout.take())
    else {
        return Err(io::Error::other("a child without pipes").into());
    };
    loop {
        let mut head = [0; HEAD_BYTES];
        if from.read_exact(&mut head).await.is_err() {
            return Ok(None);
        }
        match Said::read(head, bytes) {
            Some(Said::Read { at, count }) => {
                let piece = read(at, count).await;
                let piece = piece.map_err(|error| CheckError::Source(error.into()))?;
                if to.write_all(&piece).await.is_err() {
                    return Ok(None);
                }
            }
            Some(Said::Verdict { count }) => {
                let mut json = vec![0; count as usize];
                if from.read_exact(&mut json).await.is_err() {
                    return Ok(None);
                }
                return Ok(verdict(&json));
            }
            None => return Ok(None),
        }
    }
}

/// What a child says is believed no more than the file that it read.
fn verdict(json: &[u8]) -> Option<Verdict> {
    Some(match serde_json::from_slice(json).ok()? {
        Found::Facts(facts) => {
            facts.as_ref().map_or(Ok(()), Facts::check).ok()?;
            Verdict::Accepted(facts)
        }
        Found::Refused(reason) => {
            let kept = reason
                .chars()
                .map(|it| if it.is_control() { ' ' } else { it });
            Verdict::Refused(kept.take(REASON_CHARS_MAX).collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_was_taken_over_says_nothing_that_facts_may_not() {
        assert_eq!(verdict(b"{\"facts\":null}"), Some(Verdict::Accepted(None)));
        for bad in [
            &b"{}"[..],
            b"\xff",
            br#"{"facts":{"rows":1,"columns":[{"name":"","type":"x"}]}}"#,
        ] {
            assert_eq!(verdict(bad), None);
        }
        let long = format!("{{\"refused\":\"\\u0000{}\"}}", "x".repeat(10_000));
        let expected = format!(" {}", "x".repeat(REASON_CHARS_MAX - 1));
        assert_eq!(verdict(long.as_bytes()), Some(Verdict::Refused(expected)));
    }
}
