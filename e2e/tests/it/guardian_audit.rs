//! The second implementation against the first: what one makes the other finds right, and nothing else.

use alloy::primitives::B256;
use comptoir_audit::{
    Before, Check, Committed, Evidence, LeafFile, Limits, Outcome, Recomputed, Report, Settled,
    Verdict, audit, bill::Bill,
};
use comptoir_domain::{
    amount::Amount,
    contribution::{LEAF_KIND, Reward},
    id::{ContributionId, SplitVersionId},
    settlement,
    split::Split,
};
use proptest::prelude::*;

use crate::books::{CHAIN, CONTRACT, Event, History, PLATFORM, event, history, person, telling};

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

/// The receipts of the first so many batches.
fn settled(history: &History, batches: usize) -> Settled {
    let mut settled = Settled::default();
    for bytes in &history.files[..batches] {
        settled.add(&committed(bytes), &parse(bytes)).unwrap();
    }
    settled
}

/// Judges what stands for the last batch of a history.
fn judge(history: &History, bytes: &[u8], committed: &Committed) -> Report {
    judge_with(history, bytes, committed, &[])
}

fn judge_with(history: &History, bytes: &[u8], committed: &Committed, bills: &[Bill]) -> Report {
    let parent = history.files.len() - 2;
    let before = parse(&history.files[parent]);
    let settled = settled(history, parent + 1);
    let evidence = Evidence {
        file: bytes,
        limits: Limits::default(),
        committed: Ok(committed),
        before: Before::File(&before),
        earlier: Ok(&settled),
        deposits: Ok(&history.books.deposits),
        platform: Some(comptoir_audit::Address(PLATFORM.into_array())),
        bills,
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
        let history = history(&[&first, &second]);
        let committed = committed(&history.files[1]);
        prop_assert_eq!(committed.hash.0, history.hashes[1].0);
        let report = judge(&history, &history.files[1], &committed);
        prop_assert_eq!(report.verdict(), Verdict::Right, "{}", report.reason());
        let alone = audit(&Evidence {
            file: &history.files[0],
            limits: Limits::default(),
            committed: Err("not asked"),
            before: Before::Nothing,
            earlier: Ok(&Settled::default()),
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
fn a_kind_that_is_not_known_and_a_movement_that_hides_something_are_refused() {
    let history = telling();
    let text = str::from_utf8(&history.files[1]).unwrap();
    let of_kind = |kind: u8| {
        let text = text.replace("\"kind\":1,", &format!("\"kind\":{kind},"));
        judge(&history, text.as_bytes(), &committed(text.as_bytes()))
    };
    let found = |kind| of_kind(kind).of(Check::Kinds).cloned().unwrap();
    for kind in 1..=6 {
        assert_eq!(found(kind).outcome, Outcome::Passed, "{kind}");
    }
    for kind in [0, 7, 63, 68, 255] {
        let found = found(kind);
        assert_eq!(found.outcome, Outcome::Failed, "{kind}");
        assert!(found.detail.contains("which is not known"), "{kind}");
    }
    // They have the hashes of charges.
    for kind in 64..=67 {
        let found = found(kind);
        assert_eq!(found.outcome, Outcome::Failed, "{kind}");
        assert!(found.detail.contains("is no charge, and has a hash"));
    }
}

#[test]
fn a_reward_is_audited_from_the_leaf_file_and_its_bill() {
    let mut history = telling();
    let charge = Event::Charge {
        payer: 0,
        payees: [1, 1],
        gross: 22,
        platform_ppm: 0,
    };
    let split = Split::new(PLATFORM, 0, &[(person(1), 1)]).unwrap();
    let reward = Reward {
        contribution: ContributionId::generate(),
        terms_number: 1,
        rows: 2,
        per_row: Amount::from_base(11).unwrap(),
    };
    let (bill, _) = reward
        .bill(SplitVersionId::generate(), &split, &[0])
        .unwrap();
    let mut receipt = history.books.book(&charge).unwrap();
    receipt.kind = LEAF_KIND;
    receipt.meter_hash = B256::from(bill.digest().0);
    receipt.splits = vec![settlement::Split {
        payee: person(1),
        amount: 22,
    }];
    let (hash, file) = history.books.seal(3, history.hashes[1], vec![receipt]);
    history.files.push(file);
    history.hashes.push(hash);
    let file = &history.files[2];
    let told = |document: &serde_json::Value| {
        let bill = Bill::read(document).unwrap();
        let report = judge_with(&history, file, &committed(file), &[bill]);
        report.of(Check::Carry).cloned().unwrap()
    };
    let document = serde_json::to_value(&bill).unwrap();
    let explained = told(&document);
    assert_eq!(explained.outcome, Outcome::Passed, "{}", explained.detail);
    let mut changed = document;
    changed["rows"] = 3.into();
    assert_eq!(told(&changed).outcome, Outcome::Failed);
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

/// The last batch of a history, with a receipt of another batch once more as its last one.
fn settling_again(history: &History, batch: usize) -> Vec<u8> {
    let last = history.files.len() - 1;
    let [from, into] = [batch, last].map(|it| str::from_utf8(&history.files[it]).unwrap());
    let old = from
        .lines()
        .find(|line| line.contains("\"receipt\""))
        .unwrap();
    let receipts = into.matches("\"object\":\"receipt\"").count();
    let old = old
        .replacen(
            &format!("\"batch_id\":{}", batch + 1),
            &format!("\"batch_id\":{}", last + 1),
            1,
        )
        .replacen("\"index\":0", &format!("\"index\":{receipts}"), 1);
    let at = into.find("{\"account\":").unwrap();
    retotalled(&format!("{}{old}\n{}", &into[..at], &into[at..]))
}

#[test]
fn a_receipt_of_any_batch_before_cannot_be_settled_again() {
    let charge = |payer, gross| Event::Charge {
        payer,
        payees: [1, 2],
        gross,
        platform_ppm: 50_000,
    };
    let history = history(&[
        &[Event::Deposit(0, 10_000), charge(0, 777)],
        &[charge(0, 30)],
        &[],
        &[charge(0, 999)],
    ]);
    for batch in [0, 1] {
        let again = settling_again(&history, batch);
        let report = judge(&history, &again, &committed(&again));
        let settled = report.of(Check::SettledOnce).unwrap();
        assert_eq!(settled.outcome, Outcome::Failed);
        assert!(
            settled
                .detail
                .ends_with(&format!("was in batch {}", batch + 1))
        );
    }
    let honest = history.files.last().unwrap();
    let report = judge(&history, honest, &committed(honest));
    assert_eq!(report.verdict(), Verdict::Right, "{}", report.reason());
}

#[test]
fn without_the_receipts_of_every_batch_before_a_batch_is_undecided() {
    let history = history(&[&[Event::Deposit(0, 10)], &[], &[]]);
    let [_, second, third] = [0, 1, 2].map(|batch: usize| &history.files[batch]);
    let (before, of_third) = (parse(second), committed(third));
    let (short, whole) = (settled(&history, 1), settled(&history, 2));
    for (earlier, outcome) in [
        (Ok(&whole), Outcome::Passed),
        (Ok(&short), Outcome::NotProvable),
        (Err("not at hand"), Outcome::NotProvable),
    ] {
        let report = audit(&Evidence {
            file: third,
            limits: Limits::default(),
            committed: Ok(&of_third),
            before: Before::File(&before),
            earlier,
            deposits: Ok(&history.books.deposits),
            platform: None,
            bills: &[],
        });
        let found = report.report.of(Check::SettledOnce).unwrap();
        assert_eq!(found.outcome, outcome);
        let right = report.report.verdict() == Verdict::Right;
        assert_eq!(right, outcome == Outcome::Passed);
    }
}
