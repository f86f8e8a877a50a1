//! The service's secrets: the keys of access tokens, and what is derived from the pepper.

use std::{
    fmt,
    io::{Read as _, Write as _},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    constant_time, hmac, rand,
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use comptoir_domain::{
    credential::ApiKey,
    id::{AccountId, SessionId},
};
use comptoir_http::{
    jwt::{Jwks, TokenError},
    key_ring::{KeyRing, TokenKeys},
};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use time::{Duration, OffsetDateTime};

/// The audience of tokens for this service.
pub const AUDIENCE: &str = "comptoir-api";
/// How long an access token holds.
pub const ACCESS_LIFETIME: Duration = Duration::minutes(15);
/// How many bytes the pepper has at least.
pub const PEPPER_BYTES_MIN: usize = 32;
/// Bytes of a signed cursor that are its tag.
const TAG_BYTES: usize = 16;

/// What [`Keys`] are made from.
#[derive(Debug)]
pub struct Secrets<'a> {
    /// Sign and check access tokens.
    pub ring: KeyRing,
    /// What stored credentials are hashed with; not in the database.
    pub pepper: &'a [u8],
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Too little to resist guessing.
    #[error("the pepper must have {PEPPER_BYTES_MIN} bytes or more")]
    ShortPepper,
    /// What was signed could not be verified.
    #[error("verify a token that was just signed")]
    SelfTest(#[source] TokenError),
}

/// The service's secrets, ready for use.
pub struct Keys {
    tokens: TokenKeys,
    credentials: hmac::Key,
    cursors: hmac::Key,
    replies: RandomizedNonceKey,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

/// The sealed bytes were not sealed by us for this purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("open a sealed reply")]
pub struct NotSealedHere;

impl Keys {
    /// Derives every key; `issuer` is the public origin. Signs and verifies once, so that a build whose
    /// cryptography does not work fails here and not at the first request.
    ///
    /// # Errors
    /// When a secret cannot be used.
    pub fn new(secrets: Secrets<'_>, issuer: &str) -> Result<Self, KeysError> {
        if secrets.pepper.len() < PEPPER_BYTES_MIN {
            return Err(KeysError::ShortPepper);
        }
        let root = hmac::Key::new(hmac::HMAC_SHA256, secrets.pepper);
        let derive = |purpose: &str| hmac::sign(&root, purpose.as_bytes());
        let replies = RandomizedNonceKey::new(&AES_256_GCM, derive("kept replies").as_ref())
            .expect("an HMAC-SHA256 has the 32 bytes of the cipher's key");
        let keys = Self {
            tokens: TokenKeys::new(secrets.ring, issuer, AUDIENCE),
            credentials: hmac::Key::new(hmac::HMAC_SHA256, derive("api keys").as_ref()),
            cursors: hmac::Key::new(hmac::HMAC_SHA256, derive("cursors").as_ref()),
            replies,
        };
        let epoch = OffsetDateTime::UNIX_EPOCH;
        let token = keys.access_token(AccountId::generate(), SessionId::generate(), epoch);
        keys.tokens
            .verify(&token, epoch)
            .map_err(KeysError::SelfTest)?;
        Ok(keys)
    }

    /// The public keys, as others read them: the current one, the next, the one before.
    #[must_use]
    pub fn jwks(&self) -> Jwks {
        self.tokens.jwks()
    }

    /// Signs and checks access tokens with these keys from now on.
    pub fn replace(&self, ring: KeyRing) {
        self.tokens.replace(ring);
    }

    /// An access token of the account, which ends with the session.
    #[must_use]
    pub fn access_token(
        &self,
        account: AccountId,
        session: SessionId,
        now: OffsetDateTime,
    ) -> String {
        let (subject, session) = (account.to_string(), session.to_string());
        self.tokens
            .sign(&subject, Some(&session), now, ACCESS_LIFETIME)
    }

    /// Whom a valid access token names, and the session that it ends with.
    pub(super) fn verify(
        &self,
        token: &str,
        now: OffsetDateTime,
    ) -> Result<(AccountId, SessionId), TokenError> {
        let claims = self.tokens.verify(token, now)?;
        let account = claims.sub.parse().map_err(|_| TokenError::Invalid)?;
        let session = claims.sid.ok_or(TokenError::Invalid)?;
        let session = session.parse().map_err(|_| TokenError::Invalid)?;
        Ok((account, session))
    }

    /// What is stored of an API key.
    #[must_use]
    pub fn api_key_hmac(&self, key: &ApiKey) -> [u8; 32] {
        hmac::sign(&self.credentials, key.reveal().as_bytes())
            .as_ref()
            .try_into()
            .expect("an HMAC-SHA256 has 32 bytes")
    }

    /// Signs a cursor of the list named by `context`.
    pub(crate) fn sign_cursor(&self, context: &str, position: &[u8]) -> String {
        let mut signed = self.cursor_tag(context, position)[..TAG_BYTES].to_vec();
        signed.extend_from_slice(position);
        BASE64_URL_SAFE_NO_PAD.encode(signed)
    }

    /// The position in a cursor of the list named by `context`.
    pub(crate) fn open_cursor(&self, context: &str, cursor: &str) -> Option<Vec<u8>> {
        let signed = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (tag, position) = signed.split_at_checked(TAG_BYTES)?;
        let expected = self.cursor_tag(context, position);
        constant_time::verify_slices_are_equal(tag, &expected[..TAG_BYTES]).ok()?;
        Some(position.to_vec())
    }

    fn cursor_tag(&self, context: &str, position: &[u8]) -> Vec<u8> {
        let mut signing = hmac::Context::with_key(&self.cursors);
        let length = u64::try_from(context.len()).unwrap_or(u64::MAX);
        signing.update(&length.to_be_bytes());
        signing.update(context.as_bytes());
        signing.update(position);
        signing.sign().as_ref().to_vec()
    }

    /// Seals a reply that is kept for repeated requests: it may show a secret that is stored nowhere else.
    pub(crate) fn seal_reply(&self, context: &str, reply: &[u8]) -> Vec<u8> {
        let mut sealed = deflate(reply);
        let nonce = self
            .replies
            .seal_in_place_append_tag(Aad::from(context.as_bytes()), &mut sealed)
            .expect("a reply is shorter than the cipher's limit");
        sealed.splice(..0, nonce.as_ref().iter().copied());
        sealed
    }

    /// Opens what [`Self::seal_reply`] sealed.
    pub(crate) fn open_reply(
        &self,
        context: &str,
        sealed: &[u8],
    ) -> Result<Vec<u8>, NotSealedHere> {
        let (nonce, reply) = sealed.split_at_checked(NONCE_LEN).ok_or(NotSealedHere)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotSealedHere)?;
        let mut reply = reply.to_vec();
        let opened = self
            .replies
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut reply)
            .map_err(|_| NotSealedHere)?
            .len();
        reply.truncate(opened);
        let mut inflated = Vec::new();
        DeflateDecoder::new(&reply[..])
            .read_to_end(&mut inflated)
            .map_err(|_| NotSealedHere)?;
        Ok(inflated)
    }
}

