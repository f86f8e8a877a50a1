//! The generated types encode as the contracts do: checked against the vectors that bind every implementation.

use std::str::FromStr;

use alloy::primitives::{Address, B256, keccak256};
use alloy::sol_types::{SolError, SolEvent, SolValue};
use comptoir_contracts_bindings::{ComptoirToken, Settlement, TimelockController};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../contracts/test/vectors/leaves.json"))
        .expect("vectors are JSON")
}

fn parse<T: FromStr<Err: std::fmt::Debug>>(object: &Value, field: &str) -> T {
    let text = match &object[field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.parse().expect(field)
}

fn header(object: &Value) -> Settlement::Header {
    Settlement::Header {
        id: parse(object, "id"),
        generation: parse(object, "generation"),
        receiptCount: parse(object, "receiptCount"),
        depositSeqSeen: parse(object, "depositSeqSeen"),
        totalPayable: parse(object, "totalPayable"),
        totalAvailable: parse(object, "totalAvailable"),
        depositsSeen: parse(object, "depositsSeen"),
        prevHash: parse(object, "prevHash"),
        receiptsRoot: parse(object, "receiptsRoot"),
        accountsRoot: parse(object, "accountsRoot"),
        dataHash: parse(object, "dataHash"),
    }
}

#[test]
fn a_headers_hash_is_its_abi_encoding_behind_the_domain() {
    let vectors = vectors();
    let domain: B256 = parse(&vectors, "domainSeparator");
    for name in ["header", "emptyHeader"] {
        let hash = keccak256((domain, header(&vectors[name])).abi_encode());
        assert_eq!(hash, parse::<B256>(&vectors[name], "hash"), "{name}");
    }
}

#[test]
fn an_account_hashes_behind_its_type() {
    let vectors = vectors();
    let type_hash = keccak256(
        "Account(address account,uint128 payable,uint128 available,uint128 depositsSeen)",
    );
    for account in vectors["accounts"].as_array().expect("accounts") {
        let leaf = Settlement::Account {
            account: parse::<Address>(account, "account"),
            payable_: parse(account, "payable"),
            available: parse(account, "available"),
            depositsSeen: parse(account, "depositsSeen"),
        };
        let hash = keccak256((type_hash, leaf).abi_encode());
        assert_eq!(hash, parse::<B256>(account, "structHash"));
    }
}

#[test]
fn events_and_errors_are_those_of_the_sources() {
    assert_eq!(
        Settlement::Deposited::SIGNATURE,
        "Deposited(uint64,address,address,uint64,uint256)"
    );
    assert_eq!(
        Settlement::BatchCommitted::SIGNATURE,
        "BatchCommitted(uint64,uint64,bytes32,uint64,(uint64,uint32,uint64,uint64,uint128,uint128,uint128,bytes32,bytes32,bytes32,bytes32))"
    );
    assert_eq!(Settlement::OutOfOrder::SIGNATURE, "OutOfOrder(uint64)");
    assert_eq!(Settlement::WrongParent::SIGNATURE, "WrongParent(bytes32)");
}

#[test]
fn every_contract_can_be_deployed_in_one_transaction() {
    // EIP-3860: creation code of at most 49,152 bytes.
    for code in [
        &ComptoirToken::BYTECODE,
        &Settlement::BYTECODE,
        &TimelockController::BYTECODE,
    ] {
        assert!((1..=49_152).contains(&code.len()), "{} bytes", code.len());
    }
}
