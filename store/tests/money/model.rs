//! The ledger in plain maps: what random histories are compared with.

use std::collections::{BTreeMap, VecDeque};

use alloy_primitives::{Address, U256};
use comptoir_domain::{
    id::{DatasetId, JobId, JournalEntryId, ReleaseId, SplitVersionId},
    split::Split,
};
use comptoir_store::{charges::JobCharge, receipts::Receipt};

use crate::harness::{ALICE, PLATFORM};

/// Whose earnings are released by themselves.
pub const AUTO_RELEASE: [Address; 2] = [ALICE, PLATFORM];
const ATTO: u64 = 1_000_000_000_000_000_000;

/// A release as the model keeps it: what it still wants, and from which account.
#[derive(Debug, Clone)]
pub struct Queued {
    pub id: Option<ReleaseId>,
    pub owner: Address,
    pub from: &'static str,
    pub wants: u128,
}

/// Why pay is held back: it is one of its worker's results, or its dataset is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Result(i64),
    Decided(DatasetId),
}

/// Pay that is held back: who earned it, and who paid it.
#[derive(Debug, Clone)]
pub struct HeldBack {
    pub owner: Address,
    pub until: Until,
    pub job: JobId,
    pub payer: Address,
    pub base: u128,
}

#[derive(Debug, Clone, Default)]
pub struct SplitState {
    pub parties: Vec<(Address, bool, u32)>,
    pub total: U256,
    pub paid: Vec<U256>,
    pub dust: u128,
    pub id: Option<SplitVersionId>,
}

/// The ledger in plain maps.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub balances: BTreeMap<(Address, &'static str), u128>,
    pub fees: u128,
    pub dust: u128,
    pub deposited: u128,
    pub deposits: Vec<(JournalEntryId, Address, u128)>,
    pub used: BTreeMap<Address, U256>,
    pub splits: Vec<SplitState>,
    pub jobs: Vec<(JobCharge, u128)>,
    pub settled: Vec<JobCharge>,
    /// What was neither refunded of each charge nor forfeited to who paid it.
    pub left: BTreeMap<JobId, u128>,
    /// How many shares were forfeited of which something was refunded before.
    pub cut: u32,
    /// Datasets that are blocked, and whether that will be upheld.
    pub blocked: BTreeMap<DatasetId, bool>,
    pub withdrawals: Vec<ReleaseId>,
    pub held_back: Vec<HeldBack>,
    pub owed: VecDeque<(Address, u128)>,
    pub queue: VecDeque<Queued>,
}

impl Model {
    pub fn has(&mut self, owner: Address, code: &'static str) -> &mut u128 {
        self.balances.entry((owner, code)).or_default()
    }

    pub fn transfer(&mut self, owner: Address, from: &'static str, to: &'static str, base: u128) {
        *self.has(owner, from) -= base;
        *self.has(owner, to) += base;
    }

    /// Settles a job; what these owners earn with it is held back, as the results of these numbers.
    pub fn settle(
        &mut self,
        charge: &JobCharge,
        hold: u128,
        platform_ppm: u32,
        numbers: &BTreeMap<Address, i64>,
    ) -> u128 {
        let used = self.used.entry(charge.payer).or_default();
        let before = *used / U256::from(ATTO);
        *used += charge.amount.atto();
        let work: u128 = (*used / U256::from(ATTO) - before).to();
        let data = charge.data.as_ref();
        let gross = work + data.map_or(0, |it| it.terms.price.base());
        assert!(gross <= hold, "a hold covers its charge");
        *self.has(charge.payer, "held") -= hold;
        *self.has(charge.payer, "available") += hold - gross;
        let split = Split::new(PLATFORM, platform_ppm, &charge.shares).unwrap();
        let until = |payee, platform: bool| {
            let number = numbers.get(&payee).filter(|_| !platform);
            number.map(|it| Until::Result(*it))
        };
        let mut earned = self.share(&split, work, (charge, &until));
        if let Some(data) = data {
            let terms = data.terms;
            let split = Split::new(PLATFORM, terms.platform_ppm, &data.shares).unwrap();
            let blocked = self.blocked.contains_key(&data.dataset);
            let until = |_, _| blocked.then_some(Until::Decided(data.dataset));
            earned.extend(self.share(&split, terms.price.base(), (charge, &until)));
        }
        // What one charge gives to somebody is released as one.
        let mut queued: Vec<Queued> = Vec::new();
        for (owner, from, wants) in earned {
            let known = queued.iter_mut();
            match known
                .into_iter()
                .find(|it| (it.owner, it.from) == (owner, from))
            {
                Some(known) => known.wants += wants,
                None => queued.push(Queued {
                    id: None,
                    owner,
                    from,
                    wants,
                }),
            }
        }
        self.queue.extend(queued);
        self.left.insert(charge.job, gross);
        gross
    }

