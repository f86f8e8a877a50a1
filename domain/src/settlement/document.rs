//! Documents that prove a part of a batch to someone who trusts nobody: with one of these and a chain to read, no server
//! is needed. Everything in a document is bound by the leaf or the header; a change of any value is found.

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    header::Header,
    leaf::{Account, Domain, Receipt, salted},
    merkle, text,
};
use crate::{calls::LEAF_KIND as CALLS_KIND, digest::Sha256};

/// The kind of a job's receipt; those of sales and rewards lie between it and that of calls.
const JOB_KIND: u8 = 1;

/// What a salted hash hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disclosure {
    /// The digest of the input or the result.
    pub sha256: Sha256,
    /// The 32 random bytes that were hashed with it.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub salt: B256,
}

/// A receipt that anyone can check against the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReceiptDocument {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The settlement contract.
    #[serde(with = "text::address")]
    #[schema(value_type = String)]
    pub contract: Address,
    /// The batch that the receipt is in.
    pub header: Header,
    /// The receipt.
    pub receipt: Receipt,
    /// What was computed on; `null` to everyone but the payer.
    pub input: Option<Disclosure>,
    /// What came out; `null` to everyone but the payer.
    pub result: Option<Disclosure>,
    /// The terms of the price.
    #[schema(value_type = Object)]
    pub meter: serde_json::Value,
    /// Of a sale or a reward, the right that was given: `result` opens the hash of it. Left out to everyone but the payer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, nullable = false)]
    pub right: Option<serde_json::Value>,
    /// Of a sale or a reward, what made it final, and when: `verdict_hash` is the digest of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, nullable = false)]
    pub finality: Option<serde_json::Value>,
    /// From the receipt's leaf to the header's `receipts_root`.
    #[serde(with = "text::hashes")]
    #[schema(value_type = Vec<String>)]
    pub proof: Vec<B256>,
}

/// An account's leaf with its proof: what a claim takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountDocument {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The settlement contract.
    #[serde(with = "text::address")]
    #[schema(value_type = String)]
    pub contract: Address,
    /// The batch that the account is in.
    pub header: Header,
    /// The account.
    pub account: Account,
    /// From the account's leaf to the header's `accounts_root`.
    #[serde(with = "text::hashes")]
    #[schema(value_type = Vec<String>)]
    pub proof: Vec<B256>,
}

/// What a document proves, once the chain says that `header_hash` is the batch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The leaf.
    pub leaf: B256,
    /// What the contract must hold for the batch, or have held.
    pub header_hash: B256,
    /// The number of the batch.
    pub batch: u64,
}

/// What does not fit together in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The receipt names another batch, or a place that the batch does not have.
    #[error("the receipt is not of this batch")]
    Batch,
    /// It is of something that is not known here.
    #[error("the receipt is of a kind that is not known")]
    Kind,
    /// The shares are not the gross.
    #[error("the shares do not add up to the gross")]
    Shares,
    /// The input is not the one that was hashed.
    #[error("the input is not the one in the leaf")]
    Input,
    /// The result is not the one that was hashed.
    #[error("the result is not the one in the leaf")]
    Result,
    /// The meter is not the one that was hashed.
    #[error("the meter is not the one in the leaf")]
    Meter,
    /// The right is not the one that was hashed.
    #[error("the right is not the one in the leaf")]
    Right,
    /// What made it final is not what was hashed.
    #[error("what made it final is not what is in the leaf")]
    Finality,
    /// What is payable and available is not what was deposited.
    #[error("the sums of the batch do not balance")]
    Balance,
    /// The leaf is not under the root.
    #[error("the proof does not lead from the leaf to the root")]
    Proof,
}

