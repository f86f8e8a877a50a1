//! Calls of models on their way to workers and back: from API processes through the relay, to workers on the streams that they keep open.
//!
//! Nothing of it is stored. A worker that goes away, or this process, loses the calls that it had; whoever asked is told, or notices, and
//! asks elsewhere.

mod connections;
mod orders;

use std::{sync::Arc, time::Duration};

use comptoir_domain::id::{AccountId, ModelVersionId, WorkerId};
use comptoir_store::relay::{Inbox, Relay};
use comptoir_wire::calls::{self, Announcement, Answer, FaultCause, FromWorker, Returned, Routed};
use serde_bytes::ByteBuf;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use connections::{Connection, Frames};
pub(crate) use orders::Ticket;

use self::{
    connections::{Connections, Outstanding, Placed},
    orders::Orders,
};
use crate::{
    SchedulerState,
    metrics::{CALL_WORKERS, CALLS_REFUSED, CALLS_WAITING},
};

/// How often it is said who is connected when nothing changes.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(calls::ANNOUNCE_EVERY_MS as u64);
/// Changes that come this close together are said together.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(10);

/// The calls of one scheduler; cheap to clone.
#[derive(Debug, Clone)]
pub struct Calls {
    relay: Relay,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// This process, as API processes know it.
    id: Uuid,
    connections: Connections,
    orders: Orders,
    changed: Notify,
}

impl Calls {
    /// Calls that come through the relay.
    #[must_use]
    pub fn new(relay: Relay) -> Self {
        let inner = Inner {
            id: Uuid::new_v4(),
            connections: Connections::default(),
            orders: Orders::default(),
            changed: Notify::new(),
        };
        Self {
            relay,
            inner: Arc::new(inner),
        }
    }

    /// Passes calls on and says who is connected, until the service closes.
    pub async fn run(state: SchedulerState) {
        let (this, closing) = (state.calls.clone(), state.closing.clone());
        let inbox = this.relay.listen(&[&calls::mailbox(this.inner.id)]);
        let hearing = tokio::spawn(this.clone().hear(state, inbox));
        this.announce(&closing).await;
        hearing.abort();
    }

    async fn hear(self, state: SchedulerState, mut inbox: Inbox) {
        while let Some(message) = inbox.next().await {
            for frame in message.frames {
                match calls::frame(&frame) {
                    Ok(Routed::Call {
                        worker,
                        version,
                        call,
                        reply_to,
                        body,
                    }) => {
                        let asked = Asked {
                            worker: WorkerId(worker),
                            version,
                            call,
                            reply_to,
                            body,
                        };
                        self.pass_on(&state, asked);
                    }
                    Ok(Routed::Cancel { call }) => self.inner.connections.cancel(call),
                    Err(error) => tracing::error!(%error, "an API process says what is no frame"),
                }
            }
        }
    }

    /// Gives a call to its worker, behind the order that says how the version is hosted.
    fn pass_on(&self, state: &SchedulerState, asked: Asked) {
        match self.place(state, asked) {
            Placed::Sent => {}
            Placed::Refused(asked, cause) => self.refuse(&asked, cause),
            // Looked up once; calls that come meanwhile look it up too, and find it.
            Placed::Unordered(asked) => {
                let (calls, state) = (self.clone(), state.clone());
                tokio::spawn(async move {
                    let version = ModelVersionId(asked.version);
                    match calls.inner.orders.look_up(&state.db, version).await {
                        Ok(()) => match calls.place(&state, asked) {
                            Placed::Sent => {}
                            Placed::Refused(asked, cause) => calls.refuse(&asked, cause),
                            Placed::Unordered(asked) => calls.refuse(&asked, FaultCause::Version),
                        },
                        Err(error) => {
                            let error = &error as &dyn std::error::Error;
                            tracing::error!(error, %version, "how a version is hosted is not known");
                            calls.refuse(&asked, FaultCause::Lost);
                        }
                    }
                });
            }
        }
    }

