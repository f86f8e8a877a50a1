//! The ledger in plain maps: what random histories are compared with.

use std::collections::{BTreeMap, VecDeque};

use alloy_primitives::{Address, U256};
use comptoir_domain::{
    id::{JournalEntryId, ReleaseId, SplitVersionId},
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
    pub withdrawals: Vec<ReleaseId>,
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

    pub fn settle(&mut self, charge: &JobCharge, hold: u128, platform_ppm: u32) -> u128 {
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
            if platform {
                self.fees += credit;
            } else {
                *self.has(payee, "available") += credit;
            }
            // Fees are released by themselves, and earnings of those who want it.
            if credit > 0 && (platform || AUTO_RELEASE.contains(&payee)) {
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
