//! What people and programs call things, and what they say about them. Somebody else's screen shows it: a control character in
//! it could write anything there.

/// Is this a name of at most so many characters? It has one at least, and none of control.
#[must_use]
pub fn is_name(text: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&text.chars().count()) && !text.contains(char::is_control)
}

/// Is this a remark of at most so many characters? Of the control characters it has line breaks and tabs alone.
#[must_use]
pub fn is_remark(text: &str, chars_max: usize) -> bool {
    text.chars().count() <= chars_max && text.chars().all(is_readable)
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
    !character.is_control() || character == '\n' || character == '\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Escape, its one-byte form, bell, backspace, return, delete, null.
    const CONTROLS: [char; 7] = ['\u{1b}', '\u{9b}', '\u{7}', '\u{8}', '\r', '\u{7f}', '\0'];

    #[test]
    fn a_name_has_no_control_characters() {
        for good in ["a", "Job 7", "обучение", "名前", "🚀"] {
            assert!(is_name(good, 8), "{good}");
        }
        for control in CONTROLS.into_iter().chain(['\n', '\t']) {
            for bad in [format!("{control}"), format!("a{control}b")] {
                assert!(!is_name(&bad, 8), "{bad:?}");
            }
        }
        assert!(!is_name("", 8) && !is_name("123456789", 8));
        assert!(is_name("éééééééé", 8), "characters count, not bytes");
    }

    #[test]
    fn a_remark_has_lines_and_tabs_and_no_other_control() {
        assert!(is_remark("", 0) && is_remark("one\n\ttwo", 8) && !is_remark("one\n\ttwo", 7));
        for control in CONTROLS {
            assert!(!is_remark(&format!("a{control}[2J"), 8), "{control:?}");
            assert_eq!(to_remark(&format!("a{control}\n[2J"), 4), "a\n[2");
        }
    }
}
