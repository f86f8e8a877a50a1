//! Join tokens: `cwj_<server>.<id>.<secret>`. The first part lets a worker recognise the server before it shows
//! the secret; the server keeps a hash of the secret alone.

use std::{fmt, str::FromStr};

use alloy_primitives::hex;

use crate::{digest::Sha256, id::JoinTokenId};

/// What a join token starts with.
pub const PREFIX: &str = "cwj_";
/// Bytes of the secret.
pub const SECRET_BYTES: usize = 32;

/// A join token as its holder has it. It shows itself only through [`JoinToken::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the canonical JSON (RFC 8785) of one of the keys that the scheduler serves.
    pub server: Sha256,
    /// The token's row.
    pub id: JoinTokenId,
    secret: [u8; SECRET_BYTES],
}

/// Not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a join token, `cwj_` and three parts between dots")]
pub struct InvalidJoinToken;

impl JoinToken {
    /// A token with this secret.
    #[must_use]
    pub const fn new(server: Sha256, id: JoinTokenId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { server, id, secret }
    }

    /// What is kept of the secret: the SHA-256 of its bytes.
    #[must_use]
    pub fn secret_sha256(&self) -> Sha256 {
        Sha256::of(&self.secret)
    }

    /// The whole token, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!(
            "{PREFIX}{}.{}.{}",
            self.server,
            self.id,
            hex::encode(self.secret)
        )
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        let mut parts = text
            .strip_prefix(PREFIX)
            .ok_or(InvalidJoinToken)?
            .split('.');
        let (Some(server), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidJoinToken);
        };
        Ok(Self {
            server: server.parse().map_err(|_| InvalidJoinToken)?,
            id: id.parse().map_err(|_| InvalidJoinToken)?,
            // A digest has the same form: 64 lower-case hexadecimal digits.
            secret: secret.parse::<Sha256>().map_err(|_| InvalidJoinToken)?.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form_and_hides_in_debug() {
        let token = JoinToken::new(
            Sha256::of(b"keys"),
            JoinTokenId::generate(),
            [7; SECRET_BYTES],
        );
        let text = token.reveal();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(token.secret_sha256(), Sha256::of(&[7; SECRET_BYTES]));
        assert!(!format!("{token:?}").contains("0707"));
        for broken in [
            "",
            "cwj_",
            &text[4..],
            &format!("{text}.x"),
            &text.replace('.', ":"),
            &text[..text.len() - 1],
        ] {
            assert_eq!(
                broken.parse::<JoinToken>(),
                Err(InvalidJoinToken),
                "{broken}"
            );
        }
    }
}
