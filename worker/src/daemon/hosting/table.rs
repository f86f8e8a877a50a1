//! Which versions this worker hosts, and the calls of each. No clock and no I/O of its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use comptoir_wire::calls::{
    Fault, FaultCause, HOSTED_MAX, Heading, HostOrder, Hosting, MESSAGE_BYTES_MAX,
};
use serde_bytes::ByteBuf;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    daemon::backoff::Backoff,
    engine::host::{FRAME_BYTES, Frame as _, ToHost},
};

/// Calls of a version that wait or are computed, at most.
pub const CALLS_MAX: usize = 1_024;
/// Bytes of them at most: the child has room for them beside its version (`engine::host::SPARE_BYTES`).
pub const BYTES_MAX: usize = 64 << 20;
/// Versions that a connection may speak of.
pub const ORDERS_MAX: usize = 4_096;
/// Longest ticket.
const TICKET_BYTES_MAX: usize = 4_096;

/// How the rest of the worker reaches the keeper of a version.
#[derive(Debug, Clone, Default)]
pub struct Keeper {
    /// There is something to send.
    pub wake: Arc<Notify>,
    /// It is not needed any more.
    pub ended: CancellationToken,
}

#[derive(Debug)]
enum State {
    Idle,
    Loading(Keeper),
    Loaded(Keeper),
    Ending,
}

/// A call that was taken and not answered yet.
#[derive(Debug)]
struct Held {
    bytes: usize,
    /// Nobody waits for its answer.
    is_cancelled: bool,
}

#[derive(Debug)]
struct Queued {
    id: Uuid,
    ends_at: Instant,
    was_cold: bool,
    call: ByteBuf,
}

#[derive(Debug)]
struct Version {
    order: HostOrder,
    /// What it was started with.
    memory_bytes: u64,
    state: State,
    queued: VecDeque<Queued>,
    cancelled: Vec<Uuid>,
    held: HashMap<Uuid, Held>,
    bytes: usize,
    /// Which use of all was the last of this version.
    used: u64,
    backoff: Backoff,
    /// Why it is not started again before a moment.
    refused: Option<(Fault, Instant)>,
}

/// A version that is to be loaded, once those are gone that make room for it.
#[derive(Debug)]
pub struct Start {
    /// How.
    pub order: HostOrder,
    /// Who keeps it.
    pub keeper: Keeper,
    /// Those that go.
    pub evicted: Vec<Uuid>,
}

/// What becomes of a call that comes.
#[derive(Debug)]
pub enum Taken {
    /// Its version's keeper has it.
    Queued(Keeper),
    /// It waits for its version, which is to be loaded.
    Start(Box<Start>),
    /// It is not taken.
    Refused(Fault),
}

/// All of it.
#[derive(Debug)]
pub struct Table {
    memory_bytes: u64,
    versions: HashMap<Uuid, Version>,
    /// The version of each call that was taken.
    calls: HashMap<Uuid, Uuid>,
    uses: u64,
    is_closing: bool,
}

fn fault(cause: FaultCause, detail: &str) -> Fault {
    Fault {
        cause,
        detail: detail.to_owned(),
    }
}

