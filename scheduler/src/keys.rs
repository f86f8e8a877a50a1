//! The keys of worker tokens, and the key set by which a worker knows the server.

use comptoir_domain::{digest::Sha256, id::WorkerId};
use comptoir_http::{
    jwt::{Claims, Jwks, TokenError},
    key_ring::{KeyRing, TokenKeys},
};
use comptoir_wire::token::TOKEN_LIFE_S;
use time::{Duration, OffsetDateTime};

/// The audience of worker tokens.
pub const AUDIENCE: &str = "comptoir-worker";

/// Signs and checks worker tokens.
#[derive(Debug)]
pub struct Keys(TokenKeys);

impl Keys {
    /// Keys of the deployment; `issuer` is the public origin. All the same as in the API, whose join tokens name this
    /// key set.
    #[must_use]
    pub fn new(ring: KeyRing, issuer: &str) -> Self {
        Self(TokenKeys::new(ring, issuer, AUDIENCE))
    }

    /// Signs and checks with these keys from now on.
    pub fn replace(&self, ring: KeyRing) {
        self.0.replace(ring);
    }

    /// The public keys, as others read them.
    #[must_use]
    pub fn jwks(&self) -> Jwks {
        self.0.jwks()
    }

    /// What the first part of a join token is.
    #[must_use]
    pub fn fingerprint(&self) -> Sha256 {
        self.jwks().fingerprint()
    }

    /// A token for the worker.
    #[must_use]
    pub fn worker_token(&self, worker: WorkerId, now: OffsetDateTime) -> String {
        let life = Duration::seconds(i64::from(TOKEN_LIFE_S));
        self.sign(&worker.to_string(), now, life)
    }

    /// A token about something else than a worker alone, for workers.
    pub(crate) fn sign(&self, subject: &str, now: OffsetDateTime, life: Duration) -> String {
        self.0.sign(subject, None, now, life)
    }

    /// What a valid worker token says.
    pub(crate) fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Claims, TokenError> {
        self.0.verify(token, now)
    }
}