/// A third of what a job's document is otherwise; there is one for each submission.
fn deflate(reply: &[u8]) -> Vec<u8> {
    let mut deflated = DeflateEncoder::new(Vec::new(), Compression::fast());
    deflated
        .write_all(reply)
        .and_then(|()| deflated.finish())
        .expect("memory takes what is written to it")
}

/// Fresh random bytes.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

#[cfg(test)]
mod tests {
    use comptoir_http::key_ring::KeyFile;

    use super::*;

    fn ring() -> KeyRing {
        KeyFile::generate().ring().unwrap()
    }

    fn keys() -> Keys {
        let secrets = Secrets {
            ring: ring(),
            pepper: &[7; 32],
        };
        Keys::new(secrets, "https://comptoir.test").unwrap()
    }

    #[test]
    fn a_short_pepper_is_refused() {
        let secrets = Secrets {
            ring: ring(),
            pepper: &[7; 31],
        };
        assert!(matches!(
            Keys::new(secrets, "x"),
            Err(KeysError::ShortPepper)
        ));
    }

    #[test]
    fn a_cursor_belongs_to_its_list_and_notices_any_change() {
        let keys = keys();
        let cursor = keys.sign_cursor("jobs of a", b"position");
        assert_eq!(keys.open_cursor("jobs of a", &cursor).unwrap(), b"position");
        assert_eq!(keys.open_cursor("jobs of b", &cursor), None);
        assert_eq!(keys.open_cursor("jobs of a", ""), None);
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(&cursor).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            let changed = BASE64_URL_SAFE_NO_PAD.encode(&bytes);
            assert_eq!(keys.open_cursor("jobs of a", &changed), None);
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn a_kept_reply_is_unreadable_at_rest_and_opens_for_its_request_only() {
        let keys = keys();
        let sealed = keys.seal_reply("request 1", b"ck_live_secret");
        assert!(!sealed.windows(9).any(|part| part == b"ck_live_s"));
        assert_eq!(
            keys.open_reply("request 1", &sealed).unwrap(),
            b"ck_live_secret"
        );
        assert_eq!(keys.open_reply("request 2", &sealed), Err(NotSealedHere));
        assert_eq!(keys.open_reply("request 1", b"short"), Err(NotSealedHere));
    }
}
