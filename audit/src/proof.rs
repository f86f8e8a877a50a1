//! The audit of one batch: everything that its leaf file, the chain, the batch before and bills can prove.

use std::{collections::BTreeSet, fmt::Display, ops::RangeInclusive};

use crate::{
    bill::Bill,
    books,
    file::{LeafFile, Limits},
    hash::sha256,
    header::{Committed, Header, Recomputed},
    report::{Check, Report},
    settled::Settled,
    value::{Address, Deposit, Hash, Receipt},
};

/// The kinds of receipts that charge: a job, a purchase, a rental, a period of a subscription, a reward, calls.
const CHARGES: RangeInclusive<u8> = 1..=6;
/// The kinds that move money without a charge: a refund, what is forfeited, what the platform owes, dust.
const MOVEMENTS: RangeInclusive<u8> = 64..=67;

/// The batch before the one that is audited.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    /// There is none: it is batch 1.
    Nothing,
    /// Its leaf file.
    File(&'a LeafFile),
    /// It is not at hand, and why.
    Missing(&'a str),
}

/// All that is known of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The leaf file.
    pub file: &'a [u8],
    /// What may be read of it.
    pub limits: Limits,
    /// What the chain holds, or why that is not known.
    pub committed: Result<&'a Committed, &'a str>,
    /// The batch before.
    pub before: Before<'a>,
    /// The receipts of all batches before, or why they are not known.
    pub earlier: Result<&'a Settled, &'a str>,
    /// The contract's deposits from the first on, or why they are not known.
    pub deposits: Result<&'a [Deposit], &'a str>,
    /// The account that takes fees and dust; where it is not named, one account may.
    pub platform: Option<Address>,
    /// Bills of some of the receipts.
    pub bills: &'a [Bill],
}

/// What came of an audit.
#[derive(Debug, Clone)]
pub struct Audited {
    /// Every check.
    pub report: Report,
    /// The file, where its form is right.
    pub file: Option<LeafFile>,
    /// The hash of the header that its leaves make.
    pub hash: Option<Hash>,
}

/// Audits a batch.
#[must_use]
pub fn audit(evidence: &Evidence<'_>) -> Audited {
    let mut report = Report::default();
    data_hash(&mut report, evidence);
    let file = match LeafFile::parse(evidence.file, &evidence.limits) {
        Ok(file) => file,
        Err(error) => {
            report.judge(Check::Form, Some(error.to_string()), "");
            return Audited {
                report,
                file: None,
                hash: None,
            };
        }
    };
    let lines = file.receipts.len() + file.accounts.len() + 1;
    report.judge(Check::Form, None, format!("{lines} canonical lines"));
    let recomputed = Recomputed::of(&file);
    against_chain(&mut report, &file, &recomputed, evidence);
    report.judge(
        Check::Order,
        out_of_order(&file),
        "every line is in its place, once",
    );
    report.judge(
        Check::Kinds,
        file.receipts.iter().find_map(of_no_kind),
        "every receipt is of a kind that is known",
    );
    report.judge(
        Check::Shares,
        shares(&file.receipts),
        "shares are the gross, but for dust",
    );
    carry(&mut report, &file, evidence.bills);
    against_before(&mut report, &file, evidence);
    settled_once(&mut report, &file, evidence.earlier);
    let hash = recomputed.hash();
    Audited {
        report,
        file: Some(file),
        hash,
    }
}

fn data_hash(report: &mut Report, evidence: &Evidence<'_>) {
    let computed = sha256(evidence.file);
    match evidence.committed {
        Ok(committed) => report.compare(
            Check::DataHash,
            "the SHA-256 of the leaf file",
            computed,
            committed.header.data_hash,
        ),
        Err(why) => report.unproven(Check::DataHash, why),
    }
}

fn against_chain(
    report: &mut Report,
    file: &LeafFile,
    recomputed: &Recomputed,
    evidence: &Evidence<'_>,
) {
    let heading = &file.heading;
    match evidence.committed {
        Ok(committed) => {
            report.compare(
                Check::Contract,
                "chain and contract",
                format!("{}/{}", heading.chain_id, heading.contract),
                format!("{}/{}", committed.chain_id, committed.contract),
            );
        }
        Err(why) => report.unproven(Check::Contract, why),
    }
    let committed = evidence.committed.ok().map(|it| it.header);
    let Some(header) = recomputed.header else {
        let wrong = "a total of the accounts passes 2^128".to_owned();
        report.judge(Check::Totals, Some(wrong), "");
        return;
    };
    report.judge(
        Check::Heading,
        heading_differs(file, &header, committed.as_ref()),
        format!("batch {}, generation {}", header.id, header.generation),
    );
    let root = |of: fn(&Header) -> Hash, said| {
        differs("the root", of(&header), said, committed.as_ref().map(of))
    };
    let receipts = root(|it| it.receipts_root, heading.receipts_root);
    let many = format!(
        "{} leaves make {}",
        file.receipts.len(),
        header.receipts_root
    );
    report.judge(Check::ReceiptsRoot, receipts, many);
    let accounts = root(|it| it.accounts_root, heading.accounts_root);
    let many = format!(
        "{} leaves make {}",
        file.accounts.len(),
        header.accounts_root
    );
    report.judge(Check::AccountsRoot, accounts, many);
    totals(report, file, &header, committed.as_ref());
    match (evidence.committed, recomputed.hash()) {
        (Ok(committed), Some(hash)) => {
            report.compare(Check::HeaderHash, "the header's hash", hash, committed.hash);
        }
        (Err(why), _) => report.unproven(Check::HeaderHash, why),
        (Ok(_), None) => report.unproven(Check::HeaderHash, "the leaves make no header"),
    }
}

