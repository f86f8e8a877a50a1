//! The ledger in plain maps: what random histories are compared with.

use std::collections::{BTreeMap, VecDeque};

use alloy_primitives::{Address, U256};
use comptoir_domain::{
    id::{JobId, JournalEntryId, ReleaseId, SplitVersionId},
    split::Split,
};
use comptoir_store::charges::JobCharge;

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

/// Pay that is held back: who earned it as which of its results, and who paid it.
#[derive(Debug, Clone)]
pub struct HeldBack {
    pub owner: Address,
    pub number: i64,
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
    /// What was given back of each charge.
    pub refunded: BTreeMap<JobId, u128>,
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
        let gross: u128 = (*used / U256::from(ATTO) - before).to();
        assert!(gross <= hold, "a hold covers its charge");
        *self.has(charge.payer, "held") -= hold;
        *self.has(charge.payer, "available") += hold - gross;
        let split = Split::new(PLATFORM, platform_ppm, &charge.shares).unwrap();
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
        for ((payee, platform, _), credit) in parties.into_iter().zip(credits) {
            let number = numbers.get(&payee).filter(|_| !platform);
            if platform {
                self.fees += credit;
            } else if let Some(number) = number {
                *self.has(payee, "held_back") += credit;
                if credit > 0 {
                    self.held_back.push(HeldBack {
                        owner: payee,
                        number: *number,
                        payer: charge.payer,
                        base: credit,
                    });
                }
                continue;
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
                self.queue.push_back(Queued {
                    id: None,
                    owner: payee,
                    from,
                    wants: credit,
                });
            }
        }
        gross
    }

    /// Moves the held-back pay of an owner's results up to this number: to itself, or to who paid it.
    pub fn move_held_back(&mut self, owner: Address, forfeit: bool, up_to: i64) -> usize {
        let (moved, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.held_back)
            .into_iter()
            .partition(|it| it.owner == owner && it.number <= up_to);
        self.held_back = kept;
        for it in &moved {
            *self.has(owner, "held_back") -= it.base;
            let to = if forfeit { it.payer } else { owner };
            *self.has(to, "available") += it.base;
            if !forfeit && AUTO_RELEASE.contains(&owner) {
                self.earned(owner, it.base);
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
        *self.refunded.entry(charge.job).or_default() += base;
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
