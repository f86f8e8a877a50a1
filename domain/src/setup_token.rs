//! The token that makes somebody an administrator: printed once, redeemed once, by choosing a password.

use std::{fmt, str::FromStr};

use time::Duration;

use crate::digest::Sha256;

/// What a token begins with.
const PREFIX: &str = "cst_";
/// Random bytes of a token.
const SECRET_BYTES: usize = 32;
/// How long a token holds, unless the command says otherwise.
pub const LIFETIME: Duration = Duration::hours(1);

/// A setup token: `cst_` and 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct SetupToken(String);

/// Not the text of a setup token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a setup token")]
pub struct InvalidSetupToken;

impl SetupToken {
    /// The token that some random bytes make.
    #[must_use]
    pub fn from_random(random: [u8; SECRET_BYTES]) -> Self {
        Self(format!("{PREFIX}{}", Sha256(random)))
    }

    /// The whole secret.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored of it. The secret has 256 random bits, so a plain digest does.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        Sha256::of(self.0.as_bytes())
    }
}

impl fmt::Debug for SetupToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SetupToken(…)")
    }
}

impl FromStr for SetupToken {
    type Err = InvalidSetupToken;

    fn from_str(text: &str) -> Result<Self, InvalidSetupToken> {
        let digits = text.strip_prefix(PREFIX).ok_or(InvalidSetupToken)?;
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() == 2 * SECRET_BYTES && digits.bytes().all(hexadecimal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSetupToken)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_token_survives_its_text_and_does_not_show_itself() {
        let token = SetupToken::from_random([0xA7; 32]);
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("a7"));
        for text in [
            "",
            "cst_",
            &token.reveal()[1..],
            &token.reveal()[..67],
            &token.reveal().to_uppercase(),
        ] {
            assert_eq!(text.parse::<SetupToken>(), Err(InvalidSetupToken), "{text}");
        }
    }
}
