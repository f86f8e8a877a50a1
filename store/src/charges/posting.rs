//! What charges post, hold back, queue to be released and say in their receipts.

use comptoir_domain::{
    bill::{Billed, Explanation},
    id::{JournalEntryId, ReceiptId, SplitVersionId},
    ledger::{AccountKey, Earned, Entry, EntryKind, Lines, Source},
    split::{Party, Split},
};
use time::OffsetDateTime;

use super::{ChargeError, salt, shared::Shared};
use crate::{
    PgTransaction,
    holdback::{
        self, Earners,
        proceeds::{self, Proceeds},
    },
    ledger::PostError,
    receipts::{Receipt, ReceiptShare, Subject},
    releases::NewRelease,
    splits,
};

/// Every ledger account that the charges touch.
pub(super) fn accounts(shared: &[Shared<'_>]) -> Vec<AccountKey> {
    let mut accounts = Vec::new();
    for it in shared {
        let payees = it.split.parties().iter();
        accounts.extend(payees.map(|party| account_of(party, it.earners)));
        if let Some(data) = &it.data {
            let parties = data.split.parties().iter();
            accounts.extend(parties.map(|party| data.account_of(party)));
            accounts.push(AccountKey::SplitDust(data.version));
        }
        accounts.extend([
            AccountKey::Held(it.charge.payer),
            AccountKey::Available(it.charge.payer),
            AccountKey::SplitDust(it.version),
        ]);
    }
    accounts
}

/// The ledger entries of charges, and what is queued to be released of them.
pub(super) fn entries(
    shared: &[Shared<'_>],
    billed: &[Billed],
) -> Result<(Vec<Entry>, Vec<NewRelease>), ChargeError> {
    let (mut entries, mut earned) = (Vec::new(), Vec::new());
    for (it, billed) in shared.iter().zip(billed) {
        entries.push(entry(it, billed)?);
        earned.extend(earnings(it, billed));
    }
    Ok((entries, earned))
}

fn entry(it: &Shared<'_>, billed: &Billed) -> Result<Entry, ChargeError> {
    let payer = it.charge.payer;
    let rest = it.held.checked_sub(billed.bill.gross);
    let lines = Lines::default()
        .debit(AccountKey::Held(payer), it.held)
        .credit(
            AccountKey::Available(payer),
            rest.ok_or(ChargeError::HoldTooSmall)?,
        );
    let mut lines = share(lines, &it.split, it.version, (billed, it.earners));
    if let Some((data, shared)) = it.data(billed) {
        for (party, credit) in data.split.parties().iter().zip(&shared.credits) {
            lines = lines.credit(data.account_of(party), *credit);
        }
        lines = lines.change(AccountKey::SplitDust(data.version), shared.dust);
    }
    let entry = lines.into_entry(EntryKind::Charge, Source::JobCharge(it.charge.job));
    Ok(entry.map_err(PostError::from)?)
}

fn share(
    mut lines: Lines,
    split: &Split,
    version: SplitVersionId,
    (billed, earners): (&Billed, &Earners),
) -> Lines {
    for (party, credit) in split.parties().iter().zip(&billed.shared.credits) {
        lines = lines.credit(account_of(party, earners), *credit);
    }
    lines.change(AccountKey::SplitDust(version), billed.shared.dust)
}

fn is_held_back(party: &Party, earners: &Earners) -> bool {
    !party.platform && earners.contains_key(&party.payee)
}

fn account_of(party: &Party, earners: &Earners) -> AccountKey {
    if is_held_back(party, earners) {
        AccountKey::HeldBack(party.payee)
    } else {
        splits::account_of(party)
    }
}

pub(super) async fn hold_back(
    tx: &mut PgTransaction<'_>,
    it: &Shared<'_>,
    billed: &Billed,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let credits = it.split.parties().iter().zip(&billed.shared.credits);
    let earned: Vec<_> = credits
        .filter(|(party, _)| is_held_back(party, it.earners))
        .map(|(party, credit)| (party.payee, *credit))
        .collect();
    let of = (it.charge.job, it.charge.asset_id, it.charge.payer);
    holdback::keep(tx, of, &earned, it.earners, now).await?;
    let blocked = it.data(billed);
    let blocked = blocked.and_then(|(data, shared)| Some((data.blocked?, data, shared)));
    let Some((dataset, data, shared)) = blocked else {
        return Ok(());
    };
    let of = Proceeds {
        of: Earned::Data(it.charge.job),
        dataset,
        asset_id: it.charge.asset_id,
        payer: it.charge.payer,
    };
    proceeds::keep(tx, of, (&data.split, shared), now).await
}

/// What is earned now; what is held back is queued when it is released.
fn earnings(it: &Shared<'_>, billed: &Billed) -> Vec<NewRelease> {
    let earned = it.split.parties().iter().zip(&billed.shared.credits);
    let data = it.data(billed).into_iter();
    let data = data.filter(|(it, _)| it.blocked.is_none());
    let data = data.flat_map(|(it, shared)| it.split.parties().iter().zip(&shared.credits));
    earned
        .filter(|(party, _)| !is_held_back(party, it.earners))
        .chain(data)
        .filter_map(NewRelease::of)
        .collect()
}

pub(super) fn receipt(
    it: &Shared<'_>,
    entry: JournalEntryId,
    billed: Billed,
    now: OffsetDateTime,
) -> Receipt {
    let (charge, bill) = (it.charge, billed.bill);
    let shares = bill.credited();
    Receipt {
        id: ReceiptId::generate(),
        asset_id: charge.asset_id,
        account: charge.account,
        subject: Subject::Job(charge.job),
        entry,
        payer: charge.payer,
        gross: bill.gross,
        split_version: it.version,
        shares: shares
            .map(|it| ReceiptShare {
                payee: it.party.payee,
                amount: it.credit,
            })
            .collect(),
        input: charge.input,
        input_salt: salt(),
        result: charge.result,
        result_salt: salt(),
        bill_sha256: bill.digest(),
        bill: Explanation::Job(bill),
        verdict_sha256: charge.verdict,
        documents: None,
        created_at: now,
    }
}
