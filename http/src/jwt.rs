//! JSON Web Tokens: EdDSA and nothing else, with every claim required and checked.

use std::{collections::HashMap, fmt};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use comptoir_domain::digest::Sha256;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

/// Clocks of two services may differ by this much.
const LEEWAY: Duration = Duration::seconds(5);
/// A longer token is not one of ours.
const TOKEN_LENGTH_MAX: usize = 4096;
/// What the DER form of an Ed25519 public key (RFC 8410) begins with.
const PUBLIC_DER_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// What a token says. Every claim is required, but the session of tokens that have none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it: the public origin.
    pub iss: String,
    /// Which service it is for.
    pub aud: String,
    /// Whom it names.
    pub sub: String,
    /// The session that it ends with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// A name of its own.
    pub jti: String,
    /// When it was issued, in seconds since 1970.
    pub iat: i64,
    /// From when it holds.
    pub nbf: i64,
    /// Until when it holds.
    pub exp: i64,
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not a token of ours for this audience.
    #[error("the token is not valid")]
    Invalid,
    /// It was valid once.
    #[error("the token has expired")]
    Expired,
}

/// The header of a token, exactly as we sign it: a key set, an extension or a second `kid` makes it another's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictHeader {
    typ: String,
    alg: String,
    kid: String,
}

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an Ed25519 private key, PKCS#8 in PEM")]
pub struct InvalidKey;

/// An Ed25519 key pair that signs tokens.
pub struct SigningKey {
    kid: String,
    public: [u8; 32],
    encoding: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A fresh key, as PKCS#8 in PEM.
    #[must_use]
    pub fn generate_pem() -> String {
        let key = Ed25519KeyPair::generate().expect("the system has randomness");
        let der = key.to_pkcs8v1().expect("a fresh key has a private half");
        format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            BASE64_STANDARD.encode(der.as_ref())
        )
    }

    /// A key from PKCS#8 in PEM.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        let base64: String = pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .map(str::trim)
            .collect();
        let der = BASE64_STANDARD.decode(base64).map_err(|_| InvalidKey)?;
        let key = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| InvalidKey)?;
        let public = key
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| InvalidKey)?;
        Ok(Self {
            kid: thumbprint(&public),
            public,
            encoding: EncodingKey::from_ed_der(&der),
        })
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Signs claims that hold from `now` for `lifetime`.
    #[must_use]
    pub fn sign(&self, token: &Grant<'_>, now: OffsetDateTime, lifetime: Duration) -> String {
        let claims = Claims {
            iss: token.issuer.to_owned(),
            aud: token.audience.to_owned(),
            sub: token.subject.to_owned(),
            sid: token.session.map(str::to_owned),
            jti: uuid::Uuid::now_v7().to_string(),
            iat: now.unix_timestamp(),
            nbf: now.unix_timestamp(),
            exp: (now + lifetime).unix_timestamp(),
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(token_type(token.audience));
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, &claims, &self.encoding)
            .expect("an Ed25519 key signs any claims")
    }
}

/// What a fresh token is to say.
#[derive(Debug, Clone, Copy)]
pub struct Grant<'a> {
    /// The public origin.
    pub issuer: &'a str,
    /// The service it is for.
    pub audience: &'a str,
    /// Whom it names.
    pub subject: &'a str,
    /// The session that it ends with.
    pub session: Option<&'a str>,
}

/// Tokens for two audiences differ in their type too (RFC 8725 3.11).
fn token_type(audience: &str) -> String {
    format!("{audience}+jwt")
}

/// Checks tokens of one issuer for one audience.
#[derive(Clone)]
pub struct Verifier {
    token_type: String,
    keys: HashMap<String, DecodingKey>,
    validation: Validation,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("kids", &self.keys.keys())
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier that knows these public keys.
    #[must_use]
    pub fn new(keys: &[[u8; 32]], issuer: &str, audience: &str) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.algorithms = vec![Algorithm::EdDSA];
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        // The times are required and typed; they are compared below with the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let keys = keys
            .iter()
            .map(|public| (thumbprint(public), DecodingKey::from_ed_der(public)))
            .collect();
        Self {
            token_type: token_type(audience),
            keys,
            validation,
        }
    }

    /// The claims of a valid token.
    ///
    /// # Errors
    /// When anything about the token is not exactly as we sign them.
    pub fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_LENGTH_MAX {
            return Err(TokenError::Invalid);
        }
        let key = self.key_of(token).ok_or(TokenError::Invalid)?;
        let claims = jsonwebtoken::decode::<Claims>(token, key, &self.validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        if claims.nbf > (now + LEEWAY).unix_timestamp() {
            return Err(TokenError::Invalid);
        }
        if claims.exp <= (now - LEEWAY).unix_timestamp() {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }

    /// The key that the token says it was signed with, if its header is one of ours.
    fn key_of(&self, token: &str) -> Option<&DecodingKey> {
        let (header, _) = token.split_once('.')?;
        let header = BASE64_URL_SAFE_NO_PAD.decode(header).ok()?;
        let header: StrictHeader = serde_json::from_slice(&header).ok()?;
        let ours = header.typ == self.token_type && header.alg == "EdDSA";
        ours.then(|| self.keys.get(&header.kid)).flatten()
    }
}

