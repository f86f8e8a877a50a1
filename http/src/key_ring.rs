//! The signing keys of a deployment over time: the current one, the next one, the one before; their file, and their use.

use std::{
    fmt::Write as _,
    sync::{Arc, PoisonError, RwLock},
};

use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::jwt::{
    Claims, Grant, InvalidKey, Jwks, SigningKey, TokenError, Verifier, public_from_base64,
    public_pem, thumbprint,
};

/// What the line with the time of the last rotation begins with.
const ROTATED_AT: &str = "rotated-at: ";
/// After a rotation the next one waits so long, or tokens of two keys ago would end early: the longest of ours,
/// a worker's, holds for an hour.
pub const ROTATION_PAUSE: Duration = Duration::hours(1);

/// The keys that sign and verify tokens at one time.
#[derive(Debug)]
pub struct KeyRing {
    /// Signs.
    pub signing: SigningKey,
    /// The public halves of the next key and of the one before.
    pub others: Vec<[u8; 32]>,
}

impl KeyRing {
    /// A ring of one key.
    #[must_use]
    pub const fn of(signing: SigningKey) -> Self {
        Self {
            signing,
            others: Vec::new(),
        }
    }
}

/// The text of a key file is not what [`KeyFile::to_text`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected one or two Ed25519 private keys (PKCS#8 in PEM), and perhaps a public key after them"
)]
pub struct InvalidKeyFile;

impl From<InvalidKey> for InvalidKeyFile {
    fn from(_: InvalidKey) -> Self {
        Self
    }
}

/// The file that the keys are kept in, in PEM: the current private key, the next one, and the public key before.
pub struct KeyFile {
    current: String,
    next: Option<String>,
    previous: Option<[u8; 32]>,
    rotated_at: Option<OffsetDateTime>,
}

impl KeyFile {
    /// Two fresh keys.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            current: SigningKey::generate_pem(),
            next: Some(SigningKey::generate_pem()),
            previous: None,
            rotated_at: None,
        }
    }

    /// Reads the text of a file. One that holds a single private key is of an earlier version, and good.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidKeyFile> {
        let (mut private, mut public) = (Vec::new(), Vec::new());
        let mut rest = text;
        while let Some((_, block)) = rest.split_once("-----BEGIN ") {
            let (label, block) = block.split_once("-----").ok_or(InvalidKeyFile)?;
            let end = format!("-----END {label}-----");
            let (base64, after) = block.split_once(&end).ok_or(InvalidKeyFile)?;
            let base64: String = base64.split_whitespace().collect();
            match label {
                "PRIVATE KEY" if public.is_empty() => private.push(format!(
                    "-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n"
                )),
                "PUBLIC KEY" => public.push(public_from_base64(&base64)?),
                _ => return Err(InvalidKeyFile),
            }
            rest = after;
        }
        if !(1..=2).contains(&private.len()) || public.len() > 1 {
            return Err(InvalidKeyFile);
        }
        let rotated_at = text
            .lines()
            .find_map(|line| line.strip_prefix(ROTATED_AT))
            .map(|time| OffsetDateTime::parse(time.trim(), &Rfc3339))
            .transpose()
            .map_err(|_| InvalidKeyFile)?;
        let mut private = private.into_iter();
        let file = Self {
            current: private.next().ok_or(InvalidKeyFile)?,
            next: private.next(),
            previous: public.pop(),
            rotated_at,
        };
        file.ring()?;
        Ok(file)
    }

    /// The text of the file. It holds secrets.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::from(
            "The current signing key, the next one, and the public half of the one before.\n\
             `comptoir admin rotate-keys` puts the next key in use.\n",
        );
        if let Some(rotated_at) = self.rotated_at {
            let time = rotated_at
                .format(&Rfc3339)
                .expect("a clock shows years of four digits");
            writeln!(text, "{ROTATED_AT}{time}").expect("a String takes any text");
        }
        text.push_str(&self.current);
        text.extend(self.next.as_deref());
        text.extend(self.previous.as_ref().map(public_pem));
        text
    }

    /// The keys, ready for use.
    ///
    /// # Errors
    /// When a private key is none.
    pub fn ring(&self) -> Result<KeyRing, InvalidKey> {
        let signing = SigningKey::from_pem(&self.current)?;
        let next = self.next.as_deref().map(SigningKey::from_pem).transpose()?;
        let next = next.map(|key| key.public());
        let others = next.into_iter().chain(self.previous).collect();
        Ok(KeyRing { signing, others })
    }

    /// Makes the next key where there is none; says whether it was missing.
    pub fn prepare(&mut self) -> bool {
        let missing = self.next.is_none();
        self.next.get_or_insert_with(SigningKey::generate_pem);
        missing
    }

    /// When the next rotation may come; `None` before the first.
    #[must_use]
    pub fn rotates_after(&self) -> Option<OffsetDateTime> {
        self.rotated_at
            .map(|rotated_at| rotated_at.saturating_add(ROTATION_PAUSE))
    }

    /// The next key becomes the current one, whose public half is kept for the tokens that it signed, and a fresh
    /// key the next. `None` when there is no next key that verifiers could know by now.
    ///
    /// # Errors
    /// When the current key is none.
    pub fn rotated(self, now: OffsetDateTime) -> Result<Option<Self>, InvalidKey> {
        let Some(next) = self.next else {
            return Ok(None);
        };
        Ok(Some(Self {
            previous: Some(SigningKey::from_pem(&self.current)?.public()),
            current: next,
            next: Some(SigningKey::generate_pem()),
            rotated_at: Some(now),
        }))
    }

    /// The names of the keys in the published set: of the current one, the next, and the one before.
    ///
    /// # Errors
    /// When a private key is none.
    pub fn names(&self) -> Result<Vec<String>, InvalidKey> {
        let KeyRing { signing, others } = self.ring()?;
        let public = std::iter::once(signing.public()).chain(others);
        Ok(public.map(|public| thumbprint(&public)).collect())
    }
}

