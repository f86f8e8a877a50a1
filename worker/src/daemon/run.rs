//! `run`: asks for leases, runs them, keeps them, reports what became of them.
//!
//! Three loops share a table of attempts. One asks for work and orders and may be held by the server for long; one
//! reports, at once; one sends heartbeats. All reports may be repeated, so each is sent until it is answered.
//!
//! Asked to stop, the worker asks for nothing more and gives back what still computes. What is computed is uploaded,
//! sealed and revealed for at most [`STOP_GRACE`]; what is left then is given back too.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use comptoir_wire::{
    HEARTBEAT_EVERY_MS, LEASES_MAX, REPORTS_MAX, WAIT_MS_MAX,
    heartbeat::Held,
    work::{Lease, WorkReply, WorkRequest},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    attempt::Workshop,
    backoff::Backoff,
    cache::Cache,
    client::{CallError, Client, Server},
    display::Display,
    folder::{self, Folder, Scratch},
    hosting::Hosting,
    ready::{check_class, check_memory, check_walls},
    table::{Table, Wanted},
    transfer,
};
use crate::engine::Launcher;

pub use super::ready::RunError;

/// How long results that are computed may take to be delivered once the worker is asked to stop.
pub const STOP_GRACE: Duration = Duration::from_secs(30);
/// How long the last report may take, and children to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often it is looked whether leases still live.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// The pause after heartbeats that were not answered.
const HEARTBEAT_AGAIN: Duration = Duration::from_secs(1);

/// The pause of a worker that is barred.
pub(super) const BARRED_AGAIN: Duration = Duration::from_mins(1);

/// What `run` is told.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where the identity is.
    pub folder: PathBuf,
    /// Jobs at a time.
    pub slots: u16,
    /// Memory of one job, instead of what was told when joining.
    pub memory_bytes: Option<u64>,
    /// Bytes of blobs that are kept.
    pub cache_bytes: u64,
    /// Memory of the models that are hosted, instead of that of one job; 0: none are.
    pub host_memory_bytes: Option<u64>,
}

/// Runs the worker of a folder until `stop` is cancelled.
pub async fn run(
    options: &RunOptions,
    launcher: Launcher,
    display: Display,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let identity = folder::read_identity(&options.folder)?;
    let folder = Folder::open(&options.folder)?;
    let key = folder.key()?;
    check_walls(&identity, launcher.sandbox())?;
    let scratch = folder.open_scratch()?;
    check_class(&identity, &launcher, &scratch).await?;
    let cache = Cache::open(folder.blobs(), options.cache_bytes)?;
    let server = Server::new(identity.url.clone()).map_err(RunError::Client)?;
    let memory_bytes = options.memory_bytes.unwrap_or(identity.facts.memory_bytes);
    let host_memory_bytes = check_memory(
        identity.facts.device,
        (memory_bytes, options.slots),
        options.host_memory_bytes,
    )?;
    let workshop = Arc::new(Workshop {
        client: Client::new(server, identity.worker_id, key),
        launcher,
        cache,
        device: identity.facts.device,
        threads: u16::try_from(identity.facts.threads).unwrap_or(u16::MAX),
        memory_bytes,
        display,
    });
    tracing::info!(
        worker = %identity.worker_id, name = identity.name, server = %identity.url,
        class = identity.facts.numeric_class, slots = options.slots, memory_bytes, host_memory_bytes, "worker started"
    );
    let hosting = Hosting::new(Arc::clone(&workshop), scratch.clone(), host_memory_bytes);
    let hosts = host_memory_bytes > 0;
    let hosting = hosts.then(|| tokio::spawn(hosting.run(stop.clone())));
    let ended = Daemon::new(workshop, options.slots, scratch, stop)
        .run()
        .await;
    if let Some(hosting) = hosting
        && let Err(error) = hosting.await
    {
        tracing::error!(%error, "hosting failed");
    }
    drop(folder);
    ended
}

struct Daemon {
    workshop: Arc<Workshop>,
    scratch: PathBuf,
    slots: Arc<Semaphore>,
    table: Mutex<Table>,
    /// Something is to be reported.
    to_report: Notify,
    /// A slot is free again.
    slot_freed: Notify,
    /// An attempt has left the table.
    ended: Notify,
    attempts: TaskTracker,
    stop: CancellationToken,
    /// Set when the server does not want this worker.
    refused: Mutex<Option<CallError>>,
}

