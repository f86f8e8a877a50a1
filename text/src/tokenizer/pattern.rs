//! Patterns of strangers over texts of strangers, in time by the length of the text: one deterministic automaton for each, no
//! backtracking, and a count of the bytes it looks at.
//!
//! Of look-around there is the one case that every tokenizer in the style of GPT-2 has: the alternative `\s+(?!\S)`, spaces that no
//! other character follows. It is what `\s+` matches at the end of the text, and else what `\s+\s` matches, less its last character.

use regex_automata::{
    Anchored, MatchKind,
    dfa::{Automaton, StartKind, dense},
    nfa::thompson,
    util::{primitives::StateID, start, syntax},
};
use regex_syntax::{
    ast::{self, Ast, parse},
    hir::translate,
};

use super::{
    InvalidPattern,
    limits::{
        PATTERN_BYTES_MAX, PATTERN_DFA_BYTES_MAX, PATTERN_NFA_BYTES_MAX, PATTERN_STEPS_PER_BYTE,
    },
};

/// Levels of groups.
const NESTED_MAX: u32 = 32;
/// Spaces that nothing but spaces, or the end, follows.
const TRAILING_SPACES: &str = r"\s+(?!\S)";
/// Bytes that may be looked at in any text.
const STEPS_LEAST: usize = 1 << 12;
/// What GPT-2 splits by, and with it whatever uses `ByteLevel` without a pattern of its own.
pub const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A text was looked at too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow;

/// Something to look for.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// A text, as it is. Not empty.
    Literal(String),
    /// A regular expression.
    Regex(Box<Regex>),
}

/// A piece of a text: from where to where, and whether it matches.
pub type Piece = (std::ops::Range<usize>, bool);

impl Pattern {
    /// A text.
    pub fn literal(text: &str) -> Result<Self, InvalidPattern> {
        match text.len() {
            0 => Err(InvalidPattern::MatchesNothing),
            1..=PATTERN_BYTES_MAX => Ok(Self::Literal(text.to_owned())),
            found => Err(InvalidPattern::TooLong { found }),
        }
    }

    /// A regular expression.
    pub fn regex(source: &str) -> Result<Self, InvalidPattern> {
        Regex::new(source).map(|it| Self::Regex(Box::new(it)))
    }

    /// The text in pieces, in order and without gaps: what matches, leftmost first and without overlaps, and what lies between.
    pub fn pieces(&self, text: &str) -> Result<Vec<Piece>, TooSlow> {
        let mut pieces = Pieces::default();
        match self {
            Self::Literal(literal) => {
                for (start, found) in text.match_indices(literal.as_str()) {
                    pieces.add_match(start..start + found.len());
                }
            }
            Self::Regex(regex) => regex.search(text, &mut pieces)?,
        }
        Ok(pieces.until(text.len()))
    }
}

/// Pieces so far.
#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn end(&self) -> usize {
        self.0.last().map_or(0, |(range, _)| range.end)
    }

    fn add_match(&mut self, range: std::ops::Range<usize>) {
        let gap = self.end()..range.start;
        if !gap.is_empty() {
            self.0.push((gap, false));
        }
        self.0.push((range, true));
    }

    fn until(mut self, end: usize) -> Vec<Piece> {
        let rest = self.end()..end;
        if !rest.is_empty() {
            self.0.push((rest, false));
        }
        self.0
    }
}

/// An automaton for alternatives, the first that matches winning, which never matches nothing.
#[derive(Debug, Clone)]
pub struct Regex {
    automaton: dense::DFA<Vec<u32>>,
    start: StateID,
    /// By alternative: does the last character of a match not belong to it?
    drops_last: Vec<bool>,
}

