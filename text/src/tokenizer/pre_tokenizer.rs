//! Pre-tokenizers: a normalised text into the pieces that the model sees, one after another and without holding them all. Each step
//! cuts as the library's does.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;
use unicode_categories::UnicodeCategories;

use super::{
    EncodeError, InvalidTokenizer,
    bytes::byte_chars,
    check, document,
    limits::STEPS_MAX,
    normalizer::PatternSource,
    pattern::{GPT2, Pattern, Piece, TooSlow},
};

const PLACE: &str = "/pre_tokenizer";

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Component {
    BertPreTokenizer {},
    ByteLevel {
        #[serde(default)]
        add_prefix_space: bool,
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    CharDelimiterSplit {
        delimiter: char,
    },
    Digits {
        individual_digits: bool,
    },
    FixedLength {
        length: usize,
    },
    Metaspace(Metaspace),
    Punctuation {
        #[serde(default)]
        behavior: Behavior,
    },
    Sequence {
        pretokenizers: Vec<Component>,
    },
    Split {
        pattern: PatternSource,
        behavior: Behavior,
        invert: bool,
    },
    Whitespace {},
    WhitespaceSplit {},
    UnicodeScripts {},
}

const fn yes() -> bool {
    true
}

/// How spaces are written, in pre-tokenizers and decoders.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metaspace {
    pub replacement: char,
    pub add_prefix_space: Option<bool>,
    #[serde(default)]
    prepend_scheme: Prepend,
    #[serde(default = "yes")]
    split: bool,
    #[serde(default, rename = "str_rep")]
    _str_rep: serde::de::IgnoredAny,
}

/// When a space is put before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prepend {
    First,
    Never,
    #[default]
    Always,
}

impl Metaspace {
    /// When a space is put before a text. Files of old say it otherwise, and may say both.
    pub fn prepend(self, place: &str) -> Result<Prepend, InvalidTokenizer> {
        match (self.add_prefix_space, self.prepend_scheme) {
            (Some(false), Prepend::Never) | (None | Some(true), _) => Ok(self.prepend_scheme),
            (Some(false), _) => Err(check::contradiction(
                place,
                "add_prefix_space does not match prepend_scheme",
            )),
        }
    }
}

/// What becomes of what a text is split at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Behavior {
    Removed,
    #[default]
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// One cut.
#[derive(Debug, Clone)]
enum Step {
    At(fn(char) -> bool, Behavior),
    AtChar(char, Behavior),
    Words,
    Chars(usize),
    Pattern {
        pattern: Pattern,
        behavior: Behavior,
        invert: bool,
    },
    SpaceBefore,
    Metaspace {
        replacement: char,
        prepend: Prepend,
    },
    Bytes,
}

/// What cuts a text.
#[derive(Debug, Clone, Default)]
pub struct PreTokenizer(Vec<Step>);

impl PreTokenizer {
    /// Reads the component. `First` of a `Metaspace` asks where in the text as it came a piece begins, so nothing may have changed
    /// or cut it before.
    pub fn read(json: Option<&RawValue>, is_normalised: bool) -> Result<Self, InvalidTokenizer> {
        let mut steps = Vec::new();
        if let Some(component) = document::component(PLACE, json)? {
            add(component, &mut steps)?;
        }
        check::count(PLACE, "steps", steps.len(), 2 * STEPS_MAX)?;
        let writing = steps
            .iter()
            .filter(|it| matches!(it, Step::SpaceBefore | Step::Metaspace { .. } | Step::Bytes));
        check::count(PLACE, "steps that write", writing.count(), 2)?;
        let first = steps.iter().position(|it| {
            matches!(
                it,
                Step::Metaspace {
                    prepend: Prepend::First,
                    ..
                }
            )
        });
        if first.is_some_and(|at| at > 0 || is_normalised) {
            let reason = "`first` is told only for a text that nothing has changed or cut before";
            return Err(check::unsupported(PLACE, "Metaspace", reason));
        }
        Ok(Self(steps))
    }

