//! The header of a batch: as the contract was given it, and as the leaves of a file make it.

use crate::{
    file::LeafFile,
    hash::{keccak, word},
    leaf::Domain,
    tree::Tree,
    value::{Account, Address, Hash},
};

/// What a batch commits to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The number of the batch.
    pub id: u64,
    /// The number of cancellations before it.
    pub generation: u64,
    /// Receipts under the receipts root.
    pub receipt_count: u64,
    /// The last deposit that was credited.
    pub deposit_seq_seen: u64,
    /// Sum of the payables.
    pub total_payable: u128,
    /// Sum of what is still held in the service.
    pub total_available: u128,
    /// Sum of the deposits that were credited.
    pub deposits_seen: u128,
    /// The hash of the header before it.
    pub prev_hash: Hash,
    /// The root of the receipts.
    pub receipts_root: Hash,
    /// The root of the accounts.
    pub accounts_root: Hash,
    /// SHA-256 of the leaf file.
    pub data_hash: Hash,
}

impl Header {
    /// The hash that the contract keeps.
    #[must_use]
    pub fn hash(&self, domain: &Domain) -> Hash {
        keccak(&[
            &domain.separator().0,
            &word(self.id.into()),
            &word(self.generation.into()),
            &word(self.receipt_count.into()),
            &word(self.deposit_seq_seen.into()),
            &word(self.total_payable),
            &word(self.total_available),
            &word(self.deposits_seen),
            &self.prev_hash.0,
            &self.receipts_root.0,
            &self.accounts_root.0,
            &self.data_hash.0,
        ])
    }
}

/// A header that stands on the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// The contract that was asked.
    pub contract: Address,
    /// What its event says.
    pub header: Header,
    /// The hash that the contract holds, or that the chain of headers leads to.
    pub hash: Hash,
}

/// What the leaves of a file make, whatever the file says of them.
#[derive(Debug, Clone)]
pub struct Recomputed {
    /// The header; `None` where a sum passes 2^128.
    pub header: Option<Header>,
    /// Over the receipts.
    pub receipts: Tree,
    /// Over the accounts.
    pub accounts: Tree,
    domain: Domain,
}

impl Recomputed {
    /// Makes everything again.
    #[must_use]
    pub fn of(file: &LeafFile) -> Self {
        let heading = &file.heading;
        let domain = Domain::new(heading.chain_id, heading.contract);
        let receipts = Tree::new(file.receipts.iter().map(|it| domain.receipt(it)).collect());
        let accounts = Tree::new(file.accounts.iter().map(|it| domain.account(it)).collect());
        let header = sums(&file.accounts).map(|[payable, available, deposits]| Header {
            id: heading.id,
            generation: heading.generation,
            receipt_count: file.receipts.len() as u64,
            deposit_seq_seen: heading.deposit_seq_seen,
            total_payable: payable,
            total_available: available,
            deposits_seen: deposits,
            prev_hash: heading.prev_hash,
            receipts_root: receipts.root(),
            accounts_root: accounts.root(),
            data_hash: file.sha256,
        });
        Self {
            header,
            receipts,
            accounts,
            domain,
        }
    }

    /// The hash of the header that the leaves make.
    #[must_use]
    pub fn hash(&self) -> Option<Hash> {
        self.header.map(|header| header.hash(&self.domain))
    }

    /// What leads from an account of the file to the root.
    #[must_use]
    pub fn account_proof(&self, account: &Account) -> Option<Vec<Hash>> {
        self.accounts.proof(self.domain.account(account))
    }
}

fn sums(accounts: &[Account]) -> Option<[u128; 3]> {
    accounts.iter().try_fold([0_u128; 3], |sums, account| {
        Some([
            sums[0].checked_add(account.payable)?,
            sums[1].checked_add(account.available)?,
            sums[2].checked_add(account.deposits_seen)?,
        ])
    })
}
