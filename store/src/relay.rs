//! Messages between processes that somebody waits for: frames through Redis publish and subscribe, at most once and in order, or within one
//! process without it. Nothing is kept: while Redis is away nothing is sent, and whoever asks is told so at once.
//!
//! Frames that wait for the same mailbox travel as one message, so that a busy process pays one round trip for many.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use redis::{AsyncConnectionConfig, Client, RedisResult, aio::MultiplexedConnection};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch},
    task::AbortHandle,
    time::{Instant, timeout},
};

/// How long one round trip may take. Messages are megabytes at most.
const ROUND_TRIP: Duration = Duration::from_secs(2);
/// How long connecting may take; nobody waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause after a connection that failed.
const AGAIN: Duration = Duration::from_millis(250);
/// How often the subscription's connection is checked.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Frames that wait to be sent; more are refused.
const QUEUE_MAX: usize = 16_384;
/// Bytes that wait to be sent, of all frames; more are refused. Below what Redis lets a subscriber fall behind (32 MiB).
const QUEUE_BYTES_MAX: u32 = 24 << 20;
/// Frames of one round trip.
const BATCH_MAX: usize = 1_024;
/// Messages that wait for whoever listens in this process. While they do, Redis keeps what comes after them.
const INBOX_MAX: usize = 1_024;
/// Losses that nobody looked at yet; whoever missed some hears that all was lost.
const LOSSES_MAX: usize = 256;
/// What a frame's length takes, in bytes.
const LENGTH_BYTES: usize = 4;

/// Channel names start with this, then a deployment's namespace.
const CHANNEL_PREFIX: &str = "comptoir-relay";

/// Sends frames. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Relay {
    to: Arc<To>,
}

/// What was sent to the mailboxes that a process listens to, frame after frame.
#[derive(Debug)]
pub struct Inbox {
    messages: mpsc::Receiver<Message>,
    /// Ends with the inbox.
    _listening: Option<Listening>,
}

/// Frames that came together, and to which mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where they were sent.
    pub mailbox: String,
    /// In the order in which they were sent.
    pub frames: Vec<Bytes>,
}

/// Why a frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// Redis is away.
    #[error("Redis is away")]
    Away,
    /// Too much waits to be sent.
    #[error("too much waits to be sent")]
    Full,
}

#[derive(Debug)]
enum To {
    Redis(Redis),
    Process(Process),
}

#[derive(Debug)]
struct Redis {
    client: Client,
    prefix: String,
    queue: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
    connected: watch::Receiver<bool>,
    lost: broadcast::Sender<Loss>,
    publisher: AbortHandle,
}

#[derive(Debug)]
struct Queued {
    mailbox: Arc<str>,
    frame: Bytes,
    _bytes: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct Process(Mutex<HashMap<String, mpsc::Sender<Message>>>);

#[derive(Debug)]
struct Listening(AbortHandle);

impl Relay {
    /// Frames within this process alone.
    #[must_use]
    pub fn local() -> Self {
        let to = Arc::new(To::Process(Process::default()));
        Self { to }
    }

    /// Frames through Redis. Connecting happens in the background, again and again: only a URL that is none is an error. `namespace`
    /// separates deployments that share one Redis.
    ///
    /// # Errors
    /// When the URL is none.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(redis_url: &str, namespace: &str) -> RedisResult<Self> {
        let client = Client::open(redis_url)?;
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let (told, connected) = watch::channel(false);
        let lost = broadcast::Sender::new(LOSSES_MAX);
        let prefix = format!("{CHANNEL_PREFIX}:{namespace}:");
        let publisher = Publisher {
            client: client.clone(),
            prefix: prefix.clone(),
            connection: None,
            connected: told,
            lost: lost.clone(),
        };
        let publisher = tokio::spawn(publisher.run(queued)).abort_handle();
        let bytes = usize::try_from(QUEUE_BYTES_MAX).expect("32 bits fit");
        let redis = Redis {
            client,
            prefix,
            queue,
            bytes: Arc::new(Semaphore::new(bytes)),
            connected,
            lost,
            publisher,
        };
        Ok(Self {
            to: Arc::new(To::Redis(redis)),
        })
    }

