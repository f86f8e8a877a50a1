//! Who can answer calls, as schedulers say it, and which calls of this process wait for whom.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use comptoir_domain::id::{AccountId, ModelVersionId, WorkerId};
use comptoir_wire::calls::{ANNOUNCE_EVERY_MS, Announcement, Connected, mailbox};
use serde_bytes::ByteBuf;
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

/// A scheduler that said nothing for this long is gone.
const SILENCE_MAX: Duration = Duration::from_millis(3 * ANNOUNCE_EVERY_MS as u64);
/// Calls that one worker has before another one is asked to host the version too.
const CROWDED: u32 = 512;

/// A worker that was chosen for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub worker: WorkerId,
    /// The account of its owner.
    pub owner: AccountId,
    /// Where its scheduler takes frames.
    pub mailbox: Arc<str>,
}

/// What comes for a call.
#[derive(Debug)]
pub(super) enum Came {
    /// A part of the answer, or all of it.
    Answer { is_last: bool, answer: ByteBuf },
    /// Nothing will: the worker, its scheduler or Redis went away.
    Lost,
}

/// Answers on their way to one call.
pub(super) type Answers = mpsc::UnboundedReceiver<Came>;

/// Shared by the calls of a process.
#[derive(Debug, Default)]
pub(super) struct Hosts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    schedulers: HashMap<Uuid, Scheduler>,
    waiting: HashMap<Uuid, Waiting>,
    /// Calls of this process that each worker has.
    mine: HashMap<WorkerId, u32>,
}

#[derive(Debug)]
struct Scheduler {
    heard_at: Instant,
    mailbox: Arc<str>,
    workers: Vec<Listed>,
}

#[derive(Debug)]
struct Listed {
    worker: WorkerId,
    owner: AccountId,
    memory_bytes: u64,
    loaded: HashSet<Uuid>,
    waiting: u32,
}

#[derive(Debug)]
struct Waiting {
    host: Host,
    answers: mpsc::UnboundedSender<Came>,
}

impl Hosts {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a scheduler says. One that has nobody says so when it closes.
    pub(super) fn note(&self, announcement: Announcement, now: Instant) {
        let Announcement { scheduler, workers } = announcement;
        let mut state = self.lock();
        let entry = state.schedulers.entry(scheduler);
        let entry = entry.or_insert_with(|| Scheduler {
            heard_at: now,
            mailbox: mailbox(scheduler).into(),
            workers: Vec::new(),
        });
        entry.heard_at = now;
        entry.workers = workers.into_iter().map(Listed::from).collect();
    }

    /// Chooses a worker for a call of a version that needs so much memory, and waits for its answer: of those that have it loaded the least busy one,
    /// unless that is crowded; else the one that every process would have it loaded by. `None`: there is nobody.
    pub(super) fn choose(
        &self,
        call: Uuid,
        (version, memory_bytes): (ModelVersionId, u64),
        tried: &[WorkerId],
    ) -> Option<(Host, Answers)> {
        let mut state = self.lock();
        let host = state.best(version, memory_bytes, tried)?;
        let (answers, receiver) = mpsc::unbounded_channel();
        *state.mine.entry(host.worker).or_default() += 1;
        let waiting = Waiting {
            host: host.clone(),
            answers,
        };
        state.waiting.insert(call, waiting);
        Some((host, receiver))
    }

    /// Gives an answer to whoever waits for it; an answer that nobody waits for any more is dropped.
    pub(super) fn answer(&self, call: Uuid, is_last: bool, answer: ByteBuf) {
        let mut state = self.lock();
        let Some(waiting) = state.waiting.get(&call) else {
            return;
        };
        // Whoever waited may have gone in this very moment.
        waiting.answers.send(Came::Answer { is_last, answer }).ok();
        if is_last {
            state.end(call);
        }
    }

    /// Nobody waits for the call any more; where it was sent, unless its answer came.
    pub(super) fn give_up(&self, call: Uuid) -> Option<Host> {
        self.lock().end(call)
    }

    /// Everything that was on its way is lost, and who is connected is to be heard anew.
    pub(super) fn lose_all(&self) {
        let mut state = self.lock();
        state.schedulers.clear();
        state.lose(|_| true);
    }

