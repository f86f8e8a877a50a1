//! Random histories of purchases: whatever is taken, given back, ended, answered and renewed, and whichever datasets are blocked and back, the
//! books add up after every step, and the leaves explain them.

mod checks;
mod groups;

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    dataset::VersionState,
    id::{AccountId, DatasetId, DatasetVersionId, OfferId, PurchaseId},
    offer::{OfferKind, Terms},
    purchase::PurchaseState,
    takedown::{Act, Ground},
};
use comptoir_store::{
    PgTransaction,
    dataset_inputs::{self, QuotedData},
    dataset_servings,
    dataset_versions::{self, ShredError},
    datasets,
    holdback::proceeds,
    offers::{self, NewOffer},
    purchases::{self, NewPurchase, Purchase, TakeError},
    subscriptions,
    takedowns::{self, FileError, NewTakedown},
};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

use crate::harness::{ALICE, BOB, CAROL, Money, NOW};

const SELLER: Address = CAROL;
const DAVE: Address = Address::repeat_byte(0xda);
const BUYERS: [Address; 2] = [ALICE, BOB];
const MONEY: u128 = 20_000;
const PPM: u32 = 70_003;
const DAY: u32 = 86_400;
/// Within what is rented and what time passes, so that it counts for some and not for others.
const MINIMUM: u32 = 43_200;

/// The numbers of a history: the same for a seed at each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

struct Market {
    money: Money,
    buyers: Vec<AccountId>,
    seller: AccountId,
    claimant: AccountId,
    offers: Vec<OfferId>,
    /// What each of them sells.
    versions: Vec<(DatasetId, DatasetVersionId)>,
    now: OffsetDateTime,
}

fn terms(kind: OfferKind, refund_seconds: u32, answer_seconds: Option<u32>) -> Terms {
    let lasts = matches!(kind, OfferKind::Rent | OfferKind::Subscribe);
    Terms {
        kind,
        version: None,
        answer_seconds,
        refund_seconds,
        period_seconds: lasts.then_some(DAY),
        minimum_seconds: if lasts { MINIMUM } else { 0 },
        programs: None,
        output_bytes_max: None,
        is_released_by_seller: false,
    }
}

impl Market {
    async fn open(db: PgPool) -> Self {
        let money = Money::new(db).await;
        let seller = money.bind(SELLER, true).await;
        let claimant = money.bind(DAVE, false).await;
        let mut buyers = Vec::new();
        for buyer in BUYERS {
            buyers.push(money.bind(buyer, false).await);
            money.deposit(buyer, MONEY).await;
        }
        let mut market = Self {
            money,
            buyers,
            seller,
            claimant,
            offers: vec![],
            versions: vec![],
            now: NOW,
        };
        for (terms, price) in [
            (terms(OfferKind::Buy, 0, None), 1_777),
            (terms(OfferKind::Buy, 7_200, None), 901),
            (terms(OfferKind::Rent, 0, None), 1),
            (terms(OfferKind::Subscribe, 0, None), 997),
            (terms(OfferKind::Buy, 3_600, Some(DAY)), 503),
            (terms(OfferKind::Rent, 0, Some(3_600)), 1),
            (terms(OfferKind::Buy, 86_400, None), 311),
            (terms(OfferKind::Buy, 86_400, None), 313),
            (terms(OfferKind::Buy, 86_400, None), 317),
            (terms(OfferKind::Buy, 3_600, Some(DAY)), 331),
            (terms(OfferKind::Subscribe, 0, Some(DAY)), 337),
        ] {
            let (offer, version) = market.offer(&terms, price).await;
            market.offers.push(offer);
            market.versions.push(version);
        }
        market
    }

