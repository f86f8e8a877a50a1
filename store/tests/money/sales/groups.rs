//! Purchases that are committed together.

use comptoir_domain::amount::Amount;
use comptoir_store::{
    PgTransaction,
    purchases::{self, NewPurchase, Purchase, Stall, TakeError},
};
use sqlx::PgPool;
use time::Duration;

use super::{BUYERS, Dice, Market};

const GROUPS: u64 = 24;
const WISHES: u64 = 7;

/// What a buyer is told, without the identifiers, which are others each time.
fn told(taken: &Result<Purchase, TakeError>) -> String {
    match taken {
        Ok(it) => format!(
            "{:?}",
            (
                it.account,
                it.offer,
                it.state,
                it.amount,
                it.starts_at,
                it.ends_at,
                it.final_at
            )
        ),
        Err(TakeError::Owned(_)) => "owned".to_owned(),
        Err(TakeError::Requested(_)) => "requested".to_owned(),
        Err(TakeError::Subscribed(_)) => "subscribed".to_owned(),
        Err(refused) => format!("{refused:?}"),
    }
}

async fn one_after_the_other(
    market: &Market,
    tx: &mut PgTransaction<'_>,
    wishes: &[NewPurchase],
) -> Vec<String> {
    let mut answers = Vec::new();
    for wish in wishes {
        let mut point = sqlx::Acquire::begin(&mut **tx).await.unwrap();
        let taken = purchases::take(&mut point, wish, market.now).await;
        answers.push(told(&taken));
        match taken {
            Ok(_) => point.commit().await.unwrap(),
            Err(_) => point.rollback().await.unwrap(),
        }
    }
    answers
}

async fn together(
    market: &Market,
    tx: &mut PgTransaction<'_>,
    wishes: &[NewPurchase],
) -> Vec<String> {
    let wanted: Vec<_> = wishes.iter().map(|it| (it.account, it.offer)).collect();
    let stall = Stall::lock(tx, &wanted, market.now).await.unwrap();
    let taken = purchases::take_all(tx, &stall, wishes, market.now);
    taken.await.unwrap().iter().map(told).collect()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_group_takes_what_its_buyers_would_have_taken_one_after_the_other(db: PgPool) {
    let mut market = Market::open(db).await;
    let mut dice = Dice(20_261_124);
    let (mut taken, mut refused) = (0, std::collections::BTreeSet::new());
    for _ in 0..GROUPS {
        let mut tx = market.begin().await;
        let mut wishes = Vec::new();
        for _ in 0..WISHES {
            let [buyer, offer, seconds, odd] =
                [BUYERS.len() as u64, market.offers.len() as u64, 8_000, 9].map(|it| dice.roll(it));
            let [buyer, offer] = [buyer, offer].map(|it| usize::try_from(it).unwrap());
            let seconds = u32::try_from(seconds).unwrap() + 1;
            let mut wish = market.wish(&mut tx, buyer, offer, seconds).await;
            if odd == 0 {
                wish.expected = wish
                    .expected
                    .checked_add(Amount::from_base(1).unwrap())
                    .unwrap();
            }
            wishes.push(wish);
        }
        let expected = one_after_the_other(&market, &mut tx, &wishes).await;
        tx.rollback().await.unwrap();
        let mut tx = market.begin().await;
        let answers = together(&market, &mut tx, &wishes).await;
        tx.commit().await.unwrap();
        assert_eq!(answers, expected);
        for answer in answers {
            if answer.starts_with("((") || answer.starts_with("(Acc") {
                taken += 1;
            } else {
                refused.insert(answer.split(['(', ' ']).next().unwrap().to_owned());
            }
        }
        market.adds_up().await;
        market.is_explained().await;
        market.now += Duration::hours(2);
    }
    // Else it shows little.
    assert!(taken > 10, "{taken} were taken");
    for reason in ["owned", "requested", "subscribed", "PriceChanged", "Hold"] {
        assert!(
            refused.contains(reason),
            "{reason} is not among {refused:?}"
        );
    }
}
