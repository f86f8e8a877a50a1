//! Normalisers: a text into another, step by step, never longer than it may get. Each step does what the library's does, without
//! keeping where every byte came from; Unicode's tables are the library's.

use serde::Deserialize;
use serde_json::value::RawValue;
use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::{UnicodeNormalization, char::is_combining_mark};

use super::{
    EncodeError, InvalidTokenizer,
    bytes::byte_chars,
    charsmap::Charsmap,
    check, document,
    limits::{NORMALISED_BYTES_MAX, STEPS_MAX},
    pattern::{Pattern, TooSlow},
};

const PLACE: &str = "/normalizer";

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
#[expect(clippy::upper_case_acronyms, reason = "the format has these names")]
enum Component {
    #[serde(alias = "Bert")]
    BertNormalizer {
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: Option<bool>,
        lowercase: bool,
    },
    Strip {
        strip_left: bool,
        strip_right: bool,
    },
    StripAccents {},
    NFC {},
    NFD {},
    NFKC {},
    NFKD {},
    Lowercase {},
    Nmt {},
    ByteLevel {},
    Precompiled {
        precompiled_charsmap: String,
    },
    Prepend {
        prepend: String,
    },
    Replace {
        pattern: PatternSource,
        content: String,
    },
    Sequence {
        normalizers: Vec<Component>,
    },
}

/// What to look for, in normalisers, pre-tokenizers and decoders.
#[derive(Deserialize)]
pub enum PatternSource {
    String(String),
    Regex(String),
}

impl PatternSource {
    pub fn compile(&self, place: &str) -> Result<Pattern, InvalidTokenizer> {
        let pattern = match self {
            Self::String(text) => Pattern::literal(text),
            Self::Regex(source) => Pattern::regex(source),
        };
        pattern.map_err(|source| {
            let place = place.to_owned();
            InvalidTokenizer::Pattern { place, source }
        })
    }
}

/// One pass over a text.
#[derive(Debug, Clone)]
enum Step {
    Clean,
    SpaceChinese,
    StripMarks,
    StripAccents,
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    Nmt,
    ByteLevel,
    Precompiled(Charsmap),
    Strip { left: bool, right: bool },
    Prepend(String),
    Replace(Pattern, String),
}

/// What a text goes through before anything else.
#[derive(Debug, Clone, Default)]
pub struct Normalizer(Vec<Step>);

impl Normalizer {
    /// Reads the component.
    pub fn read(json: Option<&RawValue>) -> Result<Self, InvalidTokenizer> {
        let mut steps = Vec::new();
        if let Some(component) = document::component(PLACE, json)? {
            add(component, &mut steps)?;
        }
        check::count(PLACE, "steps", steps.len(), STEPS_MAX)?;
        Ok(Self(steps))
    }

    /// Does it do nothing?
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A text, normalised, while what is left of the bytes of all suffices.
    pub fn apply(&self, text: &str, left: &mut usize) -> Result<String, EncodeError> {
        let mut text = text.to_owned();
        for step in &self.0 {
            let mut output = Output {
                text: String::new(),
                left: *left,
            };
            step.apply(&text, &mut output)?;
            text = output.text;
        }
        *left = left
            .checked_sub(text.len())
            .ok_or(EncodeError::NormalisedTooLong)?;
        Ok(text)
    }

    /// A text of the tokenizer itself, normalised as texts of callers are.
    pub fn apply_alone(&self, text: &str) -> Result<String, EncodeError> {
        self.apply(text, &mut { NORMALISED_BYTES_MAX })
    }
}

/// The steps of a component. How deep components may stand is limited for the whole file.
fn add(component: Component, steps: &mut Vec<Step>) -> Result<(), InvalidTokenizer> {
    steps.push(match component {
        Component::Sequence { normalizers } => {
            return normalizers.into_iter().try_for_each(|it| add(it, steps));
        }
        Component::BertNormalizer {
            clean_text,
            handle_chinese_chars,
            strip_accents,
            lowercase,
        } => {
            let strip = strip_accents.unwrap_or(lowercase);
            let all = [
                (clean_text, Step::Clean),
                (handle_chinese_chars, Step::SpaceChinese),
                (strip, Step::Nfd),
                (strip, Step::StripMarks),
                (lowercase, Step::Lowercase),
            ];
            steps.extend(
                all.into_iter()
                    .filter_map(|(is_done, step)| is_done.then_some(step)),
            );
            return Ok(());
        }
        Component::Strip {
            strip_left: left,
            strip_right: right,
        } => Step::Strip { left, right },
        Component::StripAccents {} => Step::StripAccents,
        Component::NFC {} => Step::Nfc,
        Component::NFD {} => Step::Nfd,
        Component::NFKC {} => Step::Nfkc,
        Component::NFKD {} => Step::Nfkd,
        Component::Lowercase {} => Step::Lowercase,
        Component::Nmt {} => Step::Nmt,
        Component::ByteLevel {} => Step::ByteLevel,
        Component::Precompiled {
            precompiled_charsmap,
        } => Step::Precompiled(Charsmap::read(PLACE, &precompiled_charsmap)?),
        Component::Prepend { prepend } => {
            check::replacement(PLACE, &prepend)?;
            Step::Prepend(prepend)
        }
        Component::Replace { pattern, content } => {
            check::replacement(PLACE, &content)?;
            Step::Replace(pattern.compile(PLACE)?, content)
        }
    });
    Ok(())
}

