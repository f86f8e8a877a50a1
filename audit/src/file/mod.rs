//! The leaf file, read byte by byte: every line has one canonical text, and anything else is refused where it differs.
//! Nothing is allocated on the word of the file before its length was judged.

mod cursor;
mod lines;

use crate::{
    hash::sha256,
    value::{Account, Address, Hash, Receipt},
};
use cursor::Lines;
use lines::{account, heading, receipt};

/// What a file may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All of it.
    pub bytes: u64,
    /// One line.
    pub line_bytes: usize,
    /// Shares of one receipt.
    pub shares: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 4 << 30,
            line_bytes: 256 << 10,
            shares: 1_001,
        }
    }
}

/// Why some bytes are no leaf file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Longer than allowed.
    #[error("the leaf file has {bytes} bytes, more than {limit}")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A line that is too long, or does not end.
    #[error("line {line}, of more than {limit} bytes or without its end")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The most that a line may have.
        limit: usize,
    },
    /// A byte that cannot be there.
    #[error("line {line}, byte {byte}: expected {expected}")]
    Form {
        /// Counted from 1.
        line: usize,
        /// Counted from 1 within the line.
        byte: usize,
        /// What the canonical form has there.
        expected: &'static str,
    },
    /// Lines in another order than header, receipts, accounts.
    #[error("line {line}: a {found} cannot stand there")]
    Order {
        /// Counted from 1.
        line: usize,
        /// What is there.
        found: &'static str,
    },
    /// No line at all.
    #[error("the leaf file is empty")]
    Empty,
}

/// What the file's first line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heading {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The settlement contract.
    pub contract: Address,
    /// The number of the batch.
    pub id: u64,
    /// The number of cancellations before it.
    pub generation: u64,
    /// How many receipts follow.
    pub receipt_count: u64,
    /// The last deposit that was credited.
    pub deposit_seq_seen: u64,
    /// What the accounts' payables add up to, it says.
    pub total_payable: u128,
    /// What the accounts still hold, it says.
    pub total_available: u128,
    /// What the accounts deposited, it says.
    pub deposits_seen: u128,
    /// The hash of the header before it.
    pub prev_hash: Hash,
    /// The root of the receipts, it says.
    pub receipts_root: Hash,
    /// The root of the accounts, it says.
    pub accounts_root: Hash,
    /// The head of the audit log, once it has one.
    pub audit_head: Option<Hash>,
}

/// A leaf file whose form is right. Nothing that it says is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFile {
    /// Its first line.
    pub heading: Heading,
    /// The receipts, in their order.
    pub receipts: Vec<Receipt>,
    /// The accounts, in their order.
    pub accounts: Vec<Account>,
    /// What names the file.
    pub sha256: Hash,
}

