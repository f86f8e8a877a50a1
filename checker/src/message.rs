//! What the two processes say to each other.

use std::io::{self, Read, Write};

/// Bytes that the child asks for at once.
pub const READ_BYTES_MAX: u32 = 1 << 20;
/// Bytes of a verdict.
pub const VERDICT_BYTES_MAX: u32 = 1 << 20;
/// Bytes of a message's head: its kind, where the bytes are, and how many.
pub const HEAD_BYTES: usize = 13;

const READ: u8 = 1;
const VERDICT: u8 = 2;

/// What the child says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It wants these bytes, which follow on its standard input.
    Read {
        /// From where.
        at: u64,
        /// How many.
        count: u32,
    },
    /// It is done; so many bytes of JSON follow.
    Verdict {
        /// How many.
        count: u32,
    },
}

impl Said {
    /// As it is written.
    pub fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let (kind, at, count) = match self {
            Self::Read { at, count } => (READ, at, count),
            Self::Verdict { count } => (VERDICT, 0, count),
        };
        let mut head = [0; HEAD_BYTES];
        head[0] = kind;
        head[1..9].copy_from_slice(&at.to_be_bytes());
        head[9..].copy_from_slice(&count.to_be_bytes());
        head
    }

    /// What was written, if it may be said about a file of so many bytes.
    pub fn read(head: [u8; HEAD_BYTES], file_bytes: u64) -> Option<Self> {
        let at = u64::from_be_bytes(*head[1..].first_chunk()?);
        let count = u32::from_be_bytes(*head[9..].first_chunk()?);
        let is_inside = at
            .checked_add(u64::from(count))
            .is_some_and(|end| end <= file_bytes);
        match head[0] {
            READ if is_inside && (1..=READ_BYTES_MAX).contains(&count) => {
                Some(Self::Read { at, count })
            }
            VERDICT if count <= VERDICT_BYTES_MAX => Some(Self::Verdict { count }),
            _ => None,
        }
    }
}

/// Asks for bytes, and waits for them.
pub fn ask(out: &mut impl Write, from: &mut impl Read, at: u64, into: &mut [u8]) -> io::Result<()> {
    let count = u32::try_from(into.len()).map_err(io::Error::other)?;
    out.write_all(&Said::Read { at, count }.to_bytes())?;
    from.read_exact(into)
}

/// Says what was found.
pub fn conclude(out: &mut impl Write, verdict: &[u8]) -> io::Result<()> {
    let count = u32::try_from(verdict.len()).map_err(io::Error::other)?;
    out.write_all(&Said::Verdict { count }.to_bytes())?;
    out.write_all(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_given_what_is_in_the_file_and_nothing_else() {
        let read = |at, count| Said::read(Said::Read { at, count }.to_bytes(), 100);
        assert_eq!(read(0, 100), Some(Said::Read { at: 0, count: 100 }));
        for (at, count) in [(0, 101), (100, 1), (u64::MAX, 1), (0, 0)] {
            assert_eq!(read(at, count), None);
        }
        let much = Said::Read {
            at: 0,
            count: READ_BYTES_MAX + 1,
        }
        .to_bytes();
        assert_eq!(Said::read(much, u64::MAX), None);
        let verdict = |count| Said::read(Said::Verdict { count }.to_bytes(), 0);
        assert!(verdict(VERDICT_BYTES_MAX).is_some() && verdict(VERDICT_BYTES_MAX + 1).is_none());
        assert_eq!(Said::read([7; HEAD_BYTES], u64::MAX), None);
    }
}
