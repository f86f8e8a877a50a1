//! One pass of a decoder over tokens as they come, and what it holds back until it knows more.

use std::str;

use super::{DecodeError, bytes::token_bytes, decoder::replaced, pattern::Pattern};

/// What stands for a byte that is not UTF-8.
const BROKEN: &str = "\u{fffd}";

/// A pass, with its state.
#[derive(Debug, Clone)]
pub enum Stage {
    /// A space before each token but the first.
    Spaced {
        is_first: bool,
    },
    /// All tokens are one text. Pieces are it already.
    Fuse,
    /// Characters are bytes, and bytes UTF-8. Holds what may become a character.
    Bytes {
        held: Vec<u8>,
    },
    /// `<0xE2>` is a byte. Holds bytes until another token comes, because one that is wrong spoils those around it.
    ByteFallback {
        held: Vec<u8>,
    },
    /// Ends of words become spaces, but at the end of the text. Holds the last token.
    Suffix {
        suffix: String,
        held: Option<String>,
    },
    /// Spaces are written as another character. Those of the first token are dropped.
    Metaspace {
        replacement: char,
        drops: bool,
    },
    Replace(Pattern, String),
    /// Takes characters off both ends of each token.
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    /// Takes characters off the beginning of the text.
    StripStart {
        content: char,
        left: usize,
    },
    /// A space before each word but the first.
    WordPiece {
        prefix: String,
        cleanup: bool,
        is_first: bool,
    },
}

impl Stage {
    /// Takes a token, and gives those that are certain.
    pub fn push(&mut self, token: String, to: &mut Vec<String>) -> Result<(), DecodeError> {
        match self {
            Self::Fuse => to.push(token),
            Self::Spaced { is_first } => {
                let space = if *is_first { "" } else { " " };
                *is_first = false;
                to.push(format!("{space}{token}"));
            }
            Self::Bytes { held } => {
                held.extend(token_bytes(&token));
                to.push(whole_chars(held));
            }
            Self::ByteFallback { held } => {
                if let Some(byte) = fallback_byte(&token) {
                    held.push(byte);
                } else {
                    to.extend(from_fallback(held));
                    to.push(token);
                }
            }
            Self::Suffix { suffix, held } => {
                let word = held.replace(token);
                to.extend(word.map(|it| it.replace(suffix.as_str(), " ")));
            }
            Self::Metaspace { replacement, drops } => {
                let space = if *drops { "" } else { " " };
                *drops = false;
                to.push(token.replace(*replacement, space));
            }
            Self::Replace(pattern, content) => to.push(replaced(pattern, content, &token)?),
            Self::Strip {
                content,
                start,
                stop,
            } => to.push(stripped(&token, *content, *start, *stop)),
            Self::StripStart { content, left } => {
                let rest = stripped(&token, *content, *left, 0);
                let cut = token.chars().count() - rest.chars().count();
                *left = if rest.is_empty() { *left - cut } else { 0 };
                to.push(rest);
            }
            Self::WordPiece {
                prefix,
                cleanup,
                is_first,
            } => {
                let word = match token.strip_prefix(prefix.as_str()) {
                    _ if *is_first => token,
                    Some(rest) => rest.to_owned(),
                    None => format!(" {token}"),
                };
                *is_first = false;
                to.push(if *cleanup { cleaned(&word) } else { word });
            }
        }
        Ok(())
    }

    /// Gives what was held back, because no token comes any more.
    pub fn finish(&mut self, to: &mut Vec<String>) {
        match self {
            Self::Bytes { held } if !held.is_empty() => {
                held.clear();
                to.push(BROKEN.to_owned());
            }
            Self::ByteFallback { held } => to.extend(from_fallback(held)),
            Self::Suffix { suffix, held } => {
                to.extend(held.take().map(|it| it.replace(suffix.as_str(), "")));
            }
            _ => {}
        }
    }
}

/// Takes what is UTF-8, or will never be, from bytes, and leaves what may become a character.
fn whole_chars(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        let (valid, broken) = match str::from_utf8(held) {
            Ok(all) => (all.len(), Some(0)),
            Err(error) => (error.valid_up_to(), error.error_len()),
        };
        text.push_str(str::from_utf8(&held[..valid]).expect("it is valid so far"));
        held.drain(..valid + broken.unwrap_or(0));
        match broken {
            None | Some(0) => return text,
            Some(_) => text.push_str(BROKEN),
        }
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16)
        .ok()
        .filter(|_| digits.len() == 2)
}

/// The text of bytes, or as many signs for what is none.
fn from_fallback(held: &mut Vec<u8>) -> Vec<String> {
    match String::from_utf8(std::mem::take(held)) {
        Ok(text) if text.is_empty() => Vec::new(),
        Ok(text) => vec![text],
        Err(error) => vec![BROKEN.to_owned(); error.as_bytes().len()],
    }
}

fn stripped(token: &str, content: char, start: usize, stop: usize) -> String {
    let mut rest = token;
    for _ in 0..start {
        match rest.strip_prefix(content) {
            Some(shorter) => rest = shorter,
            None => break,
        }
    }
    for _ in 0..stop {
        match rest.strip_suffix(content) {
            Some(shorter) => rest = shorter,
            None => break,
        }
    }
    rest.to_owned()
}

/// What `WordPiece` does about spaces before punctuation and English contractions.
fn cleaned(word: &str) -> String {
    const CHANGES: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    CHANGES
        .iter()
        .fold(word.to_owned(), |word, (from, to)| word.replace(from, to))
}
