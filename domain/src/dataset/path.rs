//! Paths of files in a dataset: safe to write on any system, and different on each.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization as _;

use crate::name::is_shown;

/// Bytes of a path.
pub const PATH_BYTES_MAX: usize = 512;
/// Bytes of one name between two slashes: what file systems take.
const SEGMENT_BYTES_MAX: usize = 255;
/// Names that Windows keeps for devices, whatever comes after a dot.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
/// Those with a digit behind them.
const NUMBERED_DEVICES: [&str; 2] = ["com", "lpt"];

/// Why a text is not a path of a file in a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    #[error("expected 1 to {PATH_BYTES_MAX} bytes")]
    Length,
    #[error(
        "a name between slashes is empty, `.` or `..`, or the path begins or ends with a slash"
    )]
    Segment,
    #[error("a name is longer than {SEGMENT_BYTES_MAX} bytes")]
    LongSegment,
    #[error("characters that do not show and < > : \" | ? * \\ cannot be in a path")]
    Character,
    #[error("a name ends with a dot or with a space, or begins with a space")]
    Edge,
    #[error("a name is one that Windows keeps for devices")]
    Device,
}

/// The path of a file in a dataset: relative, with `/` between names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(String);

impl FilePath {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What no other path of the version may have too: systems that ignore case, or of which bytes a letter is composed, would write both
    /// to one file.
    #[must_use]
    pub fn folded(&self) -> String {
        let decomposed: String = self.0.nfd().collect();
        decomposed.to_lowercase().nfc().collect()
    }
}

impl FromStr for FilePath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        if text.is_empty() || text.len() > PATH_BYTES_MAX {
            return Err(InvalidPath::Length);
        }
        if text.contains(is_forbidden) {
            return Err(InvalidPath::Character);
        }
        text.split('/').try_for_each(check_segment)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for FilePath {
    type Error = InvalidPath;

    fn try_from(text: String) -> Result<Self, InvalidPath> {
        text.parse()
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> Self {
        path.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_forbidden(character: char) -> bool {
    !is_shown(character) || r#"<>:"|?*\"#.contains(character)
}

fn check_segment(name: &str) -> Result<(), InvalidPath> {
    if matches!(name, "" | "." | "..") {
        return Err(InvalidPath::Segment);
    }
    if name.len() > SEGMENT_BYTES_MAX {
        return Err(InvalidPath::LongSegment);
    }
    if name.ends_with(['.', ' ']) || name.starts_with(' ') {
        return Err(InvalidPath::Edge);
    }
    let stem = name.split('.').next().unwrap_or_default().trim_end();
    let stem = stem.to_ascii_lowercase();
    let numbered = |device: &str| {
        let rest = stem.strip_prefix(device);
        // To Windows the superscripts of Latin-1 are digits.
        rest.is_some_and(|rest| {
            matches!(rest, "¹" | "²" | "³") || matches!(rest.as_bytes(), [b'0'..=b'9'])
        })
    };
    if DEVICES.contains(&&*stem) || NUMBERED_DEVICES.into_iter().any(numbered) {
        return Err(InvalidPath::Device);
    }
    Ok(())
}

/// The first path that another one needs as a folder: no system can hold both.
#[must_use]
pub fn conflict<'p>(paths: impl IntoIterator<Item = &'p FilePath>) -> Option<String> {
    let folded: std::collections::BTreeSet<String> =
        paths.into_iter().map(FilePath::folded).collect();
    let folders = folded
        .iter()
        .flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]));
    let mut folders = folders.filter(|folder| folded.contains(*folder));
    folders.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_their_folder_or_exist_nowhere_are_refused() {
        let long = "a".repeat(PATH_BYTES_MAX + 1);
        let long_name = "a".repeat(SEGMENT_BYTES_MAX + 1);
        let cases = [
            ("", InvalidPath::Length),
            (&long, InvalidPath::Length),
            (&long_name, InvalidPath::LongSegment),
            ("/etc/passwd", InvalidPath::Segment),
            ("..", InvalidPath::Segment),
            ("../x", InvalidPath::Segment),
            ("a/../x", InvalidPath::Segment),
            ("a/./x", InvalidPath::Segment),
            ("a//x", InvalidPath::Segment),
            ("a/", InvalidPath::Segment),
            ("..\\x", InvalidPath::Character),
            ("C:x", InvalidPath::Character),
            ("a\0b", InvalidPath::Character),
            ("a\nb", InvalidPath::Character),
            ("a\u{202e}b", InvalidPath::Character),
            ("a\u{200b}b", InvalidPath::Character),
            ("a?", InvalidPath::Character),
            ("...", InvalidPath::Edge),
            ("a./b", InvalidPath::Edge),
            ("a /b", InvalidPath::Edge),
            (" a", InvalidPath::Edge),
            ("NUL", InvalidPath::Device),
            ("a/con.csv", InvalidPath::Device),
            ("LPT1", InvalidPath::Device),
            ("nul .txt", InvalidPath::Device),
            ("COM¹", InvalidPath::Device),
            ("a/lpt³.csv", InvalidPath::Device),
            ("conin$", InvalidPath::Device),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<FilePath>(), Err(expected), "{text:?}");
        }
        for good in [
            "a",
            "a/b.csv",
            "..a",
            ".hidden",
            "data/Zürich 2026.jsonl",
            "console",
            "com10",
            "com⁴",
        ] {
            assert!(good.parse::<FilePath>().is_ok(), "{good}");
        }
    }

    #[test]
    fn two_spellings_of_one_name_are_one_path() {
        let folded = |text: &str| text.parse::<FilePath>().expect("a path").folded();
        for (one, other) in [
            ("Zürich", "Zu\u{308}rich"),
            ("ZÜRICH", "zu\u{308}rich"),
            ("\u{212b}.csv", "å.csv"),
        ] {
            assert_eq!(folded(one), folded(other), "{one}");
        }
        assert_ne!(folded("Zürich"), folded("Zurich"));
    }

    #[test]
    fn a_file_is_no_folder_of_another_whatever_its_case() {
        let path = |text: &str| text.parse::<FilePath>().expect("a path");
        assert_eq!(conflict(&[path("a/b"), path("a-b"), path("ab/a")]), None);
        assert_eq!(
            conflict(&[path("A"), path("a-b"), path("a/b/c")]),
            Some("a".to_owned())
        );
    }
}
