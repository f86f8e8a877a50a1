//! A generation as its tokens come: their text, and when it is over.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{DecodeError, Specials, StopFilter, Stops, Stream, Tokenizer};

/// Why a generation is over, in the words of the API that `OpenAI` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop was found, or a token came that ends it.
    Stop,
    /// It has as many tokens as it may.
    Length,
}

/// When a generation is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Tokens that it may have; none ends at the first.
    pub tokens_max: u32,
    /// Texts that end it.
    pub stops: Stops,
    /// Tokens that end it. They are counted and not shown.
    pub ends: BTreeSet<u32>,
}

/// What a token did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The text that is certain now.
    pub text: String,
    /// Why it is over, if it is.
    pub finish: Option<FinishReason>,
}

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// The generation is over.
    #[error("the generation is over")]
    Over,
    /// The token has no text.
    #[error("decode a token")]
    Decode(#[from] DecodeError),
}

/// A generation.
#[derive(Debug, Clone)]
pub struct Generation<'a> {
    /// Until it is over.
    running: Option<(Stream<'a>, StopFilter)>,
    ends: BTreeSet<u32>,
    tokens_max: u32,
    tokens: u32,
}

impl<'a> Generation<'a> {
    /// One that has no token yet.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer, limits: Limits) -> Self {
        let Limits {
            tokens_max,
            stops,
            ends,
        } = limits;
        let running = Some((tokenizer.stream(Specials::Skip), StopFilter::new(stops)));
        Self {
            running,
            ends,
            tokens_max,
            tokens: 0,
        }
    }

    /// Takes the next token. All texts together are the text of the tokens, up to where it ended.
    ///
    /// # Errors
    /// Where it is over, and for tokens that have no text; it is over then.
    pub fn push(&mut self, id: u32) -> Result<Generated, GenerationError> {
        let (mut stream, mut filter) = self.running.take().ok_or(GenerationError::Over)?;
        self.tokens = self.tokens.saturating_add(1);
        let is_end = self.ends.contains(&id);
        let piece = if is_end {
            String::new()
        } else {
            stream.push(id)?
        };
        let scanned = filter.push(&piece);
        if scanned.is_stopped {
            let finish = Some(FinishReason::Stop);
            return Ok(Generated {
                text: scanned.text,
                finish,
            });
        }
        let reason = match (is_end, self.tokens >= self.tokens_max) {
            (true, _) => FinishReason::Stop,
            (false, true) => FinishReason::Length,
            (false, false) => {
                self.running = Some((stream, filter));
                return Ok(Generated {
                    text: scanned.text,
                    finish: None,
                });
            }
        };
        // What a decoder held back can complete a stop still.
        let rest = filter.push(&stream.finish()?);
        let finish = Some(if rest.is_stopped {
            FinishReason::Stop
        } else {
            reason
        });
        let held = if rest.is_stopped {
            String::new()
        } else {
            filter.finish()
        };
        Ok(Generated {
            text: scanned.text + &rest.text + &held,
            finish,
        })
    }

    /// How many tokens it has: each that came, with one that ended it.
    #[must_use]
    pub const fn tokens(&self) -> u32 {
        self.tokens
    }
}
