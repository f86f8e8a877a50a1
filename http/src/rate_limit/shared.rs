//! Buckets in Redis, which all replicas share. Redis may be emptied, slow or away at any moment: then nobody waits for it,
//! and every process counts for itself.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, RedisError, RedisResult, Script, aio::MultiplexedConnection,
};
use tokio::time::Instant;

use super::limiter::{Key, Policy};

/// How long one round trip takes at most, unless somebody [waits longer](Shared::patient).
const REDIS_TIMEOUT: Duration = Duration::from_millis(50);
/// After a failure, how long Redis is not asked.
const BREAKER_OPEN: Duration = Duration::from_secs(1);

/// Takes up to ARGV[1] from a bucket of ARGV[2] that fills up in ARGV[3] microseconds, by Redis's own clock. The key holds the
/// moment at which the bucket is full again, and ends then. Answers: taken, left, microseconds until it is full, and until
/// one can be taken.
const TAKE: &str = r"
local wanted, quota, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local one = window / quota
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local free = math.floor((window - (full_at - now)) / one + 0.000001)
if free < 1 then
    return { 0, 0, math.ceil(full_at - now), math.max(1, math.ceil(full_at + one - now - window)) }
end
local taken = math.min(wanted, free)
full_at = full_at + taken * one
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
return { taken, free - taken, math.ceil(full_at - now), 0 }
";

/// What Redis gave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    /// So many.
    pub granted: u32,
    /// What it has left.
    pub remaining: u32,
    /// When the bucket is full.
    pub full_after: Duration,
    /// When there is one again, where none was granted.
    pub one_after: Duration,
}

/// The buckets of one deployment.
pub struct Shared {
    client: Client,
    prefix: String,
    script: Script,
    /// How long one round trip may take.
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    closed_until: Option<Instant>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Buckets in the Redis at `url`; `namespace` separates deployments that share one. Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(url: &str, namespace: &str) -> RedisResult<Self> {
        Ok(Self {
            client: Client::open(url)?,
            prefix: format!("comptoir:{namespace}:limit"),
            script: Script::new(TAKE),
            timeout: REDIS_TIMEOUT,
            state: Mutex::default(),
        })
    }

    /// Waits for so long for an answer, where it matters more that all count together than that nobody waits.
    #[must_use]
    pub fn patient(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Takes up to `wanted`; none when Redis does not answer in time, or did not a moment ago.
    pub(super) async fn take(&self, policy: &Policy, key: &Key, wanted: u32) -> Option<Grant> {
        if self.is_closed() {
            return None;
        }
        let answer = tokio::time::timeout(self.timeout, self.ask(policy, key, wanted)).await;
        match answer {
            Ok(Ok(grant)) => Some(grant),
            Ok(Err(error)) => self.close(&error),
            Err(late) => self.close(&late),
        }
    }

    async fn ask(&self, policy: &Policy, key: &Key, wanted: u32) -> Result<Grant, RedisError> {
        let mut connection = self.connection().await?;
        let key = u128::from_be_bytes(*key);
        let window = u64::try_from(policy.window.as_micros()).unwrap_or(u64::MAX);
        let (granted, remaining, full_after, one_after): (u32, u32, u64, u64) = self
            .script
            .key(format!("{}:{}:{key:032x}", self.prefix, policy.name))
            .arg(wanted)
            .arg(policy.quota.get())
            .arg(window)
            .invoke_async(&mut connection)
            .await?;
        Ok(Grant {
            granted,
            remaining,
            full_after: Duration::from_micros(full_after),
            one_after: Duration::from_micros(one_after),
        })
    }

    async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        if let Some(connection) = &self.state().connection {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        self.state().connection = Some(connection.clone());
        Ok(connection)
    }

    fn is_closed(&self) -> bool {
        let closed_until = self.state().closed_until;
        closed_until.is_some_and(|until| Instant::now() < until)
    }

    fn close(&self, error: &(dyn std::error::Error + 'static)) -> Option<Grant> {
        tracing::debug!(error, "take from a bucket in Redis");
        *self.state() = State {
            connection: None,
            closed_until: Some(Instant::now() + BREAKER_OPEN),
        };
        None
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