/// A text that may get only so long.
pub struct Output {
    text: String,
    left: usize,
}

impl Output {
    fn take(&mut self, bytes: usize) -> Result<(), EncodeError> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or(EncodeError::NormalisedTooLong)?;
        Ok(())
    }

    fn push(&mut self, letter: char) -> Result<(), EncodeError> {
        self.take(letter.len_utf8())?;
        self.text.push(letter);
        Ok(())
    }

    pub fn push_text(&mut self, text: &str) -> Result<(), EncodeError> {
        self.take(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    fn extend(&mut self, mut letters: impl Iterator<Item = char>) -> Result<(), EncodeError> {
        letters.try_for_each(|letter| self.push(letter))
    }
}

impl Step {
    fn apply(&self, text: &str, to: &mut Output) -> Result<(), EncodeError> {
        let letters = text.chars();
        match self {
            Self::Clean => to.extend(
                letters
                    .filter(|it| !is_dirt(*it))
                    .map(|it| if it.is_whitespace() { ' ' } else { it }),
            ),
            Self::SpaceChinese => to.extend(letters.flat_map(|it| {
                let spaces = is_chinese(it).then_some(' ');
                spaces.into_iter().chain([it]).chain(spaces)
            })),
            Self::StripMarks => to.extend(letters.filter(|it| !it.is_mark_nonspacing())),
            Self::StripAccents => to.extend(letters.filter(|it| !is_combining_mark(*it))),
            Self::Nfc => to.extend(text.nfc().map(|it| it.0)),
            Self::Nfd => to.extend(text.nfd().map(|it| it.0)),
            Self::Nfkc => to.extend(text.nfkc().map(|it| it.0)),
            Self::Nfkd => to.extend(text.nfkd().map(|it| it.0)),
            Self::Lowercase => to.extend(letters.flat_map(char::to_lowercase)),
            Self::Nmt => to.extend(letters.filter_map(nmt)),
            Self::ByteLevel => to.extend(byte_chars(text)),
            Self::Precompiled(charsmap) => charsmap.apply(text, to),
            Self::Strip { left, right } => {
                let text = if *left { text.trim_start() } else { text };
                to.push_text(if *right { text.trim_end() } else { text })
            }
            Self::Prepend(prefix) if text.is_empty() => to.push_text(&prefix[..0]),
            Self::Prepend(prefix) => to.push_text(prefix).and_then(|()| to.push_text(text)),
            Self::Replace(pattern, content) => {
                let pieces = pattern
                    .pieces(text)
                    .map_err(|TooSlow| EncodeError::PatternTooSlow)?;
                pieces.into_iter().try_for_each(|(range, is_match)| {
                    to.push_text(if is_match { content } else { &text[range] })
                })
            }
        }
    }
}

/// What BERT removes: what is none, was none, or controls.
fn is_dirt(letter: char) -> bool {
    match letter {
        '\t' | '\n' | '\r' => false,
        '\0' | '\u{fffd}' => true,
        _ => letter.is_other(),
    }
}

const fn is_chinese(letter: char) -> bool {
    matches!(letter,
        '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{20000}'..='\u{2a6df}' | '\u{2a700}'..='\u{2b73f}'
        | '\u{2b740}'..='\u{2b81f}' | '\u{2b920}'..='\u{2ceaf}' | '\u{f900}'..='\u{faff}' | '\u{2f800}'..='\u{2fa1f}')
}

/// What machine translation normalises: controls go, and spaces of all kinds are spaces.
const fn nmt(letter: char) -> Option<char> {
    match letter {
        '\u{1}'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{8f}' | '\u{9f}' => None,
        '\t'
        | '\n'
        | '\u{c}'
        | '\r'
        | '\u{1680}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'
        | '\u{2029}'
        | '\u{2581}'
        | '\u{feff}'
        | '\u{fffd}' => Some(' '),
        _ => Some(letter),
    }
}
