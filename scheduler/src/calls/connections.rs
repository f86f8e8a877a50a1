//! The streams that workers keep open, and which calls wait for whose answer.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use comptoir_domain::id::{AccountId, WorkerId};
use comptoir_wire::calls::{Connected, FaultCause, HostOrder, Hosting, ToWorker};
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::Asked;

/// Calls that a worker has not answered yet, at most.
pub(crate) const WAITING_MAX: usize = 4_096;
/// Frames that wait to be written to one worker. Cancellations have room beside calls.
const FRAMES_MAX: usize = 2 * WAITING_MAX;
/// An order is said again after this time: well within the life of its ticket.
const ORDER_AGAIN: Duration = Duration::from_mins(20);

/// What is to be written to a worker; ends when its connection was replaced or closed.
pub(crate) type Frames = mpsc::Receiver<ToWorker>;

/// One stream of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection {
    pub worker: WorkerId,
    /// Tells it from older ones of the worker.
    number: u64,
}

/// A call that waits for its answer, and who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outstanding {
    pub call: Uuid,
    pub reply_to: Uuid,
}

/// What became of a call that is to be passed on.
#[derive(Debug)]
pub(super) enum Placed {
    /// It is on its way.
    Sent,
    /// The worker cannot have it.
    Refused(Asked, FaultCause),
    /// It is not known yet how its version is hosted.
    Unordered(Asked),
}

#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    opened: u64,
    workers: HashMap<WorkerId, Open>,
    calls: HashMap<Uuid, (Connection, Outstanding)>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    owner: AccountId,
    hosting: Hosting,
    frames: mpsc::Sender<ToWorker>,
    /// When it was said how each version is hosted.
    ordered: HashMap<Uuid, Instant>,
    waiting: usize,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Workers that are connected.
    pub(super) fn len(&self) -> usize {
        self.lock().workers.len()
    }

    /// Opens a stream; what an older one of the worker had not answered.
    pub(super) fn open(
        &self,
        worker: WorkerId,
        owner: AccountId,
    ) -> (Connection, Frames, Vec<Outstanding>) {
        let mut state = self.lock();
        state.opened += 1;
        let number = state.opened;
        let (frames, receiver) = mpsc::channel(FRAMES_MAX);
        let hosting = Hosting {
            memory_bytes: 0,
            loaded: Vec::new(),
        };
        let open = Open {
            number,
            owner,
            hosting,
            frames,
            ordered: HashMap::new(),
            waiting: 0,
        };
        let older = state.workers.insert(worker, open);
        let lost = older.map(|it| {
            state.forget(Connection {
                worker,
                number: it.number,
            })
        });
        (
            Connection { worker, number },
            receiver,
            lost.unwrap_or_default(),
        )
    }

    /// Closes a stream, unless a newer one took its place; what it had not answered.
    pub(super) fn close(&self, connection: &Connection) -> Vec<Outstanding> {
        let mut state = self.lock();
        if state.of(connection).is_some() {
            state.workers.remove(&connection.worker);
        }
        state.forget(*connection)
    }

    /// What the worker says that it hosts.
    pub(super) fn note(&self, connection: &Connection, hosting: Hosting) {
        if let Some(open) = self.lock().of(connection) {
            open.hosting = hosting;
        }
    }

    /// Sends a call to its worker, behind `order` where the worker has not been told lately.
    pub(super) fn place(&self, asked: Asked, order: impl FnOnce() -> Option<HostOrder>) -> Placed {
        let mut state = self.lock();
        let Some(open) = state.workers.get_mut(&asked.worker) else {
            return Placed::Refused(asked, FaultCause::Lost);
        };
        if open.waiting >= WAITING_MAX {
            return Placed::Refused(asked, FaultCause::Busy);
        }
        let told = open.ordered.get(&asked.version);
        if told.is_none_or(|at| at.elapsed() > ORDER_AGAIN) {
            let Some(order) = order() else {
                return Placed::Unordered(asked);
            };
            if open
                .frames
                .try_send(ToWorker::Host(Box::new(order)))
                .is_err()
            {
                return Placed::Refused(asked, FaultCause::Busy);
            }
            open.ordered.insert(asked.version, Instant::now());
        }
        let Asked {
            worker,
            call,
            reply_to,
            ..
        } = asked;
        if let Err(error) = open.frames.try_send(ToWorker::Call(asked.body)) {
            let (ToWorker::Call(body), cause) = (match error {
                mpsc::error::TrySendError::Full(it) => (it, FaultCause::Busy),
                mpsc::error::TrySendError::Closed(it) => (it, FaultCause::Lost),
            }) else {
                unreachable!("what comes back is what was sent");
            };
            return Placed::Refused(Asked { body, ..asked }, cause);
        }
        open.waiting += 1;
        let connection = Connection {
            worker,
            number: open.number,
        };
        state
            .calls
            .insert(call, (connection, Outstanding { call, reply_to }));
        Placed::Sent
    }

    /// Who waits for this answer of this worker; `None`: nobody, any more.
    pub(super) fn answered(
        &self,
        connection: &Connection,
        call: Uuid,
        is_last: bool,
    ) -> Option<Outstanding> {
        let mut state = self.lock();
        let (asked, outstanding) = *state.calls.get(&call)?;
        if asked != *connection {
            return None;
        }
        if is_last {
            state.end(call);
        }
        Some(outstanding)
    }

    /// Nobody waits for this call any more: its worker is told.
    pub(super) fn cancel(&self, call: Uuid) {
        let mut state = self.lock();
        let Some(connection) = state.end(call) else {
            return;
        };
        if let Some(open) = state.of(&connection) {
            // A worker that is told too late computes it for nobody.
            open.frames.try_send(ToWorker::Cancel(call)).ok();
        }
    }

    /// Everybody who is connected, and how many calls wait in all.
    pub(super) fn announced(&self) -> (Vec<Connected>, u32) {
        let state = self.lock();
        let workers = state.workers.iter().map(|(worker, open)| Connected {
            worker: worker.0,
            owner: open.owner.0,
            hosting: open.hosting.clone(),
            waiting: u32::try_from(open.waiting).unwrap_or(u32::MAX),
        });
        let waiting = u32::try_from(state.calls.len()).unwrap_or(u32::MAX);
        (workers.collect(), waiting)
    }
}

impl State {
    fn of(&mut self, connection: &Connection) -> Option<&mut Open> {
        let open = self.workers.get_mut(&connection.worker)?;
        (open.number == connection.number).then_some(open)
    }

    fn end(&mut self, call: Uuid) -> Option<Connection> {
        let (connection, _) = self.calls.remove(&call)?;
        if let Some(open) = self.of(&connection) {
            open.waiting = open.waiting.saturating_sub(1);
        }
        Some(connection)
    }

    fn forget(&mut self, connection: Connection) -> Vec<Outstanding> {
        let of = |_: &Uuid, it: &mut (Connection, Outstanding)| it.0 == connection;
        let lost = self.calls.extract_if(of);
        lost.map(|(_, (_, outstanding))| outstanding).collect()
    }
}