    /// Shares an amount, of which something may be held back until something; what is released of it by itself, from where.
    fn share(
        &mut self,
        split: &Split,
        gross: u128,
        (charge, until): (&JobCharge, &dyn Fn(Address, bool) -> Option<Until>),
    ) -> Vec<(Address, &'static str, u128)> {
        let parties: Vec<_> = split
            .parties()
            .iter()
            .map(|it| (it.payee, it.platform, it.ppm))
            .collect();
        let found = self.splits.iter().position(|it| it.parties == parties);
        let index = found.unwrap_or_else(|| {
            let paid = vec![U256::ZERO; parties.len()];
            self.splits.push(SplitState {
                parties: parties.clone(),
                paid,
                ..SplitState::default()
            });
            self.splits.len() - 1
        });
        // Each party has, over all charges, the whole units of its exact part.
        let state = &mut self.splits[index];
        state.total += U256::from(gross);
        let mut credits = Vec::new();
        for ((_, _, ppm), paid) in state.parties.iter().zip(&mut state.paid) {
            let due = state.total * U256::from(*ppm) / U256::from(1_000_000);
            credits.push((due - *paid).to::<u128>());
            *paid = due;
        }
        let given: u128 = credits.iter().sum();
        state.dust = state.dust + gross - given;
        self.dust = self.dust + gross - given;
        let mut released = Vec::new();
        for ((payee, platform, _), credit) in parties.into_iter().zip(credits) {
            if let Some(until) = until(payee, platform) {
                self.hold_back(charge, (payee, until), credit);
                continue;
            }
            if platform {
                self.fees += credit;
            } else {
                *self.has(payee, "available") += credit;
            }
            // Fees are released by themselves unless the house owes, and earnings of those who want it.
            let wanted = if platform {
                self.owed.is_empty()
            } else {
                AUTO_RELEASE.contains(&payee)
            };
            if credit > 0 && wanted {
                let from = if platform { "fees" } else { "available" };
                released.push((payee, from, credit));
            }
        }
        released
    }

    /// Learns from a receipt which versions its splits are; its shares are those of the work, then those of the data.
    pub fn name_splits(&mut self, receipt: &Receipt) {
        let bill = receipt.job_bill().unwrap();
        let credited = bill.credited().map(|it| (it.party.payee, it.credit));
        let shares = receipt.shares.iter().map(|it| (it.payee, it.amount));
        assert!(credited.eq(shares), "work first, then data");
        let data = bill.data.iter().map(|it| (&it.parties, it.split_version));
        let work = [(&bill.parties, receipt.split_version)];
        for (parties, version) in work.into_iter().chain(data) {
            let parties: Vec<_> = parties
                .iter()
                .map(|it| (it.party.payee, it.party.platform, it.party.ppm))
                .collect();
            let mut splits = self.splits.iter_mut();
            splits.find(|it| it.parties == parties).unwrap().id = Some(version);
        }
    }

    /// What is held back of one charge for one owner and one reason is one share.
    fn hold_back(&mut self, charge: &JobCharge, (owner, until): (Address, Until), base: u128) {
        *self.has(owner, "held_back") += base;
        let mut known = self.held_back.iter_mut();
        match known.find(|it| (it.job, it.owner, it.until) == (charge.job, owner, until)) {
            Some(known) => known.base += base,
            None if base == 0 => {}
            None => self.held_back.push(HeldBack {
                owner,
                until,
                job: charge.job,
                payer: charge.payer,
                base,
            }),
        }
    }

    /// Moves the held-back pay of an owner's results up to this number: to itself, or to who paid it.
    pub fn move_held_back(&mut self, owner: Address, forfeit: bool, up_to: i64) -> usize {
        let is_due = |it: &HeldBack| {
            it.owner == owner && matches!(it.until, Until::Result(number) if number <= up_to)
        };
        self.move_shares(is_due, forfeit)
    }