impl Regex {
    fn new(source: &str) -> Result<Self, InvalidPattern> {
        if source.len() > PATTERN_BYTES_MAX {
            let found = source.len();
            return Err(InvalidPattern::TooLong { found });
        }
        let (mut sources, mut drops_last) = (Vec::new(), Vec::new());
        for alternative in alternatives(source) {
            if alternative == TRAILING_SPACES {
                sources.extend([r"\s+\z".to_owned(), r"\s+\s".to_owned()]);
                drops_last.extend([false, true]);
            } else {
                check(&alternative)?;
                sources.push(alternative);
                drops_last.push(false);
            }
        }
        let nfa = thompson::Compiler::new()
            .syntax(syntax::Config::new().nest_limit(NESTED_MAX))
            .configure(thompson::Config::new().nfa_size_limit(Some(PATTERN_NFA_BYTES_MAX)))
            .build_many(&sources)
            .map_err(|error| InvalidPattern::TooLarge(error.into()))?;
        let limits = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::LeftmostFirst)
            .dfa_size_limit(Some(PATTERN_DFA_BYTES_MAX))
            .determinize_size_limit(Some(PATTERN_DFA_BYTES_MAX));
        let automaton = dense::Builder::new()
            .configure(limits)
            .build_from_nfa(&nfa)
            .map_err(|error| InvalidPattern::TooLarge(error.into()))?;
        let start = automaton
            .start_state(&start::Config::new().anchored(Anchored::Yes))
            .map_err(|error| InvalidPattern::TooLarge(error.into()))?;
        Ok(Self {
            automaton,
            start,
            drops_last,
        })
    }

    fn search(&self, text: &str, pieces: &mut Pieces) -> Result<(), TooSlow> {
        let mut steps = STEPS_LEAST + PATTERN_STEPS_PER_BYTE * text.len();
        let mut at = 0;
        while let Some(next) = text[at..].chars().next() {
            match self.match_at(text, at, &mut steps)? {
                Some(end) => {
                    pieces.add_match(at..end);
                    at = end;
                }
                None => at += next.len_utf8(),
            }
        }
        Ok(())
    }

    /// Where the match that begins here ends. The automaton says so one byte late.
    fn match_at(&self, text: &str, at: usize, steps: &mut usize) -> Result<Option<usize>, TooSlow> {
        let (mut state, mut found) = (self.start, None);
        for (end, byte) in (at..).zip(text.as_bytes()[at..].iter().copied()) {
            *steps = steps.checked_sub(1).ok_or(TooSlow)?;
            state = self.automaton.next_state(state, byte);
            if self.automaton.is_special_state(state) {
                if self.automaton.is_match_state(state) {
                    found = Some((end, self.automaton.match_pattern(state, 0)));
                } else if self.automaton.is_dead_state(state) {
                    return Ok(self.ending(text, found));
                }
            }
        }
        state = self.automaton.next_eoi_state(state);
        if self.automaton.is_match_state(state) {
            found = Some((text.len(), self.automaton.match_pattern(state, 0)));
        }
        Ok(self.ending(text, found))
    }

    fn ending(
        &self,
        text: &str,
        found: Option<(usize, regex_automata::PatternID)>,
    ) -> Option<usize> {
        let (end, alternative) = found?;
        if self.drops_last[alternative.as_usize()] {
            let last = text[..end].chars().next_back();
            return Some(end - last.map_or(0, char::len_utf8));
        }
        Some(end)
    }
}

/// The pattern as alternatives, where one of them is the one that needs a rewrite; else as one.
fn alternatives(source: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut groups, mut classes, mut is_escaped) = (0_u32, 0_u32, false);
    for letter in source.chars() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '[' => classes += 1,
            ']' => classes = classes.saturating_sub(1),
            '(' if classes == 0 => groups += 1,
            ')' if classes == 0 => groups = groups.saturating_sub(1),
            '|' if classes == 0 && groups == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(letter);
    }
    parts.push(part);
    if parts.iter().any(|it| it == TRAILING_SPACES) {
        parts
    } else {
        vec![source.to_owned()]
    }
}

/// Refuses what matches nothing, and what those who wrote it, with another implementation, may have meant otherwise.
fn check(source: &str) -> Result<(), InvalidPattern> {
    let syntax = |error| InvalidPattern::Syntax(Box::new(error));
    let tree = parse::ParserBuilder::new()
        .nest_limit(NESTED_MAX)
        .build()
        .parse(source)
        .map_err(|error| syntax(error.into()))?;
    ast::visit(&tree, Ambiguities).map_err(InvalidPattern::Ambiguous)?;
    let meaning = translate::Translator::new()
        .translate(source, &tree)
        .map_err(|error| syntax(error.into()))?;
    match meaning.properties().minimum_len() {
        Some(1..) => Ok(()),
        _ => Err(InvalidPattern::MatchesNothing),
    }
}

