//! Wake-ups between processes: Redis publish and subscribe, and within one process without it. A wake-up says
//! only "look again": it carries nothing, may be lost, and never fails. Whoever waits also polls.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use comptoir_domain::id::{JobId, WorkerId};
use futures::StreamExt as _;
use redis::{AsyncConnectionConfig, Client, RedisResult, aio::MultiplexedConnection};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, timeout},
};
use uuid::Uuid;

/// How long one round trip to Redis may take.
const REDIS_TIMEOUT: Duration = Duration::from_millis(50);
/// How long connecting may take; it happens in the background, nobody waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// After a failure, how long publishing to Redis is not tried.
const BREAKER_OPEN: Duration = Duration::from_secs(1);
/// Wake-ups that wait for Redis; more are dropped.
const PUBLISH_QUEUE_MAX: usize = 1_024;
/// Wake-ups of one round trip.
const PUBLISH_BATCH_MAX: usize = 256;
/// Pauses between attempts to subscribe again: the first, and the longest.
const RESUBSCRIBE_AFTER: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(2));
/// How often the subscription's connection is checked.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Channel names start with this, then a deployment's namespace.
const CHANNEL_PREFIX: &str = "comptoir";

/// What somebody may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// There may be work in the queue.
    Work,
    /// The job has a new event.
    Job(JobId),
    /// A lease of the worker was taken back.
    Worker(WorkerId),
    /// Every channel: to be published, when wake-ups may have been lost. Nobody waits on it.
    Every,
}

impl Channel {
    fn name(self) -> String {
        match self {
            Self::Work => "work".to_owned(),
            Self::Job(job) => format!("job:{}", job.0),
            Self::Worker(worker) => format!("worker:{}", worker.0),
            Self::Every => "every".to_owned(),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name.split_once(':') {
            None if name == "work" => Some(Self::Work),
            None if name == "every" => Some(Self::Every),
            Some(("job", id)) => id.parse().ok().map(JobId).map(Self::Job),
            Some(("worker", id)) => id.parse().ok().map(WorkerId).map(Self::Worker),
            None | Some(_) => None,
        }
    }
}

/// Wakes those who wait on a channel, in this process and in others. Clones share it.
#[derive(Debug, Clone)]
pub struct Wake {
    waiters: Arc<Waiters>,
    redis: Option<Arc<Redis>>,
}

/// One waiter. A wake-up that comes between two waits is not lost.
#[derive(Debug)]
pub struct Subscription {
    waiters: Arc<Waiters>,
    channel: Channel,
    receiver: Option<watch::Receiver<()>>,
}

#[derive(Debug)]
struct Redis {
    queue: mpsc::Sender<Channel>,
    connected: Arc<AtomicBool>,
    tasks: [AbortHandle; 2],
}

#[derive(Debug, Default)]
struct Waiters(Mutex<HashMap<Channel, watch::Sender<()>>>);

/// A deployment's channels in Redis, as one process sees them.
#[derive(Debug, Clone)]
struct Namespace {
    prefix: String,
    /// Tells a process its own messages: it has woken its own waiters already.
    sender: String,
}

impl Wake {
    /// Wake-ups within this process alone.
    #[must_use]
    pub fn local() -> Self {
        Self {
            waiters: Arc::default(),
            redis: None,
        }
    }

    /// Wake-ups through Redis as well. Connecting happens in the background, again and again: only a URL that is
    /// none is an error. `namespace` separates deployments that share one Redis.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(redis_url: &str, namespace: &str) -> RedisResult<Self> {
        let client = Client::open(redis_url)?;
        let namespace = Namespace {
            prefix: format!("{CHANNEL_PREFIX}:{namespace}:"),
            sender: Uuid::new_v4().to_string(),
        };
        let waiters = Arc::<Waiters>::default();
        let connected = Arc::<AtomicBool>::default();
        let (queue, queued) = mpsc::channel(PUBLISH_QUEUE_MAX);
        let publisher = tokio::spawn(publish(client.clone(), namespace.clone(), queued));
        let listener = tokio::spawn(listen(
            client,
            namespace,
            Arc::clone(&waiters),
            Arc::clone(&connected),
        ));
        let tasks = [publisher.abort_handle(), listener.abort_handle()];
        Ok(Self {
            waiters,
            redis: Some(Arc::new(Redis {
                queue,
                connected,
                tasks,
            })),
        })
    }

    /// Wakes whoever waits on the channel. Returns at once and cannot fail. Call it after the commit.
    pub fn publish(&self, channel: Channel) {
        self.waiters.wake(channel);
        if let Some(redis) = &self.redis
            && redis.queue.try_send(channel).is_err()
        {
            tracing::debug!(?channel, "wake-up dropped: Redis is slow or away");
        }
    }

    /// Waits on a channel from now on.
    #[must_use]
    pub fn subscribe(&self, channel: Channel) -> Subscription {
        let receiver = Some(self.waiters.subscribe(channel));
        Subscription {
            waiters: Arc::clone(&self.waiters),
            channel,
            receiver,
        }
    }

