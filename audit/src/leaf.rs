//! Leaves: each is the Keccak-256 of an EIP-712 digest, in the domain of one contract on one chain.

use crate::{
    hash::{keccak, left, right, word},
    value::{Account, Address, Hash, Receipt, Share},
};

/// The EIP-712 domain that every hash of a contract carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain(Hash);

impl Domain {
    /// The domain of a contract on a chain.
    #[must_use]
    pub fn new(chain_id: u64, contract: Address) -> Self {
        let kind = keccak(&[
            b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
        ]);
        Self(keccak(&[
            &kind.0,
            &keccak(&[b"Comptoir Settlement"]).0,
            &keccak(&[b"1"]).0,
            &word(chain_id.into()),
            &right(&contract.0),
        ]))
    }

    /// The contract's `DOMAIN_SEPARATOR`.
    #[must_use]
    pub const fn separator(&self) -> Hash {
        self.0
    }

    /// The leaf of an account.
    #[must_use]
    pub fn account(&self, account: &Account) -> Hash {
        let kind = keccak(&[
            b"Account(address account,uint128 payable,uint128 available,uint128 depositsSeen)",
        ]);
        self.leaf(&[
            &kind.0,
            &right(&account.account.0),
            &word(account.payable),
            &word(account.available),
            &word(account.deposits_seen),
        ])
    }

    /// The leaf of a receipt.
    #[must_use]
    pub fn receipt(&self, receipt: &Receipt) -> Hash {
        let kind = keccak(&[
            b"Receipt(uint64 batchId,uint64 index,bytes16 receiptId,uint8 kind,address payer,uint128 gross,\
              bytes32 splitsHash,bytes32 inputHash,bytes32 resultHash,bytes32 meterHash,bytes32 verdictHash)",
        ]);
        self.leaf(&[
            &kind.0,
            &word(receipt.batch_id.into()),
            &word(receipt.index.into()),
            &left(&receipt.receipt_id.0),
            &word(receipt.kind.into()),
            &right(&receipt.payer.0),
            &word(receipt.gross),
            &shares(&receipt.shares).0,
            &receipt.input_hash.0,
            &receipt.result_hash.0,
            &receipt.meter_hash.0,
            &receipt.verdict_hash.0,
        ])
    }

    fn leaf(&self, fields: &[&[u8]]) -> Hash {
        let digest = keccak(&[&[0x19, 0x01], &self.0.0, &keccak(fields).0]);
        keccak(&[&digest.0])
    }
}

fn shares(shares: &[Share]) -> Hash {
    let kind = keccak(&[b"Split(address payee,uint128 amount)"]);
    let members: Vec<u8> = shares
        .iter()
        .flat_map(|share| keccak(&[&kind.0, &right(&share.payee.0), &word(share.amount)]).0)
        .collect();
    keccak(&[&members])
}
