//! Limits on how often a client may call: per credential, else per address.
//!
//! A credential counts as one only once a handler accepted it; until then its requests are its address's. So nobody gets more
//! by making credentials up.

mod limiter;
mod shared;

use std::{
    cell::Cell,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

pub use limiter::{Key, Limiter, Policy, Standing};
pub use shared::Shared;

use crate::{Problem, client_ip, credential};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STANDING: HeaderName = HeaderName::from_static("ratelimit");
/// What probes ask again and again, and must hear.
pub(crate) const UNLIMITED: &[&str] = &["/healthz", "/readyz"];
/// Accepted credentials that a process remembers.
const ACCEPTED_MAX: usize = 100_000;
/// How long it remembers one.
const ACCEPTED_FOR: Duration = Duration::from_mins(10);

tokio::task_local! {
    static PRESENTED: Presented;
}

/// What a request presents itself with.
struct Presented {
    limits: RateLimits,
    credential: Option<Key>,
    is_accepted: Cell<bool>,
}

/// The handler of this request accepted its credential. Every extractor that authenticates says so. It is remembered at once: whoever comes beside a
/// request that takes long is not counted as a stranger.
pub fn accepted() {
    // Outside of a limited service there is nobody to tell.
    PRESENTED
        .try_with(|it| {
            it.is_accepted.set(true);
            if let Some(credential) = it.credential {
                it.limits.remember(credential);
            }
        })
        .unwrap_or_default();
}

/// Is a request of this path limited apart?
pub type IsApart = fn(path: &str) -> bool;

/// The limits of one service. Clones share them.
#[derive(Debug, Clone)]
pub struct RateLimits {
    /// For requests with a credential.
    credentials: Limiter,
    /// For requests with a credential that are limited apart: those that are asked often, and paid for.
    apart: Option<(Limiter, IsApart)>,
    /// For those without, or with one that nobody accepted yet.
    networks: Limiter,
    /// The credentials that were accepted, and until when that counts.
    accepted: Arc<Mutex<HashMap<Key, Instant>>>,
}

impl RateLimits {
    /// These policies, counted through `shared` where there is one.
    #[must_use]
    pub fn new(credentials: Policy, networks: Policy, shared: Option<&Arc<Shared>>) -> Self {
        Self {
            credentials: Limiter::new(credentials, shared.cloned()),
            apart: None,
            networks: Limiter::new(networks, shared.cloned()),
            accepted: Arc::default(),
        }
    }

    /// Limits some paths by a policy of their own.
    #[must_use]
    pub fn apart(self, is_apart: IsApart, policy: Policy, shared: Option<&Arc<Shared>>) -> Self {
        let limiter = Limiter::new(policy, shared.cloned());
        Self {
            apart: Some((limiter, is_apart)),
            ..self
        }
    }

    /// What limits a request with a credential.
    fn of(&self, path: &str) -> &Limiter {
        match &self.apart {
            Some((limiter, is_apart)) if is_apart(path) => limiter,
            Some(_) | None => &self.credentials,
        }
    }

    fn is_accepted(&self, credential: &Key) -> bool {
        let until = self.accepted().get(credential).copied();
        until.is_some_and(|until| Instant::now() < until)
    }

    fn remember(&self, credential: Key) {
        let now = Instant::now();
        let mut accepted = self.accepted();
        if accepted.len() >= ACCEPTED_MAX {
            accepted.retain(|_, until| *until > now);
        }
        if accepted.len() >= ACCEPTED_MAX {
            accepted.clear();
        }
        accepted.insert(credential, now + ACCEPTED_FOR);
    }

    fn accepted(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a few texts, each with its length in front of it.
#[must_use]
pub fn key(parts: &[&[u8]]) -> Key {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let digest: [u8; 32] = digest.finalize().into();
    *digest.first_chunk().expect("32 bytes begin with 16")
}

/// The key of whoever an address belongs to. Requests whose address nobody knows share one.
#[must_use]
pub fn network_key(client: Option<IpAddr>) -> Key {
    let network = client.map_or(Ipv6Addr::UNSPECIFIED.into(), client_ip::network);
    key(&[b"network", network.to_string().as_bytes()])
}

/// Lets a request through, or answers 429. Says either way what is left.
pub(crate) async fn limit(
    State(limits): State<RateLimits>,
    request: Request,
    next: Next,
) -> Response {
    if UNLIMITED.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let credential = credential_key(request.headers());
    let of_credential = limits.of(request.uri().path());
    let known = credential.filter(|credential| limits.is_accepted(credential));
    let (mut limiter, mut standing) = if let Some(credential) = known {
        let standing = of_credential.take(&credential).await;
        (of_credential, standing)
    } else {
        let network = network_key(client_ip::current());
        (&limits.networks, limits.networks.take(&network).await)
    };
    let mut response = if let Some(wait) = standing.refused_for {
        refusal(wait, "This client asks too often").into_response()
    } else {
        let presented = Presented {
            limits: limits.clone(),
            credential,
            is_accepted: Cell::new(false),
        };
        let answering = async {
            let response = next.run(request).await;
            (response, PRESENTED.with(|it| it.is_accepted.get()))
        };
        let (response, is_accepted) = PRESENTED.scope(presented, answering).await;
        if let Some(credential) = credential.filter(|_| is_accepted) {
            if known.is_none() {
                limiter = of_credential;
                standing = limiter.take(&credential).await;
            }
        } else if let Some(credential) = known.filter(|_| is_refusal(&response)) {
            limits.accepted().remove(&credential);
        }
        response
    };
    tell(&limiter.policy(), &standing, response.headers_mut());
    response
}

fn is_refusal(response: &Response) -> bool {
    response.status() == StatusCode::UNAUTHORIZED
}

/// The answer to a client that must wait.
#[must_use]
pub fn refusal(wait: Duration, title: &'static str) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", title)
        .retry_after(u32::try_from(whole_seconds(wait)).unwrap_or(u32::MAX))
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).
fn tell(policy: &Policy, standing: &Standing, headers: &mut HeaderMap) {
    let Policy {
        name,
        quota,
        window,
    } = policy;
    let says = [
        (
            POLICY,
            format!("\"{name}\";q={quota};w={}", window.as_secs()),
        ),
        (
            STANDING,
            format!(
                "\"{name}\";r={};t={}",
                standing.remaining,
                whole_seconds(standing.full_after)
            ),
        ),
    ];
    for (header, text) in says {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(header, value);
        }
    }
}

/// Rounded up, and one at least: whoever comes back after it finds what was promised.
fn whole_seconds(duration: Duration) -> u64 {
    let begun = u64::from(duration.subsec_nanos() > 0);
    duration.as_secs().saturating_add(begun).max(1)
}

/// What a request authenticates itself with, if with anything: a token, or the session of a browser. The credential itself
/// counts, as handlers read it, not what is written around it: otherwise each spelling had a limit of its own.
fn credential_key(headers: &HeaderMap) -> Option<Key> {
    if headers.contains_key(header::AUTHORIZATION) {
        let token = credential::bearer(headers)?;
        return Some(key(&[b"bearer", token.as_bytes()]));
    }
    let session = credential::session_cookie(headers)?;
    Some(key(&[b"cookie", session.as_bytes()]))
}
