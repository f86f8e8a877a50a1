//! A job in its child process, seen from the worker: passes its events on, enforces its time, and ends it.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use nix::unistd::Pid;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    failure::{Code, Failure},
    limits::{self, LARGEST_FILES_MAX, Limits},
    message::{self, Description, Event, LENGTH_BYTES, MessageError, Order},
    process::{self, GRACE, WATCH_EVERY, autopsy, end, folder_bytes, kill_group, read_tail},
};

/// Events that wait for whoever reads them; then the child waits.
pub const EVENTS_MAX: usize = 64;
/// A running child. Dropping it ends the child.
#[derive(Debug)]
pub struct Job {
    events: mpsc::Receiver<Event>,
    cancel: CancellationToken,
}

impl Job {
    /// Takes over a child that was just started, and gives it its order. Within a runtime only.
    pub(super) fn supervise(
        mut child: Child,
        limits: Limits,
        description: Description,
        scratch: PathBuf,
    ) -> Self {
        let added = limits.file_bytes.saturating_mul(LARGEST_FILES_MAX);
        let scratch_bytes_max = folder_bytes(&scratch).saturating_add(added);
        let pipe = "the launcher asks for all three pipes";
        let stdin = child.stdin.take().expect(pipe);
        let messages = read_messages(child.stdout.take().expect(pipe));
        let stderr = tokio::spawn(read_tail(child.stderr.take().expect(pipe)));
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let cancel = CancellationToken::new();
        let supervisor = Supervisor {
            group: process::group(&child),
            child,
            stdin,
            messages,
            stderr,
            events,
            cancel: cancel.clone(),
            cancelling: false,
            deadline: Instant::now() + limits.wall,
            scratch,
            scratch_bytes_max,
            resident_bytes_max: limits.resident_bytes(description.device),
        };
        tokio::spawn(supervisor.run(description));
        Self {
            events: receiver,
            cancel,
        }
    }

    /// The next event. Exactly one event is the last (`Event::is_last`), whatever happens to the child; then `None`.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// A handle that cancels it from elsewhere: the child stops at its next step, or is ended after a moment.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(self.cancel.clone())
    }

    /// Its last event, all others let go.
    pub async fn last(mut self) -> Event {
        while let Some(event) = self.next().await {
            if event.is_last() {
                return event;
            }
        }
        Event::Failed(Failure::new(
            Code::Machine,
            "the runtime of the worker has ended",
        ))
    }
}

/// Cancels a job.
#[derive(Debug, Clone)]
pub struct Handle(CancellationToken);

impl Handle {
    /// Cancels it; more than once is once.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

struct Supervisor {
    child: Child,
    group: Option<Pid>,
    stdin: ChildStdin,
    messages: mpsc::Receiver<Result<Event, MessageError>>,
    stderr: JoinHandle<String>,
    events: mpsc::Sender<Event>,
    cancel: CancellationToken,
    cancelling: bool,
    deadline: Instant,
    scratch: PathBuf,
    scratch_bytes_max: u64,
    resident_bytes_max: u64,
}

impl Supervisor {
    async fn run(mut self, description: Description) {
        let started = self.order(&Order::Start(description)).await;
        let last = match started {
            Ok(()) => self.pass_on().await,
            // A child that does not read its order has ended; its exit says why.
            Err(MessageError::Pipe(_)) => None,
            Err(error) => Some(Event::Failed(Failure::new(Code::Protocol, error))),
        };
        let Self {
            mut child,
            group,
            stdin,
            events,
            stderr,
            ..
        } = self;
        if last.is_some() {
            // All it had to say and to write is there.
            kill_group(group);
        }
        let ended = timeout(GRACE, child.wait()).await;
        // Whatever it may have started ends with it, and it with its pipe.
        kill_group(group);
        drop(stdin);
        let last = match (last, ended) {
            (Some(last), _) => last,
            (None, Ok(status)) => {
                let said = timeout(GRACE, stderr)
                    .await
                    .ok()
                    .and_then(Result::ok)
                    .unwrap_or_default();
                Event::Failed(autopsy(status, &said))
            }
            (None, Err(_)) => Event::Failed(Failure::new(
                Code::Crashed,
                "the child fell silent and did not end",
            )),
        };
        // Nobody may be listening any more, and then nobody misses it.
        events.send(last).await.ok();
        // Reaped last, since a killed process ends soon but not at once.
        child.wait().await.ok();
    }