/// What the file says of itself and what the chain says must both be what was computed.
fn differs<T: Copy + PartialEq + Display>(
    what: &str,
    computed: T,
    said: T,
    committed: Option<T>,
) -> Option<String> {
    if committed.as_ref().is_some_and(|it| *it != computed) {
        let committed = committed.map(|it| it.to_string()).unwrap_or_default();
        return Some(format!(
            "{what} is {committed} on the chain and {computed} as computed"
        ));
    }
    (said != computed).then(|| format!("{what} is {said} in the file and {computed} as computed"))
}

fn heading_differs(file: &LeafFile, header: &Header, committed: Option<&Header>) -> Option<String> {
    let on_chain = |of: fn(&Header) -> u64| committed.map(of);
    let said = &file.heading;
    differs("the number", header.id, said.id, on_chain(|it| it.id))
        .or_else(|| {
            let on_chain = on_chain(|it| it.generation);
            differs(
                "the generation",
                header.generation,
                said.generation,
                on_chain,
            )
        })
        .or_else(|| {
            let on_chain = on_chain(|it| it.receipt_count);
            differs(
                "the count of receipts",
                header.receipt_count,
                said.receipt_count,
                on_chain,
            )
        })
        .or_else(|| {
            let on_chain = on_chain(|it| it.deposit_seq_seen);
            let seen = header.deposit_seq_seen;
            differs(
                "the last deposit seen",
                seen,
                said.deposit_seq_seen,
                on_chain,
            )
        })
        .or_else(|| {
            let on_chain = committed.map(|it| it.prev_hash);
            differs("the parent", header.prev_hash, said.prev_hash, on_chain)
        })
}

fn totals(report: &mut Report, file: &LeafFile, header: &Header, committed: Option<&Header>) {
    let said = &file.heading;
    let wrong = [
        (
            "payable",
            header.total_payable,
            said.total_payable,
            committed.map(|it| it.total_payable),
        ),
        (
            "available",
            header.total_available,
            said.total_available,
            committed.map(|it| it.total_available),
        ),
        (
            "deposits seen",
            header.deposits_seen,
            said.deposits_seen,
            committed.map(|it| it.deposits_seen),
        ),
    ]
    .into_iter()
    .find_map(|(what, computed, said, committed)| differs(what, computed, said, committed));
    let sums = format!(
        "{} payable, {} available",
        header.total_payable, header.total_available
    );
    report.judge(Check::Totals, wrong, sums);
    let all = header.total_payable.checked_add(header.total_available);
    let wrong = (all != Some(header.deposits_seen)).then(|| {
        format!(
            "{} payable and {} available are not the {} deposited",
            header.total_payable, header.total_available, header.deposits_seen
        )
    });
    let right = format!(
        "payable and available are the {} deposited",
        header.deposits_seen
    );
    report.judge(Check::Balance, wrong, right);
}

fn out_of_order(file: &LeafFile) -> Option<String> {
    let mut ids = BTreeSet::new();
    for (receipt, place) in file.receipts.iter().zip(0_u64..) {
        if receipt.index != place || receipt.batch_id != file.heading.id {
            return Some(format!(
                "receipt {} says it is {} of batch {}, and stands at {place} of batch {}",
                receipt.receipt_id, receipt.index, receipt.batch_id, file.heading.id
            ));
        }
        if !ids.insert(receipt.receipt_id) {
            return Some(format!("receipt {} stands there twice", receipt.receipt_id));
        }
    }
    let pairs = file.accounts.iter().zip(file.accounts.iter().skip(1));
    pairs
        .filter(|(one, next)| one.account >= next.account)
        .map(|(one, next)| format!("account {} stands before {}", one.account, next.account))
        .next()
}

