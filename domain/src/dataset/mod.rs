//! Datasets: what a seller says of one, its versions, the files of these, and the manifest that pins them.

mod manifest;
mod path;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use manifest::{Column, Facts, InvalidFacts, ManifestFile, leaf, manifest, root};
pub use path::{FilePath, InvalidPath, PATH_BYTES_MAX, conflict};

/// Files of one version.
pub const FILES_MAX: u32 = 10_000;
/// Files that one request announces.
pub const ANNOUNCED_MAX: usize = 500;
/// Bytes of one file.
pub const FILE_BYTES_MAX: u64 = 64 << 30;
/// Bytes of each part of a file but the last.
pub const PART_BYTES: u32 = 16 << 20;
/// Columns of a table, tensors of a file: what has names.
pub const COLUMNS_MAX: usize = 10_000;
/// Bytes of a column's name.
pub const COLUMN_NAME_BYTES_MAX: usize = 255;
/// Bytes of what is found out about one file.
pub const FACTS_BYTES_MAX: usize = 64 << 10;
/// Bytes of what is found out about all files of a version.
pub const VERSION_FACTS_BYTES_MAX: usize = 8 << 20;
/// Bytes of one record of a CSV file, or of one line of JSON Lines.
pub const RECORD_BYTES_MAX: u64 = 1 << 20;

/// How many parts a file has.
#[must_use]
pub const fn parts(bytes: u64, part_bytes: u32) -> u64 {
    bytes.div_ceil(part_bytes as u64)
}

/// How many bytes a part of a file has; `None` where the file has no such part.
#[must_use]
pub const fn part_length(bytes: u64, part_bytes: u32, part: u32) -> Option<u64> {
    let start = (part as u64).saturating_mul(part_bytes as u64);
    match bytes.checked_sub(start) {
        None | Some(0) => None,
        Some(left) if left < part_bytes as u64 => Some(left),
        Some(_) => Some(part_bytes as u64),
    }
}

macro_rules! words {
    ($($(#[$doc:meta])* $kind:ident { $($(#[$word_doc:meta])* $name:ident = $text:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        pub enum $kind {
            $($(#[$word_doc])* #[serde(rename = $text)] $name,)+
        }

        impl $kind {
            /// Its word, in the database and outside.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// The one with this word.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)+
                    _ => None,
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $kind {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text).ok_or("no such word")
            }
        }
    )+};
}

words! {
    /// What a file says that it is; it is read as that before its version is ready.
    Format {
        /// Tensors in the safetensors format.
        Safetensors = "safetensors",
        /// Comma-separated values (RFC 4180) in UTF-8, with a line of column names.
        Csv = "csv",
        /// Apache Parquet.
        Parquet = "parquet",
        /// One JSON object per line.
        JsonLines = "json_lines",
        /// Anything else: its bytes are kept, and never read as anything.
        Other = "other",
    }
    /// Is a dataset offered?
    DatasetState {
        /// It never was.
        Draft = "draft",
        /// It is shown to everybody who signed in.
        Listed = "listed",
        /// It is not any more.
        Withdrawn = "withdrawn",
    }
    /// How far a version is.
    VersionState {
        /// Its files are announced and uploaded.
        Draft = "draft",
        /// Its files are read back and checked.
        Checking = "checking",
        /// It is published, and stays as it is.
        Ready = "ready",
        /// A file is not what it says it is.
        Refused = "refused",
        /// Its key is gone, and with it its files.
        Shredded = "shredded",
    }
}

impl Format {
    /// What the name of a file lets expect.
    #[must_use]
    pub fn of_path(path: &FilePath) -> Self {
        let name = path.as_str().to_ascii_lowercase();
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        match extension {
            "safetensors" => Self::Safetensors,
            "csv" => Self::Csv,
            "parquet" => Self::Parquet,
            "jsonl" | "ndjson" => Self::JsonLines,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_file_and_nothing_more() {
        for bytes in [1, 15, 16, 17, 31, 32, 33] {
            let count = parts(bytes, 16);
            let lengths = (0..).map_while(|part| part_length(bytes, 16, part));
            let lengths: Vec<_> = lengths.collect();
            assert_eq!((lengths.len() as u64, lengths.iter().sum()), (count, bytes));
            assert!(lengths.iter().rev().skip(1).all(|length| *length == 16));
        }
        assert_eq!(part_length(1, 16, u32::MAX), None);
    }

    #[test]
    fn the_name_of_a_file_lets_expect_its_format() {
        let format = |path: &str| Format::of_path(&path.parse().expect("a path"));
        assert_eq!(format("a/B.CSV"), Format::Csv);
        assert_eq!(format("a.jsonl"), Format::JsonLines);
        assert_eq!(format("a.csv/readme"), Format::Other);
        assert_eq!(format("csv"), Format::Other);
    }
}