    /// Sends a frame to whoever listens to the mailbox. That it was sent does not mean that it arrives.
    ///
    /// # Errors
    /// When Redis is away, or too much waits.
    pub fn send(&self, mailbox: &Arc<str>, frame: Bytes) -> Result<(), NotSent> {
        match &*self.to {
            To::Redis(redis) => redis.send(mailbox, frame),
            To::Process(process) => process.send(mailbox, frame),
        }
    }

    /// Listens to mailboxes from now on. Of a mailbox there is one listener in a process.
    #[must_use]
    pub fn listen(&self, mailboxes: &[&str]) -> Inbox {
        let (sender, messages) = mpsc::channel(INBOX_MAX);
        let listening = match &*self.to {
            To::Process(process) => {
                let mut listeners = process.lock();
                for mailbox in mailboxes {
                    listeners.insert((*mailbox).to_owned(), sender.clone());
                }
                None
            }
            To::Redis(redis) => {
                let channels = mailboxes.iter().map(|it| format!("{}{it}", redis.prefix));
                let listener = Listener {
                    client: redis.client.clone(),
                    prefix: redis.prefix.clone(),
                    channels: channels.collect(),
                    sender,
                    lost: redis.lost.clone(),
                };
                Some(Listening(tokio::spawn(listener.run()).abort_handle()))
            }
        };
        Inbox {
            messages,
            _listening: listening,
        }
    }

    /// Can frames be sent now?
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match &*self.to {
            To::Redis(redis) => *redis.connected.borrow(),
            To::Process(_) => true,
        }
    }

    /// Losses from now on.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Losses(match &*self.to {
            To::Redis(redis) => Some(redis.lost.subscribe()),
            To::Process(_) => None,
        })
    }
}

/// What was lost, or may have been.
#[derive(Debug)]
pub struct Losses(Option<broadcast::Receiver<Loss>>);

/// Frames that were sent, or came, may be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// All that was on its way.
    All,
    /// Those to a mailbox that nobody listens to.
    Unheard(Arc<str>),
}

impl Losses {
    /// The next loss. Waits for ever within one process, where nothing is lost.
    pub async fn next(&mut self) -> Loss {
        match &mut self.0 {
            Some(losses) => losses.recv().await.unwrap_or(Loss::All),
            None => std::future::pending().await,
        }
    }
}

impl Inbox {
    /// The next message; `None` when nobody can send any more.
    pub async fn next(&mut self) -> Option<Message> {
        self.messages.recv().await
    }
}

impl Redis {
    fn send(&self, mailbox: &Arc<str>, frame: Bytes) -> Result<(), NotSent> {
        if !*self.connected.borrow() {
            return Err(NotSent::Away);
        }
        let length = u32::try_from(frame.len()).map_err(|_| NotSent::Full)?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(length);
        let queued = Queued {
            mailbox: Arc::clone(mailbox),
            frame,
            _bytes: bytes.map_err(|_| NotSent::Full)?,
        };
        self.queue.try_send(queued).map_err(|_| NotSent::Full)
    }
}

impl Process {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<Message>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, mailbox: &str, frame: Bytes) -> Result<(), NotSent> {
        let listener = self.lock().get(mailbox).cloned();
        let message = Message {
            mailbox: mailbox.to_owned(),
            frames: vec![frame],
        };
        // Nobody listens: the frame is lost, as it would be in Redis.
        listener.map_or(Ok(()), |it| it.try_send(message).map_err(|_| NotSent::Full))
    }
}

struct Publisher {
    client: Client,
    prefix: String,
    connection: Option<MultiplexedConnection>,
    connected: watch::Sender<bool>,
    lost: broadcast::Sender<Loss>,
}