impl LeafFile {
    /// Reads a leaf file.
    ///
    /// # Errors
    /// Where it is not in canonical form, or passes a limit.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, FileError> {
        let length = bytes.len() as u64;
        if length > limits.bytes {
            return Err(FileError::TooLong {
                bytes: length,
                limit: limits.bytes,
            });
        }
        let mut lines = Lines::of(bytes, limits.line_bytes);
        let first = lines.next().ok_or(FileError::Empty)??;
        let heading = first.read(heading)?;
        let mut receipts = Vec::new();
        let mut accounts = Vec::new();
        for line in lines {
            let line = line?;
            // The first key tells a line's kind.
            match line.bytes.get(2..9) {
                Some(b"batch_i") if accounts.is_empty() => {
                    receipts.push(line.read(|cursor| receipt(cursor, limits.shares))?);
                }
                Some(b"account") if line.bytes.get(9) == Some(&b'"') => {
                    accounts.push(line.read(account)?);
                }
                Some(b"batch_i") => return Err(line.out_of_order("receipt")),
                Some(b"account") => return Err(line.out_of_order("header")),
                _ => {
                    return Err(FileError::Form {
                        line: line.number,
                        byte: 1,
                        expected: "a receipt or an account",
                    });
                }
            }
        }
        Ok(Self {
            heading,
            receipts,
            accounts,
            sha256: sha256(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = concat!(
        r#"{"account":"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed","available":"0","#,
        r#""deposits_seen":"7","object":"account","payable":"7"}"#
    );

    fn file(lines: &[&str]) -> Vec<u8> {
        let zero = Hash::ZERO;
        let heading = format!(
            "{{\"accounts_root\":\"{zero}\",\"audit_head\":null,\"chain_id\":31337,\
             \"contract\":\"0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359\",\"deposit_seq_seen\":1,\"deposits_seen\":\"7\",\
             \"generation\":0,\"id\":1,\"object\":\"header\",\"prev_hash\":\"{zero}\",\"receipt_count\":0,\
             \"receipts_root\":\"{zero}\",\"total_available\":\"0\",\"total_payable\":\"7\"}}\n"
        );
        let lines = lines.iter().map(|line| format!("{line}\n"));
        std::iter::once(heading)
            .chain(lines)
            .collect::<String>()
            .into_bytes()
    }

    fn parse(bytes: &[u8]) -> Result<LeafFile, FileError> {
        LeafFile::parse(bytes, &Limits::default())
    }

    #[test]
    fn a_canonical_file_is_read() {
        let read = parse(&file(&[ACCOUNT])).unwrap();
        assert_eq!((read.heading.id, read.accounts[0].payable), (1, 7));
        assert_eq!(read.heading.audit_head, None);
        let text = String::from_utf8(file(&[])).unwrap();
        let headed = text.replacen("null", &format!("\"{}\"", Hash([1; 32])), 1);
        let read = parse(headed.as_bytes()).unwrap();
        assert_eq!(read.heading.audit_head, Some(Hash([1; 32])));
    }

    #[test]
    fn every_other_text_of_the_same_values_is_refused() {
        for (canonical, other) in [
            ("\"7\"", "\"07\""),
            ("\"7\"", "7"),
            ("\"7\"", "\"+7\""),
            ("\"7\"", "\"7 \""),
            (":\"", ": \""),
            ("0x5aAeb", "0x5aaeb"),
            ("\"object\"", "\"\\u006fbject\""),
            ("31337", "31337.0"),
            ("31337", "031337"),
            ("\"generation\":0", "\"generation\":4294967296"),
            ("\"id\":1", "\"id\":9007199254740992"),
            (
                "\"available\":\"0\",",
                "\"available\":\"0\",\"available\":\"0\",",
            ),
        ] {
            let text = String::from_utf8(file(&[ACCOUNT])).unwrap();
            let changed = text.replacen(canonical, other, 1);
            assert_ne!(changed, text, "{canonical}");
            let error = parse(changed.as_bytes()).unwrap_err();
            assert!(matches!(error, FileError::Form { .. }), "{other}: {error}");
        }
    }

    #[test]
    fn limits_hold_before_anything_is_read() {
        let bytes = file(&[ACCOUNT]);
        let short = Limits {
            bytes: 10,
            ..Limits::default()
        };
        assert!(matches!(
            LeafFile::parse(&bytes, &short),
            Err(FileError::TooLong { .. })
        ));
        let narrow = Limits {
            line_bytes: 100,
            ..Limits::default()
        };
        assert!(matches!(
            LeafFile::parse(&bytes, &narrow),
            Err(FileError::Line { line: 1, .. })
        ));
        let unended = &bytes[..bytes.len() - 1];
        assert!(matches!(
            parse(unended),
            Err(FileError::Line { line: 2, .. })
        ));
        assert_eq!(parse(b""), Err(FileError::Empty));
    }

    #[test]
    fn a_second_header_and_a_receipt_after_an_account_are_refused() {
        let text = String::from_utf8(file(&[])).unwrap();
        let twice = format!("{text}{text}");
        assert_eq!(
            parse(twice.as_bytes()),
            Err(FileError::Order {
                line: 2,
                found: "header"
            })
        );
        let receipt = r#"{"batch_id":1}"#;
        assert_eq!(
            parse(&file(&[ACCOUNT, receipt])),
            Err(FileError::Order {
                line: 3,
                found: "receipt"
            })
        );
    }
}
