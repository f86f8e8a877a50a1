//! Leaves: EIP-712 structs of the contract's domain, hashed twice.
//!
//! `leaf = keccak256(keccak256(0x1901 ‖ domain separator ‖ hashStruct))`. The preimage of a leaf has 32 bytes and that of
//! an inner node 64, so neither can pass for the other; the domain binds the chain and the contract.

use alloy_primitives::{Address, B256, FixedBytes, Keccak256, U256, keccak256};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use utoipa::ToSchema;

use super::text;
use crate::digest::Sha256;

const DOMAIN_TYPE: &str =
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
const ACCOUNT_TYPE: &str =
    "Account(address account,uint128 payable,uint128 available,uint128 depositsSeen)";
const SPLIT_TYPE: &str = "Split(address payee,uint128 amount)";
const RECEIPT_TYPE: &str = "Receipt(uint64 batchId,uint64 index,bytes16 receiptId,uint8 kind,address payer,uint128 gross,bytes32 splitsHash,bytes32 inputHash,bytes32 resultHash,bytes32 meterHash,bytes32 verdictHash)";
const NAME: &str = "Comptoir Settlement";
const VERSION: &str = "1";

/// Fields as 32-byte words, in the order of their type.
pub(super) struct Words(Vec<u8>);

impl Words {
    pub(super) fn new(first: B256) -> Self {
        Self(first.to_vec())
    }

    pub(super) fn number(mut self, value: impl Into<U256>) -> Self {
        self.0.extend(value.into().to_be_bytes::<32>());
        self
    }

    pub(super) fn address(mut self, address: Address) -> Self {
        self.0.extend(address.into_word());
        self
    }

    /// Bytes stand at the left of their word.
    pub(super) fn bytes<const N: usize>(mut self, bytes: FixedBytes<N>) -> Self {
        let end = self.0.len() + 32;
        self.0.extend(bytes);
        self.0.resize(end, 0);
        self
    }

    pub(super) fn hash(&self) -> B256 {
        keccak256(&self.0)
    }
}

/// The EIP-712 domain of one settlement contract on one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain {
    separator: B256,
}

impl Domain {
    /// The domain of the contract at `contract` on chain `chain_id`.
    #[must_use]
    pub fn new(chain_id: u64, contract: Address) -> Self {
        let separator = Words::new(keccak256(DOMAIN_TYPE))
            .bytes(keccak256(NAME))
            .bytes(keccak256(VERSION))
            .number(U256::from(chain_id))
            .address(contract)
            .hash();
        Self { separator }
    }

    /// The contract's `DOMAIN_SEPARATOR`.
    #[must_use]
    pub const fn separator(&self) -> B256 {
        self.separator
    }

    fn leaf(&self, struct_hash: B256) -> B256 {
        let mut digest = Keccak256::new();
        digest.update([0x19, 0x01]);
        digest.update(self.separator);
        digest.update(struct_hash);
        keccak256(digest.finalize())
    }
}

/// One account of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AccountLeaf)]
pub struct Account {
    /// The address that is paid.
    #[serde(with = "text::address")]
    #[schema(value_type = String)]
    pub account: Address,
    /// All that was ever released to it, in base units.
    #[serde(with = "text::decimal")]
    #[schema(value_type = String)]
    pub payable: u128,
    /// What it still holds in the service, locked budgets included.
    #[serde(with = "text::decimal")]
    #[schema(value_type = String)]
    pub available: u128,
    /// All deposits credited to it so far.
    #[serde(with = "text::decimal")]
    #[schema(value_type = String)]
    pub deposits_seen: u128,
}

impl Account {
    /// Its leaf under the accounts root.
    #[must_use]
    pub fn leaf(&self, domain: &Domain) -> B256 {
        domain.leaf(
            Words::new(keccak256(ACCOUNT_TYPE))
                .address(self.account)
                .number(U256::from(self.payable))
                .number(U256::from(self.available))
                .number(U256::from(self.deposits_seen))
                .hash(),
        )
    }
}

/// One share of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LeafSplit)]
pub struct Split {
    /// Who is credited.
    #[serde(with = "text::address")]
    #[schema(value_type = String)]
    pub payee: Address,
    /// With how many base units.
    #[serde(with = "text::decimal")]
    #[schema(value_type = String)]
    pub amount: u128,
}

impl Split {
    /// EIP-712's encoding of an array: the hash of the members' hashes.
    #[must_use]
    pub fn hash_all(splits: &[Self]) -> B256 {
        let kind = keccak256(SPLIT_TYPE);
        let mut all = Keccak256::new();
        for split in splits {
            all.update(
                Words::new(kind)
                    .address(split.payee)
                    .number(U256::from(split.amount))
                    .hash(),
            );
        }
        all.finalize()
    }
}

