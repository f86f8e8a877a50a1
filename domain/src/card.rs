//! What a seller says of a dataset, or a creator of a model. All of it is text that we keep and hand on: nothing of it is ever rendered here, so whoever shows the
//! description as Markdown has to treat it as written by a stranger.

use std::collections::BTreeSet;

use crate::name::{is_name, is_turning};

/// Characters of a name.
const NAME_CHARS_MAX: usize = 64;
/// Characters of a title.
const TITLE_CHARS_MAX: usize = 200;
/// Bytes of a description.
const DESCRIPTION_BYTES_MAX: usize = 64 << 10;
/// Characters of a licence.
const LICENCE_CHARS_MAX: usize = 200;
/// Bytes of what is said of where the data comes from.
const PROVENANCE_BYTES_MAX: usize = 16 << 10;
/// Tags of one card.
const TAGS_MAX: usize = 20;
/// Characters of a tag.
const TAG_CHARS_MAX: usize = 40;
/// Bytes of what is said of a version.
pub const NOTES_BYTES_MAX: usize = 16 << 10;
/// Characters of why something is not recommended any more.
pub const DEPRECATION_CHARS_MAX: usize = 1000;

/// What a seller says of a dataset, or a creator of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Names it among the datasets, or models, of its account.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// Markdown.
    pub description: String,
    /// An SPDX licence expression.
    pub licence: String,
    /// Where it comes from: the data, or what a model was trained on and by whom.
    pub provenance: String,
    /// Words to find it by.
    pub tags: Vec<String>,
}

impl Card {
    /// What cannot be accepted: JSON pointers and reasons.
    #[must_use]
    pub fn refusals(&self) -> Vec<(String, String)> {
        let mut refusals = Vec::new();
        let mut refuse = |pointer: &str, reason: Option<String>| {
            refusals.extend(reason.map(|reason| (pointer.to_owned(), reason)));
        };
        refuse(
            "/name",
            (!is_word(&self.name, NAME_CHARS_MAX)).then(|| word(NAME_CHARS_MAX)),
        );
        refuse("/title", line(&self.title, TITLE_CHARS_MAX));
        refuse(
            "/description",
            text(&self.description, DESCRIPTION_BYTES_MAX),
        );
        refuse("/licence", licence(&self.licence));
        refuse("/provenance", text(&self.provenance, PROVENANCE_BYTES_MAX));
        let distinct: BTreeSet<_> = self.tags.iter().collect();
        let crowd = self.tags.len() > TAGS_MAX || distinct.len() < self.tags.len();
        refuse(
            "/tags",
            crowd.then(|| format!("expected {TAGS_MAX} different tags at most")),
        );
        for (place, tag) in self.tags.iter().enumerate().take(TAGS_MAX) {
            refuse(
                &format!("/tags/{place}"),
                (!is_tag(tag)).then(|| word(TAG_CHARS_MAX)),
            );
        }
        refusals
    }
}

/// Why notes on a version cannot be accepted.
#[must_use]
pub fn check_notes(notes: &str) -> Option<String> {
    text(notes, NOTES_BYTES_MAX)
}

/// Why the words on a deprecation cannot be accepted.
#[must_use]
pub fn check_deprecation(message: &str) -> Option<String> {
    line(message, DEPRECATION_CHARS_MAX)
}

/// Can a card have this tag?
#[must_use]
pub fn is_tag(text: &str) -> bool {
    is_word(text, TAG_CHARS_MAX)
}

fn word(chars: usize) -> String {
    format!("expected 1 to {chars} of a-z, 0-9 and hyphens between them")
}

fn is_word(text: &str, chars: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=chars).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn line(text: &str, chars: usize) -> Option<String> {
    let fits = is_name(text, chars) && !text.trim().is_empty();
    (!fits).then(|| format!("expected one line of 1 to {chars} characters, all of which show"))
}

fn text(text: &str, bytes: usize) -> Option<String> {
    let is_hostile =
        |it: char| is_turning(it) || (it.is_control() && !matches!(it, '\n' | '\r' | '\t'));
    (text.len() > bytes || text.contains(is_hostile)).then(|| {
        format!("expected at most {bytes} bytes of text without control and direction characters")
    })
}

fn licence(text: &str) -> Option<String> {
    if text.len() > LICENCE_CHARS_MAX {
        return Some(format!("expected {LICENCE_CHARS_MAX} characters at most"));
    }
    let parsed = spdx::Expression::parse(text);
    parsed
        .err()
        .map(|error| format!("not an SPDX licence expression: {}", error.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        Card {
            name: "digits-8x8".to_owned(),
            title: "Handwritten digits".to_owned(),
            description: "# Digits\n\n<script>alert(1)</script> stays text".to_owned(),
            licence: "CC-BY-4.0".to_owned(),
            provenance: String::new(),
            tags: vec!["images".to_owned()],
        }
    }

    fn refused(change: impl FnOnce(&mut Card)) -> Vec<String> {
        let mut card = card();
        change(&mut card);
        card.refusals()
            .into_iter()
            .map(|(pointer, _)| pointer)
            .collect()
    }

    #[test]
    fn each_field_of_a_card_has_its_limits() {
        assert!(card().refusals().is_empty());
        for name in ["", "-a", "a-", "A", "a b", "ä", &"a".repeat(65)] {
            assert_eq!(refused(|it| it.name = name.to_owned()), ["/name"], "{name}");
        }
        for title in [
            "",
            "  ",
            "a\nb",
            "a\u{7}b",
            "\u{202e}gpj.exe",
            "\u{200b}",
            &"ä".repeat(201),
        ] {
            assert_eq!(
                refused(|it| it.title = title.to_owned()),
                ["/title"],
                "{title}"
            );
        }
        assert!(refused(|it| it.description = "x".repeat(64 << 10)).is_empty());
        assert_eq!(
            refused(|it| it.description = "x".repeat((64 << 10) + 1)),
            ["/description"]
        );
        assert_eq!(
            refused(|it| it.description = "# Digits\n\u{202e}gpj.exe".to_owned()),
            ["/description"]
        );
        let lines = "\u{200f}ספרות\u{200f}\n\tn\u{200d}n";
        assert!(refused(|it| it.description = lines.to_owned()).is_empty());
        assert_eq!(
            refused(|it| it.provenance = "\u{1b}[2J".to_owned()),
            ["/provenance"]
        );
        assert_eq!(refused(|it| it.tags = vec!["a".to_owned(); 2]), ["/tags"]);
        assert_eq!(
            refused(|it| it.tags = vec!["a".to_owned(), "B".to_owned()]),
            ["/tags/1"]
        );
        let many = (0..21).map(|n| n.to_string()).collect();
        assert_eq!(refused(|it| it.tags = many), ["/tags"]);
    }

    #[test]
    fn a_licence_is_an_spdx_expression() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "CC-BY-4.0 AND (MIT OR ISC)",
            "LicenseRef-mine",
            "GPL-2.0-only WITH Classpath-exception-2.0",
        ] {
            assert!(
                refused(|it| it.licence = good.to_owned()).is_empty(),
                "{good}"
            );
        }
        for bad in ["", "free", "MIT OR", "mit and so on", "(MIT"] {
            assert_eq!(
                refused(|it| it.licence = bad.to_owned()),
                ["/licence"],
                "{bad}"
            );
        }
    }
}
