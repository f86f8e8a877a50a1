//! The leaf file: everything that the roots of a batch are made of, in one canonical text that anyone can fetch.
//!
//! JSON Lines in RFC 8785 form, each line ended by a line feed: the header without its `data_hash`, which is the SHA-256
//! of this very file; the receipts by index; the accounts by address.

use std::io::Write as _;

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use super::{
    document::AccountDocument,
    header::Header,
    leaf::{Account, Domain, Receipt},
    merkle::Tree,
    text,
};
use crate::digest::Sha256;

/// The largest integer that JSON carries exactly.
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// What a batch says of itself before its roots are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The settlement contract.
    pub contract: Address,
    /// The number of the batch.
    pub id: u64,
    /// The number of cancellations before it.
    pub generation: u32,
    /// The last deposit that the accounts have been credited with.
    pub deposit_seq_seen: u64,
    /// The hash of the header before it.
    pub prev_hash: B256,
    /// The head of the audit log as the batch's snapshot sees it; none where the log has no events.
    pub audit_head: Option<Sha256>,
}

/// A batch ready to be committed: header, leaves, trees, and the file that publishes them.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// What the contract is sent.
    pub header: Header,
    /// The header's hash.
    pub hash: B256,
    /// By index.
    pub receipts: Vec<Receipt>,
    /// By address.
    pub accounts: Vec<Account>,
    /// Over the receipts, in their order.
    pub receipts_tree: Tree,
    /// Over the accounts, in their order.
    pub accounts_tree: Tree,
}

impl Sealed {
    /// What `account` proves its leaf with; `None` when it has none.
    #[must_use]
    pub fn account_document(&self, opening: &Opening, account: Address) -> Option<AccountDocument> {
        let place = self
            .accounts
            .binary_search_by_key(&account, |it| it.account)
            .ok()?;
        Some(AccountDocument {
            chain_id: opening.chain_id,
            contract: opening.contract,
            header: self.header,
            account: self.accounts[place],
            proof: self.accounts_tree.proof(place)?,
        })
    }
}

/// Why leaves do not make a batch, or bytes not a leaf file.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBatch {
    /// A sum passes what the contract can hold.
    #[error("a total of the accounts passes 2^128 base units")]
    TooMuch,
    /// What is payable and available is not what was deposited.
    #[error("payable {payable} and available {available} are not the {deposits} deposited")]
    Unbalanced {
        /// Sum of what is payable.
        payable: u128,
        /// Sum of what is available.
        available: u128,
        /// Sum of what was deposited.
        deposits: u128,
    },
    /// A number passes what JSON carries exactly (RFC 8785): readers would see different ones.
    #[error("chain id, number and deposits of the batch must be below 2^53")]
    Integer,
    /// A line is no JSON of the expected shape.
    #[error("line {line} of the leaf file")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// The file is not what its own leaves would make, byte by byte.
    #[error("the leaf file is not in canonical form, or says other sums or roots than its leaves")]
    NotCanonical,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(tag = "object", rename_all = "snake_case")]
