//! The header of a batch: what is sent to the contract, and whose hash the contract keeps.

use alloy_primitives::{B256, U256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    leaf::{Domain, Words},
    text,
};

/// What a batch commits to. [`Header::hash`] is `keccak256(abi.encode(DOMAIN_SEPARATOR, header))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BatchHeader)]
pub struct Header {
    /// The number of the batch, from 1 without gaps.
    pub id: u64,
    /// The number of cancellations before it.
    pub generation: u32,
    /// Receipts under the receipts root.
    pub receipt_count: u64,
    /// The last deposit that the accounts have been credited with.
    pub deposit_seq_seen: u64,
    /// Sum of what is payable, over all accounts.
    #[serde(with = "text::decimal")]
    #[schema(value_type = String)]
    pub total_payable: u128,
    /// Sum of what is available, over all accounts.
    #[serde(with = "text::decimal")]
    #[schema(value_type = String)]
    pub total_available: u128,
    /// Sum of the deposits seen, over all accounts.
    #[serde(with = "text::decimal")]
    #[schema(value_type = String)]
    pub deposits_seen: u128,
    /// The hash of the header before it; zero for the first.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub prev_hash: B256,
    /// Merkle root of the receipts.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub receipts_root: B256,
    /// Merkle root of the accounts.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub accounts_root: B256,
    /// SHA-256 of the leaf file.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub data_hash: B256,
}

impl Header {
    /// The hash that identifies the batch.
    #[must_use]
    pub fn hash(&self, domain: &Domain) -> B256 {
        Words::new(domain.separator())
            .number(U256::from(self.id))
            .number(U256::from(self.generation))
            .number(U256::from(self.receipt_count))
            .number(U256::from(self.deposit_seq_seen))
            .number(U256::from(self.total_payable))
            .number(U256::from(self.total_available))
            .number(U256::from(self.deposits_seen))
            .bytes(self.prev_hash)
            .bytes(self.receipts_root)
            .bytes(self.accounts_root)
            .bytes(self.data_hash)
            .hash()
    }

    /// Is everything deposited either payable or available?
    #[must_use]
    pub fn balances(&self) -> bool {
        self.total_payable.checked_add(self.total_available) == Some(self.deposits_seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::Address;

    #[test]
    fn the_hash_of_a_header_is_the_contracts() {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Vector {
            id: String,
            generation: u32,
            receipt_count: String,
            deposit_seq_seen: String,
            total_payable: String,
            total_available: String,
            deposits_seen: String,
            prev_hash: B256,
            receipts_root: B256,
            accounts_root: B256,
            data_hash: B256,
            hash: B256,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Vectors {
            chain_id: u64,
            contract: Address,
            domain_separator: B256,
            header: Vector,
            empty_header: Vector,
        }
        let vectors: Vectors =
            serde_json::from_str(include_str!("../../../contracts/test/vectors/leaves.json"))
                .unwrap();
        let domain = Domain::new(vectors.chain_id, vectors.contract);
        assert_eq!(domain.separator(), vectors.domain_separator);
        for vector in [vectors.header, vectors.empty_header] {
            let header = Header {
                id: vector.id.parse().unwrap(),
                generation: vector.generation,
                receipt_count: vector.receipt_count.parse().unwrap(),
                deposit_seq_seen: vector.deposit_seq_seen.parse().unwrap(),
                total_payable: vector.total_payable.parse().unwrap(),
                total_available: vector.total_available.parse().unwrap(),
                deposits_seen: vector.deposits_seen.parse().unwrap(),
                prev_hash: vector.prev_hash,
                receipts_root: vector.receipts_root,
                accounts_root: vector.accounts_root,
                data_hash: vector.data_hash,
            };
            assert_eq!(header.hash(&domain), vector.hash);
            assert!(header.balances());
        }
    }
}