    /// Moves what a dataset earned while it was blocked.
    pub fn move_proceeds(&mut self, dataset: DatasetId, upheld: bool) -> usize {
        self.held_back.sort_by_key(|it| it.owner);
        self.move_shares(|it| it.until == Until::Decided(dataset), upheld)
    }

    /// Nobody gets back more than he paid: what was refunded before came from the platform, and goes there.
    fn move_shares(&mut self, is_due: impl Fn(&HeldBack) -> bool, forfeit: bool) -> usize {
        let (moved, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.held_back)
            .into_iter()
            .partition(is_due);
        self.held_back = kept;
        for it in &moved {
            *self.has(it.owner, "held_back") -= it.base;
            if forfeit {
                let left = self.left.get_mut(&it.job).unwrap();
                let back = it.base.min(*left);
                *left -= back;
                self.cut += u32::from(back < it.base);
                *self.has(it.payer, "available") += back;
                *self.has(PLATFORM, "available") += it.base - back;
                continue;
            }
            *self.has(it.owner, "available") += it.base;
            if AUTO_RELEASE.contains(&it.owner) {
                self.earned(it.owner, it.base);
            }
        }
        moved.len()
    }

    fn earned(&mut self, owner: Address, wants: u128) {
        self.queue.push_back(Queued {
            id: None,
            owner,
            from: "available",
            wants,
        });
    }

    /// Pays what the house owes, the oldest first, as far as its fees and the platform's own money go.
    pub fn pay_owed(&mut self) -> usize {
        let mut paid = Vec::new();
        // What is paid is spendable after all of it was paid from.
        let (mut fees, mut own) = (self.fees, *self.has(PLATFORM, "available"));
        while let Some((owner, base)) = self.owed.front().copied() {
            let of_fees = fees.min(base);
            if own < base - of_fees {
                break;
            }
            fees -= of_fees;
            own -= base - of_fees;
            paid.push((owner, base));
            self.owed.pop_front();
        }
        self.fees = fees;
        *self.has(PLATFORM, "available") = own;
        for (owner, base) in &paid {
            *self.has(*owner, "available") += base;
            if AUTO_RELEASE.contains(owner) {
                self.earned(*owner, *base);
            }
        }
        paid.len()
    }

    /// The platform gives back, from its fees first; payees keep what they have. Does it have enough?
    pub fn refund(&mut self, charge: &JobCharge, base: u128) -> bool {
        let from_fees = base.min(self.fees);
        if base - from_fees > *self.has(PLATFORM, "available") {
            return false;
        }
        self.fees -= from_fees;
        *self.has(PLATFORM, "available") -= base - from_fees;
        *self.has(charge.payer, "available") += base;
        *self.left.get_mut(&charge.job).unwrap() -= base;
        true
    }

    pub fn seal(&mut self, mut allowed: u128) -> u128 {
        let mut total = 0;
        let mut rest = VecDeque::new();
        for mut it in std::mem::take(&mut self.queue) {
            let has = if it.from == "fees" {
                self.fees
            } else {
                *self.has(it.owner, it.from)
            };
            if allowed == 0 {
                rest.push_back(it);
                continue;
            }
            let wants = it.wants.min(has);
            let moved = wants.min(allowed);
            if it.from == "fees" {
                self.fees -= moved;
            } else {
                *self.has(it.owner, it.from) -= moved;
            }
            *self.has(it.owner, "payable") += moved;
            allowed -= moved;
            total += moved;
            it.wants -= moved;
            if moved < wants {
                rest.push_back(it);
            }
        }
        self.queue = rest;
        total
    }

    pub fn close(&mut self, index: usize) {
        let split = self.splits.remove(index);
        let carry =
            |paid: U256, ppm: u32| split.total * U256::from(ppm) - paid * U256::from(1_000_000);
        let mut order: Vec<_> = split.parties.iter().zip(&split.paid).collect();
        order.sort_by_key(|((payee, platform, ppm), paid)| {
            (std::cmp::Reverse(carry(**paid, *ppm)), *payee, *platform)
        });
        let winners = usize::try_from(split.dust).unwrap();
        for ((payee, platform, _), _) in order.into_iter().take(winners) {
            if *platform {
                self.fees += 1;
            } else {
                *self.has(*payee, "available") += 1;
            }
        }
        self.dust -= split.dust;
    }
}