impl ReceiptDocument {
    /// Checks everything that can be checked without the chain.
    ///
    /// # Errors
    /// When a part does not fit the others.
    pub fn verify(&self) -> Result<Verified, Mismatch> {
        let Self {
            header, receipt, ..
        } = self;
        if receipt.batch_id != header.id || receipt.index >= header.receipt_count {
            return Err(Mismatch::Batch);
        }
        if !(JOB_KIND..=CALLS_KIND).contains(&receipt.kind) {
            return Err(Mismatch::Kind);
        }
        if !shares_fit(receipt) {
            return Err(Mismatch::Shares);
        }
        let opens = |disclosure: Option<Disclosure>, hash| {
            disclosure.is_none_or(|it| salted(it.salt, it.sha256) == hash)
        };
        if !opens(self.input, receipt.input_hash) {
            return Err(Mismatch::Input);
        }
        if !opens(self.result, receipt.result_hash) {
            return Err(Mismatch::Result);
        }
        let meter = Sha256::of_document(&self.meter).map_err(|_| Mismatch::Meter)?;
        if meter.0 != receipt.meter_hash.0 {
            return Err(Mismatch::Meter);
        }
        self.verify_documents()?;
        let domain = Domain::new(self.chain_id, self.contract);
        prove(
            &domain,
            header,
            receipt.leaf(&domain),
            header.receipts_root,
            &self.proof,
        )
    }
}

impl ReceiptDocument {
    /// The right is what `result` tells the digest of, and what made it final what the leaf names. A job has neither, and calls have not.
    fn verify_documents(&self) -> Result<(), Mismatch> {
        let is_work = matches!(self.receipt.kind, JOB_KIND | CALLS_KIND);
        if let Some(right) = &self.right {
            let right = Sha256::of_document(right).map_err(|_| Mismatch::Right)?;
            if is_work || self.result.is_none_or(|it| it.sha256 != right) {
                return Err(Mismatch::Right);
            }
        }
        if let Some(finality) = &self.finality {
            let finality = Sha256::of_document(finality).map_err(|_| Mismatch::Finality)?;
            if is_work || finality.0 != self.receipt.verdict_hash.0 {
                return Err(Mismatch::Finality);
            }
        }
        Ok(())
    }
}

impl AccountDocument {
    /// Checks everything that can be checked without the chain.
    ///
    /// # Errors
    /// When a part does not fit the others.
    pub fn verify(&self) -> Result<Verified, Mismatch> {
        let domain = Domain::new(self.chain_id, self.contract);
        let leaf = self.account.leaf(&domain);
        prove(
            &domain,
            &self.header,
            leaf,
            self.header.accounts_root,
            &self.proof,
        )
    }
}

fn prove(
    domain: &Domain,
    header: &Header,
    leaf: B256,
    root: B256,
    proof: &[B256],
) -> Result<Verified, Mismatch> {
    if !header.balances() {
        return Err(Mismatch::Balance);
    }
    if !merkle::verify(root, leaf, proof) {
        return Err(Mismatch::Proof);
    }
    Ok(Verified {
        leaf,
        header_hash: header.hash(domain),
        batch: header.id,
    })
}