    /// Passes events on until the last one, which it returns; `None` if the child falls silent.
    async fn pass_on(&mut self) -> Option<Event> {
        let mut watch = tokio::time::interval(WATCH_EVERY);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.messages.recv() => match message? {
                    Ok(event) => match located(event, &self.scratch) {
                        Ok(event) if event.is_last() => return Some(event),
                        Ok(event) => {
                            // Room in the channel is waited for no longer than the job may take.
                            if timeout_at(self.deadline, self.events.send(event)).await.is_err() {
                                return Some(self.out_of_time().await);
                            }
                        }
                        Err(failure) => return Some(self.refuse(failure).await),
                    },
                    Err(MessageError::Pipe(_)) => return None,
                    Err(error) => return Some(self.refuse(Failure::new(Code::Protocol, error)).await),
                },
                () = self.cancel.cancelled(), if !self.cancelling => {
                    self.cancelling = true;
                    self.deadline = self.deadline.min(Instant::now() + GRACE);
                    if self.order(&Order::Cancel).await.is_err() {
                        return None;
                    }
                }
                () = self.events.closed() => return Some(self.refuse(Failure::new(Code::Machine, "nobody listens")).await),
                _ = watch.tick() => if let Some(failure) = self.excess() {
                    return Some(self.refuse(failure).await);
                },
                () = tokio::time::sleep_until(self.deadline) => return Some(self.out_of_time().await),
            }
        }
    }

    /// What the child has too much of.
    fn excess(&self) -> Option<Failure> {
        if folder_bytes(&self.scratch) > self.scratch_bytes_max {
            let reason = format!("its files passed {} bytes", self.scratch_bytes_max);
            return Some(Failure::new(Code::DiskLimit, reason));
        }
        let resident = limits::resident(self.group?)?;
        (resident > self.resident_bytes_max).then(|| {
            let reason = format!("its memory passed {} bytes", self.resident_bytes_max);
            Failure::new(Code::OutOfMemory, reason)
        })
    }

    async fn order(&mut self, order: &Order) -> Result<(), MessageError> {
        let frame = message::encode(order)?;
        self.stdin.write_all(&frame).await?;
        Ok(self.stdin.flush().await?)
    }

    async fn out_of_time(&mut self) -> Event {
        end(&mut self.child, self.group).await.ok();
        if self.cancelling {
            Event::Cancelled
        } else {
            Event::Failed(Failure::new(
                Code::TimeLimit,
                "the job took longer than its time limit",
            ))
        }
    }

    async fn refuse(&mut self, failure: Failure) -> Event {
        end(&mut self.child, self.group).await.ok();
        Event::Failed(failure)
    }
}

/// Reads messages in a task of its own: a half-read message must not be lost when something else happens.
fn read_messages(
    mut from: impl AsyncRead + Unpin + Send + 'static,
) -> mpsc::Receiver<Result<Event, MessageError>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let message = match read_message(&mut from).await {
                Ok(None) => return,
                Ok(Some(event)) => Ok(event),
                Err(error) => Err(error),
            };
            let is_end = message.is_err();
            if sender.send(message).await.is_err() || is_end {
                return;
            }
        }
    });
    receiver
}

async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Event>, MessageError> {
    let mut header = [0; LENGTH_BYTES];
    match from.read_exact(&mut header).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut body = vec![0; message::decode_length(header)?];
    from.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// The event with its files in the scratch folder. A child names plain files there and nothing else.
fn located(event: Event, scratch: &Path) -> Result<Event, Failure> {
    let locate = |path: &mut PathBuf| {
        let mut parts = path.components();
        let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else {
            return Err(Failure::new(
                Code::Protocol,
                "the child named a file outside of its folder",
            ));
        };
        let located = scratch.join(name);
        let is_file = std::fs::symlink_metadata(&located).is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            return Err(Failure::new(
                Code::Protocol,
                "the child named a file that is none",
            ));
        }
        *path = located;
        Ok(())
    };
    match event {
        Event::Segment(mut segment) => locate(&mut segment.path).map(|()| Event::Segment(segment)),
        Event::Done { mut outputs } => {
            outputs
                .iter_mut()
                .try_for_each(|output| locate(&mut output.path))?;
            Ok(Event::Done { outputs })
        }
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use comptoir_domain::digest::Sha256;

    use super::*;
    use crate::engine::message::Output;

    #[test]
    fn a_child_names_only_files_of_its_own_folder() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("weights"), b"").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("link")).unwrap();
        let named = |path: &str| {
            let output = Output {
                name: "weights".into(),
                path: path.into(),
                sha256: Sha256::of(b""),
                bytes: 0,
            };
            located(
                Event::Done {
                    outputs: vec![output],
                },
                scratch.path(),
            )
        };
        assert!(
            matches!(named("weights"), Ok(Event::Done { outputs }) if outputs[0].path.is_absolute())
        );
        for outside in ["/etc/passwd", "../x", "a/b", ".", "link", "absent"] {
            assert_eq!(
                named(outside).unwrap_err().code,
                Code::Protocol,
                "{outside}"
            );
        }
    }
}