    /// Gives each piece of a text that is not empty to the model.
    pub fn cut(&self, text: &str, is_first: bool, model: &mut Sink<'_>) -> Result<(), EncodeError> {
        cut(&self.0, text, is_first, model)
    }
}

/// What pieces are given to.
pub type Sink<'a> = dyn FnMut(&str) -> Result<(), EncodeError> + 'a;

fn add(component: Component, steps: &mut Vec<Step>) -> Result<(), InvalidTokenizer> {
    match component {
        Component::Sequence { pretokenizers } => {
            pretokenizers
                .into_iter()
                .try_for_each(|it| add(it, steps))?;
        }
        Component::BertPreTokenizer {} => steps.extend([
            Step::At(char::is_whitespace, Behavior::Removed),
            Step::At(is_punctuation, Behavior::Isolated),
        ]),
        Component::ByteLevel {
            add_prefix_space,
            use_regex,
            ..
        } => {
            byte_level(add_prefix_space, use_regex, steps)?;
        }
        Component::CharDelimiterSplit { delimiter } => {
            steps.push(Step::AtChar(delimiter, Behavior::Removed));
        }
        Component::Digits { individual_digits } => {
            let behavior = if individual_digits {
                Behavior::Isolated
            } else {
                Behavior::Contiguous
            };
            steps.push(Step::At(char::is_numeric, behavior));
        }
        Component::FixedLength { length: 0 } => {
            return Err(check::contradiction(PLACE, "length is 0"));
        }
        Component::FixedLength { length } => steps.push(Step::Chars(length)),
        Component::Metaspace(metaspace) => {
            let (replacement, prepend) = (metaspace.replacement, metaspace.prepend(PLACE)?);
            steps.push(Step::Metaspace {
                replacement,
                prepend,
            });
            steps.extend(
                metaspace
                    .split
                    .then_some(Step::AtChar(replacement, Behavior::MergedWithNext)),
            );
        }
        Component::Punctuation { behavior } => steps.push(Step::At(is_punctuation, behavior)),
        Component::Split {
            pattern,
            behavior,
            invert,
        } => {
            let pattern = pattern.compile(PLACE)?;
            steps.push(Step::Pattern {
                pattern,
                behavior,
                invert,
            });
        }
        Component::Whitespace {} => steps.push(Step::Words),
        Component::WhitespaceSplit {} => {
            steps.push(Step::At(char::is_whitespace, Behavior::Removed));
        }
        Component::UnicodeScripts {} => {
            return Err(check::unsupported(
                PLACE,
                "UnicodeScripts",
                "no table of scripts is kept here",
            ));
        }
    }
    Ok(())
}

fn byte_level(
    add_prefix_space: bool,
    use_regex: bool,
    steps: &mut Vec<Step>,
) -> Result<(), InvalidTokenizer> {
    steps.extend(add_prefix_space.then_some(Step::SpaceBefore));
    if use_regex {
        let pattern = PatternSource::Regex(GPT2.to_owned()).compile(PLACE)?;
        let behavior = Behavior::Isolated;
        steps.push(Step::Pattern {
            pattern,
            behavior,
            invert: false,
        });
    }
    steps.push(Step::Bytes);
    Ok(())
}

