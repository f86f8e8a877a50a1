//! The keys of worker tokens, and the key set by which a worker knows the server.

use std::fmt;

use comptoir_domain::{digest::Sha256, id::WorkerId};
use comptoir_http::jwt::{Claims, Grant, Jwks, SigningKey, TokenError, Verifier};
use comptoir_wire::token::TOKEN_LIFE_S;
use time::{Duration, OffsetDateTime};

/// The audience of worker tokens.
pub const AUDIENCE: &str = "comptoir-worker";

/// Signs and checks worker tokens.
pub struct Keys {
    signing: SigningKey,
    verifier: Verifier,
    public: Vec<[u8; 32]>,
    issuer: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Keys that sign with `signing` and also trust `other_public_keys`: those that signed before, or will soon.
    /// `issuer` is the public origin. All the same as in the API, whose join tokens name this key set.
    #[must_use]
    pub fn new(signing: SigningKey, other_public_keys: &[[u8; 32]], issuer: &str) -> Self {
        let mut public = vec![signing.public()];
        public.extend_from_slice(other_public_keys);
        Self {
            verifier: Verifier::new(&public, issuer, AUDIENCE),
            signing,
            public,
            issuer: issuer.to_owned(),
        }
    }

    /// The public keys, as others read them.
    #[must_use]
    pub fn jwks(&self) -> Jwks {
        Jwks::of(&self.public)
    }

    /// What the first part of a join token must be: the SHA-256 of the key set's canonical JSON.
    #[must_use]
    pub fn fingerprint(&self) -> Sha256 {
        Sha256::of_document(&self.jwks()).expect("a key set has a JSON form")
    }

    /// A token for the worker.
    #[must_use]
    pub fn worker_token(&self, worker: WorkerId, now: OffsetDateTime) -> String {
        let subject = worker.to_string();
        let grant = Grant {
            issuer: &self.issuer,
            audience: AUDIENCE,
            subject: &subject,
        };
        self.signing
            .sign(&grant, now, Duration::seconds(i64::from(TOKEN_LIFE_S)))
    }

    /// What a valid worker token says.
    pub(crate) fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Claims, TokenError> {
        self.verifier.verify(token, now)
    }
}