/// Splits go by carry: what is not divisible now waits in the dust account, which takes or gives less than one base unit
/// for each party.
fn shares_fit(receipt: &Receipt) -> bool {
    let shares = receipt
        .splits
        .iter()
        .try_fold(0_u128, |sum, split| sum.checked_add(split.amount));
    let parties = receipt.splits.len() as u128;
    shares.is_some_and(|shares| receipt.gross == shares || receipt.gross.abs_diff(shares) < parties)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::file::{seal, tests as batch};
    use proptest::prelude::*;

    fn document() -> (ReceiptDocument, B256) {
        let (sealed, _) = seal(
            &batch::opening(),
            batch::receipts(&[10, 20, 30]),
            batch::accounts(&[(30, 30)]),
        )
        .unwrap();
        let document = ReceiptDocument {
            chain_id: batch::opening().chain_id,
            contract: batch::opening().contract,
            header: sealed.header,
            receipt: sealed.receipts[1].clone(),
            input: Some(Disclosure {
                sha256: Sha256::of(b"input"),
                salt: B256::repeat_byte(1),
            }),
            result: Some(Disclosure {
                sha256: Sha256::of(b"result"),
                salt: B256::repeat_byte(1),
            }),
            meter: serde_json::from_str(batch::METER).unwrap(),
            right: None,
            finality: None,
            proof: sealed.receipts_tree.proof(1).unwrap(),
        };
        (document, sealed.hash)
    }

    /// Does this text still prove what the batch `hash` says?
    fn proves(text: &[u8], hash: B256) -> bool {
        serde_json::from_slice::<ReceiptDocument>(text)
            .ok()
            .and_then(|document| document.verify().ok())
            .is_some_and(|verified| verified.header_hash == hash)
    }

    #[test]
    fn a_document_proves_its_leaf_with_and_without_what_is_hidden() {
        let (mut document, hash) = document();
        assert_eq!(document.verify().unwrap().header_hash, hash);
        document.input = None;
        document.result = None;
        assert_eq!(document.verify().unwrap().header_hash, hash);
    }

    /// A document of a sale, whose leaf names a right and what made it final.
    fn sold(kind: u8) -> ReceiptDocument {
        let right = serde_json::json!({ "allows": "download", "buyer": "acc_1" });
        let finality = serde_json::json!({ "because": "served" });
        let salt = B256::repeat_byte(1);
        let disclosed = Disclosure {
            sha256: Sha256::of_document(&right).unwrap(),
            salt,
        };
        let mut receipts = batch::receipts(&[10, 20]);
        receipts[1].kind = kind;
        receipts[1].result_hash = salted(salt, disclosed.sha256);
        receipts[1].verdict_hash = B256::from(Sha256::of_document(&finality).unwrap().0);
        let accounts = batch::accounts(&[(30, 0)]);
        let (sealed, _) = seal(&batch::opening(), receipts, accounts).unwrap();
        ReceiptDocument {
            header: sealed.header,
            receipt: sealed.receipts[1].clone(),
            result: Some(disclosed),
            right: Some(right),
            finality: Some(finality),
            proof: sealed.receipts_tree.proof(1).unwrap(),
            ..document().0
        }
    }

    #[test]
    fn a_right_and_its_finality_are_those_of_the_leaf() {
        let sold_well = sold(3);
        assert!(sold_well.verify().is_ok());
        let mismatch = |change: fn(&mut ReceiptDocument)| {
            let mut changed = sold_well.clone();
            change(&mut changed);
            changed.verify().unwrap_err()
        };
        let buyer = |it: &mut ReceiptDocument| it.right.as_mut().unwrap()["buyer"] = "acc_2".into();
        assert_eq!(mismatch(buyer), Mismatch::Right);
        assert_eq!(mismatch(|it| it.result = None), Mismatch::Right);
        let late = |it: &mut ReceiptDocument| it.finality.as_mut().unwrap()["at"] = "now".into();
        assert_eq!(mismatch(late), Mismatch::Finality);
        assert_eq!(sold(1).verify(), Err(Mismatch::Right), "a job gives none");
        assert_eq!(sold(6).verify(), Err(Mismatch::Right), "nor do calls");
    }

    #[test]
    fn a_receipt_of_a_kind_that_is_not_known_proves_nothing() {
        for kind in [0, 7, 64, 255] {
            assert_eq!(sold(kind).verify(), Err(Mismatch::Kind), "{kind}");
        }
    }

    #[test]
    fn shares_may_differ_from_the_gross_by_the_dust_of_their_carry_only() {
        let mut receipt = batch::receipts(&[10]).remove(0);
        assert!(shares_fit(&receipt));
        receipt.splits.push(receipt.splits[0]);
        receipt.splits[1].amount = 1;
        assert!(shares_fit(&receipt));
        receipt.splits[1].amount = 2;
        assert!(!shares_fit(&receipt));
    }

    #[test]
    fn a_wrong_opening_is_named() {
        let (mut document, _) = document();
        document.input.as_mut().unwrap().salt = B256::ZERO;
        assert_eq!(document.verify(), Err(Mismatch::Input));
    }

    proptest! {
        #[test]
        fn no_byte_of_a_document_can_change(place: prop::sample::Index, bit in 0..8_u32) {
            let (document, hash) = document();
            let mut text = serde_json::to_vec(&document).unwrap();
            prop_assert!(proves(&text, hash));
            let place = place.index(text.len());
            text[place] ^= 1 << bit;
            prop_assert!(!proves(&text, hash), "{}", String::from_utf8_lossy(&text));
        }
    }
}
