//! The books of a small service, and the batches that the first implementation seals of them.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, FixedBytes, keccak256};
use comptoir_audit::Deposit;
use comptoir_domain::{
    amount::Amount,
    settlement::{
        Account, Receipt, Split,
        file::{self, Opening},
    },
    split,
};
use proptest::prelude::*;

pub const CHAIN: u64 = 31_337;
pub const CONTRACT: Address = Address::repeat_byte(7);
pub const PLATFORM: Address = Address::repeat_byte(0xff);

/// Payers and payees alike.
pub fn person(number: u8) -> Address {
    Address::repeat_byte(number % 4 + 1)
}

/// The books of a small service, as its ledger would keep them.
#[derive(Default)]
pub struct Books {
    accounts: BTreeMap<Address, Account>,
    pub deposits: Vec<Deposit>,
    receipts: u8,
    carries: BTreeMap<u32, Vec<u32>>,
}

/// What happens between two batches.
#[derive(Debug, Clone)]
pub enum Event {
    Deposit(u8, u64),
    Charge {
        payer: u8,
        payees: [u8; 2],
        gross: u64,
        platform_ppm: u32,
    },
    Release(u8, u64),
}

pub fn event() -> impl Strategy<Value = Event> {
    let charge = (any::<u8>(), any::<[u8; 2]>(), any::<u64>(), 0..=200_000_u32);
    prop_oneof![
        (any::<u8>(), 1..u64::MAX).prop_map(|(who, amount)| Event::Deposit(who, amount)),
        charge.prop_map(|(payer, payees, gross, platform_ppm)| Event::Charge {
            payer,
            payees,
            gross,
            platform_ppm
        }),
        (any::<u8>(), any::<u64>()).prop_map(|(who, amount)| Event::Release(who, amount)),
    ]
}

impl Books {
    fn account(&mut self, account: Address) -> &mut Account {
        self.accounts.entry(account).or_insert(Account {
            account,
            payable: 0,
            available: 0,
            deposits_seen: 0,
        })
    }

    /// Books an event; a charge gives a receipt.
    pub fn book(&mut self, event: &Event) -> Option<Receipt> {
        match *event {
            Event::Deposit(who, amount) => {
                let account = person(who);
                let amount = u128::from(amount);
                self.account(account).available += amount;
                self.account(account).deposits_seen += amount;
                self.deposits.push(Deposit {
                    seq: self.deposits.len() as u64 + 1,
                    account: comptoir_audit::Address(account.into_array()),
                    amount,
                });
                None
            }
            Event::Release(who, amount) => {
                let account = self.account(person(who));
                let released = account.available.min(amount.into());
                account.available -= released;
                account.payable += released;
                None
            }
            Event::Charge {
                payer,
                payees,
                gross,
                platform_ppm,
            } => {
                let payer = self.account(person(payer));
                let gross = payer.available.min(gross.into());
                payer.available -= gross;
                let payer = payer.account;
                let splits = self.share(gross, payees, platform_ppm);
                Some(self.receipt(payer, gross, splits))
            }
        }
    }

    fn share(&mut self, gross: u128, payees: [u8; 2], platform_ppm: u32) -> Vec<Split> {
        let shares = payees.map(|payee| (person(payee), u64::from(payee) + 1));
        let weights = split::Split::new(PLATFORM, platform_ppm, &shares).unwrap();
        let parties = weights.parties().len();
        let carries = self.carries.entry(platform_ppm).or_default();
        // Another split of the same weight begins anew.
        if carries.len() != parties {
            *carries = vec![0; parties];
        }
        let divided = weights
            .share(Amount::from_base(gross).unwrap(), carries)
            .unwrap();
        carries.clone_from(&divided.carries);
        let dust = divided.dust.base();
        let platform = self.account(PLATFORM);
        platform.available = platform.available.checked_add_signed(dust).unwrap();
        let mut splits = Vec::new();
        for (party, credit) in weights.parties().iter().zip(&divided.credits) {
            self.account(party.payee).available += credit.base();
            splits.push(Split {
                payee: party.payee,
                amount: credit.base(),
            });
        }
        splits
    }

    fn receipt(&mut self, payer: Address, gross: u128, splits: Vec<Split>) -> Receipt {
        self.receipts += 1;
        let hash = |what: &str| keccak256(format!("{what} {}", self.receipts));
        Receipt {
            batch_id: 0,
            index: 0,
            receipt_id: FixedBytes::repeat_byte(self.receipts),
            kind: 1,
            payer,
            gross,
            splits,
            input_hash: hash("input"),
            result_hash: hash("result"),
            meter_hash: hash("meter"),
            verdict_hash: hash("verdict"),
        }
    }

    /// Seals a batch with the service's own code.
    pub fn seal(&self, id: u64, prev_hash: B256, receipts: Vec<Receipt>) -> (B256, Vec<u8>) {
        let opening = Opening {
            chain_id: CHAIN,
            contract: CONTRACT,
            id,
            generation: 0,
            deposit_seq_seen: self.deposits.len() as u64,
            prev_hash,
            audit_head: None,
        };
        let accounts = self.accounts.values().copied().collect();
        let (sealed, bytes) = file::seal(&opening, receipts, accounts).unwrap();
        (sealed.hash, bytes)
    }
}

/// Batches, one after the other.
pub struct History {
    pub books: Books,
    pub files: Vec<Vec<u8>>,
    pub hashes: Vec<B256>,
}

pub fn history(batches: &[&[Event]]) -> History {
    let mut books = Books::default();
    books.account(PLATFORM);
    for account in 0..4 {
        books.account(person(account));
    }
    let (mut files, mut hashes) = (Vec::new(), Vec::new());
    for (events, number) in batches.iter().zip(1..) {
        let receipts = events
            .iter()
            .filter_map(|event| books.book(event))
            .collect();
        let parent = hashes.last().copied().unwrap_or_default();
        let (hash, bytes) = books.seal(number, parent, receipts);
        files.push(bytes);
        hashes.push(hash);
    }
    History {
        books,
        files,
        hashes,
    }
}

/// A history in which every kind of line and every field has a value.
pub fn telling() -> History {
    let charge = |payer, payees, gross| Event::Charge {
        payer,
        payees,
        gross,
        platform_ppm: 50_000,
    };
    let mut history = history(&[
        &[Event::Deposit(0, 10_000), charge(0, [1, 2], 777)],
        &[
            Event::Deposit(3, 5_000),
            charge(0, [1, 2], 999),
            charge(3, [2, 1], 1_001),
            Event::Release(1, 100),
            Event::Deposit(0, 1),
        ],
    ]);
    // One that the batch has not seen.
    history.books.book(&Event::Deposit(2, 3));
    history
}
