//! Hosting: keeps a connection to the scheduler, loads versions of models when they are called, and answers.
//!
//! One task has the connection; each version that is loaded has a keeper of its own. They share a table of versions and calls, and an
//! outbox. A connection that ends takes its calls with it, since whoever waited there is told by the scheduler's neighbours; versions stay
//! loaded.

mod keeper;
mod outbox;
mod socket;
mod table;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use comptoir_wire::calls::{self, FromWorker, Malformed, ToWorker};
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::tungstenite::{self, Bytes, Message};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    outbox::Outbox,
    socket::Socket,
    table::{Table, Taken},
};
use super::{
    attempt::Workshop,
    backoff::Backoff,
    run::{BARRED_AGAIN, STOP_GRACE},
};

/// How often the other side is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(10);
/// A side that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long children may take to end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What a worker hosts.
#[derive(Debug)]
pub struct Hosting {
    workshop: Arc<Workshop>,
    scratch: PathBuf,
    table: Mutex<Table>,
    outbox: Outbox,
    keepers: TaskTracker,
    /// Children that end and are not gone yet: their memory is not free.
    ending: watch::Sender<usize>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the server closed it")]
    Closed,
    #[error("the server fell silent")]
    Silent,
    #[error("the server sent what is no frame: {0}")]
    Malformed(#[from] Malformed),
    #[error("the server asked for what no worker does: {0}")]
    Refused(&'static str),
    #[error("{0}")]
    Broken(#[from] tungstenite::Error),
}

impl Hosting {
    /// Hosts with so much memory. Nothing happens before `run`.
    #[must_use]
    pub fn new(workshop: Arc<Workshop>, scratch: PathBuf, memory_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            workshop,
            scratch,
            table: Mutex::new(Table::new(memory_bytes)),
            outbox: Outbox::default(),
            keepers: TaskTracker::new(),
            ending: watch::Sender::new(0),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hosts until `stop` is cancelled, and what is computed then is answered.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        self.connect_until_stopped(&stop).await;
        self.table().put_all_away();
        self.keepers.close();
        if timeout(LAST_WORDS, self.keepers.wait()).await.is_err() {
            tracing::warn!("a child that hosts does not end; it ends with this process");
        }
    }

    async fn connect_until_stopped(self: &Arc<Self>, stop: &CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let connected = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                connected = socket::connect(&self.workshop.client) => connected,
            };
            let mut pause = None;
            match connected {
                Ok(socket) => {
                    tracing::info!("connected for calls of models");
                    let since = Instant::now();
                    let ended = self.converse(socket, stop).await;
                    self.disconnect();
                    match ended {
                        Ok(()) => return,
                        Err(why) => {
                            tracing::warn!(%why, "the connection for calls of models is lost");
                        }
                    }
                    if since.elapsed() > SILENCE_MAX {
                        backoff.reset();
                    }
                }
                // The loop that asks for jobs hears the same, and ends the worker.
                Err(error) if error.is_final() => return,
                Err(error) => {
                    pause = error.is_barred().then_some(BARRED_AGAIN);
                    tracing::warn!(%error, "connecting for calls of models failed");
                }
            }
            let pause = pause.unwrap_or_else(|| backoff.pause());
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes calls and answers them, until the connection ends or everything is said.
    async fn converse(
        self: &Arc<Self>,
        socket: Socket,
        stop: &CancellationToken,
    ) -> Result<(), Lost> {
        self.outbox.open();
        let (sink, stream) = socket.split();
        let grace_is_over = async {
            stop.cancelled().await;
            self.table().close();
            self.outbox.tell_hosting();
            sleep(STOP_GRACE).await;
            tracing::warn!("some calls are not answered before the worker ends");
        };
        tokio::select! {
            lost = self.read(stream) => Err(lost),
            ended = self.write(sink, stop) => ended,
            () = grace_is_over => Ok(()),
        }
    }

    /// Takes what comes; why nothing more does.
    async fn read(
        self: &Arc<Self>,
        mut stream: impl Stream<Item = tungstenite::Result<Message>> + Unpin,
    ) -> Lost {
        loop {
            let taken = match timeout(SILENCE_MAX, stream.next()).await {
                Err(_) => return Lost::Silent,
                Ok(None | Some(Ok(Message::Close(_)))) => return Lost::Closed,
                Ok(Some(Err(error))) => return error.into(),
                Ok(Some(Ok(Message::Binary(bytes)))) => self.take(&bytes),
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => Ok(()),
                Ok(Some(Ok(Message::Text(_) | Message::Frame(_)))) => {
                    Err(Lost::Refused("a message of another kind"))
                }
            };
            if let Err(lost) = taken {
                return lost;
            }
        }
    }

    /// Sends what is to be sent; ends where the worker stops and nothing is left.
    async fn write(
        &self,
        mut sink: impl Sink<Message, Error = tungstenite::Error> + Unpin,
        stop: &CancellationToken,
    ) -> Result<(), Lost> {
        let mut ping = interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let frames = if self.outbox.takes_hosting() {
                vec![FromWorker::Hosting(self.table().hosting())]
            } else {
                self.outbox.take()
            };
            let message = if frames.is_empty() {
                if stop.is_cancelled() && self.table().is_silent() {
                    timeout(SILENCE_MAX, sink.close()).await.ok();
                    return Ok(());
                }
                tokio::select! {
                    () = self.outbox.filled() => continue,
                    _ = ping.tick() => Message::Ping(Bytes::new()),
                }
            } else {
                Message::Binary(calls::pack(&frames).into())
            };
            let sent = timeout(SILENCE_MAX, sink.send(message)).await;
            sent.map_err(|_| Lost::Silent)??;
        }
    }

    /// Takes the frames of one message, up to one that is none.
    fn take(self: &Arc<Self>, message: &[u8]) -> Result<(), Lost> {
        let now = Instant::now();
        let (mut woken, mut starts) = (Vec::new(), Vec::new());
        let mut table = self.table();
        let mut frames = calls::unpack::<ToWorker>(message)?.into_iter();
        let taken = frames.try_for_each(|frame| {
            match frame {
                ToWorker::Host(order) => table.host(*order).map_err(Lost::Refused)?,
                ToWorker::Cancel(call) => {
                    woken.extend(table.cancel(call));
                    // A worker that stops may have nothing more to answer.
                    self.outbox.poke();
                }
                ToWorker::Call(call) => {
                    let heading = calls::heading(&call)?;
                    match table.call(&heading, call, now) {
                        Taken::Queued(keeper) => woken.push(keeper),
                        Taken::Start(start) => {
                            // Counted before any of them can end.
                            let evicted = start.evicted.len();
                            self.ending.send_modify(|ending| *ending += evicted);
                            starts.push(start);
                        }
                        Taken::Refused(fault) => self.outbox.add_fault([heading.id], &fault),
                    }
                }
            }
            Ok(())
        });
        drop(table);
        // Only now: what came together is sent on together.
        for keeper in woken {
            keeper.wake.notify_one();
        }
        for start in starts {
            for version in &start.evicted {
                tracing::info!(%version, "a version of a model makes room");
            }
            self.outbox.tell_hosting();
            self.keepers.spawn(Arc::clone(self).keep(*start));
        }
        taken
    }

    fn disconnect(&self) {
        for keeper in self.table().disconnect(Instant::now()) {
            keeper.wake.notify_one();
        }
        self.outbox.open();
    }
}