/// Signs and checks the tokens of one issuer for one audience, with keys that may be replaced in use.
#[derive(Debug)]
pub struct TokenKeys {
    issuer: String,
    audience: &'static str,
    ring: RwLock<Arc<InUse>>,
}

#[derive(Debug)]
struct InUse {
    signing: SigningKey,
    verifier: Verifier,
    public: Vec<[u8; 32]>,
}

impl InUse {
    fn new(ring: KeyRing, issuer: &str, audience: &str) -> Arc<Self> {
        let public: Vec<_> = std::iter::once(ring.signing.public())
            .chain(ring.others)
            .collect();
        Arc::new(Self {
            signing: ring.signing,
            verifier: Verifier::new(&public, issuer, audience),
            public,
        })
    }
}

impl TokenKeys {
    /// Tokens of `issuer`, the public origin, for `audience`.
    #[must_use]
    pub fn new(ring: KeyRing, issuer: &str, audience: &'static str) -> Self {
        Self {
            ring: RwLock::new(InUse::new(ring, issuer, audience)),
            issuer: issuer.to_owned(),
            audience,
        }
    }

    /// Signs and checks with these keys from now on.
    pub fn replace(&self, ring: KeyRing) {
        let ring = InUse::new(ring, &self.issuer, self.audience);
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
    }

    fn in_use(&self) -> Arc<InUse> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A token that names `subject`, and the session that it ends with.
    #[must_use]
    pub fn sign(
        &self,
        subject: &str,
        session: Option<&str>,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> String {
        let grant = Grant {
            issuer: &self.issuer,
            audience: self.audience,
            subject,
            session,
        };
        self.in_use().signing.sign(&grant, now, lifetime)
    }

    /// The claims of a valid token.
    ///
    /// # Errors
    /// When anything about the token is not exactly as we sign them.
    pub fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Claims, TokenError> {
        self.in_use().verifier.verify(token, now)
    }

    /// The public keys, as others read them: the current one, the next, the one before.
    #[must_use]
    pub fn jwks(&self) -> Jwks {
        Jwks::of(&self.in_use().public)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

    fn tokens(file: &KeyFile) -> TokenKeys {
        TokenKeys::new(file.ring().unwrap(), "https://comptoir.test", "a")
    }

    fn sign(keys: &TokenKeys) -> String {
        keys.sign("acct_1", None, NOW, Duration::minutes(15))
    }

    #[test]
    fn the_next_key_is_known_before_it_signs_and_the_one_before_after_it_signed() {
        let first = KeyFile::generate();
        let before = tokens(&first);
        let old = sign(&before);
        let second = KeyFile::parse(&first.rotated(NOW).unwrap().unwrap().to_text()).unwrap();
        let after = tokens(&second);
        let new = sign(&after);
        assert!(before.verify(&new, NOW).is_ok(), "who has not looked yet");
        assert!(after.verify(&old, NOW).is_ok() && after.verify(&new, NOW).is_ok());
        let third = second.rotated(NOW).unwrap().unwrap();
        before.replace(third.ring().unwrap());
        assert!(before.verify(&old, NOW).is_err(), "two rotations later");
        assert!(before.verify(&new, NOW).is_ok());
    }

    #[test]
    fn a_file_survives_its_text_and_forgets_the_private_half_before() {
        let first = KeyFile::generate();
        let secret = first.current.clone();
        let file = first.rotated(NOW).unwrap().unwrap();
        assert!(!file.to_text().contains(secret.lines().nth(1).unwrap()));
        let read = KeyFile::parse(&file.to_text()).unwrap();
        assert_eq!(read.names(), file.names());
        assert_eq!(read.names().unwrap().len(), 3);
        assert_eq!(read.rotates_after(), Some(NOW + ROTATION_PAUSE));
    }

    #[test]
    fn a_file_of_one_key_gets_its_next_before_it_rotates() {
        let mut file = KeyFile::parse(&SigningKey::generate_pem()).unwrap();
        assert!(file.prepare() && !file.prepare());
        let alone = KeyFile::parse(&SigningKey::generate_pem()).unwrap();
        assert!(alone.rotated(NOW).unwrap().is_none());
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        let key = SigningKey::generate_pem();
        let public = public_pem(&[7; 32]);
        for text in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            &key[..60],
            &key.replace("PRIVATE", "RSA PRIVATE"),
            &format!("{key}{key}{key}"),
            &format!("{public}{key}"),
            &format!("{key}{public}{public}"),
            &format!("rotated-at: yesterday\n{key}"),
            &public,
        ] {
            assert!(KeyFile::parse(text).is_err(), "{text}");
        }
    }
}