/// What an auditor does not know may mean anything: it is refused. What moves without being a charge has no bill and hides nothing, and
/// all of what one gives others get.
fn of_no_kind(receipt: &Receipt) -> Option<String> {
    let (id, kind) = (receipt.receipt_id, receipt.kind);
    if CHARGES.contains(&kind) {
        return None;
    }
    if !MOVEMENTS.contains(&kind) {
        return Some(format!(
            "receipt {id} is of kind {kind}, which is not known"
        ));
    }
    let hashes = [
        receipt.input_hash,
        receipt.result_hash,
        receipt.meter_hash,
        receipt.verdict_hash,
    ];
    if hashes != [Hash::ZERO; 4] {
        return Some(format!(
            "receipt {id} of kind {kind} is no charge, and has a hash"
        ));
    }
    let mut shares = receipt.shares.iter().map(|share| share.amount);
    let sum = shares.try_fold(0_u128, u128::checked_add);
    (sum != Some(receipt.gross)).then(|| {
        format!(
            "receipt {id} of kind {kind} moves {} and does not arrive whole",
            receipt.gross
        )
    })
}

/// What does not divide now waits in the dust account, less than one base unit for each party.
fn shares(receipts: &[Receipt]) -> Option<String> {
    receipts.iter().find_map(|receipt| {
        let id = receipt.receipt_id;
        let sum = receipt
            .shares
            .iter()
            .try_fold(0_u128, |sum, share| sum.checked_add(share.amount));
        let Some(sum) = sum else {
            return Some(format!("the shares of receipt {id} pass 2^128"));
        };
        let parties = receipt.shares.len() as u128;
        let fits = sum == receipt.gross || sum.abs_diff(receipt.gross) < parties;
        (!fits).then(|| {
            format!(
                "receipt {id} charges {} and shares {sum} among {parties}",
                receipt.gross
            )
        })
    })
}

fn carry(report: &mut Report, file: &LeafFile, bills: &[Bill]) {
    if bills.is_empty() {
        let why = "weights and carries are in the bills, which payers and payees have";
        report.unproven(Check::Carry, why);
        return;
    }
    let wrong = bills.iter().find_map(|bill| {
        let receipt = file
            .receipts
            .iter()
            .find(|it| it.meter_hash == bill.hash() && bill.is_for(it.receipt_id));
        let Some(receipt) = receipt else {
            return Some(format!(
                "no receipt of the batch has the bill {}",
                bill.hash()
            ));
        };
        let wrong = bill.explain(receipt).err()?;
        Some(format!("receipt {}: {wrong}", receipt.receipt_id))
    });
    let right = format!(
        "{} of {} bills computed again",
        bills.len(),
        file.receipts.len()
    );
    report.judge(Check::Carry, wrong, right);
}

fn against_before(report: &mut Report, file: &LeafFile, evidence: &Evidence<'_>) {
    books::deposits(report, file, evidence.deposits);
    let empty;
    let before = match evidence.before {
        Before::Missing(why) => {
            for check in [Check::Parent, Check::NeverShrinks, Check::Changes] {
                report.unproven(check, why);
            }
            return;
        }
        Before::Nothing => {
            let wrong = (file.heading.id != 1 || file.heading.prev_hash != Hash::ZERO)
                .then(|| "a first batch has number 1 and no parent".to_owned());
            report.judge(Check::Parent, wrong, "the first batch");
            empty = LeafFile {
                receipts: Vec::new(),
                accounts: Vec::new(),
                ..file.clone()
            };
            &empty
        }
        Before::File(before) => {
            report.judge(
                Check::Parent,
                not_the_parent(before, file),
                "its parent's leaves make the parent's hash",
            );
            before
        }
    };
    report.judge(
        Check::NeverShrinks,
        books::shrinks(before, file),
        format!("of {} accounts before", before.accounts.len()),
    );
    let changes = books::changes(before, file, evidence.platform);
    report.judge(
        Check::Changes,
        changes.err(),
        "every change is a deposit, an earning or a charge",
    );
}

fn settled_once(report: &mut Report, file: &LeafFile, earlier: Result<&Settled, &str>) {
    let heading = &file.heading;
    let earlier = match earlier {
        Ok(earlier) => earlier,
        Err(why) => return report.unproven(Check::SettledOnce, why),
    };
    if earlier.through().checked_add(1) != Some(heading.id) || earlier.tip() != heading.prev_hash {
        let why = format!(
            "the receipts of the batches up to {} are known, {} with another hash than the parent's",
            earlier.through(),
            earlier.tip()
        );
        return report.unproven(Check::SettledOnce, &why);
    }
    let again = file.receipts.iter().find_map(|it| {
        let batch = earlier.batch_of(it.receipt_id)?;
        Some(format!("receipt {} was in batch {batch}", it.receipt_id))
    });
    let right = format!(
        "no receipt was in any of {} batches before",
        earlier.through()
    );
    report.judge(Check::SettledOnce, again, right);
}

fn not_the_parent(before: &LeafFile, file: &LeafFile) -> Option<String> {
    let parent = Recomputed::of(before).hash();
    let fits = parent == Some(file.heading.prev_hash)
        && before.heading.id.checked_add(1) == Some(file.heading.id);
    let parent = parent.map_or_else(|| "nothing".to_owned(), |hash| hash.to_string());
    (!fits).then(|| {
        format!(
            "the file of batch {} makes {parent}, the parent is {}",
            before.heading.id, file.heading.prev_hash
        )
    })
}
