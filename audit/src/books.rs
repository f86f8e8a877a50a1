//! The books between two batches: who had what, what came in, what was charged and earned, and who has what now.

use std::collections::BTreeMap;

use crate::{
    file::LeafFile,
    report::{Check, Report},
    value::{Account, Address, Deposit},
};

/// Compares what each account deposited with the contract's events.
pub(crate) fn deposits(report: &mut Report, file: &LeafFile, known: Result<&[Deposit], &str>) {
    let deposits = match known {
        Ok(deposits) => deposits,
        Err(why) => return report.unproven(Check::Deposits, why),
    };
    let seen = file.heading.deposit_seq_seen;
    let counted: Vec<_> = deposits.iter().take_while(|it| it.seq <= seen).collect();
    let dense = counted
        .iter()
        .zip(1..)
        .all(|(deposit, seq)| deposit.seq == seq);
    if !dense || counted.len() as u64 != seen {
        let why = format!(
            "the node tells of {} deposits, the batch has seen {seen}",
            counted.len()
        );
        return report.unproven(Check::Deposits, &why);
    }
    let mut sums: BTreeMap<Address, Option<u128>> = BTreeMap::new();
    for deposit in counted {
        let sum = sums.entry(deposit.account).or_insert(Some(0));
        *sum = sum.and_then(|sum| sum.checked_add(deposit.amount));
    }
    let mut wrong = None;
    for account in &file.accounts {
        let sum = sums.remove(&account.account).unwrap_or(Some(0));
        if sum != Some(account.deposits_seen) {
            let sum = sum.map_or_else(|| "more than 2^128".to_owned(), |sum| sum.to_string());
            wrong.get_or_insert(format!(
                "{} deposited {sum}, its leaf says {}",
                account.account, account.deposits_seen
            ));
        }
    }
    if let Some(account) = sums.keys().next() {
        wrong.get_or_insert(format!("{account} deposited and has no leaf"));
    }
    report.judge(
        Check::Deposits,
        wrong,
        format!("{seen} deposits by the contract's events"),
    );
}

/// What was released or deposited is never taken back, and no account goes away.
pub(crate) fn shrinks(before: &LeafFile, after: &LeafFile) -> Option<String> {
    let now = by_address(after);
    before.accounts.iter().find_map(|was| {
        let account = was.account;
        let Some(is) = now.get(&account) else {
            return Some(format!("{account} has no leaf any more"));
        };
        if is.payable < was.payable {
            return Some(format!(
                "{account}: payable was {} and is {}",
                was.payable, is.payable
            ));
        }
        (is.deposits_seen < was.deposits_seen).then(|| {
            format!(
                "{account}: deposits were {} and are {}",
                was.deposits_seen, is.deposits_seen
            )
        })
    })
}

/// Two sides of an account's books; `None` once a side passes 2^128.
#[derive(Clone, Copy)]
struct Sides {
    /// What it had, deposited and earned.
    had: Option<u128>,
    /// What it has, and was charged.
    has: Option<u128>,
}

impl Default for Sides {
    fn default() -> Self {
        Self {
            had: Some(0),
            has: Some(0),
        }
    }
}

fn add(side: &mut Option<u128>, amount: u128) {
    *side = side.and_then(|sum| sum.checked_add(amount));
}

