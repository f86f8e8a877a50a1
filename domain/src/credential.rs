//! The rules of credentials: how an API key is written, what a password must be, who may own an address.

use std::{fmt, str::FromStr};

use alloy_primitives::{Address, U256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The digits of base 62, in order.
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Random digits of an API key: 178 bits.
const SECRET_DIGITS: usize = 30;
/// Digits of an API key's checksum.
const CHECKSUM_DIGITS: usize = 6;
/// Digits of the secret that are shown to tell keys apart.
const SHOWN_DIGITS: usize = 4;

/// Shortest password, in characters.
pub const PASSWORD_CHARS_MIN: usize = 12;
/// Longest password, in characters.
pub const PASSWORD_CHARS_MAX: usize = 128;
/// Longest e-mail address, in bytes (RFC 5321).
pub const EMAIL_BYTES_MAX: usize = 254;

/// What the deployment's money is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    /// Something.
    Live,
    /// Nothing: a test chain.
    Test,
}

impl Environment {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Live => "ck_live_",
            Self::Test => "ck_test_",
        }
    }
}

/// An API key: `ck_live_` or `ck_test_`, 30 random digits of base 62, and a CRC-32 of all that in 6
/// more, so that a secret scanner knows a key without asking us.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    environment: Environment,
    text: String,
}

/// Not the text of an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key")]
pub struct InvalidApiKey;

impl ApiKey {
    /// The key that some random bytes make.
    #[must_use]
    pub fn from_random(environment: Environment, random: [u8; 32]) -> Self {
        let mut text = environment.prefix().to_owned();
        push_base62(&mut text, U256::from_be_bytes(random), SECRET_DIGITS);
        let checksum = crc32(text.as_bytes());
        push_base62(&mut text, U256::from(checksum), CHECKSUM_DIGITS);
        Self { environment, text }
    }

    /// Which kind of deployment it is for.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// The whole secret.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Enough to tell keys apart, too little to use one.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.text[..self.environment.prefix().len() + SHOWN_DIGITS]
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}…)", self.shown())
    }
}

impl FromStr for ApiKey {
    type Err = InvalidApiKey;

    fn from_str(text: &str) -> Result<Self, InvalidApiKey> {
        let environment = [Environment::Live, Environment::Test]
            .into_iter()
            .find(|environment| text.starts_with(environment.prefix()))
            .ok_or(InvalidApiKey)?;
        let digits = &text.as_bytes()[environment.prefix().len()..];
        if digits.len() != SECRET_DIGITS + CHECKSUM_DIGITS
            || !digits.iter().all(u8::is_ascii_alphanumeric)
        {
            return Err(InvalidApiKey);
        }
        let (signed, checksum) = text.split_at(text.len() - CHECKSUM_DIGITS);
        let mut expected = String::new();
        push_base62(
            &mut expected,
            U256::from(crc32(signed.as_bytes())),
            CHECKSUM_DIGITS,
        );
        if checksum != expected {
            return Err(InvalidApiKey);
        }
        Ok(Self {
            environment,
            text: text.to_owned(),
        })
    }
}

/// The lowest `digits` digits of `number`.
fn push_base62(text: &mut String, mut number: U256, digits: usize) {
    let base = U256::from(BASE62.len());
    let mut reversed = Vec::with_capacity(digits);
    for _ in 0..digits {
        let (rest, digit) = number.div_rem(base);
        reversed.push(BASE62[digit.to::<usize>()]);
        number = rest;
    }
    text.extend(reversed.into_iter().rev().map(char::from));
}

/// CRC-32 as in zip and Ethernet.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xEDB8_8320
            } else {
                crc >> 1
            }
        })
    })
}

/// Why a password cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    /// Shorter or longer than allowed.
    #[error("a password has {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters")]
    Length,
    /// One character, repeated.
    #[error("a password has more than one different character")]
    Monotonous,
    /// The account's e-mail address.
    #[error("a password is not the account's e-mail address")]
    Email,
}

/// Is this good enough for a password? Length is what counts; composition rules do not help.
///
/// # Errors
/// Says why not.
pub fn check_password(password: &str, email: &Email) -> Result<(), WeakPassword> {
    let characters = password.chars().count();
    if !(PASSWORD_CHARS_MIN..=PASSWORD_CHARS_MAX).contains(&characters) {
        return Err(WeakPassword::Length);
    }
    let mut characters = password.chars();
    let first = characters.next();
    if characters.all(|character| Some(character) == first) {
        return Err(WeakPassword::Monotonous);
    }
    if password.to_lowercase() == email.0 {
        return Err(WeakPassword::Email);
    }
    Ok(())
}

