//! Lines and what stands in them, byte by byte.

use super::FileError;
use crate::value::{Address, Hash};

/// The largest integer that JSON carries exactly (RFC 8785).
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// The lines of a file, each with its number.
pub(super) struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
    limit: usize,
}

impl<'a> Lines<'a> {
    /// Lines of `limit` bytes at most.
    pub(super) const fn of(rest: &'a [u8], limit: usize) -> Self {
        Self {
            rest,
            number: 0,
            limit,
        }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<Line<'a>, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        self.number += 1;
        let window = &self.rest[..self.rest.len().min(self.limit + 1)];
        let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
            let line = self.number;
            self.rest = &[];
            return Some(Err(FileError::Line {
                line,
                limit: self.limit,
            }));
        };
        let (bytes, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Some(Ok(Line {
            bytes,
            number: self.number,
        }))
    }
}

/// One line, without its end.
pub(super) struct Line<'a> {
    pub(super) bytes: &'a [u8],
    /// Counted from 1.
    pub(super) number: usize,
}

impl Line<'_> {
    /// Reads the whole line with a reader of its kind.
    pub(super) fn read<T>(
        &self,
        reader: impl FnOnce(&mut Cursor<'_>) -> Result<T, &'static str>,
    ) -> Result<T, FileError> {
        let mut cursor = Cursor {
            bytes: self.bytes,
            at: 0,
        };
        let read = reader(&mut cursor).and_then(|value| {
            if cursor.at == cursor.bytes.len() {
                Ok(value)
            } else {
                Err("the end of the line")
            }
        });
        read.map_err(|expected| FileError::Form {
            line: self.number,
            byte: cursor.at + 1,
            expected,
        })
    }

    /// It stands where it cannot.
    pub(super) const fn out_of_order(&self, found: &'static str) -> FileError {
        FileError::Order {
            line: self.number,
            found,
        }
    }
}

/// A place in a line. A reader that finds something else leaves it there and says what it expected.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What was read, or what was expected instead.
pub(super) type Read<T> = Result<T, &'static str>;

impl<'a> Cursor<'a> {
    pub(super) fn text(&mut self, text: &'static str) -> Read<()> {
        if self.bytes[self.at..].starts_with(text.as_bytes()) {
            self.at += text.len();
            Ok(())
        } else {
            Err(text)
        }
    }

    /// What stands until the next quotation mark; no text of a leaf file has an escape.
    fn quoted(&mut self, longest: usize, expected: &'static str) -> Read<&'a str> {
        let rest = &self.bytes[self.at..];
        let rest = rest.strip_prefix(b"\"").ok_or(expected)?;
        let window = &rest[..rest.len().min(longest + 1)];
        let end = window.iter().position(|byte| *byte == b'"');
        let text = &window[..end.ok_or(expected)?];
        let plain = text
            .iter()
            .all(|byte| byte.is_ascii_graphic() && *byte != b'\\');
        let text = str::from_utf8(text)
            .ok()
            .filter(|_| plain)
            .ok_or(expected)?;
        self.at += text.len() + 2;
        Ok(text)
    }

    /// A value in quotation marks; the cursor stays before one that cannot be read.
    pub(super) fn value<T>(
        &mut self,
        longest: usize,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Read<T> {
        let start = self.at;
        let text = self.quoted(longest, expected)?;
        parse(text).ok_or_else(|| {
            self.at = start;
            expected
        })
    }

    pub(super) fn address(&mut self) -> Read<Address> {
        self.value(42, "an address with its checksum", Address::parse)
    }

    pub(super) fn hash(&mut self) -> Read<Hash> {
        self.value(66, "0x and 64 lower-case hexadecimal digits", Hash::parse)
    }

    pub(super) fn amount(&mut self) -> Read<u128> {
        self.value(39, "base units in decimal digits", |text| {
            is_decimal(text).then(|| text.parse().ok())?
        })
    }

    pub(super) fn integer(&mut self, most: u64, expected: &'static str) -> Read<u64> {
        let rest = &self.bytes[self.at..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = str::from_utf8(&rest[..digits]).map_err(|_| expected)?;
        let number = text.parse::<u64>().ok();
        let number = number.filter(|number| is_decimal(text) && *number <= most);
        let number = number.ok_or(expected)?;
        self.at += digits;
        Ok(number)
    }

    pub(super) fn count(&mut self) -> Read<u64> {
        self.integer(INTEGER_MAX, "an integer below 2^53")
    }
}

/// Digits without a sign or a leading zero.
fn is_decimal(text: &str) -> bool {
    let one_form = text == "0" || !text.starts_with('0');
    one_form && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
