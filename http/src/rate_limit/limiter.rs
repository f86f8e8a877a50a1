//! How often one key may do something: together over all replicas through Redis, else in this process alone.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DashMapStateStore,
};
use tokio::time::Instant;

use super::shared::{Grant, Shared};

/// What is counted: a digest of a credential, an address, or both with what they try.
pub type Key = [u8; 16];

/// Keys that a process remembers; it forgets those that are over first, then all.
const KEYS_MAX: usize = 100_000;
/// A process takes this share of a quota from Redis at once and spends it without asking again.
const TAKEN_AT_ONCE: u32 = 20;

type Local = RateLimiter<Key, DashMapStateStore<Key>, DefaultClock, StateInformationMiddleware>;

/// So much in so long: a bucket that is full at first and fills up again evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What clients see it called.
    pub name: &'static str,
    /// What the bucket holds.
    pub quota: NonZeroU32,
    /// In which time an empty bucket is full again.
    pub window: Duration,
}

/// What is left of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What may be taken at once.
    pub remaining: u32,
    /// When the bucket is full again.
    pub full_after: Duration,
    /// When one more may be taken, if none was: then it was refused.
    pub refused_for: Option<Duration>,
}

/// Counts by one policy. Clones share it.
#[derive(Debug, Clone)]
pub struct Limiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    policy: Policy,
    local: Local,
    shared: Option<Arc<Shared>>,
    taken: Mutex<HashMap<Key, Taken>>,
}

/// What this process took and has not spent.
#[derive(Debug, Clone, Copy)]
struct Taken {
    left: u32,
    /// What the bucket had left then, and when it would be full.
    remaining: u32,
    full_at: Instant,
    /// What is not spent by then is worth nothing: the bucket has filled up without it.
    until: Instant,
}

impl Limiter {
    /// Counts through `shared` where there is one and it answers, else in this process.
    ///
    /// # Panics
    /// Never: a quota that is not zero fills up within any window that is not.
    #[must_use]
    pub fn new(policy: Policy, shared: Option<Arc<Shared>>) -> Self {
        let window = policy.window.max(Duration::from_secs(1));
        let one = (window / policy.quota.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(one)
            .expect("a period that is not zero")
            .allow_burst(policy.quota);
        Self(Arc::new(Inner {
            policy: Policy { window, ..policy },
            local: RateLimiter::dashmap(quota).with_middleware(),
            shared,
            taken: Mutex::default(),
        }))
    }

    /// By which policy.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.0.policy
    }

    /// Takes one from the bucket of `key`, or says when there will be one.
    pub async fn take(&self, key: &Key) -> Standing {
        if let Some(standing) = self.spend(key) {
            return standing;
        }
        if let Some(shared) = &self.0.shared {
            let wanted = (self.0.policy.quota.get() / TAKEN_AT_ONCE).max(1);
            if let Some(grant) = shared.take(&self.0.policy, key, wanted).await {
                return self.granted(key, grant);
            }
        }
        self.take_local(key)
    }

    /// Gives one back that was taken and turned out not to count; `standing` is what taking it said. This process spends it
    /// next, and never more than a whole quota so.
    pub fn give_back(&self, key: &Key, standing: &Standing) {
        let (now, quota) = (Instant::now(), self.0.policy.quota.get());
        let mut taken = self.taken();
        make_room(&mut taken, now);
        let kept = taken.get(key).filter(|it| it.until > now && it.left > 0);
        let kept = kept.copied().unwrap_or(Taken {
            left: 0,
            remaining: standing.remaining,
            full_at: now + standing.full_after,
            until: now + self.0.policy.window,
        });
        let left = kept.left.saturating_add(1).min(quota);
        taken.insert(*key, Taken { left, ..kept });
    }

    /// Spends what was taken before, or given back.
    fn spend(&self, key: &Key) -> Option<Standing> {
        let now = Instant::now();
        let mut taken = self.taken();
        let taken = taken.get_mut(key).filter(|it| it.until > now)?;
        taken.left = taken.left.checked_sub(1)?;
        Some(Standing {
            remaining: taken.remaining.saturating_add(taken.left),
            full_after: taken.full_at.saturating_duration_since(now),
            refused_for: None,
        })
    }

    fn granted(&self, key: &Key, grant: Grant) -> Standing {
        if let Some(left) = grant.granted.checked_sub(1) {
            let now = Instant::now();
            let mut taken = self.taken();
            make_room(&mut taken, now);
            let kept = taken.get(key).filter(|it| it.until > now);
            let left = left.saturating_add(kept.map_or(0, |it| it.left));
            let mine = Taken {
                left,
                remaining: grant.remaining,
                full_at: now + grant.full_after,
                until: now + self.0.policy.window,
            };
            taken.insert(*key, mine);
            Standing {
                remaining: grant.remaining.saturating_add(left),
                full_after: grant.full_after,
                refused_for: None,
            }
        } else {
            Standing {
                remaining: 0,
                full_after: grant.full_after,
                refused_for: Some(grant.one_after),
            }
        }
    }

    fn take_local(&self, key: &Key) -> Standing {
        let Inner { policy, local, .. } = &*self.0;
        if local.len() >= KEYS_MAX {
            local.retain_recent();
        }
        let one = policy.window / policy.quota.get();
        match local.check_key(key) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let spent = policy.quota.get().saturating_sub(remaining);
                Standing {
                    remaining,
                    full_after: one * spent,
                    refused_for: None,
                }
            }
            Err(not_yet) => Standing {
                remaining: 0,
                full_after: policy.window,
                refused_for: Some(not_yet.wait_time_from(DefaultClock::default().now())),
            },
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Key, Taken>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgetting what was taken from Redis costs a client a part of its quota, never more than it has.
fn make_room(taken: &mut HashMap<Key, Taken>, now: Instant) {
    if taken.len() < KEYS_MAX {
        return;
    }
    taken.retain(|_, it| it.until > now && it.left > 0);
    if taken.len() >= KEYS_MAX {
        taken.clear();
    }
}
