//! The second implementation against the first: what one makes the other finds right, and nothing else.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, FixedBytes, keccak256};
use comptoir_audit::{
    Before, Check, Committed, Deposit, Evidence, LeafFile, Limits, Recomputed, Report, Verdict,
    audit,
};
use comptoir_domain::{
    amount::Amount,
    settlement::{
        Account, Receipt, Split,
        file::{self, Opening},
    },
    split,
};
use proptest::prelude::*;

const CHAIN: u64 = 31_337;
const CONTRACT: Address = Address::repeat_byte(7);
const PLATFORM: Address = Address::repeat_byte(0xff);

/// Payers and payees alike.
fn person(number: u8) -> Address {
    Address::repeat_byte(number % 4 + 1)
}

/// The books of a small service, as its ledger would keep them.
#[derive(Default)]
struct Books {
    accounts: BTreeMap<Address, Account>,
    deposits: Vec<Deposit>,
    receipts: u8,
    carries: BTreeMap<u32, Vec<u32>>,
}

/// What happens between two batches.
#[derive(Debug, Clone)]
enum Event {
    Deposit(u8, u64),
    Charge {
        payer: u8,
        payees: [u8; 2],
        gross: u64,
        platform_ppm: u32,
    },
    Release(u8, u64),
}

fn event() -> impl Strategy<Value = Event> {
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
    fn book(&mut self, event: &Event) -> Option<Receipt> {
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
    fn seal(&self, id: u64, prev_hash: B256, receipts: Vec<Receipt>) -> (B256, Vec<u8>) {
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

/// Two batches, one after the other.
struct History {
    books: Books,
    files: [Vec<u8>; 2],
    hashes: [B256; 2],
}

fn history(first: &[Event], second: &[Event]) -> History {
    let mut books = Books::default();
    books.account(PLATFORM);
    for account in 0..4 {
        books.account(person(account));
    }
    let receipts = first.iter().filter_map(|event| books.book(event)).collect();
    let (hash, bytes) = books.seal(1, B256::ZERO, receipts);
    let receipts = second
        .iter()
        .filter_map(|event| books.book(event))
        .collect();
    let (second_hash, second_bytes) = books.seal(2, hash, receipts);
    History {
        books,
        files: [bytes, second_bytes],
        hashes: [hash, second_hash],
    }
}

/// A history in which every kind of line and every field has a value.
fn telling() -> History {
    let charge = |payer, payees, gross| Event::Charge {
        payer,
        payees,
        gross,
        platform_ppm: 50_000,
    };
    let mut history = history(
        &[Event::Deposit(0, 10_000), charge(0, [1, 2], 777)],
        &[
            Event::Deposit(3, 5_000),
            charge(0, [1, 2], 999),
            charge(3, [2, 1], 1_001),
            Event::Release(1, 100),
            Event::Deposit(0, 1),
        ],
    );
    // One that the batch has not seen.
    history.books.book(&Event::Deposit(2, 3));
    history
}

fn parse(bytes: &[u8]) -> LeafFile {
    LeafFile::parse(bytes, &Limits::default()).unwrap()
}

/// What the contract would hold of a file, if whoever has the settler's key had committed exactly that.
fn committed(bytes: &[u8]) -> Committed {
    let recomputed = Recomputed::of(&parse(bytes));
    Committed {
        chain_id: CHAIN,
        contract: comptoir_audit::Address(CONTRACT.into_array()),
        header: recomputed.header.unwrap(),
        hash: recomputed.hash().unwrap(),
    }
}

fn judge(history: &History, bytes: &[u8], committed: &Committed) -> Report {
    let before = parse(&history.files[0]);
    let evidence = Evidence {
        file: bytes,
        limits: Limits::default(),
        committed: Ok(committed),
        before: Before::File(&before),
        deposits: Ok(&history.books.deposits),
        platform: Some(comptoir_audit::Address(PLATFORM.into_array())),
        bills: &[],
    };
    audit(&evidence).report
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_the_service_seals_the_second_implementation_finds_right(
        first in prop::collection::vec(event(), 0..12),
        second in prop::collection::vec(event(), 0..12),
    ) {
        let history = history(&first, &second);
        let committed = committed(&history.files[1]);
        prop_assert_eq!(committed.hash.0, history.hashes[1].0);
        let report = judge(&history, &history.files[1], &committed);
        prop_assert_eq!(report.verdict(), Verdict::Right, "{}", report.reason());
        let alone = audit(&Evidence {
            file: &history.files[0],
            limits: Limits::default(),
            committed: Err("not asked"),
            before: Before::Nothing,
            deposits: Ok(&history.books.deposits),
            platform: None,
            bills: &[],
        });
        prop_assert_eq!(alone.report.verdict(), Verdict::Undecided);
        prop_assert_eq!(alone.hash.map(|it| it.0), Some(history.hashes[0].0));
    }

    #[test]
    fn no_bit_of_a_file_can_change_under_the_committed_header(
        place: prop::sample::Index, bit in 0..8_u32,
    ) {
        let history = telling();
        let committed = committed(&history.files[1]);
        let mut bytes = history.files[1].clone();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert_eq!(judge(&history, &bytes, &committed).verdict(), Verdict::False);
    }
}

/// The value of a key in a line, and where it is.
fn values(text: &str, key: &str) -> Vec<(usize, usize)> {
    let mark = format!("\"{key}\":");
    text.match_indices(&mark)
        .map(|(at, _)| {
            let from = at + mark.len();
            let rest = &text[from..];
            let length = match rest.strip_prefix('"') {
                Some(quoted) => quoted.find('"').unwrap() + 2,
                None => rest.find([',', '}']).unwrap(),
            };
            (from, from + length)
        })
        .collect()
}

/// Every text that changes one value of a key by one.
fn changed(bytes: &[u8], key: &str) -> Vec<Vec<u8>> {
    let text = str::from_utf8(bytes).unwrap();
    values(text, key)
        .into_iter()
        .map(|(from, to)| {
            let value = &text[from..to];
            let new = match value.trim_matches('"') {
                number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                    let more = (number.parse::<u128>().unwrap() + 1).to_string();
                    if value.starts_with('"') {
                        format!("\"{more}\"")
                    } else {
                        more
                    }
                }
                // Another person, or another hash.
                address if address.len() == 42 => {
                    let other = if address == person(0).to_string() {
                        person(1)
                    } else {
                        person(0)
                    };
                    format!("\"{other}\"")
                }
                hash => format!("\"0x{}\"", hash[2..].chars().rev().collect::<String>()),
            };
            [&text[..from], &new, &text[to..]].concat().into_bytes()
        })
        .collect()
}

/// Changes that only bills and results could show: the service vouches for them, and payer and payee hold the proof.
const VOUCHED: [&str; 6] = [
    "receipt_id",
    "kind",
    "input_hash",
    "result_hash",
    "meter_hash",
    "verdict_hash",
];

#[test]
fn a_changed_field_is_found_even_when_the_settlers_key_commits_it() {
    let history = telling();
    let honest = &history.files[1];
    let fields = [
        "accounts_root",
        "batch_id",
        "gross",
        "index",
        "payer",
        "amount",
        "payee",
        "account",
        "available",
        "deposits_seen",
        "payable",
        "deposit_seq_seen",
        "id",
        "prev_hash",
        "receipt_count",
        "receipts_root",
        "total_available",
        "total_payable",
    ];
    for field in fields {
        let texts = changed(honest, field);
        assert!(!texts.is_empty(), "{field}");
        for text in texts {
            let report = judge(&history, &text, &committed(&text));
            assert_eq!(
                report.verdict(),
                Verdict::False,
                "{field}: {}",
                report.reason()
            );
        }
    }
    // Two more are found by the chain: the header names another chain and contract, and the contract asks for its generation.
    for field in ["chain_id", "contract", "generation"] {
        for text in changed(honest, field) {
            let report = judge(&history, &text, &committed(honest));
            assert_eq!(report.verdict(), Verdict::False, "{field}");
        }
    }
    for field in VOUCHED {
        for text in changed(honest, field) {
            let report = judge(&history, &text, &committed(honest));
            assert_eq!(report.verdict(), Verdict::False, "{field}");
            assert!(report.of(Check::HeaderHash).is_some(), "{field}");
        }
    }
}

#[test]
fn money_that_is_moved_from_one_account_to_another_is_found() {
    let history = telling();
    let text = str::from_utf8(&history.files[1]).unwrap();
    let line = |place: usize| text[..place].matches('\n').count();
    let mut tried = 0;
    for loser in ["available", "payable"] {
        for winner in ["available", "payable"] {
            let (from, to) = (values(text, loser), values(text, winner));
            for (giver, taker) in from
                .iter()
                .flat_map(|giver| to.iter().map(move |taker| (giver, taker)))
            {
                if line(giver.0) == line(taker.0) {
                    continue;
                }
                let less = |number: u128| number.checked_sub(1);
                let more = |number: u128| number.checked_add(1);
                let Some(moved) = rewrite(text, [(*giver, &less), (*taker, &more)]) else {
                    continue;
                };
                tried += 1;
                let report = judge(
                    &history,
                    &retotalled(&moved),
                    &committed(&retotalled(&moved)),
                );
                assert_eq!(report.verdict(), Verdict::False, "{loser} to {winner}");
                assert!(report.of(Check::Changes).is_some());
            }
        }
    }
    assert!(tried > 20, "{tried} moves were tried");
}

type Rewrite<'a> = ((usize, usize), &'a dyn Fn(u128) -> Option<u128>);

/// Replaces two amounts; `None` where one cannot be.
fn rewrite(text: &str, mut changes: [Rewrite<'_>; 2]) -> Option<String> {
    changes.sort_by_key(|((from, _), _)| std::cmp::Reverse(*from));
    let mut text = text.to_owned();
    for ((from, to), change) in changes {
        let number: u128 = text[from..to].trim_matches('"').parse().unwrap();
        text.replace_range(from..to, &format!("\"{}\"", change(number)?));
    }
    Some(text)
}

/// The same leaves with the totals and roots that they make.
fn retotalled(text: &str) -> Vec<u8> {
    let recomputed = Recomputed::of(&parse(text.as_bytes()));
    let header = recomputed.header.unwrap();
    let mut lines = text.splitn(2, '\n');
    let mut first = lines.next().unwrap().to_owned();
    for (key, value) in [
        ("total_payable", header.total_payable.to_string()),
        ("total_available", header.total_available.to_string()),
        ("accounts_root", header.accounts_root.to_string()),
        ("receipts_root", header.receipts_root.to_string()),
        ("deposits_seen", header.deposits_seen.to_string()),
    ] {
        let (from, to) = values(&first, key)[0];
        first.replace_range(from..to, &format!("\"{value}\""));
    }
    let (from, to) = values(&first, "receipt_count")[0];
    first.replace_range(from..to, &header.receipt_count.to_string());
    format!("{first}\n{}", lines.next().unwrap()).into_bytes()
}

#[test]
fn a_line_that_is_missing_or_comes_again_is_found() {
    let history = telling();
    let text = str::from_utf8(&history.files[1]).unwrap();
    let lines: Vec<_> = text.lines().collect();
    for line in 1..lines.len() {
        let mut without = lines.clone();
        without.remove(line);
        let mut twice = lines.clone();
        twice.insert(line, lines[line]);
        for changed in [without, twice] {
            let changed = retotalled(&format!("{}\n", changed.join("\n")));
            let report = judge(&history, &changed, &committed(&changed));
            assert_eq!(report.verdict(), Verdict::False, "{}", lines[line]);
        }
    }
}

#[test]
fn a_receipt_of_the_batch_before_cannot_be_settled_again() {
    let history = telling();
    let [first, second] = history
        .files
        .each_ref()
        .map(|it| str::from_utf8(it).unwrap());
    let old = first
        .lines()
        .find(|line| line.contains("\"receipt\""))
        .unwrap();
    let old = old
        .replacen("\"batch_id\":1", "\"batch_id\":2", 1)
        .replacen("\"index\":0", "\"index\":2", 1);
    let at = second.find("{\"account\":").unwrap();
    let again = retotalled(&format!("{}{old}\n{}", &second[..at], &second[at..]));
    let report = judge(&history, &again, &committed(&again));
    let settled = report.of(Check::SettledOnce).unwrap();
    assert_eq!(settled.outcome, comptoir_audit::Outcome::Failed);
}
