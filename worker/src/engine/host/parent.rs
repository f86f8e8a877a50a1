//! A host seen from the worker: a child that is fed with calls, watched, and ended.

use comptoir_wire::calls;
use nix::unistd::Pid;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin},
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{FramesError, FromHost, ToHost, decode_length, encode};
use crate::engine::{
    failure::{Code, Failure},
    limits::{self, Limits},
    message::{self, Description, LENGTH_BYTES, Order},
    process::{GRACE, WATCH_EVERY, autopsy, end, group, kill_group, read_tail},
};

/// What a child that hosts may use beyond the memory of its version: for calls that wait, as they come, as they are read, and as they are
/// answered.
pub const SPARE_BYTES: u64 = 3 * (64 << 20);
/// Messages that wait for one side or the other.
const MESSAGES_MAX: usize = 2;

/// A child that hosts a version. Dropping it ends the child.
#[derive(Debug)]
pub struct Host {
    orders: mpsc::Sender<Vec<u8>>,
    events: mpsc::Receiver<Happened>,
    /// Ends it when it is dropped.
    alive: DropGuard,
}

/// What a host says.
#[derive(Debug)]
pub enum Happened {
    /// Frames, which came together.
    Said(Vec<FromHost>),
    /// It has ended, and is gone. The last event.
    Ended(Failure),
}

impl Host {
    /// What the child may use, calls that wait included.
    #[must_use]
    pub const fn limits(limits: Limits) -> Limits {
        Limits {
            memory_bytes: limits.memory_bytes.saturating_add(SPARE_BYTES),
            ..limits
        }
    }

    /// Takes over a child that was just started. Within a runtime only.
    pub(in crate::engine) fn supervise(
        mut child: Child,
        limits: Limits,
        description: Description,
    ) -> Self {
        let pipe = "the launcher asks for all three pipes";
        let stdin = child.stdin.take().expect(pipe);
        let said = read_frames(child.stdout.take().expect(pipe));
        let stderr = tokio::spawn(read_tail(child.stderr.take().expect(pipe)));
        let (orders, to_write) = mpsc::channel(MESSAGES_MAX);
        let (events, receiver) = mpsc::channel(MESSAGES_MAX);
        let ended = CancellationToken::new();
        let supervisor = Supervisor {
            group: group(&child),
            child,
            said,
            stderr,
            events,
            ended: ended.clone(),
            resident_bytes_max: limits.resident_bytes(description.device),
        };
        tokio::spawn(write_orders(stdin, description, to_write));
        tokio::spawn(supervisor.run());
        Self {
            orders,
            events: receiver,
            alive: ended.drop_guard(),
        }
    }

    /// Room for a message to it; none once it has ended.
    pub fn room(&self) -> impl Future<Output = Option<Room>> + use<> {
        let orders = self.orders.clone();
        async move { orders.reserve_owned().await.ok().map(Room) }
    }

    /// What happens next. `Happened::Ended` comes once, whatever happens to the child; then nothing.
    pub async fn next(&mut self) -> Option<Happened> {
        self.events.recv().await
    }

    /// Ends it, and waits until it is gone.
    pub async fn end(self) {
        let Self {
            mut events, alive, ..
        } = self;
        drop(alive);
        while let Some(happened) = events.recv().await {
            if matches!(happened, Happened::Ended(_)) {
                return;
            }
        }
    }
}

/// Room for one message.
#[derive(Debug)]
pub struct Room(mpsc::OwnedPermit<Vec<u8>>);

impl Room {
    /// Sends frames, as many as [`super::fitting`] says at most.
    pub fn send(self, frames: &[ToHost]) {
        self.0.send(encode(frames));
    }
}

struct Supervisor {
    child: Child,
    group: Option<Pid>,
    said: mpsc::Receiver<Result<Vec<FromHost>, FramesError>>,
    stderr: JoinHandle<String>,
    events: mpsc::Sender<Happened>,
    ended: CancellationToken,
    resident_bytes_max: u64,
}

impl Supervisor {
    async fn run(mut self) {
        let why = self.pass_on().await;
        if why.is_some() {
            kill_group(self.group);
        }
        let status = timeout(GRACE, self.child.wait()).await;
        let why = match (why, status) {
            (Some(why), _) => why,
            (None, Ok(status)) => {
                let said = timeout(GRACE, self.stderr).await;
                autopsy(status, &said.ok().and_then(Result::ok).unwrap_or_default())
            }
            (None, Err(_)) => Failure::new(Code::Crashed, "the child fell silent"),
        };
        // Whatever it may have started ends with it.
        end(&mut self.child, self.group).await.ok();
        // Nobody may be listening any more, and then nobody misses it.
        self.events.send(Happened::Ended(why)).await.ok();
    }

    /// Passes frames on until the child has to end, and why; nothing where it ends by itself.
    async fn pass_on(&mut self) -> Option<Failure> {
        let mut watch = interval(WATCH_EVERY);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = self.ended.clone();
        let is_unwanted = || Some(Failure::new(Code::Machine, "nobody needs it any more"));
        loop {
            tokio::select! {
                () = ended.cancelled() => return is_unwanted(),
                said = self.said.recv() => match said {
                    None | Some(Err(FramesError::Pipe(_))) => return None,
                    Some(Err(error)) => return Some(Failure::new(Code::Protocol, error)),
                    Some(Ok(mut frames)) => {
                        let failed = frames.iter().position(|it| matches!(it, FromHost::Failed(_)));
                        let last = failed.map(|at| frames.split_off(at).swap_remove(0));
                        tokio::select! {
                            () = ended.cancelled() => return is_unwanted(),
                            sent = self.events.send(Happened::Said(frames)) => if sent.is_err() {
                                return is_unwanted();
                            },
                        }
                        if let Some(FromHost::Failed(failure)) = last {
                            return Some(failure);
                        }
                    }
                },
                _ = watch.tick() => {
                    let resident = self.group.and_then(limits::resident);
                    if resident.is_some_and(|bytes| bytes > self.resident_bytes_max) {
                        let reason = format!("its memory passed {} bytes", self.resident_bytes_max);
                        return Some(Failure::new(Code::OutOfMemory, reason));
                    }
                }
            }
        }
    }
}

/// Gives the child its order, and then whatever comes. A child that reads no more has ended, or is ended by its supervisor.
async fn write_orders(
    mut stdin: ChildStdin,
    description: Description,
    mut messages: mpsc::Receiver<Vec<u8>>,
) {
    let order = message::encode(&Order::Start(description)).expect("an order to host is short");
    let mut next = Some(order);
    while let Some(message) = next {
        if stdin.write_all(&message).await.is_err() {
            return;
        }
        next = messages.recv().await;
    }
}

/// Reads frames in a task of its own: a half-read message must not be lost when something else happens.
fn read_frames(
    mut from: impl AsyncRead + Unpin + Send + 'static,
) -> mpsc::Receiver<Result<Vec<FromHost>, FramesError>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let frames = read_message(&mut from).await;
            let is_end = frames.is_err();
            if sender.send(frames).await.is_err() || is_end {
                return;
            }
        }
    });
    receiver
}

async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<FromHost>, FramesError> {
    let mut header = [0; LENGTH_BYTES];
    from.read_exact(&mut header).await?;
    let mut body = vec![0; decode_length(header)?];
    from.read_exact(&mut body).await?;
    Ok(calls::unpack(&body)?)
}
