//! Contributions beside sales: random histories against a model in plain maps.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    contribution::{AcceptedRows, Terms as Invitation, weights},
    id::{AccountId, ContributionId, DatasetId, DatasetVersionId, PurchaseId},
    offer::{OfferKind, Terms},
    split::Split,
};
use comptoir_store::{
    contributions::{self, Acceptance, NewContribution},
    ledger,
    offers::{self, NewOffer, Offer},
    purchases::{self, Due, NewPurchase},
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use sqlx::PgPool;
use time::Duration;
use uuid::Uuid;

use crate::harness::{ALICE, BOB, Money, NOW, PLATFORM, amount};

const STEPS: usize = 60;
const GIVERS: usize = 5;
const MONEY: u128 = 100_000_000;
const MONTH: u32 = 2_592_000;

#[derive(Debug, Clone)]
enum Step {
    /// The owner changes the terms.
    Invite { per_row: u128, pool_ppm: u32 },
    /// Somebody offers rows, and the owner accepts.
    Give { giver: usize, rows: u64 },
    /// The buyer rents for so many seconds: the split is frozen, nothing charged.
    Rent { seconds: u32, price: usize },
    /// A rental ends at its time.
    End { which: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (0..9_u128, prop_oneof![0..=1_000_000_u32, Just(0), Just(1_000_000)])
            .prop_map(|(per_row, pool_ppm)| Step::Invite { per_row, pool_ppm }),
        3 => (0..GIVERS, 1..700_u64).prop_map(|(giver, rows)| Step::Give { giver, rows }),
        6 => (1..300_u32, 0..3_usize).prop_map(|(seconds, price)| Step::Rent { seconds, price }),
        6 => any::<usize>().prop_map(|which| Step::End { which }),
    ];
    prop::collection::vec(step, STEPS)
}

fn giver(place: usize) -> Address {
    Address::repeat_byte(u8::try_from(place).unwrap() + 1)
}

/// What every split shared, and what every contributor was rewarded.
#[derive(Default)]
struct Model {
    accepted: Vec<AcceptedRows>,
    rewards: BTreeMap<Address, u128>,
    open: Vec<(PurchaseId, Split, u128)>,
    shared: Vec<(Split, u128)>,
}

impl Model {
    /// The whole units that a payee was ever credited: of each split the floor of its part, whatever the order of charges.
    fn earned(&self, payee: Address) -> u128 {
        let of_splits = self.shared.iter().map(|(split, gross)| {
            let parties = split.parties().iter();
            let party = parties.filter(|it| it.payee == payee && !it.platform);
            party
                .map(|it| gross * u128::from(it.ppm) / 1_000_000)
                .sum::<u128>()
        });
        of_splits.sum::<u128>() + self.rewards.get(&payee).copied().unwrap_or_default()
    }

    fn share(&mut self, split: Split, gross: u128) {
        match self.shared.iter_mut().find(|(it, _)| *it == split) {
            Some((_, sum)) => *sum += gross,
            None => self.shared.push((split, gross)),
        }
    }
}

struct History {
    money: Money,
    owner: AccountId,
    buyer: AccountId,
    givers: Vec<AccountId>,
    dataset: DatasetId,
    offers: Vec<Offer>,
    platform_ppm: u32,
    model: Model,
    rows: u32,
}

/// A ready version of a dataset of the account, with one table of so many rows; `number` makes its bytes differ from all others.
async fn publish(
    money: &Money,
    account: AccountId,
    number: u32,
    rows: u64,
) -> (DatasetId, DatasetVersionId) {
    let (dataset, version) = (Uuid::now_v7(), Uuid::now_v7());
    for statement in [
        "INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
         SELECT $1, $2, $3, 't', '', 'MIT', '', '{}', 'listed', now(), now() WHERE $4 <> $1 AND $5 > 0",
        "INSERT INTO dataset_versions (version_id, dataset_id, account_id, state, notes, wrapped_key, created_at)
         SELECT $4, $1, $2, 'draft', '', decode(repeat('00', 60), 'hex'), now() WHERE $3 <> '' AND $5 > 0",
        "INSERT INTO dataset_files (file_id, version_id, path, path_folded, format, bytes, sha256, part_bytes, is_sample, created_at)
         SELECT $1, $4, 'a.csv', 'a.csv', 'csv', $5, sha256(convert_to($3, 'UTF8')), 65536, false, created_at FROM datasets
         WHERE account_id = $2 AND dataset_id = $1",
        "UPDATE dataset_versions SET state = 'checking', submitted_at = now() WHERE version_id = $4 AND dataset_id = $1 AND account_id = $2 AND $3 <> '' AND $5 > 0",
        "UPDATE dataset_files SET facts = jsonb_build_object('rows', $5, 'columns', '[]'::jsonb) WHERE version_id = $4 AND $1 <> $2 AND $3 <> ''",
        "UPDATE dataset_versions SET state = 'ready', number = 1, manifest_root = sha256(convert_to($3, 'UTF8')), published_at = now()
         WHERE version_id = $4 AND dataset_id = $1 AND account_id = $2 AND $5 > 0",
    ] {
        let query = sqlx::query(statement).bind(dataset).bind(account.0);
        let query = query.bind(format!("d{number}")).bind(version);
        let query = query.bind(i64::try_from(rows).unwrap());
        query.execute(&money.owner).await.unwrap();
    }
    (DatasetId(dataset), DatasetVersionId(version))
}

impl History {
    async fn new(money: Money, platform_ppm: u32) -> Self {
        let owner = money.bind(ALICE, false).await;
        let buyer = money.bind(BOB, false).await;
        let mut givers = Vec::new();
        for place in 0..GIVERS {
            givers.push(money.bind(giver(place), false).await);
        }
        for account in [ALICE, BOB] {
            money.deposit(account, MONEY).await;
        }
        let (dataset, _) = publish(&money, owner, 0, 1).await;
        let mut offers = Vec::new();
        for price in [1, 7, 1_003] {
            let terms = Terms {
                kind: OfferKind::Rent,
                version: None,
                answer_seconds: None,
                refund_seconds: 0,
                period_seconds: Some(MONTH),
                minimum_seconds: 0,
                programs: None,
                output_bytes_max: None,
                is_released_by_seller: false,
            };
            let new = NewOffer {
                dataset,
                account: owner,
                asset_id: money.asset,
                terms: &terms,
                price: amount(price),
                platform_ppm,
            };
            let mut tx = money.api.begin().await.unwrap();
            let id = offers::create(&mut tx, &new, NOW).await.unwrap();
            offers.push(offers::find(&mut tx, id, NOW).await.unwrap().unwrap());
            tx.commit().await.unwrap();
        }
        Self {
            money,
            owner,
            buyer,
            givers,
            dataset,
            offers,
            platform_ppm,
            model: Model::default(),
            rows: 0,
        }
    }

    async fn run(&mut self, step: &Step) {
        match step {
            Step::Invite { per_row, pool_ppm } => self.invite(*per_row, *pool_ppm).await,
            Step::Give { giver, rows } => self.give(*giver, *rows).await,
            Step::Rent { seconds, price } => self.rent(*seconds, *price).await,
            Step::End { which } => self.end(*which).await,
        }
    }

    async fn invite(&self, per_row: u128, pool_ppm: u32) {
        let terms = Invitation {
            reward: amount(per_row),
            pool_ppm,
            rows_max: 1_000,
            is_open: true,
        };
        let mut tx = self.money.api.begin().await.unwrap();
        let of = (self.money.asset, terms);
        contributions::set_terms(&mut tx, self.dataset, of, NOW)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    async fn give(&mut self, place: usize, rows: u64) {
        self.rows += 1;
        let account = self.givers[place];
        let (_, version) = publish(&self.money, account, self.rows, rows).await;
        let new = NewContribution {
            account,
            dataset: self.dataset,
            version,
            note: None,
        };
        let mut tx = self.money.api.begin().await.unwrap();
        let id: ContributionId = contributions::offer(&mut tx, &new, NOW).await.unwrap();
        let found = contributions::find(&mut tx, id).await.unwrap().unwrap();
        assert_eq!(found.reward.base(), u128::from(rows) * found.per_row.base());
        let acceptance = Acceptance {
            owner: self.owner,
            payer: Some(ALICE),
            spender: None,
            expected: found.reward,
        };
        for _ in 0..2 {
            contributions::accept(&mut tx, id, &acceptance, NOW)
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
        *self.model.rewards.entry(giver(place)).or_default() += found.reward.base();
        self.model.accepted.push(AcceptedRows {
            payee: giver(place),
            rows,
            pool_ppm: found.pool_ppm,
        });
    }

    async fn rent(&mut self, seconds: u32, price: usize) {
        let offer = self.offers[price].clone();
        let held = offer.terms.held(offer.price.amount, Some(seconds)).unwrap();
        let new = NewPurchase {
            account: self.buyer,
            payer: Some(BOB),
            spender: None,
            offer: offer.id,
            expected: held,
            seconds: Some(seconds),
            cap: None,
            note: None,
        };
        let mut tx = self.money.api.begin().await.unwrap();
        let taken = purchases::take(&mut tx, &new, NOW).await.unwrap();
        tx.commit().await.unwrap();
        let payees = weights(ALICE, &self.model.accepted).unwrap();
        let split = Split::new(PLATFORM, self.platform_ppm, &payees).unwrap();
        self.model.open.push((taken.id, split, held.base()));
    }

    async fn end(&mut self, which: usize) {
        if self.model.open.is_empty() {
            return;
        }
        let place = which % self.model.open.len();
        let (id, split, gross) = self.model.open.swap_remove(place);
        let mut tx = self.money.api.begin().await.unwrap();
        let later = NOW + Duration::days(60);
        purchases::step(&mut tx, Due::Over(id), later)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        self.model.share(split, gross);
    }

    async fn check(&self) {
        let mut sum = 0;
        for place in 0..GIVERS {
            let balances = self.money.balances(giver(place)).await;
            let available = balances.available.base();
            assert_eq!(available, self.model.earned(giver(place)));
            sum += available;
        }
        let rewards: u128 = self.model.rewards.values().sum();
        let owner = self.money.balances(ALICE).await;
        assert_eq!(
            owner.available.base(),
            MONEY + self.model.earned(ALICE) - rewards
        );
        let buyer = self.money.balances(BOB).await;
        let held: u128 = self.model.open.iter().map(|(_, _, held)| held).sum();
        assert_eq!(buyer.held.base(), held);
        sum += owner.available.base() + buyer.available.base() + held;
        let mut conn = self.money.api.acquire().await.unwrap();
        let house = ledger::house_balances(&mut conn, self.money.asset)
            .await
            .unwrap();
        sum += house.fees.base() + house.split_dust.base();
        assert_eq!(sum, 2 * MONEY, "nothing is made or lost");
        assert_eq!(house.deposits.base(), 2 * MONEY);
    }
}

async fn history(db: PgPool, seed: u8) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let drawn = (0..=200_000_u32, steps()).new_tree(&mut runner);
    let (platform_ppm, steps) = drawn.unwrap().current();
    let mut run = History::new(Money::new(db).await, platform_ppm).await;
    run.invite(3, 333_333).await;
    for step in &steps {
        run.run(step).await;
        run.check().await;
    }
    while !run.model.open.is_empty() {
        run.end(0).await;
    }
    run.check().await;
    assert!(
        run.model.shared.len() > 3 && !run.model.accepted.is_empty(),
        "history {seed} shares by several splits"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_contributors_are_credited_is_the_floor_of_their_part_of_every_split(db: PgPool) {
    history(db, 1).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn so_it_is_in_another_history(db: PgPool) {
    history(db, 2).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn so_it_is_in_a_third_history(db: PgPool) {
    history(db, 3).await;
}