enum Line {
    Header(FileHeader),
    Receipt(Receipt),
    Account(Account),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHeader {
    chain_id: u64,
    #[serde(with = "text::address")]
    contract: Address,
    id: u64,
    generation: u32,
    receipt_count: u64,
    deposit_seq_seen: u64,
    #[serde(with = "text::decimal")]
    total_payable: u128,
    #[serde(with = "text::decimal")]
    total_available: u128,
    #[serde(with = "text::decimal")]
    deposits_seen: u128,
    #[serde(with = "text::bytes")]
    prev_hash: B256,
    #[serde(with = "text::bytes")]
    receipts_root: B256,
    #[serde(with = "text::bytes")]
    accounts_root: B256,
    /// Head of the audit log's hash chain; `null` where the log has no events.
    audit_head: Option<Head>,
}

/// The head of the audit log, written as other hashes are.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Head(#[serde(with = "text::bytes")] B256);

impl Head {
    const fn digest(&self) -> Sha256 {
        Sha256(self.0.0)
    }
}

/// Makes a batch of its leaves: sums, trees, file and header. Receipts are numbered and accounts sorted here.
///
/// # Errors
/// When the accounts do not add up, or a number is too large for the file.
pub fn seal(
    opening: &Opening,
    mut receipts: Vec<Receipt>,
    mut accounts: Vec<Account>,
) -> Result<(Sealed, Vec<u8>), InvalidBatch> {
    let integers = [opening.chain_id, opening.id, opening.deposit_seq_seen];
    if integers.into_iter().any(|it| it > INTEGER_MAX) {
        return Err(InvalidBatch::Integer);
    }
    for (receipt, index) in receipts.iter_mut().zip(0..) {
        receipt.batch_id = opening.id;
        receipt.index = index;
    }
    accounts.sort_unstable_by_key(|account| account.account);
    let mut sums = [0_u128; 3];
    for account in &accounts {
        for (sum, part) in
            sums.iter_mut()
                .zip([account.payable, account.available, account.deposits_seen])
        {
            *sum = sum.checked_add(part).ok_or(InvalidBatch::TooMuch)?;
        }
    }
    let [payable, available, deposits] = sums;
    let domain = Domain::new(opening.chain_id, opening.contract);
    let receipts_tree = Tree::new(
        &receipts
            .iter()
            .map(|receipt| receipt.leaf(&domain))
            .collect::<Vec<_>>(),
    );
    let accounts_tree = Tree::new(
        &accounts
            .iter()
            .map(|account| account.leaf(&domain))
            .collect::<Vec<_>>(),
    );
    let mut header = Header {
        id: opening.id,
        generation: opening.generation,
        receipt_count: receipts.len() as u64,
        deposit_seq_seen: opening.deposit_seq_seen,
        total_payable: payable,
        total_available: available,
        deposits_seen: deposits,
        prev_hash: opening.prev_hash,
        receipts_root: receipts_tree.root(),
        accounts_root: accounts_tree.root(),
        data_hash: B256::ZERO,
    };
    if !header.balances() {
        return Err(InvalidBatch::Unbalanced {
            payable,
            available,
            deposits,
        });
    }
    let bytes = write(opening, &header, &receipts, &accounts);
    header.data_hash = B256::from(Sha256::of(&bytes).0);
    let hash = header.hash(&domain);
    Ok((
        Sealed {
            header,
            hash,
            receipts,
            accounts,
            receipts_tree,
            accounts_tree,
        },
        bytes,
    ))
}

/// Reads a leaf file and makes its batch anew; nothing it says of sums and roots is taken on trust.
///
/// # Errors
/// When it is not exactly the file that [`seal`] makes of its leaves.
pub fn read(bytes: &[u8]) -> Result<(Opening, Sealed), InvalidBatch> {
    let mut opening = None;
    let mut receipts = Vec::new();
    let mut accounts = Vec::new();
    for (line, number) in bytes.split_inclusive(|byte| *byte == b'\n').zip(1..) {
        let parsed = serde_json::from_slice(line).map_err(|source| InvalidBatch::Line {
            line: number,
            source,
        })?;
        match parsed {
            Line::Header(header) if number == 1 => {
                opening = Some(Opening {
                    chain_id: header.chain_id,
                    contract: header.contract,
                    id: header.id,
                    generation: header.generation,
                    deposit_seq_seen: header.deposit_seq_seen,
                    prev_hash: header.prev_hash,
                    audit_head: header.audit_head.as_ref().map(Head::digest),
                });
            }
            Line::Header(_) => return Err(InvalidBatch::NotCanonical),
            Line::Receipt(receipt) => receipts.push(receipt),
            Line::Account(account) => accounts.push(account),
        }
    }
    let opening = opening.ok_or(InvalidBatch::NotCanonical)?;
    let (sealed, again) = seal(&opening, receipts, accounts)?;
    if again == bytes {
        Ok((opening, sealed))
    } else {
        Err(InvalidBatch::NotCanonical)
    }
}

/// The head of the audit log that the first line of a leaf file names.
///
/// # Errors
/// When the line is no header.
pub fn audit_head(first_line: &[u8]) -> Result<Option<Sha256>, InvalidBatch> {
    let line = serde_json::from_slice(first_line)
        .map_err(|source| InvalidBatch::Line { line: 1, source })?;
    match line {
        Line::Header(header) => Ok(header.audit_head.as_ref().map(Head::digest)),
        Line::Receipt(_) | Line::Account(_) => Err(InvalidBatch::NotCanonical),
    }
}

fn write(
    opening: &Opening,
    header: &Header,
    receipts: &[Receipt],
    accounts: &[Account],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512 + receipts.len() * 1024 + accounts.len() * 256);
    let first = FileHeader {
        chain_id: opening.chain_id,
        contract: opening.contract,
        id: header.id,
        generation: header.generation,
        receipt_count: header.receipt_count,
        deposit_seq_seen: header.deposit_seq_seen,
        total_payable: header.total_payable,
        total_available: header.total_available,
        deposits_seen: header.deposits_seen,
        prev_hash: header.prev_hash,
        receipts_root: header.receipts_root,
        accounts_root: header.accounts_root,
        audit_head: opening.audit_head.map(|head| Head(B256::new(head.0))),
    };
    let lines = std::iter::once(Line::Header(first))
        .chain(receipts.iter().cloned().map(Line::Receipt))
        .chain(accounts.iter().copied().map(Line::Account));
    for line in lines {
        serde_jcs::to_writer(&mut bytes, &line)
            .expect("leaves are JSON and a vector takes all bytes");
        bytes.write_all(b"\n").expect("a vector takes all bytes");
    }
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::settlement::leaf::{Split, salted};
    use alloy_primitives::{FixedBytes, keccak256};
    use proptest::prelude::*;

    pub(in crate::settlement) const METER: &str = r#"{"kind":"training","rows":"1437"}"#;