fn cut(
    steps: &[Step],
    text: &str,
    is_first: bool,
    model: &mut Sink<'_>,
) -> Result<(), EncodeError> {
    if text.is_empty() {
        return Ok(());
    }
    let Some((step, rest)) = steps.split_first() else {
        return model(text);
    };
    let ranges = match step {
        Step::SpaceBefore if text.starts_with(' ') => return cut(rest, text, is_first, model),
        Step::SpaceBefore => return cut(rest, &format!(" {text}"), is_first, model),
        Step::Bytes => return cut(rest, &byte_chars(text).collect::<String>(), is_first, model),
        Step::Metaspace {
            replacement,
            prepend,
        } => {
            let mut spaced = text.replace(' ', replacement.encode_utf8(&mut [0; 4]));
            let is_due = *prepend == Prepend::Always || *prepend == Prepend::First && is_first;
            if is_due && !spaced.starts_with(*replacement) {
                spaced.insert(0, *replacement);
            }
            return cut(rest, &spaced, is_first, model);
        }
        Step::At(is_match, behavior) => split(characters(text, is_match), *behavior),
        Step::AtChar(at, behavior) => split(characters(text, |it| it == *at), *behavior),
        Step::Words => words(text),
        Step::Chars(length) => chunks(text, *length),
        Step::Pattern {
            pattern,
            behavior,
            invert,
        } => {
            let mut pieces = pattern
                .pieces(text)
                .map_err(|TooSlow| EncodeError::PatternTooSlow)?;
            for piece in &mut pieces {
                piece.1 ^= *invert;
            }
            split(pieces, *behavior)
        }
    };
    let mut pieces = ranges.into_iter();
    pieces.try_for_each(|range| cut(rest, &text[range], is_first, model))
}

/// Each character that matches, and what lies between.
fn characters(text: &str, is_match: impl Fn(char) -> bool) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (at, letter) in text.char_indices() {
        let (end, matches) = (at + letter.len_utf8(), is_match(letter));
        match pieces.last_mut() {
            Some((range, false)) if !matches => range.end = end,
            _ => pieces.push((at..end, matches)),
        }
    }
    pieces
}

/// What is left of pieces. `MergedWithNext` goes from the end, as the library does.
fn split(mut pieces: Vec<Piece>, behavior: Behavior) -> Vec<Range<usize>> {
    match behavior {
        Behavior::Isolated => pieces.into_iter().map(|it| it.0).collect(),
        Behavior::Removed => pieces
            .into_iter()
            .filter(|it| !it.1)
            .map(|it| it.0)
            .collect(),
        Behavior::Contiguous => merged(pieces, |is_match, was_match| is_match == was_match),
        Behavior::MergedWithPrevious => {
            merged(pieces, |is_match, was_match| is_match && !was_match)
        }
        Behavior::MergedWithNext => {
            pieces.reverse();
            let mut merged = merged(pieces, |is_match, was_match| is_match && !was_match);
            merged.reverse();
            merged
        }
    }
}

/// Pieces with those that belong to the one before added to it.
fn merged(pieces: Vec<Piece>, belongs: fn(bool, bool) -> bool) -> Vec<Range<usize>> {
    let (mut ranges, mut was_match) = (Vec::<Range<usize>>::new(), false);
    for (range, is_match) in pieces {
        match ranges.last_mut() {
            Some(last) if belongs(is_match, was_match) => {
                *last = last.start.min(range.start)..last.end.max(range.end);
            }
            _ => ranges.push(range),
        }
        was_match = is_match;
    }
    ranges
}

/// `\w+|[^\w\s]+`.
fn words(text: &str) -> Vec<Range<usize>> {
    let (mut ranges, mut last) = (Vec::<Range<usize>>::new(), None);
    for (at, letter) in text.char_indices() {
        let kind = match letter {
            _ if regex_syntax::is_word_character(letter) => Some(true),
            _ if letter.is_whitespace() => None,
            _ => Some(false),
        };
        let end = at + letter.len_utf8();
        match ranges.last_mut() {
            Some(range) if kind.is_some() && kind == last => range.end = end,
            _ if kind.is_some() => ranges.push(at..end),
            _ => {}
        }
        last = kind;
    }
    ranges
}

fn chunks(text: &str, length: usize) -> Vec<Range<usize>> {
    let starts: Vec<usize> = text.char_indices().map(|it| it.0).step_by(length).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| *start..end)
        .collect()
}

fn is_punctuation(letter: char) -> bool {
    letter.is_ascii_punctuation() || letter.is_punctuation()
}