/// An e-mail address, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email(String);

/// Not an e-mail address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an e-mail address such as `name@example.org`")]
pub struct InvalidEmail;

impl Email {
    /// The address as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Email {
    type Err = InvalidEmail;

    /// Only mail can prove an address; this refuses what cannot be one.
    fn from_str(text: &str) -> Result<Self, InvalidEmail> {
        let (local, domain) = text.rsplit_once('@').ok_or(InvalidEmail)?;
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && !b"@,;:<>()[]\\\"".contains(&byte))
        };
        let labels_filled = domain.split('.').all(|label| !label.is_empty());
        if text.len() > EMAIL_BYTES_MAX
            || !plain(local)
            || !plain(domain)
            || !domain.contains('.')
            || !labels_filled
        {
            return Err(InvalidEmail);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// Addresses below this are precompiled contracts, or reserved for them.
const PRECOMPILES_BELOW: u64 = 0x1_0000;

/// Can nobody hold the key of this address?
#[must_use]
pub fn is_ownerless(address: Address) -> bool {
    U256::from_be_slice(address.as_slice()) < U256::from(PRECOMPILES_BELOW)
}

#[cfg(test)]
mod tests {
    use alloy_primitives::address;

    use super::*;

    #[test]
    fn the_checksum_is_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn an_api_key_survives_its_text_and_notices_a_changed_digit() {
        for environment in [Environment::Live, Environment::Test] {
            let key = ApiKey::from_random(environment, [0xA7; 32]);
            assert_eq!(key.reveal().len(), 8 + 30 + 6);
            assert_eq!(key.reveal().parse(), Ok(key.clone()));
            for at in 8..key.reveal().len() {
                let mut changed = key.reveal().as_bytes().to_vec();
                changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
                let changed = String::from_utf8(changed).unwrap();
                assert_eq!(changed.parse::<ApiKey>(), Err(InvalidApiKey), "{changed}");
            }
        }
    }

    #[test]
    fn an_api_key_does_not_show_its_secret() {
        let key = ApiKey::from_random(Environment::Test, [9; 32]);
        assert_eq!(key.shown().len(), 12);
        assert!(!format!("{key:?}").contains(&key.reveal()[12..]));
    }

    #[test]
    fn what_is_not_an_api_key_is_refused() {
        let good = ApiKey::from_random(Environment::Live, [1; 32]);
        let other_environment = good.reveal().replace("live", "test");
        for text in [
            "",
            "ck_live_",
            "ck_prod_x",
            &good.reveal()[..43],
            &other_environment,
            &good.reveal().to_lowercase(),
        ] {
            assert_eq!(text.parse::<ApiKey>(), Err(InvalidApiKey), "{text}");
        }
        let wide = format!("ck_live_{}", "é".repeat(18));
        assert_eq!(wide.parse::<ApiKey>(), Err(InvalidApiKey));
    }

    #[test]
    fn a_password_is_judged_by_its_length() {
        let email: Email = "someone@example.org".parse().unwrap();
        let check = |password: &str| check_password(password, &email);
        assert_eq!(check("twelve chars"), Ok(()));
        assert_eq!(check("eleven char"), Err(WeakPassword::Length));
        assert_eq!(check("пароль—длина"), Ok(()));
        assert_eq!(check(&"ab".repeat(65)), Err(WeakPassword::Length));
        assert_eq!(check(&"a".repeat(40)), Err(WeakPassword::Monotonous));
        assert_eq!(check("Someone@Example.org"), Err(WeakPassword::Email));
    }

    #[test]
    fn an_email_address_is_kept_in_lower_case() {
        assert_eq!(
            "A.b+c@Example.ORG".parse::<Email>().unwrap().as_str(),
            "a.b+c@example.org"
        );
        for text in [
            "", "a", "a@", "@b.c", "a@b", "a b@c.d", "a@b..c", "a@b.c\n", "é@b.c", "a@c@d.e",
            "a@.b",
        ] {
            assert_eq!(text.parse::<Email>(), Err(InvalidEmail), "{text:?}");
        }
    }

    #[test]
    fn zero_and_precompiles_belong_to_nobody() {
        assert!(is_ownerless(Address::ZERO));
        assert!(is_ownerless(address!(
            "0x0000000000000000000000000000000000000100"
        )));
        assert!(!is_ownerless(address!(
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
        )));
    }
}