/// Explains every change: `had + deposited + earned = has + charged`, for each account. Only the platform's account may
/// differ, by the dust: what the receipts charged and did not share, exactly.
pub(crate) fn changes(
    before: &LeafFile,
    after: &LeafFile,
    platform: Option<Address>,
) -> Result<(), String> {
    let mut books: BTreeMap<Address, Sides> = BTreeMap::new();
    for was in &before.accounts {
        let sides = books.entry(was.account).or_default();
        add(&mut sides.had, was.payable);
        add(&mut sides.had, was.available);
        // Only what was deposited since is new.
        add(&mut sides.has, was.deposits_seen);
    }
    for is in &after.accounts {
        let sides = books.entry(is.account).or_default();
        add(&mut sides.has, is.payable);
        add(&mut sides.has, is.available);
        add(&mut sides.had, is.deposits_seen);
    }
    let mut dust = Sides::default();
    for receipt in &after.receipts {
        add(
            &mut books.entry(receipt.payer).or_default().has,
            receipt.gross,
        );
        add(&mut dust.had, receipt.gross);
        for share in &receipt.shares {
            add(&mut books.entry(share.payee).or_default().had, share.amount);
            add(&mut dust.has, share.amount);
        }
    }
    let mut house = platform;
    for (account, sides) in books {
        if settled(sides).ok_or_else(|| too_large(account))? {
            continue;
        }
        if *house.get_or_insert(account) != account {
            return Err(unexplained(account, sides));
        }
        // The dust came to it: what it has more is what was charged and not shared.
        let mut with_dust = sides;
        with_dust.had = sum(sides.had, dust.had);
        with_dust.has = sum(sides.has, dust.has);
        if !settled(with_dust).ok_or_else(|| too_large(account))? {
            return Err(unexplained(account, sides));
        }
        // Nobody else may have it too.
        dust = Sides::default();
    }
    match settled(dust) {
        Some(true) => Ok(()),
        _ => Err("what was charged and not shared went nowhere".to_owned()),
    }
}

fn settled(sides: Sides) -> Option<bool> {
    Some(sides.had? == sides.has?)
}

fn sum(one: Option<u128>, other: Option<u128>) -> Option<u128> {
    one?.checked_add(other?)
}

fn too_large(account: Address) -> String {
    format!("the sums of {account} pass 2^128")
}

fn unexplained(account: Address, sides: Sides) -> String {
    let [had, has] = [sides.had, sides.has].map(Option::unwrap_or_default);
    if has > had {
        format!(
            "{account} has {} base units that nothing explains",
            has - had
        )
    } else {
        format!(
            "{account} lacks {} base units, and nothing says where they went",
            had - has
        )
    }
}

fn by_address(file: &LeafFile) -> BTreeMap<Address, &Account> {
    file.accounts.iter().map(|it| (it.account, it)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{file::Heading, value::Hash};

    const ALICE: Address = Address([1; 20]);
    const BOB: Address = Address([2; 20]);

    fn account(account: Address, payable: u128, deposits_seen: u128) -> Account {
        Account {
            account,
            payable,
            available: 50,
            deposits_seen,
        }
    }

    fn file(accounts: &[Account]) -> LeafFile {
        LeafFile {
            heading: Heading {
                chain_id: 31_337,
                contract: Address([9; 20]),
                id: 1,
                generation: 0,
                receipt_count: 0,
                deposit_seq_seen: 0,
                total_payable: 0,
                total_available: 0,
                deposits_seen: 0,
                prev_hash: Hash::ZERO,
                receipts_root: Hash::ZERO,
                accounts_root: Hash::ZERO,
                audit_head: None,
            },
            receipts: Vec::new(),
            accounts: accounts.to_vec(),
            sha256: Hash::ZERO,
        }
    }

    #[test]
    fn what_was_released_or_deposited_is_never_taken_back() {
        let before = file(&[account(ALICE, 10, 100), account(BOB, 20, 200)]);
        let after = |payable, deposits| {
            let after = file(&[account(ALICE, 10, 100), account(BOB, payable, deposits)]);
            shrinks(&before, &after)
        };
        for (payable, deposits) in [(20, 200), (21, 200), (20, 201), (u128::MAX, u128::MAX)] {
            assert_eq!(after(payable, deposits), None, "{payable}, {deposits}");
        }
        let payable = format!("{BOB}: payable was 20 and is 19");
        assert_eq!(after(19, 200), Some(payable.clone()));
        assert_eq!(
            after(19, 201),
            Some(payable),
            "a deposit makes up for nothing"
        );
        let deposits = format!("{BOB}: deposits were 200 and are 199");
        assert_eq!(after(20, 199), Some(deposits.clone()));
        assert_eq!(after(21, 199), Some(deposits));
    }

    #[test]
    fn no_account_goes_away_and_a_new_one_may_come() {
        let (alice, bob) = (account(ALICE, 0, 0), account(BOB, 20, 200));
        let gone = shrinks(&file(&[alice, bob]), &file(&[bob]));
        assert_eq!(gone, Some(format!("{ALICE} has no leaf any more")));
        let came = shrinks(&file(&[bob]), &file(&[alice, bob]));
        assert_eq!(came, None);
    }
}