/// Finds what Oniguruma and this library read differently.
struct Ambiguities;

impl ast::Visitor for Ambiguities {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), Self::Err> {
        Ok(())
    }

    fn visit_pre(&mut self, tree: &Ast) -> Result<(), Self::Err> {
        match tree {
            Ast::Assertion(_) => Err("an anchor or a word boundary"),
            Ast::Flags(_) => Err("flags outside of a group"),
            Ast::Repetition(it) if matches!(*it.ast, Ast::Repetition(_)) => {
                Err("a repetition of a repetition")
            }
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(flags)
                    if flags.items.iter().any(|it| !is_case(it)) =>
                {
                    Err("flags other than `i`")
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), Self::Err> {
        match item {
            ast::ClassSetItem::Ascii(_) => Err("a class of POSIX"),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(
        &mut self,
        it: &ast::ClassSetBinaryOp,
    ) -> Result<(), Self::Err> {
        match it.kind {
            ast::ClassSetBinaryOpKind::Intersection => Ok(()),
            _ => Err("a difference of classes"),
        }
    }
}

fn is_case(flag: &ast::FlagsItem) -> bool {
    matches!(
        flag.kind,
        ast::FlagsItemKind::Flag(ast::Flag::CaseInsensitive)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> Vec<String> {
        let pieces = Pattern::regex(pattern).unwrap().pieces(text).unwrap();
        assert_eq!(
            pieces
                .iter()
                .map(|it| &text[it.0.clone()])
                .collect::<String>(),
            text
        );
        let matches = pieces.into_iter().filter(|it| it.1);
        matches.map(|it| text[it.0].to_owned()).collect()
    }

    #[test]
    fn spaces_before_a_word_leave_it_the_last_one() {
        assert_eq!(matches(GPT2, "a   b"), ["a", "  ", " b"]);
        assert_eq!(matches(GPT2, "a \n\tb  "), ["a", " \n", "\t", "b", "  "]);
        assert_eq!(
            matches(r"\s+(?!\S)", "a b\u{3000}\u{3000}c "),
            ["\u{3000}", " "]
        );
    }

    #[test]
    fn what_cannot_be_matched_in_linear_time_is_refused() {
        for pattern in [
            r"(?=a)b",
            r"(?<!a)b",
            r"(a)\1",
            r"(?>a)",
            r"a(?!b)",
            r"(?:\s+(?!\S))",
        ] {
            let error = Pattern::regex(pattern).unwrap_err();
            assert!(
                matches!(error, InvalidPattern::Syntax(_)),
                "{pattern}: {error:?}"
            );
        }
        for pattern in [r"[ab]*a[ab]{20}", r"\p{L}{1000}", r"\w*a\w{20}"] {
            let error = Pattern::regex(pattern).unwrap_err();
            assert!(
                matches!(error, InvalidPattern::TooLarge(_)),
                "{pattern}: {error:?}"
            );
        }
    }

    #[test]
    fn what_is_read_differently_elsewhere_is_refused() {
        for pattern in [
            "^a",
            "a$",
            r"\ba",
            r"a\z",
            "(?i)a",
            "(?s:a)",
            "a++",
            "[[:alpha:]]",
            r"[\w--a]",
        ] {
            let error = Pattern::regex(pattern).unwrap_err();
            assert!(
                matches!(error, InvalidPattern::Ambiguous(_)),
                "{pattern}: {error:?}"
            );
        }
        for pattern in ["", "a*", "a|", "(?:)", "a?b*"] {
            let error = Pattern::regex(pattern).unwrap_err();
            assert!(
                matches!(error, InvalidPattern::MatchesNothing),
                "{pattern}: {error:?}"
            );
        }
    }

    #[test]
    fn looking_to_the_end_from_everywhere_is_ended() {
        let pattern = Pattern::regex(r"[^b]*b").unwrap();
        assert_eq!(pattern.pieces(&"a".repeat(100_000)), Err(TooSlow));
        assert!(pattern.pieces(&"ab".repeat(100_000)).is_ok());
    }

    #[test]
    fn the_first_alternative_wins_and_not_the_longest() {
        assert_eq!(matches("ab|a", "aba"), ["ab", "a"]);
        assert_eq!(matches(r"a[|)]|\|", "a)|a|"), ["a)", "|", "a|"]);
    }
}