/// A public key as others read it (RFC 8037).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Jwk {
    kty: &'static str,
    crv: &'static str,
    alg: &'static str,
    #[serde(rename = "use")]
    usage: &'static str,
    kid: String,
    x: String,
}

/// The public keys that tokens of ours may be signed with.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Jwks {
    keys: Vec<Jwk>,
}

impl Jwks {
    /// The key set of these public keys.
    #[must_use]
    pub fn of(keys: &[[u8; 32]]) -> Self {
        let jwk = |public: &[u8; 32]| Jwk {
            kty: "OKP",
            crv: "Ed25519",
            alg: "EdDSA",
            usage: "sig",
            kid: thumbprint(public),
            x: BASE64_URL_SAFE_NO_PAD.encode(public),
        };
        Self {
            keys: keys.iter().map(jwk).collect(),
        }
    }

    /// What names whoever publishes this set: the SHA-256 of the canonical JSON of the key that will be in it for longest, which
    /// is the next one. So the name holds through two rotations.
    ///
    /// # Panics
    /// Never: the set of a ring has a key.
    #[must_use]
    pub fn fingerprint(&self) -> Sha256 {
        let key = self.keys.get(1).or(self.keys.first());
        let key = key.expect("the set of a ring has a key");
        Sha256::of_document(key).expect("a key has a JSON form")
    }
}

/// A public key in PEM, as RFC 8410 writes it.
pub(crate) fn public_pem(public: &[u8; 32]) -> String {
    let der = [PUBLIC_DER_PREFIX.as_slice(), public].concat();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        BASE64_STANDARD.encode(der)
    )
}

/// The public key in the base64 of [`public_pem`].
pub(crate) fn public_from_base64(base64: &str) -> Result<[u8; 32], InvalidKey> {
    let der = BASE64_STANDARD.decode(base64).map_err(|_| InvalidKey)?;
    let public = der.strip_prefix(&PUBLIC_DER_PREFIX).ok_or(InvalidKey)?;
    public.try_into().map_err(|_| InvalidKey)
}

/// The key's name: its RFC 7638 thumbprint.
pub(crate) fn thumbprint(public: &[u8; 32]) -> String {
    let x = BASE64_URL_SAFE_NO_PAD.encode(public);
    let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    BASE64_URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(members))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);
    const ISSUER: &str = "https://comptoir.test";

    fn key() -> SigningKey {
        SigningKey::from_pem(&SigningKey::generate_pem()).unwrap()
    }

    fn verifier(key: &SigningKey) -> Verifier {
        Verifier::new(&[key.public()], ISSUER, "a")
    }

    fn token(key: &SigningKey, audience: &str) -> String {
        let grant = Grant {
            issuer: ISSUER,
            audience,
            subject: "acct_1",
            session: None,
        };
        key.sign(&grant, NOW, Duration::minutes(15))
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        let x = BASE64_URL_SAFE_NO_PAD
            .decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
            .unwrap();
        let public: [u8; 32] = x.try_into().unwrap();
        assert_eq!(
            thumbprint(&public),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
    }

    #[test]
    fn a_token_holds_until_its_expiry_and_five_seconds() {
        let key = key();
        let token = token(&key, "a");
        let at = |offset| verifier(&key).verify(&token, NOW + Duration::seconds(offset));
        assert_eq!(at(0).unwrap().sub, "acct_1");
        assert!(at(15 * 60 + 4).is_ok());
        assert!(matches!(at(15 * 60 + 5), Err(TokenError::Expired)));
        assert!(at(-5).is_ok());
        assert!(matches!(at(-6), Err(TokenError::Invalid)));
    }

    #[test]
    fn a_token_for_another_audience_issuer_or_key_is_refused() {
        let key = key();
        assert!(verifier(&key).verify(&token(&key, "b"), NOW).is_err());
        assert!(
            verifier(&self::key())
                .verify(&token(&key, "a"), NOW)
                .is_err()
        );
        let elsewhere = Verifier::new(&[key.public()], "https://other.test", "a");
        assert!(elsewhere.verify(&token(&key, "a"), NOW).is_err());
    }
}
