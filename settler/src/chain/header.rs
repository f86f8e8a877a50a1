//! Headers, on their way to the contract and back.

use comptoir_contracts_bindings::Settlement;
use comptoir_domain::settlement::Header;

/// A header as the contract takes it.
#[must_use]
pub fn to_contract(header: &Header) -> Settlement::Header {
    Settlement::Header {
        id: header.id,
        generation: header.generation,
        receiptCount: header.receipt_count,
        depositSeqSeen: header.deposit_seq_seen,
        totalPayable: header.total_payable,
        totalAvailable: header.total_available,
        depositsSeen: header.deposits_seen,
        prevHash: header.prev_hash,
        receiptsRoot: header.receipts_root,
        accountsRoot: header.accounts_root,
        dataHash: header.data_hash,
    }
}

/// A header as the contract reports it.
#[must_use]
pub const fn from_contract(header: &Settlement::Header) -> Header {
    Header {
        id: header.id,
        generation: header.generation,
        receipt_count: header.receiptCount,
        deposit_seq_seen: header.depositSeqSeen,
        total_payable: header.totalPayable,
        total_available: header.totalAvailable,
        deposits_seen: header.depositsSeen,
        prev_hash: header.prevHash,
        receipts_root: header.receiptsRoot,
        accounts_root: header.accountsRoot,
        data_hash: header.dataHash,
    }
}