    pub(in crate::settlement) fn opening() -> Opening {
        Opening {
            chain_id: 31_337,
            contract: Address::repeat_byte(7),
            id: 5,
            generation: 2,
            deposit_seq_seen: 9,
            prev_hash: keccak256("before"),
            audit_head: Some(Sha256::of(b"event")),
        }
    }

    pub(in crate::settlement) fn receipts(grosses: &[u64]) -> Vec<Receipt> {
        let meter: serde_json::Value = serde_json::from_str(METER).unwrap();
        let meter_hash = B256::from(Sha256::of_document(&meter).unwrap().0);
        grosses
            .iter()
            .zip(0_u8..)
            .map(|(gross, n)| Receipt {
                batch_id: 0,
                index: 0,
                receipt_id: FixedBytes::repeat_byte(n),
                kind: 1,
                payer: Address::repeat_byte(1),
                gross: u128::from(*gross),
                splits: vec![Split {
                    payee: Address::repeat_byte(2),
                    amount: u128::from(*gross),
                }],
                input_hash: salted(B256::repeat_byte(n), Sha256::of(b"input")),
                result_hash: salted(B256::repeat_byte(n), Sha256::of(b"result")),
                meter_hash,
                verdict_hash: B256::repeat_byte(3),
            })
            .collect()
    }

    pub(in crate::settlement) fn accounts(amounts: &[(u64, u64)]) -> Vec<Account> {
        amounts
            .iter()
            .zip(0_u8..)
            .map(|((payable, available), n)| Account {
                account: Address::repeat_byte(255 - n),
                payable: u128::from(*payable),
                available: u128::from(*available),
                deposits_seen: u128::from(*payable) + u128::from(*available),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn a_leaf_file_makes_the_batch_that_it_was_made_of(
            grosses in prop::collection::vec(any::<u64>(), 0..20),
            amounts in prop::collection::vec(any::<(u64, u64)>(), 0..20),
        ) {
            let (sealed, bytes) = seal(&opening(), receipts(&grosses), accounts(&amounts)).unwrap();
            prop_assert_eq!(sealed.header.data_hash.0, Sha256::of(&bytes).0);
            let (opening_again, again) = read(&bytes).unwrap();
            prop_assert_eq!(opening_again, opening());
            let first = bytes.split(|byte| *byte == b'\n').next().unwrap();
            prop_assert_eq!(audit_head(first).unwrap(), opening().audit_head);
            prop_assert_eq!(again.hash, sealed.hash);
            prop_assert_eq!(again.receipts, sealed.receipts);
            prop_assert!(again.accounts.is_sorted_by_key(|account| account.account));
        }

        #[test]
        fn no_bit_of_a_leaf_file_can_change(place: prop::sample::Index, bit in 0..8_u32) {
            let (sealed, mut bytes) = seal(&opening(), receipts(&[5, 7]), accounts(&[(1, 2), (3, 4)])).unwrap();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            // Either the bytes are refused, or they are another batch's.
            if let Ok((_, other)) = read(&bytes) {
                prop_assert_ne!(other.hash, sealed.hash);
            }
        }
    }

    #[test]
    fn what_does_not_add_up_is_not_sealed() {
        let mut short = accounts(&[(1, 2), (3, 4)]);
        short[0].deposits_seen += 1;
        assert!(matches!(
            seal(&opening(), vec![], short),
            Err(InvalidBatch::Unbalanced {
                payable: 4,
                available: 6,
                deposits: 11
            })
        ));
        let mut much = accounts(&[(1, 2), (3, 4)]);
        much[0].payable = u128::MAX;
        assert!(matches!(
            seal(&opening(), vec![], much),
            Err(InvalidBatch::TooMuch)
        ));
    }

    #[test]
    fn a_number_that_json_does_not_carry_exactly_is_in_no_file() {
        let sealed = |change: fn(&mut Opening)| {
            let mut opening = opening();
            change(&mut opening);
            seal(&opening, vec![], vec![])
        };
        assert!(sealed(|it| it.chain_id = INTEGER_MAX).is_ok());
        let beyond: [fn(&mut Opening); 3] = [
            |it| it.chain_id = 1 << 53,
            |it| it.id = 1 << 60,
            |it| it.deposit_seq_seen = u64::MAX,
        ];
        for change in beyond {
            assert!(matches!(sealed(change), Err(InvalidBatch::Integer)));
        }
    }

    #[test]
    fn a_file_that_claims_other_sums_than_its_leaves_is_refused() {
        let (_, bytes) = seal(&opening(), receipts(&[5]), accounts(&[(1, 2)])).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let lied = text.replacen("\"total_payable\":\"1\"", "\"total_payable\":\"2\"", 1);
        assert_ne!(lied, text);
        assert!(matches!(
            read(lied.as_bytes()),
            Err(InvalidBatch::NotCanonical)
        ));
        let spaced = text.replacen("\":", "\": ", 1);
        assert!(matches!(
            read(spaced.as_bytes()),
            Err(InvalidBatch::NotCanonical)
        ));
    }
}