impl Publisher {
    /// Sends what is queued, a batch per round trip. While Redis is away nothing is queued, and the connection is tried again.
    async fn run(mut self, mut queued: mpsc::Receiver<Queued>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            if self.connection.is_none() && !self.connect().await {
                batch.clear();
                while queued.try_recv().is_ok() {}
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            let waited = timeout(PING_EVERY, queued.recv_many(&mut batch, BATCH_MAX)).await;
            let sent = match waited {
                Ok(0) => return,
                Ok(_) => self.publish(&mut batch).await,
                Err(_) => self.ping().await,
            };
            if let Err(error) = sent {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "Redis is away: calls are refused until it is back"
                );
                self.connection = None;
                self.connected.send_replace(false);
                self.lost.send(Loss::All).ok();
            }
        }
    }

    async fn connect(&mut self) -> bool {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ROUND_TRIP));
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        match connecting.await {
            Ok(connection) => {
                self.connection = Some(connection);
                self.connected.send_replace(true);
                true
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "connect to Redis");
                false
            }
        }
    }

    async fn ping(&mut self) -> RedisResult<()> {
        let connection = self.connection.as_mut().expect("connected before");
        redis::cmd("PING").query_async(connection).await
    }

    async fn publish(&mut self, batch: &mut Vec<Queued>) -> RedisResult<()> {
        let mut mailboxes: BTreeMap<Arc<str>, Vec<Bytes>> = BTreeMap::new();
        let mut waiting = Vec::with_capacity(batch.len());
        for Queued {
            mailbox,
            frame,
            _bytes: bytes,
        } in batch.drain(..)
        {
            mailboxes.entry(mailbox).or_default().push(frame);
            waiting.push(bytes);
        }
        let mut pipeline = redis::pipe();
        for (mailbox, frames) in &mailboxes {
            let channel = format!("{}{mailbox}", self.prefix);
            pipeline
                .cmd("PUBLISH")
                .arg(channel)
                .arg(join(frames).as_ref());
        }
        let connection = self.connection.as_mut().expect("connected before");
        let heard: Vec<u64> = pipeline.query_async(connection).await?;
        for (mailbox, listeners) in mailboxes.keys().zip(heard) {
            if listeners == 0 {
                self.lost.send(Loss::Unheard(Arc::clone(mailbox))).ok();
            }
        }
        Ok(())
    }
}

struct Listener {
    client: Client,
    prefix: String,
    channels: Vec<String>,
    sender: mpsc::Sender<Message>,
    lost: broadcast::Sender<Loss>,
}

impl Listener {
    /// Hears what is sent, and subscribes again whenever the connection ends.
    async fn run(self) {
        while !self.sender.is_closed() {
            if let Err(error) = self.hear().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "listen to Redis");
            }
            self.lost.send(Loss::All).ok();
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn hear(&self) -> Result<(), ListenError> {
        let pubsub = timeout(CONNECT_TIMEOUT, self.client.get_async_pubsub()).await??;
        let (mut sink, mut messages) = pubsub.split();
        timeout(CONNECT_TIMEOUT, sink.subscribe(&self.channels)).await??;
        let mut ping = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        loop {
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else { return Ok(()) };
                    let payload: Vec<u8> = message.get_payload()?;
                    let mailbox = message.get_channel_name().strip_prefix(&self.prefix);
                    let Some((mailbox, frames)) = mailbox.zip(split(payload.into())) else { continue };
                    let message = Message { mailbox: mailbox.to_owned(), frames };
                    if self.sender.send(message).await.is_err() {
                        return Ok(());
                    }
                }
                _ = ping.tick() => timeout(CONNECT_TIMEOUT, sink.ping::<redis::Value>()).await?.map(drop)?,
            }
        }
    }
}

/// Frames as one message: each behind its length, in little-endian bytes.
fn join(frames: &[Bytes]) -> Bytes {
    let bytes = frames.iter().map(|it| it.len() + LENGTH_BYTES).sum();
    let mut message = BytesMut::with_capacity(bytes);
    for frame in frames {
        let length = u32::try_from(frame.len()).expect("looked at when it was queued");
        message.extend_from_slice(&length.to_le_bytes());
        message.extend_from_slice(frame);
    }
    message.freeze()
}

/// The frames of a message; `None` where it is none.
fn split(mut message: Bytes) -> Option<Vec<Bytes>> {
    let mut frames = Vec::new();
    while !message.is_empty() {
        let length = message.first_chunk::<LENGTH_BYTES>().copied()?;
        let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
        let whole = LENGTH_BYTES.checked_add(length)?;
        if whole > message.len() {
            return None;
        }
        frames.push(message.split_to(whole).slice(LENGTH_BYTES..));
    }
    Some(frames)
}

#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("Redis does not answer")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("Redis refuses")]
    Redis(#[from] redis::RedisError),
    #[error("a message of Redis has no bytes")]
    Payload(#[from] redis::ParsingError),
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.publisher.abort();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