impl Table {
    /// Nothing is hosted yet.
    #[must_use]
    pub fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            versions: HashMap::new(),
            calls: HashMap::new(),
            uses: 0,
            is_closing: false,
        }
    }

    /// What is told of it.
    #[must_use]
    pub fn hosting(&self) -> Hosting {
        if self.is_closing {
            return Hosting {
                memory_bytes: 0,
                loaded: Vec::new(),
            };
        }
        let versions = self.versions.iter();
        let loaded = versions.filter(|(_, it)| matches!(it.state, State::Loaded(_)));
        let mut loaded: Vec<Uuid> = loaded.map(|(version, _)| *version).collect();
        loaded.sort_unstable();
        Hosting {
            memory_bytes: self.memory_bytes,
            loaded,
        }
    }

    /// From now on no call is taken.
    pub const fn close(&mut self) {
        self.is_closing = true;
    }

    /// Is every call answered that somebody waits for?
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let mut versions = self.versions.values();
        !versions.any(|it| it.held.values().any(|held| !held.is_cancelled))
    }

    /// Learns how a version is hosted. What is loaded already stays as it is.
    pub fn host(&mut self, order: HostOrder) -> Result<(), &'static str> {
        let is_header = |byte: u8| byte.is_ascii_graphic();
        if order.ticket.len() > TICKET_BYTES_MAX || !order.ticket.bytes().all(is_header) {
            return Err("a ticket that no header can hold");
        }
        if let Some(known) = self.versions.get_mut(&order.version) {
            known.order = order;
            return Ok(());
        }
        if self.versions.len() >= ORDERS_MAX {
            return Err("more versions than a worker keeps in mind");
        }
        let version = Version {
            memory_bytes: 0,
            state: State::Idle,
            queued: VecDeque::new(),
            cancelled: Vec::new(),
            held: HashMap::new(),
            bytes: 0,
            used: 0,
            backoff: Backoff::default(),
            refused: None,
            order,
        };
        self.versions.insert(version.order.version, version);
        Ok(())
    }

    /// Takes a call, or not.
    pub fn call(&mut self, heading: &Heading, call: ByteBuf, now: Instant) -> Taken {
        let id = heading.id;
        if self.is_closing {
            return Taken::Refused(fault(FaultCause::Busy, "the worker stops"));
        }
        if self.calls.contains_key(&id) {
            return Taken::Refused(fault(FaultCause::Busy, "the worker has this call already"));
        }
        let Some(version) = self.versions.get_mut(&heading.version) else {
            let detail = "the worker was not told how to host this version";
            return Taken::Refused(fault(FaultCause::Worker, detail));
        };
        let bytes = version.bytes.saturating_add(call.len());
        if version.held.len() >= CALLS_MAX || bytes > BYTES_MAX {
            let detail = "too many calls of this version wait";
            return Taken::Refused(fault(FaultCause::Busy, detail));
        }
        let taken = match &version.state {
            State::Loading(keeper) | State::Loaded(keeper) => Taken::Queued(keeper.clone()),
            State::Ending => {
                let detail = "the version is being put away";
                return Taken::Refused(fault(FaultCause::Busy, detail));
            }
            State::Idle => match self.start(heading.version, now) {
                Ok(start) => Taken::Start(Box::new(start)),
                Err(fault) => return Taken::Refused(fault),
            },
        };
        self.uses += 1;
        self.calls.insert(id, heading.version);
        let version = self.versions.get_mut(&heading.version);
        let version = version.expect("it was there a moment ago");
        version.used = self.uses;
        version.bytes = bytes;
        let held = Held {
            bytes: call.len(),
            is_cancelled: false,
        };
        version.held.insert(id, held);
        version.queued.push_back(Queued {
            id,
            ends_at: now + Duration::from_millis(heading.within_ms.into()),
            was_cold: !matches!(version.state, State::Loaded(_)),
            call,
        });
        taken
    }

    /// Makes room for a version: the longest unused go, as long as nobody waits for them.
    fn start(&mut self, id: Uuid, now: Instant) -> Result<Start, Fault> {
        let version = &self.versions[&id];
        if let Some((fault, until)) = &version.refused
            && now < *until
        {
            return Err(fault.clone());
        }
        let needed = version.order.memory_bytes;
        if needed > self.memory_bytes {
            let detail = format!(
                "the version needs {needed} bytes of memory; this worker hosts with {}",
                self.memory_bytes
            );
            return Err(fault(FaultCause::Worker, &detail));
        }
        let mut idle: Vec<(u64, Uuid, u64)> = Vec::new();
        let (mut used, mut count) = (0_u64, 0);
        for (other, it) in &self.versions {
            if matches!(it.state, State::Loading(_) | State::Loaded(_)) {
                used = used.saturating_add(it.memory_bytes);
                count += 1;
                if matches!(it.state, State::Loaded(_)) && it.held.is_empty() {
                    idle.push((it.used, *other, it.memory_bytes));
                }
            }
        }
        idle.sort_unstable();
        let mut idle = idle.into_iter();
        let mut evicted = Vec::new();
        while used.saturating_add(needed) > self.memory_bytes || count >= HOSTED_MAX {
            let Some((_, other, bytes)) = idle.next() else {
                let detail = "all memory of this worker is taken by versions that are called";
                return Err(fault(FaultCause::Busy, detail));
            };
            used -= bytes;
            count -= 1;
            evicted.push(other);
        }
        for other in &evicted {
            self.put_away(*other);
        }
        let keeper = Keeper::default();
        let version = self.versions.get_mut(&id).expect("it was there just now");
        version.state = State::Loading(keeper.clone());
        version.memory_bytes = needed;
        Ok(Start {
            order: version.order.clone(),
            keeper,
            evicted,
        })
    }

    fn put_away(&mut self, id: Uuid) {
        if let Some(version) = self.versions.get_mut(&id)
            && let State::Loaded(keeper) | State::Loading(keeper) =
                std::mem::replace(&mut version.state, State::Ending)
        {
            keeper.ended.cancel();
        }
    }

    /// All keepers are to end.
    pub fn put_all_away(&mut self) {
        let all: Vec<Uuid> = self.versions.keys().copied().collect();
        for version in all {
            if !matches!(self.versions[&version].state, State::Idle) {
                self.put_away(version);
            }
        }
    }

    /// Nobody waits for a call any more. Whom to wake for it.
    pub fn cancel(&mut self, id: Uuid) -> Option<Keeper> {
        let version = self.versions.get_mut(self.calls.get(&id)?)?;
        if let Some(at) = version.queued.iter().position(|it| it.id == id) {
            version.queued.remove(at);
            version.forget(id);
            self.calls.remove(&id);
            return None;
        }
        version.held.get_mut(&id)?.is_cancelled = true;
        version.cancelled.push(id);
        version.keeper().cloned()
    }

    /// The connection is gone, and with it whoever waited. Whom to wake for it.
    pub fn disconnect(&mut self, now: Instant) -> Vec<Keeper> {
        let all: Vec<Uuid> = self.calls.keys().copied().collect();
        let keepers = all.into_iter().filter_map(|call| self.cancel(call));
        let keepers = keepers.collect();
        // The next one says again how versions are hosted.
        self.versions.retain(|_, it| {
            let is_refused = it.refused.as_ref().is_some_and(|(_, until)| now < *until);
            is_refused || !matches!(it.state, State::Idle)
        });
        keepers
    }

    /// What a child is to be told next: as many frames as go into one message.
    pub fn frames(&mut self, version: Uuid, now: Instant) -> Vec<ToHost> {
        let Some(version) = self.versions.get_mut(&version) else {
            return Vec::new();
        };
        // Cancels are no more than calls, of which a message holds all.
        let cancels = version.cancelled.drain(..).map(ToHost::Cancel);
        let mut frames: Vec<ToHost> = cancels.collect();
        let mut bytes: usize = frames.iter().map(ToHost::bytes).sum();
        while let Some(next) = version.queued.pop_front() {
            let size = next.call.len() + FRAME_BYTES;
            bytes += size;
            if bytes > MESSAGE_BYTES_MAX {
                version.queued.push_front(next);
                break;
            }
            frames.push(next.frame(now));
        }
        frames
    }

    /// Is there something to tell a child? And does it owe an answer?
    #[must_use]
    pub fn waits(&self, version: Uuid) -> (bool, bool) {
        let version = self.versions.get(&version);
        version.map_or((false, false), |it| {
            let has_news = !it.queued.is_empty() || !it.cancelled.is_empty();
            (has_news, it.held.len() > it.queued.len())
        })
    }

    /// A child answered, and maybe not for the last time. Does somebody wait for it?
    pub fn answered(&mut self, version: Uuid, id: Uuid, is_last: bool) -> bool {
        if self.calls.get(&id) != Some(&version) {
            return false;
        }
        let Some(version) = self.versions.get_mut(&version) else {
            return false;
        };
        if version.queued.iter().any(|it| it.id == id) {
            // It cannot know of it yet.
            return false;
        }
        version.backoff.reset();
        if !is_last {
            return version.held.get(&id).is_some_and(|it| !it.is_cancelled);
        }
        self.calls.remove(&id);
        version.forget(id)
    }

    /// A child has loaded its version.
    pub fn loaded(&mut self, version: Uuid) {
        if let Some(version) = self.versions.get_mut(&version)
            && let State::Loading(keeper) = &version.state
        {
            version.state = State::Loaded(keeper.clone());
            version.refused = None;
        }
    }

    /// A child is gone, or never was: why, unless it was put away. The calls that somebody waits for.
    pub fn ended(&mut self, id: Uuid, why: Option<Fault>, now: Instant) -> Vec<Uuid> {
        let Some(version) = self.versions.get_mut(&id) else {
            return Vec::new();
        };
        version.state = State::Idle;
        version.refused = why.map(|fault| (fault, now + version.backoff.pause()));
        version.queued.clear();
        version.cancelled.clear();
        version.bytes = 0;
        let held = version.held.drain();
        let waiting = held.filter(|(_, held)| !held.is_cancelled);
        let waiting = waiting.map(|(call, _)| call).collect();
        self.calls.retain(|_, version| *version != id);
        waiting
    }
}

impl Queued {
    fn frame(self, now: Instant) -> ToHost {
        let left = self.ends_at.saturating_duration_since(now).as_millis();
        ToHost::Call {
            id: self.id,
            within_ms: u32::try_from(left).unwrap_or(u32::MAX),
            was_cold: self.was_cold,
            call: self.call,
        }
    }
}

impl Version {
    const fn keeper(&self) -> Option<&Keeper> {
        match &self.state {
            State::Loading(keeper) | State::Loaded(keeper) => Some(keeper),
            State::Idle | State::Ending => None,
        }
    }

    /// Lets go of a call. Does somebody wait for it?
    fn forget(&mut self, id: Uuid) -> bool {
        self.held.remove(&id).is_some_and(|held| {
            self.bytes -= held.bytes;
            !held.is_cancelled
        })
    }
}

#[cfg(test)]
mod tests;