    /// Does this process hear others? `None` where Redis is not configured.
    #[must_use]
    pub fn is_connected(&self) -> Option<bool> {
        self.redis
            .as_ref()
            .map(|redis| redis.connected.load(Ordering::Relaxed))
    }
}

impl Subscription {
    /// Returns at the next wake-up, at once if one came since the last wait, or after `at_most`.
    pub async fn wait(&mut self, at_most: Duration) {
        let receiver = self.receiver.as_mut().expect("only `drop` takes it");
        // The sender lives in the map while we do; were it gone, waiting the full time is the fallback.
        if let Ok(Err(_)) = timeout(at_most, receiver.changed()).await {
            tokio::time::sleep(at_most).await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiters = self.waiters.lock();
        self.receiver = None;
        if waiters
            .get(&self.channel)
            .is_some_and(|sender| sender.receiver_count() == 0)
        {
            waiters.remove(&self.channel);
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Channel, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribe(&self, channel: Channel) -> watch::Receiver<()> {
        self.lock()
            .entry(channel)
            .or_insert_with(|| watch::Sender::new(()))
            .subscribe()
    }

    fn wake(&self, channel: Channel) {
        if channel == Channel::Every {
            return self.wake_all();
        }
        if let Some(sender) = self.lock().get(&channel) {
            sender.send_replace(());
        }
    }

    fn wake_all(&self) {
        self.lock().values().for_each(|sender| {
            sender.send_replace(());
        });
    }
}

/// Sends what is queued, a batch per round trip; while Redis is away, drops it.
async fn publish(client: Client, namespace: Namespace, mut queued: mpsc::Receiver<Channel>) {
    let mut connection = None;
    let mut closed_at = Instant::now();
    let mut batch = Vec::with_capacity(PUBLISH_BATCH_MAX);
    while queued.recv_many(&mut batch, PUBLISH_BATCH_MAX).await > 0 {
        let channels: BTreeSet<Channel> = batch.drain(..).collect();
        if Instant::now() < closed_at {
            continue;
        }
        if let Err(error) = send(&client, &namespace, &mut connection, channels).await {
            connection = None;
            closed_at = Instant::now() + BREAKER_OPEN;
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "publish a wake-up to Redis"
            );
        }
    }
}

async fn send(
    client: &Client,
    namespace: &Namespace,
    connection: &mut Option<MultiplexedConnection>,
    channels: BTreeSet<Channel>,
) -> RedisResult<()> {
    if connection.is_none() {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(REDIS_TIMEOUT));
        *connection = Some(
            client
                .get_multiplexed_async_connection_with_config(&config)
                .await?,
        );
    }
    let connection = connection.as_mut().expect("set above");
    let mut pipeline = redis::pipe();
    for channel in channels {
        let name = format!("{}{}", namespace.prefix, channel.name());
        pipeline
            .cmd("PUBLISH")
            .arg(name)
            .arg(&namespace.sender)
            .ignore();
    }
    pipeline.query_async(connection).await
}

/// Hears what other processes publish, and subscribes again whenever the connection ends.
async fn listen(
    client: Client,
    namespace: Namespace,
    waiters: Arc<Waiters>,
    connected: Arc<AtomicBool>,
) {
    let (first, longest) = RESUBSCRIBE_AFTER;
    let mut pause = first;
    loop {
        let heard = hear(&client, &namespace, &waiters, &connected).await;
        if connected.swap(false, Ordering::Relaxed) {
            pause = first;
            tracing::warn!("the subscription to Redis ended; polling goes on");
        }
        if let Err(error) = heard {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "subscribe to Redis"
            );
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(longest);
    }
}

async fn hear(
    client: &Client,
    namespace: &Namespace,
    waiters: &Waiters,
    connected: &AtomicBool,
) -> Result<(), ListenError> {
    let pubsub = timeout(CONNECT_TIMEOUT, client.get_async_pubsub()).await??;
    let (mut sink, mut messages) = pubsub.split();
    timeout(
        CONNECT_TIMEOUT,
        sink.psubscribe(format!("{}*", namespace.prefix)),
    )
    .await??;
    connected.store(true, Ordering::Relaxed);
    // What was published while nobody listened is gone: everyone looks once.
    waiters.wake_all();
    let mut ping = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return Ok(()) };
                let name = message.get_channel_name().strip_prefix(&namespace.prefix);
                if message.get_payload_bytes() != namespace.sender.as_bytes()
                    && let Some(channel) = name.and_then(Channel::parse)
                {
                    waiters.wake(channel);
                }
            }
            // A peer that vanished without a word is noticed only by asking.
            _ = ping.tick() => timeout(CONNECT_TIMEOUT, sink.ping::<redis::Value>()).await?.map(drop)?,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("Redis does not answer")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("Redis refuses")]
    Redis(#[from] redis::RedisError),
}

#[cfg(test)]
mod tests;
