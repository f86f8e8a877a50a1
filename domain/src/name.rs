//! What people and programs call things, and what they say about them. Somebody else's screen shows it: a control character in
//! it could write anything there, and one of direction, or one that nobody sees, shows a name as another one than it is.

/// Is this a name of at most so many characters? It has one at least, and all of them show.
#[must_use]
pub fn is_name(text: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&text.chars().count()) && is_written_with(text, is_shown)
}

/// Are all of its characters so? A joiner is, between two that are not ASCII: Persian, Hindi and some pictures are written with them.
fn is_written_with(text: &str, is_so: impl Fn(char) -> bool) -> bool {
    let mut characters = text.chars().peekable();
    let mut before = None;
    while let Some(character) = characters.next() {
        let beside = [before.replace(character), characters.peek().copied()];
        let joins = matches!(character, '\u{200c}' | '\u{200d}')
            && beside
                .into_iter()
                .all(|it| it.is_some_and(|it| !it.is_ascii() && is_shown(it)));
        if !joins && !is_so(character) {
            return false;
        }
    }
    true
}

/// Does this character show, and leave those around it where they are?
#[must_use]
pub fn is_shown(character: char) -> bool {
    let is_invisible = matches!(character, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !character.is_control() && !is_invisible
}

/// Does this character turn around what comes after it? Marks and joiners do not: text that is read from the right needs them.
#[must_use]
pub const fn is_turning(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Is this a remark of at most so many characters? Of those that do not show it has line breaks and tabs alone.
#[must_use]
pub fn is_remark(text: &str, chars_max: usize) -> bool {
    text.chars().count() <= chars_max && is_written_with(text, is_readable)
}

/// The beginning of a text that is a remark of at most so many characters, without what a remark cannot have.
#[must_use]
pub fn to_remark(text: &str, chars_max: usize) -> String {
    let readable = text.chars().filter(|it| is_readable(*it));
    readable.take(chars_max).collect()
}

/// May a terminal be shown this character, whoever wrote it?
#[must_use]
pub fn is_readable(character: char) -> bool {
    is_shown(character) || character == '\n' || character == '\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Escape, its one-byte form, bell, backspace, return, delete, null; then what turns a name around, what is nowhere to be seen, and a letter of a
    /// language that is never written.
    const HIDDEN: [char; 13] = [
        '\u{1b}',
        '\u{9b}',
        '\u{7}',
        '\u{8}',
        '\r',
        '\u{7f}',
        '\0',
        '\u{202e}',
        '\u{2066}',
        '\u{200b}',
        '\u{2060}',
        '\u{feff}',
        '\u{e0041}',
    ];

    #[test]
    fn a_name_has_no_character_that_does_not_show() {
        let joined = [
            "\u{645}\u{6cc}\u{200c}\u{634}",
            "\u{1f469}\u{200d}\u{1f680}",
        ];
        for good in ["a", "Job 7", "обучение", "名前", "שם", "🚀"]
            .into_iter()
            .chain(joined)
        {
            assert!(is_name(good, 8), "{good}");
        }
        for bad in [
            "a\u{200d}b",
            "\u{200d}",
            "\u{645}\u{200c}",
            "\u{645}\u{200d}\u{200d}\u{645}",
        ] {
            assert!(!is_name(bad, 8), "{bad:?}");
        }
        for hidden in HIDDEN.into_iter().chain(['\n', '\t']) {
            for bad in [format!("{hidden}"), format!("a{hidden}b")] {
                assert!(!is_name(&bad, 8), "{bad:?}");
            }
        }
        assert!(!is_name("", 8) && !is_name("123456789", 8));
        assert!(is_name("éééééééé", 8), "characters count, not bytes");
    }

    #[test]
    fn a_remark_has_lines_and_tabs_and_nothing_else_that_does_not_show() {
        assert!(is_remark("", 0) && is_remark("one\n\ttwo", 8) && !is_remark("one\n\ttwo", 7));
        for hidden in HIDDEN {
            assert!(!is_remark(&format!("a{hidden}[2J"), 8), "{hidden:?}");
            assert_eq!(to_remark(&format!("a{hidden}\n[2J"), 4), "a\n[2");
        }
    }
}