    /// An offer of a listed dataset of its own.
    async fn offer(&self, terms: &Terms, price: u128) -> (OfferId, (DatasetId, DatasetVersionId)) {
        let (dataset, version) = (DatasetId::generate(), DatasetVersionId::generate());
        let mut tx = self.money.owner.begin().await.unwrap();
        sqlx::query(
            "INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
             VALUES ($1, $2, $3, 'x', '', 'MIT', '', '{}', 'listed', $4, $4)",
        )
        .bind(dataset.0)
        .bind(self.seller.0)
        .bind(dataset.to_string())
        .bind(NOW)
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO dataset_versions (version_id, dataset_id, account_id, number, state, notes, wrapped_key, manifest_root, created_at, published_at)
             VALUES ($1, $2, $3, 1, 'ready', '', $4, $5, $6, $6)",
        )
        .bind(version.0)
        .bind(dataset.0)
        .bind(self.seller.0)
        .bind(&[0_u8; 60][..])
        .bind(&[7_u8; 32][..])
        .bind(NOW)
        .execute(&mut *tx)
        .await
        .unwrap();
        let new = NewOffer {
            dataset,
            account: self.seller,
            asset_id: self.money.asset,
            terms,
            price: Amount::from_base(price).unwrap(),
            platform_ppm: PPM,
        };
        let id = offers::create(&mut tx, &new, NOW).await.unwrap();
        tx.commit().await.unwrap();
        (id, (dataset, version))
    }

    async fn begin(&self) -> PgTransaction<'static> {
        self.money.api.begin().await.unwrap()
    }

    /// What somebody takes who looked at the price.
    async fn wish(
        &self,
        tx: &mut PgTransaction<'_>,
        buyer: usize,
        offer: usize,
        seconds: u32,
    ) -> NewPurchase {
        let found = offers::find(tx, self.offers[offer], self.now).await;
        let offer = found.unwrap().unwrap();
        let rents = offer.terms.kind == OfferKind::Rent;
        let seconds = rents.then_some(seconds);
        NewPurchase {
            account: self.buyers[buyer],
            payer: Some(BUYERS[buyer]),
            spender: None,
            offer: offer.id,
            expected: offer.terms.held(offer.price.amount, seconds).unwrap(),
            seconds,
            cap: None,
            note: None,
        }
    }

    /// Takes an offer; what cannot be taken now is refused for a reason that a buyer may meet.
    async fn take(&self, buyer: usize, offer: usize, seconds: u32) -> bool {
        let mut tx = self.begin().await;
        let new = self.wish(&mut tx, buyer, offer, seconds).await;
        match purchases::take(&mut tx, &new, self.now).await {
            Ok(_) => {
                tx.commit().await.unwrap();
                true
            }
            Err(
                TakeError::Owned(_)
                | TakeError::Requested(_)
                | TakeError::Subscribed(_)
                | TakeError::TooLong(_)
                | TakeError::Blocked(_)
                | TakeError::NotOnSale
                | TakeError::Hold(comptoir_store::holds::HoldError::InsufficientFunds { .. }),
            ) => false,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Does something with a purchase, which may be too late.
    async fn act(&self, id: PurchaseId, what: u64) -> bool {
        let mut tx = self.begin().await;
        let purchase = purchases::lock(&mut tx, id).await.unwrap().unwrap();
        let done = match what {
            0 => purchases::refund(&mut tx, &purchase, "test", self.now)
                .await
                .is_ok(),
            1 => purchases::end_by_buyer(&mut tx, &purchase, self.now)
                .await
                .is_ok(),
            2 => {
                let is_final = purchases::make_final(&mut tx, id, self.now).await.is_ok();
                if is_final {
                    let read = dataset_servings::begin(&mut tx, id, self.now).await;
                    read.unwrap();
                }
                is_final
            }
            // Reads it, and ends it: what the least time is for.
            5 => {
                let read = purchases::make_final(&mut tx, id, self.now).await;
                let begun = dataset_servings::begin(&mut tx, id, self.now).await;
                begun.unwrap();
                read.is_ok()
                    && purchases::end_by_buyer(&mut tx, &purchase, self.now)
                        .await
                        .is_ok()
            }
            6 => {
                let of = (purchase.account, purchase.subscription);
                let (account, Some(subscription)) = of else {
                    return false;
                };
                subscriptions::cancel(&mut tx, (account, subscription), self.now)
                    .await
                    .is_ok()
            }
            3 => purchases::approve(&mut tx, (self.seller, id), self.now)
                .await
                .is_ok(),
            _ => purchases::deny(&mut tx, (self.seller, id), "test", self.now)
                .await
                .is_ok(),
        };
        if done {
            tx.commit().await.unwrap();
        }
        done
    }

    /// Lets time pass, in steps that are as late as steps may be.
    async fn pass(&mut self, seconds: u64) {
        self.now += Duration::seconds(seconds.cast_signed());
        loop {
            let due =
                purchases::due(&mut self.money.api.acquire().await.unwrap(), self.now, 3).await;
            let due = due.unwrap();
            if due.is_empty() {
                return;
            }
            self.move_proceeds().await;
            for it in &due {
                let mut tx = self.begin().await;
                purchases::step(&mut tx, *it, self.now).await.unwrap();
                tx.commit().await.unwrap();
            }
            let only_renewals = due
                .iter()
                .all(|it| matches!(it, purchases::Due::Renewing(_)));
            if only_renewals {
                return;
            }
        }
    }

    /// A job of a buyer opens what an offer sells, if its right stands.
    async fn compute(&self, buyer: usize, offer: usize) -> bool {
        let (account, (_, version)) = (self.buyers[buyer], self.versions[offer]);
        let mut tx = self.money.scheduler.begin().await.unwrap();
        let data = QuotedData {
            version,
            price: None,
        };
        let served = dataset_inputs::serve(&mut tx, account, data, self.now).await;
        let served = served.unwrap();
        tx.commit().await.unwrap();
        served
    }

    /// The seller takes a dataset off the list and throws its only version away, if nobody needs it.
    async fn shred(&self, offer: usize) -> bool {
        let (dataset, version) = self.versions[offer];
        let mut tx = self.begin().await;
        datasets::withdraw(&mut tx, dataset, self.now)
            .await
            .unwrap();
        let version = dataset_versions::lock(&mut tx, self.seller, (dataset, version)).await;
        let version = version.unwrap().unwrap();
        match dataset_versions::shred(&mut tx, &version, self.now).await {
            Ok(()) => {
                tx.commit().await.unwrap();
                version.state == VersionState::Ready
            }
            Err(ShredError::Sold | ShredError::Disputed) => false,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Who waits for an answer, or has something that is not over, finds it there, unless it was taken down.
    async fn is_there(&self) {
        let missing: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM purchases p JOIN dataset_versions v USING (dataset_id) JOIN datasets d USING (dataset_id)
             LEFT JOIN entitlements e USING (purchase_id)
             WHERE v.state = 'shredded' AND d.blocked_by IS NULL AND (p.state IN ('requested', 'granted')
               OR p.state = 'settled' AND e.ended_at IS NULL AND coalesce(e.ends_at > $1, true))",
        )
        .bind(self.now)
        .fetch_one(&self.money.owner)
        .await
        .unwrap();
        assert_eq!(missing, 0);
    }

    /// Blocks the dataset of an offer, or decides what blocks it: wrongly blocked, one time of two.
    async fn take_down(&self, offer: usize, dice: &mut Dice) -> &'static str {
        let mut tx = self.money.owner.begin().await.unwrap();
        let offer = offers::find(&mut tx, self.offers[offer], self.now).await;
        let dataset = offer.unwrap().unwrap().dataset;
        let new = NewTakedown {
            account: self.claimant,
            dataset,
            seller: self.seller,
            ground: Ground::Other,
            statement: "mine",
        };
        let (id, act, name) = match takedowns::file(&mut tx, &new, self.now).await {
            Ok(id) => (id, Act::Freeze, "freeze"),
            Err(FileError::Filed(id)) if dice.roll(2) == 0 => (id, Act::Uphold, "uphold"),
            Err(FileError::Filed(id)) => (id, Act::Reject, "reject"),
            Err(error) => panic!("{error}"),
        };
        // Its clock may have decided it.
        if takedowns::expire(&mut tx, id, self.now)
            .await
            .unwrap()
            .is_none()
        {
            let decided = takedowns::decide(
                &mut tx,
                (AccountId::generate(), id),
                (act, "test"),
                self.now,
            )
            .await;
            decided.unwrap();
        }
        tx.commit().await.unwrap();
        name
    }

    async fn move_proceeds(&self) {
        let mut connection = self.money.scheduler.acquire().await.unwrap();
        let due = proceeds::due(&mut connection, self.now, 100).await.unwrap();
        for dataset in due {
            let mut tx = self.money.scheduler.begin().await.unwrap();
            let moved = proceeds::move_due(&mut tx, dataset, self.now).await;
            assert!(moved.unwrap().1 > 0, "what is due is moved");
            tx.commit().await.unwrap();
        }
    }

    /// An offer that somebody has for some time now.
    async fn lasting(&self) -> Option<usize> {
        let purchases = self.purchases().await;
        let mut lasting = purchases
            .iter()
            .filter(|it| it.state == PurchaseState::Granted && it.seconds.is_some());
        let offer = lasting.next()?.offer;
        self.offers.iter().position(|it| *it == offer)
    }

    async fn purchases(&self) -> Vec<Purchase> {
        let ids: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT purchase_id FROM purchases")
            .fetch_all(&self.money.owner)
            .await
            .unwrap();
        let ids: Vec<_> = ids.into_iter().map(PurchaseId).collect();
        let mut connection = self.money.owner.acquire().await.unwrap();
        purchases::find_all(&mut connection, &ids).await.unwrap()
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_rental_that_was_ended_meanwhile_is_not_read(db: PgPool) {
    const RENTAL: usize = 2;
    let market = Market::open(db).await;
    assert!(market.take(0, RENTAL, 1_000).await);
    let rental = market.purchases().await.remove(0).id;
    assert!(market.act(rental, 1).await, "ended");
    assert!(
        !market.act(rental, 2).await,
        "its right was looked at before"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_books_add_up_after_every_step_of_random_histories_of_purchases(db: PgPool) {
    let mut market = Market::open(db).await;
    let mut dice = Dice(23);
    let mut done = BTreeMap::<&str, u32>::new();
    let mut frozen = None;
    for _ in 0..400 {
        let (buyer, offer) = (
            usize::from(dice.roll(2) == 1),
            usize::try_from(dice.roll(market.offers.len() as u64)).unwrap(),
        );
        let what = dice.roll(14);
        let worked = match what {
            0..=3 => {
                let seconds = u32::try_from(1 + dice.roll(2_000)).unwrap();
                market.take(buyer, offer, seconds).await.then_some("take")
            }
            4..=7 => {
                let open = market.purchases().await;
                let open: Vec<_> = open
                    .into_iter()
                    .filter(|it| it.ended_at.is_none())
                    .collect();
                match open.get(usize::try_from(dice.roll(1 + open.len() as u64)).unwrap()) {
                    Some(purchase) => {
                        // What fits its state, or for one in five whatever comes.
                        let asked = purchase.state == PurchaseState::Requested;
                        let verb = match dice.roll(5) {
                            0 => dice.roll(7),
                            _ if asked => 3 + dice.roll(2),
                            _ => [0, 1, 2, 5, 6][usize::try_from(dice.roll(5)).unwrap()],
                        };
                        let names = [
                            "refund",
                            "end",
                            "final",
                            "approve",
                            "deny",
                            "read and end",
                            "cancel",
                        ];
                        let name = names[usize::try_from(verb).unwrap()];
                        market.act(purchase.id, verb).await.then_some(name)
                    }
                    None => None,
                }
            }
            8 => {
                // One at a time, and rather what somebody has for some time: what is blocked is decided before another is.
                let at = match frozen.take() {
                    Some(at) => at,
                    None => market.lasting().await.unwrap_or(offer),
                };
                let name = market.take_down(at, &mut dice).await;
                frozen = (name == "freeze").then_some(at);
                market.pass(0).await;
                Some(name)
            }
            9 => market.compute(buyer, offer).await.then_some("compute"),
            // Rarely: what is gone is not sold again.
            10 if offer >= 7 => market.shred(offer).await.then_some("shred"),
            _ => {
                market.pass(dice.roll(25_000)).await;
                Some("pass")
            }
        };
        if let Some(name) = worked {
            *done.entry(name).or_default() += 1;
        }
        market.adds_up().await;
        market.is_there().await;
    }
    market.is_explained().await;
    for name in [
        "take",
        "refund",
        "end",
        "final",
        "approve",
        "deny",
        "read and end",
        "cancel",
        "compute",
        "shred",
        "pass",
        "freeze",
        "reject",
    ] {
        assert!(done.contains_key(name), "the history has {name}: {done:?}");
    }
    let raised = market.least_is_paid().await;
    assert!(raised > 0, "something read was ended before its least time");
    let settled = market.purchases().await;
    let settled = settled
        .iter()
        .filter(|it| it.state == PurchaseState::Settled)
        .count();
    assert!(settled > 15, "{settled} were charged");
    let [to, by] = market.forfeited().await;
    assert!(!to.is_empty() && by.len() == 2, "something was forfeited");
}