/// One charge of a batch, as its leaf tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReceiptLeaf)]
pub struct Receipt {
    /// The number of the batch.
    pub batch_id: u64,
    /// The receipt's place in the batch, from 0.
    pub index: u64,
    /// The UUID of the receipt.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub receipt_id: FixedBytes<16>,
    /// What was charged for; 1 is a job.
    pub kind: u8,
    /// Who paid.
    #[serde(with = "text::address")]
    #[schema(value_type = String)]
    pub payer: Address,
    /// How many base units.
    #[serde(with = "text::decimal")]
    #[schema(value_type = String)]
    pub gross: u128,
    /// Who was credited with it.
    pub splits: Vec<Split>,
    /// [`salted`] hash of what was computed on.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub input_hash: B256,
    /// [`salted`] hash of what came out.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub result_hash: B256,
    /// SHA-256 of the meter document.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub meter_hash: B256,
    /// SHA-256 of the verdict's document.
    #[serde(with = "text::bytes")]
    #[schema(value_type = String)]
    pub verdict_hash: B256,
}

impl Receipt {
    /// Its leaf under the receipts root.
    #[must_use]
    pub fn leaf(&self, domain: &Domain) -> B256 {
        domain.leaf(
            Words::new(keccak256(RECEIPT_TYPE))
                .number(U256::from(self.batch_id))
                .number(U256::from(self.index))
                .bytes(self.receipt_id)
                .number(U256::from(self.kind))
                .address(self.payer)
                .number(U256::from(self.gross))
                .bytes(Split::hash_all(&self.splits))
                .bytes(self.input_hash)
                .bytes(self.result_hash)
                .bytes(self.meter_hash)
                .bytes(self.verdict_hash)
                .hash(),
        )
    }
}

/// What a leaf says of an input or a result: SHA-256 of 32 random bytes and its digest. Whoever is not given the salt
/// cannot test a guess.
#[must_use]
pub fn salted(salt: B256, digest: Sha256) -> B256 {
    let mut hash = sha2::Sha256::new();
    hash.update(salt);
    hash.update(digest.0);
    B256::from(<[u8; 32]>::from(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::{merkle, merkle::Tree};

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Vectors {
        chain_id: u64,
        contract: Address,
        empty_root: B256,
        receipts: Vec<ReceiptVector>,
        accounts: Vec<AccountVector>,
        header: Roots,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Roots {
        receipts_root: B256,
        accounts_root: B256,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ReceiptVector {
        batch_id: String,
        index: String,
        receipt_id: FixedBytes<16>,
        kind: u8,
        payer: Address,
        gross: String,
        splits_hash: B256,
        input_hash: B256,
        result_hash: B256,
        meter_hash: B256,
        verdict_hash: B256,
        splits: Vec<SplitVector>,
        leaf: B256,
    }

    #[derive(Deserialize)]
    struct SplitVector {
        payee: Address,
        amount: String,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct AccountVector {
        account: Address,
        payable: String,
        available: String,
        deposits_seen: String,
        leaf: B256,
    }

    fn vectors() -> Vectors {
        serde_json::from_str(include_str!("../../../contracts/test/vectors/leaves.json")).unwrap()
    }

    #[test]
    fn the_leaves_of_receipts_are_the_contracts() {
        let vectors = vectors();
        let domain = Domain::new(vectors.chain_id, vectors.contract);
        let mut leaves = Vec::new();
        for vector in vectors.receipts {
            let splits: Vec<Split> = vector
                .splits
                .iter()
                .map(|split| Split {
                    payee: split.payee,
                    amount: split.amount.parse().unwrap(),
                })
                .collect();
            assert_eq!(Split::hash_all(&splits), vector.splits_hash);
            let receipt = Receipt {
                batch_id: vector.batch_id.parse().unwrap(),
                index: vector.index.parse().unwrap(),
                receipt_id: vector.receipt_id,
                kind: vector.kind,
                payer: vector.payer,
                gross: vector.gross.parse().unwrap(),
                splits,
                input_hash: vector.input_hash,
                result_hash: vector.result_hash,
                meter_hash: vector.meter_hash,
                verdict_hash: vector.verdict_hash,
            };
            assert_eq!(receipt.leaf(&domain), vector.leaf);
            leaves.push(vector.leaf);
        }
        assert_eq!(leaves.len(), 5);
        assert_eq!(Tree::new(&leaves).root(), vectors.header.receipts_root);
        assert_eq!(merkle::empty_root(), vectors.empty_root);
    }

    #[test]
    fn the_leaves_of_accounts_are_the_contracts() {
        let vectors = vectors();
        let domain = Domain::new(vectors.chain_id, vectors.contract);
        let leaves: Vec<B256> = vectors
            .accounts
            .into_iter()
            .map(|vector| {
                let account = Account {
                    account: vector.account,
                    payable: vector.payable.parse().unwrap(),
                    available: vector.available.parse().unwrap(),
                    deposits_seen: vector.deposits_seen.parse().unwrap(),
                };
                assert_eq!(account.leaf(&domain), vector.leaf);
                vector.leaf
            })
            .collect();
        assert_eq!(Tree::new(&leaves).root(), vectors.header.accounts_root);
    }

    #[test]
    fn a_leaf_belongs_to_one_contract_on_one_chain() {
        let account = Account {
            account: Address::ZERO,
            payable: 1,
            available: 2,
            deposits_seen: 3,
        };
        let here = account.leaf(&Domain::new(1, Address::ZERO));
        assert_ne!(here, account.leaf(&Domain::new(2, Address::ZERO)));
        assert_ne!(here, account.leaf(&Domain::new(1, Address::repeat_byte(1))));
    }
}