    fn place(&self, state: &SchedulerState, asked: Asked) -> Placed {
        let (worker, version) = (asked.worker, ModelVersionId(asked.version));
        self.inner.connections.place(asked, || {
            let ticket = Ticket { worker, version };
            self.inner
                .orders
                .with(version, || ticket.sign(&state.keys, state.now()))
        })
    }

    fn refuse(&self, asked: &Asked, cause: FaultCause) {
        metrics::counter!(CALLS_REFUSED).increment(1);
        let to = Outstanding {
            reply_to: asked.reply_to,
            call: asked.call,
        };
        self.give_back(&to, true, calls::encode(&Answer::fault(cause, "")).into());
    }

    fn give_back(&self, to: &Outstanding, is_last: bool, answer: ByteBuf) {
        let returned = Returned {
            call: to.call,
            is_last,
            answer,
        };
        let mailbox = Arc::from(calls::mailbox(to.reply_to));
        if let Err(error) = self.relay.send(&mailbox, calls::encode(&returned).into()) {
            tracing::debug!(%error, call = %to.call, "an answer is lost");
        }
    }

    /// A worker has opened its stream. An older one of the same worker ends.
    pub(crate) fn connect(&self, worker: WorkerId, owner: AccountId) -> (Connection, Frames) {
        let (connection, frames, replaced) = self.inner.connections.open(worker, owner);
        self.lose(&replaced, worker);
        self.changed();
        (connection, frames)
    }

    /// The stream has ended: nothing that it had not answered will be.
    pub(crate) fn disconnect(&self, connection: &Connection) {
        let lost = self.inner.connections.close(connection);
        self.lose(&lost, connection.worker);
        self.changed();
    }

    fn lose(&self, lost: &[Outstanding], worker: WorkerId) {
        if !lost.is_empty() {
            tracing::info!(%worker, calls = lost.len(), "a worker went away with calls that it had not answered");
        }
        let answer = calls::encode(&Answer::fault(FaultCause::Lost, "the worker went away"));
        for to in lost {
            self.give_back(to, true, answer.clone().into());
        }
    }

    /// What a worker says.
    pub(crate) fn take(&self, connection: &Connection, frame: FromWorker) {
        match frame {
            FromWorker::Hosting(hosting) => {
                self.inner.connections.note(connection, hosting);
                self.changed();
            }
            FromWorker::Answer {
                call,
                is_last,
                answer,
            } => {
                // One that nobody asked this worker for, or not any more, is dropped.
                if let Some(to) = self.inner.connections.answered(connection, call, is_last) {
                    self.give_back(&to, is_last, answer);
                }
            }
        }
    }

    fn changed(&self) {
        metrics::gauge!(CALL_WORKERS)
            .set(u32::try_from(self.inner.connections.len()).unwrap_or(u32::MAX));
        self.inner.changed.notify_one();
    }

    async fn announce(&self, closing: &CancellationToken) {
        let mailbox: Arc<str> = Arc::from(calls::ANNOUNCEMENTS);
        loop {
            let (workers, waiting) = self.inner.connections.announced();
            metrics::gauge!(CALLS_WAITING).set(waiting);
            let is_last = closing.is_cancelled();
            let workers = if is_last { Vec::new() } else { workers };
            let announcement = Announcement {
                scheduler: self.inner.id,
                workers,
            };
            // Nobody may hear it, or Redis may be away: it is said again.
            self.relay
                .send(&mailbox, calls::encode(&announcement).into())
                .ok();
            if is_last {
                return;
            }
            tokio::select! {
                () = closing.cancelled() => {}
                () = tokio::time::sleep(ANNOUNCE_EVERY) => {}
                () = self.inner.changed.notified() => tokio::time::sleep(ANNOUNCE_AFTER).await,
            }
        }
    }
}

/// A call that is to be passed on.
#[derive(Debug)]
struct Asked {
    worker: WorkerId,
    version: Uuid,
    call: Uuid,
    reply_to: Uuid,
    body: ByteBuf,
}
