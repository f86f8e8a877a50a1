//! Random histories of everything that moves money, checked after each step against a model in plain maps
//! and against what must hold of every ledger.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    atto::Atto,
    bill::DataPrice,
    digest::Sha256,
    id::{AccountId, AttemptId, DatasetId, JobId, OfferId, WorkerId},
    job::Tier,
    policy::holdback::DisputeWindows,
    price::{self, Meter},
    refund::Caps,
};
use comptoir_store::{
    charges::{self, ChargeError, JobCharge},
    dataset_inputs::DataCharge,
    holdback::{self, Earners, Fate},
    holds::{self, Hold, HoldError, HoldSource},
    ledger::{self, PostError},
    receipts,
    refunds::{self, NewRefund, RefundError},
    releases::{self, WithdrawalError},
    splits, worker_records,
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use sqlx::PgPool;

use crate::{
    blocked,
    harness::{ALICE, BOB, CAROL, Money, NOW, PLATFORM, amount, register},
    model::{AUTO_RELEASE, Model, Queued},
};

const NO_CAPS: Caps = Caps {
    per_refund: Amount::MAX,
    per_day: Amount::MAX,
};
const HISTORIES: u64 = 8;
const STEPS: usize = 120;
const OWNERS: [Address; 4] = [ALICE, BOB, CAROL, PLATFORM];

#[derive(Debug, Clone)]
enum Step {
    Deposit {
        owner: usize,
        base: u128,
    },
    Reverse {
        which: usize,
    },
    Hold {
        owner: usize,
        madds: u128,
        data: Option<(usize, u128, u32, Option<bool>)>,
    },
    EndHold {
        which: usize,
    },
    Settle {
        which: usize,
        shares: Vec<(usize, u64)>,
        held_back: bool,
    },
    MovePay {
        owner: usize,
        forfeit: bool,
    },
    MoveProceeds {
        which: usize,
    },
    Owe {
        owner: usize,
        base: u128,
    },
    PayOwed,
    SettleAgain {
        which: usize,
    },
    Withdraw {
        owner: usize,
        base: u128,
    },
    Cancel {
        which: usize,
    },
    Seal {
        at_most: u128,
    },
    CloseSplit {
        which: usize,
    },
    Refund {
        which: usize,
        base: Option<u128>,
    },
}

fn steps() -> impl Strategy<Value = Vec<(Step, bool)>> {
    let owner = 0..OWNERS.len();
    let base = prop_oneof![1..40_u128, 1..3_000_u128, Just(1_u128 << 100)];
    let shares = prop::collection::vec((owner.clone(), prop_oneof![0..4_u64, any::<u64>()]), 0..5);
    // What the job's dataset costs: whom, how much, and the platform's part; and whether a takedown blocks it that will be upheld.
    let blocked = prop::option::of(any::<bool>());
    let data = prop::option::of((owner.clone(), 1..60_u128, 0..200_001_u32, blocked));
    let step = prop_oneof![
        4 => (owner.clone(), base.clone()).prop_map(|(owner, base)| Step::Deposit { owner, base }),
        1 => any::<usize>().prop_map(|which| Step::Reverse { which }),
        6 => (owner.clone(), 0..120_u128, data).prop_map(|(owner, madds, data)| Step::Hold { owner, madds, data }),
        1 => any::<usize>().prop_map(|which| Step::EndHold { which }),
        6 => (any::<usize>(), shares, any::<bool>())
            .prop_map(|(which, shares, held_back)| Step::Settle { which, shares, held_back }),
        4 => (owner.clone(), prop::bool::weighted(0.3)).prop_map(|(owner, forfeit)| Step::MovePay { owner, forfeit }),
        3 => any::<usize>().prop_map(|which| Step::MoveProceeds { which }),
        1 => (owner.clone(), 1..60_u128).prop_map(|(owner, base)| Step::Owe { owner, base }),
        2 => Just(Step::PayOwed),
        1 => any::<usize>().prop_map(|which| Step::SettleAgain { which }),
        3 => (owner, base.clone()).prop_map(|(owner, base)| Step::Withdraw { owner, base }),
        2 => any::<usize>().prop_map(|which| Step::Cancel { which }),
        2 => prop_oneof![0..60_u128, Just(1 << 110)].prop_map(|at_most| Step::Seal { at_most }),
        1 => any::<usize>().prop_map(|which| Step::CloseSplit { which }),
        4 => (any::<usize>(), prop::option::of(0..30_u128)).prop_map(|(which, base)| Step::Refund { which, base }),
    ];
    // One transaction in eight is rolled back at its end.
    prop::collection::vec((step, prop::bool::weighted(0.875)), STEPS)
}

/// One history: its own asset, the model beside it. Each owner has a worker, with an attempt to blame it for.
struct History {
    money: Money,
    accounts: Vec<AccountId>,
    workers: Vec<(WorkerId, AttemptId)>,
    model: Model,
    sequence: u32,
}

fn place_of(owner: Address) -> usize {
    OWNERS.iter().position(|it| *it == owner).unwrap()
}

async fn set_results(tx: &mut comptoir_store::PgTransaction<'_>, worker: WorkerId, results: i64) {
    sqlx::query("UPDATE worker_records SET results = $2 WHERE worker_id = $1")
        .bind(worker.0)
        .bind(results)
        .execute(&mut **tx)
        .await
        .unwrap();
}

async fn unbar(tx: &mut comptoir_store::PgTransaction<'_>, worker: WorkerId) {
    sqlx::query(
        "UPDATE worker_records SET barred_at = NULL, barred_for = NULL WHERE worker_id = $1",
    )
    .bind(worker.0)
    .execute(&mut **tx)
    .await
    .unwrap();
}

fn pick<T>(items: &[T], which: usize) -> Option<usize> {
    (!items.is_empty()).then(|| which % items.len())
}

impl History {
    /// Runs a step in one transaction of the service that would; the model follows if it commits. Did it?
    async fn run(&mut self, step: Step, commit: bool) -> bool {
        self.sequence += 1;
        let mut after = self.model.clone();
        let service = match step {
            Step::Deposit { .. } | Step::Reverse { .. } | Step::Seal { .. } => &self.money.settler,
            Step::Settle { .. }
            | Step::SettleAgain { .. }
            | Step::CloseSplit { .. }
            | Step::MovePay { .. }
            | Step::MoveProceeds { .. }
            | Step::Owe { .. }
            | Step::PayOwed => &self.money.scheduler,
            Step::Hold { .. }
            | Step::EndHold { .. }
            | Step::Withdraw { .. }
            | Step::Cancel { .. } => &self.money.api,
            Step::Refund { .. } => &self.money.admin,
        };
        let mut tx = service.begin().await.unwrap();
        let happened = match step {
            Step::Deposit { .. } | Step::Reverse { .. } => {
                self.deposit(&mut tx, &mut after, step).await
            }
            Step::Hold { .. } | Step::EndHold { .. } => self.hold(&mut tx, &mut after, step).await,
            Step::Settle { .. } | Step::SettleAgain { .. } | Step::CloseSplit { .. } => {
                self.settle(&mut tx, &mut after, step).await
            }
            Step::MoveProceeds { which } => {
                blocked::move_proceeds(&self.money, &mut tx, &mut after, which).await
            }
            Step::MovePay { .. } | Step::Owe { .. } | Step::PayOwed => {
                self.pay(&mut tx, &mut after, step).await
            }
            Step::Withdraw { .. } | Step::Cancel { .. } | Step::Seal { .. } => {
                self.release(&mut tx, &mut after, step).await
            }
            Step::Refund { which, base } => self.refund(&mut tx, &mut after, (which, base)).await,
        };
        if happened && commit {
            tx.commit().await.unwrap();
            self.model = after;
        } else {
            tx.rollback().await.unwrap();
        }
        happened && commit
    }

    async fn deposit(
        &self,
        tx: &mut comptoir_store::PgTransaction<'_>,
        after: &mut Model,
        step: Step,
    ) -> bool {
        match step {
            Step::Deposit { owner, base } => {
                let source = format!("{}:{}", self.money.asset, self.sequence);
                let owner = OWNERS[owner];
                let entry =
                    ledger::deposit(tx, self.money.asset, owner, amount(base), &source, NOW)
                        .await
                        .unwrap();
                *after.has(owner, "available") += base;
                after.deposited += base;
                after.deposits.push((entry, owner, base));
                true
            }
            Step::Reverse { which } => {
                let Some(index) = pick(&after.deposits, which) else {
                    return false;
                };
                let (entry, owner, base) = after.deposits.remove(index);
                let reversed = ledger::reverse(tx, entry, NOW).await;
                if *after.has(owner, "available") < base {
                    assert!(
                        matches!(reversed, Err(PostError::InsufficientFunds)),
                        "{reversed:?}"
                    );
                    return false;
                }
                reversed.unwrap();
                *after.has(owner, "available") -= base;
                after.deposited -= base;
                true
            }
            _ => unreachable!("dispatched by `run`"),
        }
    }

    async fn hold(
        &self,
        tx: &mut comptoir_store::PgTransaction<'_>,
        after: &mut Model,
        step: Step,
    ) -> bool {
        match step {
            Step::Hold { owner, madds, data } => {
                let (payer, account) = (OWNERS[owner], self.accounts[owner]);
                let meter = Meter::inference(madds, 1, Tier::None).unwrap();
                let exact = price::amount(&meter, &self.money.price).unwrap();
                let mut charge = self.charge(account, payer, meter, exact).await;
                let dataset = match data {
                    Some((.., Some(upheld))) => {
                        let [seller, claimant] = [self.accounts[0], self.accounts[1]];
                        let id = blocked::dataset(&self.money, seller, claimant).await;
                        after.blocked.insert(id, upheld);
                        id
                    }
                    _ => DatasetId::generate(),
                };
                charge.data = data.map(|(owner, price, platform_ppm, _)| DataCharge {
                    terms: DataPrice {
                        offer: OfferId::generate(),
                        number: 1,
                        price: amount(price),
                        platform_ppm,
                    },
                    shares: vec![(OWNERS[owner], 1)],
                    dataset,
                });
                let base = exact.ceil().base() + data.map_or(0, |(_, price, ..)| price);
                let hold = Hold {
                    source: HoldSource::Job(charge.job),
                    owner: payer,
                    asset_id: self.money.asset,
                    amount: amount(base),
                };
                let placed = holds::place(tx, &hold, NOW).await;
                if *after.has(payer, "available") < base {
                    assert!(
                        matches!(placed, Err(HoldError::InsufficientFunds { .. })),
                        "{placed:?}"
                    );
                    return false;
                }
                placed.unwrap();
                after.transfer(payer, "available", "held", base);
                after.jobs.push((charge, base));
                true
            }
            Step::EndHold { which } => {
                let Some(index) = pick(&after.jobs, which) else {
                    return false;
                };
                let (charge, base) = after.jobs.remove(index);
                let released = holds::release(tx, HoldSource::Job(charge.job), NOW)
                    .await
                    .unwrap();
                assert_eq!(released, amount(base));
                after.transfer(charge.payer, "held", "available", base);
                true
            }
            _ => unreachable!("dispatched by `run`"),
        }
    }

    async fn charge(
        &self,
        account: AccountId,
        payer: Address,
        meter: Meter,
        exact: Atto,
    ) -> JobCharge {
        let job = self.money.job(account, payer, &meter).await;
        JobCharge {
            job,
            account,
            payer,
            asset_id: self.money.asset,
            meter,
            price: self.money.price,
            amount: exact,
            shares: Vec::new(),
            data: None,
            input: Sha256::of(b"input"),
            result: Sha256::of(b"result"),
            verdict: Sha256::of(b"verdict"),
        }
    }

    async fn settle(
        &self,
        tx: &mut comptoir_store::PgTransaction<'_>,
        after: &mut Model,
        step: Step,
    ) -> bool {
        match step {
            Step::Settle {
                which,
                shares,
                held_back,
            } => {
                let Some(index) = pick(&after.jobs, which) else {
                    return false;
                };
                let (mut charge, hold) = after.jobs.remove(index);
                charge.shares = shares
                    .into_iter()
                    .map(|(owner, weight)| (OWNERS[owner], weight))
                    .collect();
                let earners = if held_back {
                    self.earners(tx, &charge).await
                } else {
                    Earners::new()
                };
                let settled = charges::settle_holding_back(tx, &charge, &earners, NOW).await;
                if charge.shares.iter().all(|(_, weight)| *weight == 0) {
                    assert!(matches!(settled, Err(ChargeError::Split(_))), "{settled:?}");
                    return false;
                }
                let receipt = receipts::find(tx, settled.unwrap()).await.unwrap().unwrap();
                let numbers = earners.iter().map(|(owner, (_, number))| (*owner, *number));
                let fee = self.money.price.platform_ppm;
                let gross = after.settle(&charge, hold, fee, &numbers.collect());
                assert_eq!(receipt.gross, amount(gross));
                let bill = receipt.job_bill().unwrap();
                assert_eq!(bill.recompute(&charge.meter, &charge.price), Ok(()));
                after.name_splits(&receipt);
                after.settled.push(charge);
                true
            }
            Step::SettleAgain { which } => {
                let Some(index) = pick(&after.settled, which) else {
                    return false;
                };
                charges::settle_job(tx, &after.settled[index], NOW)
                    .await
                    .unwrap();
                true
            }
            Step::CloseSplit { which } => {
                let Some(index) = pick(&after.splits, which) else {
                    return false;
                };
                splits::close(tx, after.splits[index].id.unwrap(), NOW)
                    .await
                    .unwrap();
                after.close(index);
                true
            }
            _ => unreachable!("dispatched by `run`"),
        }
    }

    /// The workers of whoever has a share, each with its next result.
    async fn earners(
        &self,
        tx: &mut comptoir_store::PgTransaction<'_>,
        charge: &JobCharge,
    ) -> Earners {
        let mut earners = Earners::new();
        for (owner, _) in charge.shares.iter().filter(|(_, weight)| *weight > 0) {
            let (worker, _) = self.workers[place_of(*owner)];
            worker_records::lock(tx, worker, NOW).await.unwrap();
            let number = worker_records::number_result(tx, worker).await.unwrap();
            earners.insert(*owner, (worker, number));
        }
        earners
    }

    async fn pay(
        &self,
        tx: &mut comptoir_store::PgTransaction<'_>,
        after: &mut Model,
        step: Step,
    ) -> bool {
        match step {
            Step::MovePay { owner, forfeit } => {
                let (worker, attempt) = self.workers[owner];
                let record = worker_records::lock(tx, worker, NOW).await.unwrap();
                let results = i64::try_from(record.results).unwrap() + 49;
                set_results(tx, worker, results).await;
                let (fate, up_to) = if forfeit {
                    worker_records::bar(tx, worker, attempt, NOW).await.unwrap();
                    (Fate::Forfeited, i64::MAX)
                } else {
                    (Fate::Released, results - 50)
                };
                let moved = holdback::move_due(tx, worker, (fate, DisputeWindows::default()), NOW)
                    .await
                    .unwrap();
                let expected = after.move_held_back(OWNERS[owner], forfeit, up_to);
                assert!(moved >= expected, "{moved} moved, of this asset {expected}");
                unbar(tx, worker).await;
                expected > 0
            }
            Step::Owe { owner, base } => {
                let (worker, _) = self.workers[owner];
                let (attempt, job) = self.money.attempt(worker, self.accounts[owner]).await;
                let (of, owner) = ((attempt, job), OWNERS[owner]);
                holdback::owe(tx, of, self.money.asset, owner, amount(base), NOW)
                    .await
                    .unwrap();
                after.owed.push_back((owner, base));
                true
            }
            Step::PayOwed => {
                let paid = holdback::pay_owed(tx, NOW).await.unwrap();
                let expected = after.pay_owed();
                assert!(paid >= expected, "{paid} paid, of this asset {expected}");
                expected > 0
            }
            _ => unreachable!("dispatched by `run`"),
        }
    }

    async fn release(
        &self,
        tx: &mut comptoir_store::PgTransaction<'_>,
        after: &mut Model,
        step: Step,
    ) -> bool {
        match step {
            Step::Withdraw { owner, base } => {
                let (account, owner) = (self.accounts[owner], OWNERS[owner]);
                let asked = releases::request_withdrawal(
                    tx,
                    self.money.asset,
                    (account, owner),
                    amount(base),
                    NOW,
                )
                .await;
                if *after.has(owner, "available") < base {
                    assert!(
                        matches!(
                            asked,
                            Err(WithdrawalError::Hold(HoldError::InsufficientFunds { .. }))
                        ),
                        "{asked:?}"
                    );
                    return false;
                }
                let id = asked.unwrap().id;
                after.transfer(owner, "available", "held", base);
                after.withdrawals.push(id);
                after.queue.push_back(Queued {
                    id: Some(id),
                    owner,
                    from: "held",
                    wants: base,
                });
                true
            }
            Step::Cancel { which } => {
                let Some(index) = pick(&after.withdrawals, which) else {
                    return false;
                };
                let id = after.withdrawals.remove(index);
                let waiting = after.queue.iter().position(|it| it.id == Some(id));
                let owner = match waiting {
                    Some(position) => after.queue[position].owner,
                    None => OWNERS[0],
                };
                let account = self.accounts[OWNERS.iter().position(|it| *it == owner).unwrap()];
                let cancelled = releases::cancel_withdrawal(tx, account, id, NOW).await;
                let Some(it) = waiting.and_then(|position| after.queue.remove(position)) else {
                    assert!(
                        cancelled.is_err(),
                        "it is released, or another account's: {cancelled:?}"
                    );
                    return false;
                };
                cancelled.unwrap();
                after.transfer(it.owner, "held", "available", it.wants);
                true
            }
            Step::Seal { at_most } => {
                let seal = format!("{}:{}", self.money.asset, self.sequence);
                let released =
                    releases::release_queued(tx, self.money.asset, &seal, amount(at_most), NOW)
                        .await
                        .unwrap();
                assert_eq!(released, amount(after.seal(at_most)));
                true
            }
            _ => unreachable!("dispatched by `run`"),
        }
    }

    /// Two administrators give a part of a charge back, or all that is left of it, or are told why not.
    async fn refund(
        &self,
        tx: &mut comptoir_store::PgTransaction<'_>,
        after: &mut Model,
        (which, base): (usize, Option<u128>),
    ) -> bool {
        // All of a charge is given back where something of it may be forfeited later.
        let is_held = |job| base.is_none() && after.held_back.iter().any(|it| it.job == job);
        let held = after.settled.iter().filter(|it| is_held(it.job));
        let held: Vec<_> = held.cloned().collect();
        let from = if held.is_empty() {
            &after.settled
        } else {
            &held
        };
        let Some(index) = pick(from, which) else {
            return false;
        };
        let charge = from[index].clone();
        let left = after.left[&charge.job];
        let base = base.unwrap_or(left);
        let [first, second] = self.money.admins;
        let new = NewRefund {
            job: charge.job,
            amount: Some(amount(base)),
            reason: "history",
            proposed_by: first,
        };
        let proposed = refunds::propose(tx, &new, NO_CAPS, NOW).await;
        if charge.payer == PLATFORM {
            assert!(
                matches!(proposed, Err(RefundError::ToPlatform)),
                "{proposed:?}"
            );
            return false;
        }
        if base == 0 || base > left {
            assert!(
                matches!(proposed, Err(RefundError::AboveCharge { .. })),
                "{proposed:?}"
            );
            return false;
        }
        let approved = refunds::approve(tx, proposed.unwrap().id, second, NO_CAPS, NOW).await;
        if !after.refund(&charge, base) {
            assert!(
                matches!(approved, Err(RefundError::NotFunded(_))),
                "{approved:?}"
            );
            return false;
        }
        assert_eq!(approved.unwrap().amount, amount(base));
        true
    }

    /// What must hold of every ledger, and that it is the model's.
    async fn check(&self, context: &str) {
        let asset = self.money.asset;
        let broken: Vec<String> = sqlx::query_scalar(INVARIANTS)
            .bind(asset)
            .fetch_all(&self.money.owner)
            .await
            .unwrap();
        assert_eq!(broken, Vec::<String>::new(), "{context}");
        let mut conn = self.money.settler.acquire().await.unwrap();
        let owners = ledger::all_owner_balances(&mut conn, asset).await.unwrap();
        for owner in OWNERS {
            let it = owners.get(&owner).copied().unwrap_or_default();
            let of = |code| {
                self.model
                    .balances
                    .get(&(owner, code))
                    .copied()
                    .unwrap_or_default()
            };
            let stored = (
                it.available.base(),
                it.held.base(),
                it.held_back.base(),
                it.payable.base(),
            );
            assert_eq!(
                stored,
                (of("available"), of("held"), of("held_back"), of("payable")),
                "{owner} {context}"
            );
        }
        let house = ledger::house_balances(&mut conn, asset).await.unwrap();
        let house = (
            house.fees.base(),
            house.split_dust.base(),
            house.deposits.base(),
        );
        assert_eq!(
            house,
            (self.model.fees, self.model.dust, self.model.deposited),
            "{context}"
        );
        let total: u128 =
            self.model.balances.values().sum::<u128>() + self.model.fees + self.model.dust;
        assert_eq!(total, self.model.deposited, "{context}");
    }
}

/// Names each rule that the ledger of asset `$1` breaks.
const INVARIANTS: &str = "
    SELECT 'the balances do not sum to zero' FROM ledger_accounts WHERE asset_id = $1 HAVING sum(balance_base) <> 0
    UNION ALL
    SELECT 'the balance of ' || code || ' is not the sum of its postings, or its versions have a gap'
    FROM ledger_accounts la
    CROSS JOIN LATERAL (
        SELECT count(*) AS lines, coalesce(sum(amount_base), 0) AS total, coalesce(min(account_version), 1) AS first,
            coalesce(max(account_version), 0) AS last
        FROM postings WHERE ledger_account_id = la.ledger_account_id
    ) p
    WHERE asset_id = $1 AND (balance_base, version, 1, version) IS DISTINCT FROM (p.total, p.lines, p.first, p.last)
    UNION ALL
    SELECT 'a posting does not follow from the one before'
    FROM (
        SELECT balance_after_base - amount_base AS before,
            lag(balance_after_base, 1, 0) OVER (PARTITION BY ledger_account_id ORDER BY account_version) AS previous
        FROM postings WHERE asset_id = $1
    ) p
    WHERE before <> previous
    UNION ALL
    SELECT 'the dust is not what the parties carry'
    FROM split_versions v
    JOIN (SELECT split_version_id, sum(carry) AS carried, count(*) AS parties FROM split_parties GROUP BY 1) p USING (split_version_id)
    LEFT JOIN ledger_accounts la ON la.scope = v.split_version_id
    WHERE v.asset_id = $1
      AND (coalesce(la.balance_base, 0) * 1000000 <> p.carried OR coalesce(la.balance_base, 0) >= p.parties)
    UNION ALL
    SELECT 'what is held is not what the open holds lock'
    FROM ledger_accounts la
    WHERE asset_id = $1 AND code = 'held' AND balance_base <> (
        SELECT coalesce(sum(amount_base - moved_base), 0) FROM holds
        WHERE holds.asset_id = $1 AND holds.owner = la.owner AND ended_at IS NULL
    )
    UNION ALL
    SELECT 'what is held back is not what the holdbacks say'
    FROM ledger_accounts la
    WHERE asset_id = $1 AND code = 'held_back' AND balance_base <> (
        SELECT coalesce(sum(amount_base), 0) FROM (
            SELECT asset_id, owner, state, amount_base FROM holdbacks UNION ALL SELECT asset_id, owner, state, amount_base FROM held_proceeds
        ) it WHERE it.asset_id = $1 AND it.owner = la.owner AND it.state = 'held'
    )
    UNION ALL
    SELECT 'a receipt is not explained by its entry'
    FROM receipts r
    WHERE asset_id = $1 AND gross_base <> (
        SELECT sum(s.amount_base) FROM receipt_splits s WHERE s.receipt_id = r.receipt_id
    ) + (
        SELECT coalesce(sum(p.amount_base), 0) FROM postings p JOIN ledger_accounts la USING (ledger_account_id)
        WHERE p.journal_entry_id = r.journal_entry_id AND la.code = 'split_dust'
    )";

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_history_keeps_every_base_unit(db: PgPool) {
    let mut money = Money::new(db).await;
    money.hire().await;
    let mut accounts = Vec::new();
    for owner in OWNERS {
        accounts.push(money.bind(owner, AUTO_RELEASE.contains(&owner)).await);
    }
    let mut workers = Vec::new();
    for account in &accounts {
        let worker = money.worker(*account).await;
        workers.push((worker, money.attempt(worker, *account).await.0));
    }
    let mut happened: BTreeMap<String, u32> = BTreeMap::new();
    let mut cut = 0;
    for seed in 0..HISTORIES {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[u8::try_from(seed).unwrap(); 32]);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        // Prices around one base unit, so that fractions matter; 0 to 20 % for the platform.
        let price = (1..1_500_000_000_000_000_000_u128, 0..=200_000_u32);
        let (rate, ppm) = price.new_tree(&mut runner).unwrap().current();
        (money.asset, money.price) = register(&money.owner, 100 + seed, rate, ppm).await;
        let history = steps().new_tree(&mut runner).unwrap().current();
        let model = Model::default();
        let mut run = History {
            money,
            accounts,
            workers,
            model,
            sequence: 0,
        };
        for (number, (step, commit)) in history.into_iter().enumerate() {
            let context = format!("history {seed}, step {number}: {step:?}, commit {commit}");
            let name = name_of(&step);
            if run.run(step, commit).await {
                *happened.entry(name).or_default() += 1;
            }
            run.check(&context).await;
        }
        cut += run.model.cut;
        (money, accounts, workers) = (run.money, run.accounts, run.workers);
    }
    // Histories in which something never happens say nothing about it.
    assert_eq!(happened.len(), 15, "{happened:?}");
    assert!(happened.values().all(|times| *times >= 5), "{happened:?}");
    assert!(cut >= 5, "forfeits of what was refunded before: {cut}");
}

/// What a step is called.
fn name_of(step: &Step) -> String {
    let debug = format!("{step:?}");
    debug.split(' ').next().unwrap().to_owned()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_hold_of_a_job_is_placed_once(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 100).await;
    let source = HoldSource::Job(JobId::generate());
    money.hold(source, ALICE, 10).await.unwrap();
    let again = money.hold(source, ALICE, 10).await;
    assert!(matches!(again, Err(HoldError::AlreadyPlaced)), "{again:?}");
    assert_eq!(money.bases(ALICE).await, (90, 10, 0));
}
