//! Keccak-256 and SHA-256, from other crates than those that the service hashes with, and the one text of a document that is hashed.

use serde_json::Value;
use sha2::Digest as _;

use crate::value::Hash;

/// Keccak-256 of some parts, one after the other.
#[must_use]
pub fn keccak(parts: &[&[u8]]) -> Hash {
    let mut hash = sha3::Keccak256::default();
    for part in parts {
        sha3::Digest::update(&mut hash, part);
    }
    Hash(sha3::Digest::finalize(hash).into())
}

/// SHA-256 of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Hash {
    Hash(sha2::Sha256::digest(bytes).into())
}

/// A number as the 32 bytes that the chain's ABI gives it.
#[must_use]
pub fn word(number: u128) -> [u8; 32] {
    let mut word = [0; 32];
    word[16..].copy_from_slice(&number.to_be_bytes());
    word
}

/// Shorter bytes as the ABI pads them: numbers and addresses at the right.
#[must_use]
pub fn right(bytes: &[u8]) -> [u8; 32] {
    let mut word = [0; 32];
    word[32 - bytes.len()..].copy_from_slice(bytes);
    word
}

/// Shorter bytes as the ABI pads them: fixed bytes at the left.
#[must_use]
pub fn left(bytes: &[u8]) -> [u8; 32] {
    let mut word = [0; 32];
    word[..bytes.len()].copy_from_slice(bytes);
    word
}

/// RFC 8785 for what bills are made of: texts, integers, booleans, lists and objects.
pub(crate) fn write_canonical(value: &Value, to: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
            to.push('{');
            for (place, (key, value)) in fields.into_iter().enumerate() {
                if place > 0 {
                    to.push(',');
                }
                to.push_str(&Value::from(key.as_str()).to_string());
                to.push(':');
                write_canonical(value, to);
            }
            to.push('}');
        }
        Value::Array(items) => {
            to.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    to.push(',');
                }
                write_canonical(item, to);
            }
            to.push(']');
        }
        plain => to.push_str(&plain.to_string()),
    }
}