impl Daemon {
    fn new(
        workshop: Arc<Workshop>,
        slots: u16,
        scratch: PathBuf,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let table = Mutex::new(Table::new(workshop.client.worker()));
        Arc::new(Self {
            workshop,
            scratch,
            slots: Arc::new(Semaphore::new(usize::from(slots))),
            table,
            to_report: Notify::new(),
            slot_freed: Notify::new(),
            ended: Notify::new(),
            attempts: TaskTracker::new(),
            stop,
            refused: Mutex::new(None),
        })
    }

    async fn run(self: Arc<Self>) -> Result<(), RunError> {
        let reporting = tokio::spawn(Arc::clone(&self).report_forever());
        let beating = tokio::spawn(Arc::clone(&self).beat_forever());
        let watching = tokio::spawn(Arc::clone(&self).watch_forever());
        self.poll_until_stopped().await;
        let refused = self
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if refused.is_none() {
            self.wind_down(reporting).await;
        } else {
            reporting.abort();
        }
        self.table().give_up_all("the worker ends");
        self.attempts.close();
        if timeout(LAST_WORDS * 2, self.attempts.wait()).await.is_err() {
            tracing::warn!("a child does not end; it ends with this process");
        }
        beating.abort();
        watching.abort();
        if let Some(error) = refused {
            return Err(RunError::Refused(error));
        }
        tracing::info!("worker stopped");
        Ok(())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last part of a worker's life.
    async fn wind_down(self: &Arc<Self>, reporting: tokio::task::JoinHandle<()>) {
        tracing::info!("stopping: giving back what still computes, delivering what is computed");
        self.table().give_back(false);
        self.to_report.notify_one();
        let delivered = async {
            while !self.table().is_empty() {
                let request = self.orders_request(0, 1_000);
                tokio::select! {
                    () = self.ended.notified() => {}
                    reply = self.workshop.client.work(&request) => match reply {
                        Ok(reply) => self.take(&reply),
                        Err(error) => {
                            tracing::warn!(%error, "asking for orders failed");
                            sleep(HEARTBEAT_AGAIN).await;
                        }
                    },
                }
            }
        };
        if timeout(STOP_GRACE, delivered).await.is_err() {
            self.table().give_back(true);
            self.to_report.notify_one();
            let told = async {
                while !self.table().is_empty() {
                    self.ended.notified().await;
                }
            };
            if timeout(LAST_WORDS, told).await.is_err() {
                tracing::warn!("some attempts could not be given back; their leases run out");
            }
        }
        reporting.abort();
    }

    fn orders_request(&self, wanted: u16, wait_ms: u32) -> WorkRequest {
        WorkRequest {
            wanted,
            wait_ms,
            held: self.table().awaiting_orders(),
            ..WorkRequest::default()
        }
    }

    /// Asks for leases and orders.
    async fn poll_until_stopped(self: &Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let wanted = self.wanted();
            let request = self.orders_request(wanted, WAIT_MS_MAX);
            let asked = Instant::now();
            let reply = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                reply = self.workshop.client.work(&request) => reply,
                // An exchange that asks for leases is never let go: it may already have been given some.
                () = self.slot_freed.notified(), if wanted == 0 => continue,
            };
            match reply {
                Ok(reply) => {
                    let is_empty = reply.leases.is_empty()
                        && reply.reveal.is_empty()
                        && reply.cancel.is_empty();
                    self.take(&reply);
                    for lease in reply.leases {
                        self.start(lease);
                    }
                    // A server that does not hold the request is not asked again at once.
                    let was_held =
                        asked.elapsed() >= Duration::from_millis(u64::from(WAIT_MS_MAX) / 2);
                    if !is_empty || was_held {
                        backoff.reset();
                        continue;
                    }
                }
                Err(error) if error.is_final() => return self.note_refused(error),
                Err(error) if error.is_barred() => {
                    let again_s = BARRED_AGAIN.as_secs();
                    tracing::error!(%error, again_s, "this worker is barred; it asks again, in case that is lifted");
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = sleep(BARRED_AGAIN) => continue,
                    }
                }
                Err(error) => tracing::warn!(%error, "asking for work failed"),
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = backoff.wait() => {}
            }
        }
    }

    fn wanted(&self) -> u16 {
        let room = REPORTS_MAX
            .saturating_sub(self.table().len())
            .min(LEASES_MAX);
        u16::try_from(self.slots.available_permits().min(room))
            .expect("at most 256 leases are asked for")
    }

    fn take(self: &Arc<Self>, reply: &WorkReply) {
        let wanted = self.table().take(reply);
        for wanted in wanted {
            tokio::spawn(Arc::clone(self).upload_again(wanted));
        }
        self.to_report.notify_one();
        self.ended.notify_one();
    }

    async fn upload_again(self: Arc<Self>, wanted: Wanted) {
        let Wanted {
            held,
            files,
            cancel,
        } = wanted;
        match transfer::upload_outputs(&self.workshop.client, held, &files, &cancel).await {
            Ok(()) => self.table().note_uploaded_again(held.attempt_id),
            Err(gave_up) => {
                tracing::warn!(?gave_up, attempt = %held.attempt_id, "an output could not be uploaded again");
                self.table()
                    .give_up(held.attempt_id, "its outputs are not taken");
            }
        }
        self.to_report.notify_one();
        self.ended.notify_one();
    }

    fn note_refused(&self, error: CallError) {
        tracing::error!(%error, "the server does not accept this worker");
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.stop.cancel();
    }

    /// Starts an attempt in a slot of its own.
    fn start(self: &Arc<Self>, lease: Lease) {
        let held = Held {
            attempt_id: lease.attempt_id,
            lease_token: lease.lease_token,
        };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            tracing::warn!(attempt = %held.attempt_id, "the server gave a lease that was not asked for");
            return;
        };
        let Some(cancel) = self.table().insert(held, Instant::now()) else {
            tracing::warn!(attempt = %held.attempt_id, "the server gave a lease twice");
            return;
        };
        tracing::info!(
            attempt = %held.attempt_id, kind = lease.job.kind(),
            resume_step = lease.resume.map(|checkpoint| checkpoint.step), "attempt started"
        );
        self.attempts
            .spawn(Arc::clone(self).attempt(lease, held, cancel, slot));
    }

    async fn attempt(
        self: Arc<Self>,
        lease: Lease,
        held: Held,
        cancel: CancellationToken,
        slot: OwnedSemaphorePermit,
    ) {
        let id = held.attempt_id;
        match Scratch::make(self.scratch.join(id.to_string())) {
            Ok(scratch) => {
                let computed = || self.table().note_computed(id);
                let outcome = self
                    .workshop
                    .run(lease, scratch.path(), &cancel, computed)
                    .await;
                self.table().end(id, outcome, scratch);
            }
            Err(error) => {
                tracing::error!(attempt = %id, %error, "no scratch folder");
                self.table().fail_for_machine(id, &error.to_string());
            }
        }
        drop(slot);
        self.slot_freed.notify_one();
        self.to_report.notify_one();
        self.ended.notify_one();
    }

    /// Reports whatever is to be reported.
    async fn report_forever(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let reports = self.table().reports();
            let Some(mut request) = reports else {
                self.to_report.notified().await;
                continue;
            };
            // Orders for attempts that are sealed by this very exchange come with its reply.
            request.held = self.table().awaiting_orders();
            match self.workshop.client.work(&request).await {
                Ok(reply) => {
                    self.take(&reply);
                    if !reply.acks.is_empty() {
                        backoff.reset();
                        continue;
                    }
                    tracing::warn!("the server answered a report without saying what became of it");
                }
                Err(error) if error.is_final() => return self.note_refused(error),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "reporting failed; the same will be reported again");
                }
                Err(error) => tracing::error!(%error, "the server does not take a report"),
            }
            backoff.wait().await;
        }
    }

    /// Keeps all leases.
    async fn beat_forever(self: Arc<Self>) {
        loop {
            let leases = self.table().leases();
            let mut pause = Duration::from_millis(u64::from(HEARTBEAT_EVERY_MS));
            if !leases.is_empty() {
                let sent = Instant::now();
                match self.workshop.client.heartbeat(leases).await {
                    Ok(reply) => {
                        self.table().take_heartbeats(&reply, sent);
                        self.ended.notify_one();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a heartbeat failed");
                        pause = HEARTBEAT_AGAIN;
                    }
                }
            }
            sleep(pause).await;
        }
    }

    /// Drops attempts whose leases may be over.
    async fn watch_forever(self: Arc<Self>) {
        loop {
            sleep(WATCH_EVERY).await;
            if self.table().give_up_unrenewed(Instant::now()) {
                self.ended.notify_one();
            }
        }
    }
}