    /// Nobody listens to this mailbox any more: a scheduler has ended.
    pub(super) fn lose(&self, gone: &str) {
        let mut state = self.lock();
        state.schedulers.retain(|_, it| &*it.mailbox != gone);
        state.lose(|host| &*host.mailbox == gone);
    }

    /// Forgets schedulers that fell silent, and gives up what was sent to them.
    pub(super) fn lose_silent(&self, now: Instant) {
        let mut state = self.lock();
        let silent = |it: &Scheduler| now.duration_since(it.heard_at) > SILENCE_MAX;
        let gone = state.schedulers.extract_if(|_, it| silent(it));
        let gone: Vec<_> = gone.map(|(_, it)| it.mailbox).collect();
        if !gone.is_empty() {
            state.lose(|host| gone.contains(&host.mailbox));
        }
    }

    /// Workers that can host something.
    pub(super) fn len(&self) -> usize {
        let state = self.lock();
        let workers = state.schedulers.values().flat_map(|it| &it.workers);
        workers.filter(|it| it.memory_bytes > 0).count()
    }

    /// Is there a worker with so much memory for models?
    pub(super) fn can_host(&self, memory_bytes: u64) -> bool {
        let state = self.lock();
        let mut workers = state.schedulers.values().flat_map(|it| &it.workers);
        workers.any(|it| it.memory_bytes >= memory_bytes)
    }

    /// Calls that wait for their answers.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }
}

impl State {
    fn best(&self, version: ModelVersionId, memory_bytes: u64, tried: &[WorkerId]) -> Option<Host> {
        let able = self.schedulers.values().flat_map(|scheduler| {
            let able =
                |it: &&Listed| it.memory_bytes >= memory_bytes && !tried.contains(&it.worker);
            let workers = scheduler.workers.iter().filter(able);
            workers.map(move |it| (scheduler, it))
        });
        let able: Vec<_> = able.collect();
        let loaded = able.iter().filter(|(_, it)| it.loaded.contains(&version.0));
        let least_busy = loaded.min_by_key(|(_, it)| self.load(it));
        let calm = least_busy.filter(|(_, it)| self.load(it) < CROWDED);
        // Every process asks the same worker to load a version, so that it is loaded once.
        let next = || {
            let unloaded = able
                .iter()
                .filter(|(_, it)| !it.loaded.contains(&version.0));
            let calm = unloaded.filter(|(_, it)| self.load(it) < CROWDED);
            calm.max_by_key(|(_, it)| rank(version, it.worker))
        };
        let (scheduler, chosen) = calm.or_else(next).or(least_busy)?;
        Some(Host {
            worker: chosen.worker,
            owner: chosen.owner,
            mailbox: Arc::clone(&scheduler.mailbox),
        })
    }

    /// Calls that a worker has, as far as this process knows: its own are counted at once, those of others when they are announced.
    fn load(&self, it: &Listed) -> u32 {
        it.waiting
            .max(self.mine.get(&it.worker).copied().unwrap_or_default())
    }

    fn end(&mut self, call: Uuid) -> Option<Host> {
        let Waiting { host, .. } = self.waiting.remove(&call)?;
        if let Some(mine) = self.mine.get_mut(&host.worker) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                self.mine.remove(&host.worker);
            }
        }
        Some(host)
    }

    fn lose(&mut self, is_gone: impl Fn(&Host) -> bool) {
        let lost = self.waiting.iter().filter(|(_, it)| is_gone(&it.host));
        let lost: Vec<_> = lost.map(|(call, it)| (*call, it.answers.clone())).collect();
        for (call, answers) in lost {
            answers.send(Came::Lost).ok();
            self.end(call);
        }
    }
}

/// Rendezvous hashing: of all workers the one with the highest rank hosts a version first.
fn rank(version: ModelVersionId, worker: WorkerId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (version, worker).hash(&mut hasher);
    hasher.finish()
}

impl From<Connected> for Listed {
    fn from(it: Connected) -> Self {
        Self {
            worker: WorkerId(it.worker),
            owner: AccountId(it.owner),
            memory_bytes: it.hosting.memory_bytes,
            loaded: it.hosting.loaded.into_iter().collect(),
            waiting: it.waiting,
        }
    }
}

#[cfg(test)]
mod tests;
