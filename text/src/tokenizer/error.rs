//! What is wrong with a tokenizer, with a text for it, and with tokens of it.

use super::limits::{
    COMPONENT_BYTES_MAX, DECODED_BYTES_MAX, DEPTH_MAX, FILE_BYTES_MAX, NORMALISED_BYTES_MAX,
    PATTERN_BYTES_MAX,
};

/// Why bytes are not a tokenizer that is taken. Places are JSON pointers (RFC 6901).
#[derive(Debug, thiserror::Error)]
pub enum InvalidTokenizer {
    /// It is too long to be looked at.
    #[error("the file has {found} bytes, and may have {FILE_BYTES_MAX}")]
    TooLong {
        /// Its bytes.
        found: usize,
    },
    /// It is nested too deep.
    #[error("the file is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// It is no JSON, or not of the shape.
    #[error("the file is not a tokenizer: {0}")]
    Malformed(#[source] serde_json::Error),
    /// One of its components is not of the shape, or of a type that there is not.
    #[error("{place}: {source}")]
    Component {
        /// Where.
        place: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The JSON of a component is too long.
    #[error("{place}: has {found} bytes, and may have {COMPONENT_BYTES_MAX}")]
    ComponentTooLong {
        /// Where.
        place: &'static str,
        /// Its bytes.
        found: usize,
    },
    /// A component, or an option of it, that exists and is not taken.
    #[error("{place}: `{component}` is not supported: {reason}")]
    Unsupported {
        /// Where.
        place: String,
        /// Its name.
        component: String,
        /// Why.
        reason: &'static str,
    },
    /// There is more of something than there may be.
    #[error("{place}: there are {found} {what}, and may be {max}")]
    TooMany {
        /// Where.
        place: String,
        /// Of what, with its unit.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// Something contradicts itself or something else.
    #[error("{place}: {detail}")]
    Contradiction {
        /// Where.
        place: String,
        /// What is wrong.
        detail: String,
    },
    /// A regular expression is not taken.
    #[error("{place}: {source}")]
    Pattern {
        /// Where.
        place: String,
        /// Why.
        source: InvalidPattern,
    },
    /// The library refuses what was checked before.
    #[error("{place}: the model cannot be built")]
    Library {
        /// Where.
        place: &'static str,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a regular expression is not taken: it must be matched in time by the length of the text, and mean the same everywhere.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPattern {
    /// It is too long.
    #[error("the pattern has {found} bytes, and may have {PATTERN_BYTES_MAX}")]
    TooLong {
        /// Its bytes.
        found: usize,
    },
    /// It does not parse, as look-around and back-references do not.
    #[error(
        "the pattern cannot be matched in linear time, or is none (of look-around, the alternative `\\s+(?!\\S)` alone is supported)"
    )]
    Syntax(#[source] Box<regex_syntax::Error>),
    /// It has something that implementations read differently.
    #[error(
        "the pattern has {0}, which implementations of regular expressions understand differently"
    )]
    Ambiguous(&'static str),
    /// It matches nothing, everywhere.
    #[error("the pattern matches the empty text")]
    MatchesNothing,
    /// Its automaton takes too much memory.
    #[error("the pattern takes too large an automaton")]
    TooLarge(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a text has no tokens.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It is too long to be looked at.
    #[error("the text has {found} bytes, and may have {max}")]
    TextTooLong {
        /// Its bytes.
        found: usize,
        /// How many it may have, by the tokenizer's model.
        max: usize,
    },
    /// It has too many tokens. It is never cut.
    #[error("the text has {found} tokens, and may have {max}")]
    TooManyTokens {
        /// How many it has, with those that are put around it.
        found: usize,
        /// How many the caller allows.
        max: usize,
    },
    /// The normaliser makes too much of it.
    #[error("the text is longer than {NORMALISED_BYTES_MAX} bytes once it is normalised")]
    NormalisedTooLong,
    /// A pattern of the tokenizer takes too long with it.
    #[error("a pattern of the tokenizer goes over the text too often")]
    PatternTooSlow,
    /// It has something that no token stands for.
    #[error(
        "the text has something that no token stands for, and the tokenizer has none for what is unknown"
    )]
    Unknown(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why tokens have no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The tokenizer has no such token.
    #[error("there is no token {0}")]
    UnknownToken(u32),
    /// There is too much text.
    #[error("the tokens stand for more than {DECODED_BYTES_MAX} bytes")]
    TooLong,
    /// A pattern of the decoder takes too long.
    #[error("a pattern of the tokenizer goes over a token too often")]
    PatternTooSlow,
}
