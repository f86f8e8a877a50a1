//! Leaves, roots, proofs and headers against the vectors that bind every implementation of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use comptoir_audit::{
    Account, Address, Hash, Header, Receipt, ReceiptId, Share,
    leaf::Domain,
    tree::{Tree, empty_root, parent},
    value::unhex,
};
use serde_json::Value;

fn vectors(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../contracts/test/vectors/");
    let text = std::fs::read(format!("{folder}{name}.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn hash(value: &Value) -> Hash {
    Hash::parse(value.as_str().unwrap()).unwrap()
}

fn hashes(value: &Value) -> Vec<Hash> {
    value.as_array().unwrap().iter().map(hash).collect()
}

fn address(value: &Value) -> Address {
    Address::parse_any_case(value.as_str().unwrap()).unwrap()
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(value: &Value) -> T {
    match value.as_str() {
        Some(digits) => digits.parse().unwrap(),
        None => value.to_string().parse().unwrap(),
    }
}

fn domain(vectors: &Value) -> Domain {
    let domain = Domain::new(number(&vectors["chainId"]), address(&vectors["contract"]));
    assert_eq!(domain.separator(), hash(&vectors["domainSeparator"]));
    domain
}

fn receipt(value: &Value) -> Receipt {
    let shares = value["splits"].as_array().unwrap().iter();
    Receipt {
        batch_id: number(&value["batchId"]),
        index: number(&value["index"]),
        receipt_id: ReceiptId(unhex(&value["receiptId"].as_str().unwrap()[2..]).unwrap()),
        kind: number(&value["kind"]),
        payer: address(&value["payer"]),
        gross: number(&value["gross"]),
        shares: shares
            .map(|share| Share {
                payee: address(&share["payee"]),
                amount: number(&share["amount"]),
            })
            .collect(),
        input_hash: hash(&value["inputHash"]),
        result_hash: hash(&value["resultHash"]),
        meter_hash: hash(&value["meterHash"]),
        verdict_hash: hash(&value["verdictHash"]),
    }
}

#[test]
fn every_leaf_is_the_contracts() {
    let vectors = vectors("leaves");
    let domain = domain(&vectors);
    assert_eq!(empty_root(), hash(&vectors["emptyRoot"]));
    for vector in vectors["receipts"].as_array().unwrap() {
        assert_eq!(domain.receipt(&receipt(vector)), hash(&vector["leaf"]));
    }
    for vector in vectors["accounts"].as_array().unwrap() {
        let account = Account {
            account: address(&vector["account"]),
            payable: number(&vector["payable"]),
            available: number(&vector["available"]),
            deposits_seen: number(&vector["depositsSeen"]),
        };
        assert_eq!(domain.account(&account), hash(&vector["leaf"]));
    }
}

#[test]
fn the_hash_of_a_header_is_the_contracts() {
    let vectors = vectors("leaves");
    let domain = domain(&vectors);
    for name in ["header", "emptyHeader"] {
        let vector = &vectors[name];
        let header = Header {
            id: number(&vector["id"]),
            generation: number(&vector["generation"]),
            receipt_count: number(&vector["receiptCount"]),
            deposit_seq_seen: number(&vector["depositSeqSeen"]),
            total_payable: number(&vector["totalPayable"]),
            total_available: number(&vector["totalAvailable"]),
            deposits_seen: number(&vector["depositsSeen"]),
            prev_hash: hash(&vector["prevHash"]),
            receipts_root: hash(&vector["receiptsRoot"]),
            accounts_root: hash(&vector["accountsRoot"]),
            data_hash: hash(&vector["dataHash"]),
        };
        assert_eq!(header.hash(&domain), hash(&vector["hash"]));
    }
}

#[test]
fn roots_and_proofs_are_openzeppelins() {
    let vectors = vectors("merkle");
    let vectors = vectors.as_array().unwrap();
    assert!(vectors.len() >= 8);
    for vector in vectors {
        let leaves = hashes(&vector["leaves"]);
        let tree = Tree::new(leaves.clone());
        assert_eq!(tree.root(), hash(&vector["root"]));
        for (leaf, proof) in leaves.iter().zip(vector["proofs"].as_array().unwrap()) {
            assert_eq!(tree.proof(*leaf).unwrap(), hashes(proof));
            let root = tree.proof(*leaf).unwrap().into_iter().fold(*leaf, parent);
            assert_eq!(root, tree.root());
        }
        assert_eq!(tree.proof(Hash([7; 32])), None);
    }
}
