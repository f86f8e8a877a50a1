//! Calls of models: metered, paid from an allowance, sent to a worker that hosts the version, and recorded before they are answered.

mod allowances;
mod answering;
mod asking;
mod bodies;
mod callable;
mod hosts;
mod owners;
mod paying;
mod recording;
mod texts;
mod wishes;
mod writing;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use comptoir_store::{
    allowances as stored,
    relay::{Inbox, Loss, Losses, Relay},
};
use comptoir_wire::calls::{self as wire, Announcement, Returned};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use allowances::Terms;
pub(crate) use answering::{Answered, Asked, answer, tell};
pub(crate) use bodies::{read_body, read_json};
pub(crate) use callable::{Callable, Target};
pub(crate) use texts::{Asking, Texts, TextsBody};
pub(crate) use wishes::{Prompt, Wish, WishFields};
pub(crate) use writing::{Piece, Pieces, Written, write};

use self::{
    allowances::Allowances,
    callable::{Admitted, Believed},
    hosts::Hosts,
    owners::Owners,
    recording::Recorder,
};
use crate::{
    AppState,
    facts::Kept,
    metrics::{CALL_HOSTS, CALLS_WAITING},
};

/// Versions of models of which it is remembered what they are.
const CALLABLES_MAX: NonZeroUsize = NonZeroUsize::new(1_024).expect("above zero");
/// Accounts of which it is remembered whether they call a gated model.
const ADMITTED_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("above zero");
/// How often it is looked what is due.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often it is said that this process is alive, so that its allowances stay open.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// The calls of one process; cheap to clone.
#[derive(Clone)]
pub struct Calls {
    /// This process.
    pub(crate) process: Uuid,
    relay: Relay,
    terms: Terms,
    hosts: Arc<Hosts>,
    allowances: Arc<Allowances>,
    recorder: Recorder,
    owners: Arc<Owners>,
    pub(super) callables: Arc<Kept<Target, Believed>>,
    pub(super) admitted: Arc<Admitted>,
}

impl Calls {
    /// Calls through the relay.
    #[must_use]
    pub fn new(relay: Relay, terms: Terms) -> Self {
        Self {
            process: Uuid::new_v4(),
            relay,
            terms,
            hosts: Arc::default(),
            allowances: Arc::default(),
            recorder: Recorder::default(),
            owners: Arc::default(),
            callables: Arc::new(Kept::new(CALLABLES_MAX)),
            admitted: Arc::new(Kept::new(ADMITTED_MAX)),
        }
    }

    /// Is a worker connected that hosts models?
    pub(crate) fn has_hosts(&self) -> bool {
        self.hosts.len() > 0
    }

    /// Is one connected that has so much memory for them?
    pub(crate) fn can_host(&self, memory_bytes: u64) -> bool {
        self.hosts.can_host(memory_bytes)
    }

    /// Hears what schedulers say, and closes allowances that are due, until `closing`; then closes those that are left.
    pub async fn run(state: AppState, closing: CancellationToken) {
        let this = state.calls.clone();
        let inbox = this
            .relay
            .listen(&[&wire::mailbox(this.process), wire::ANNOUNCEMENTS]);
        let hearing = tokio::spawn(this.clone().hear(inbox));
        let losing = tokio::spawn(this.clone().lose(this.relay.losses()));
        let keeping = tokio::spawn(keep(state.clone()));
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while closing.run_until_cancelled(look.tick()).await.is_some() {
            this.allowances.close_due(&state, this.terms).await;
            gauge(CALL_HOSTS, this.hosts.len());
            gauge(CALLS_WAITING, this.hosts.waiting());
        }
        this.allowances.close_everything(&state).await;
        for task in [hearing, losing, keeping] {
            task.abort();
        }
    }

    async fn hear(self, mut inbox: Inbox) {
        while let Some(message) = inbox.next().await {
            let is_announcement = message.mailbox == wire::ANNOUNCEMENTS;
            for frame in message.frames {
                let taken = if is_announcement {
                    wire::frame::<Announcement>(&frame)
                        .map(|it| self.hosts.note(it, Instant::now()))
                } else {
                    wire::frame::<Returned>(&frame)
                        .map(|it| self.hosts.answer(it.call, it.is_last, it.answer))
                };
                if let Err(error) = taken {
                    tracing::error!(%error, "a scheduler says what is no frame");
                }
            }
        }
    }

    /// Gives up what is lost. Apart from closing allowances, which may take long.
    async fn lose(self, mut losses: Losses) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                loss = losses.next() => match loss {
                    Loss::All => self.hosts.lose_all(),
                    Loss::Unheard(mailbox) => self.hosts.lose(&mailbox),
                },
                _ = look.tick() => self.hosts.lose_silent(Instant::now()),
            }
        }
    }
}

/// Says that this process is alive: what it opened stays open.
async fn keep(state: AppState) {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        let kept = async {
            let mut conn = state.db.acquire().await?;
            stored::keep(&mut conn, state.calls.process, state.now()).await
        };
        if let Err(error) = kept.await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "allowances are not kept; they are closed unless this is said soon"
            );
        }
    }
}

fn gauge(name: &'static str, count: usize) {
    metrics::gauge!(name).set(u32::try_from(count).unwrap_or(u32::MAX));
}
