//! Deposits on their way into the ledger.

use alloy_primitives::{Address, B256};
use comptoir_domain::{
    ledger::AccountKey,
    settlement::event::{Event, Logged},
};
use comptoir_store::{assets, chain, deposits, ledger};
use sqlx::PgPool;

use crate::{
    guards::{RESTRICT_VIOLATION, code},
    harness::{ALICE, BOB, Money, NOW},
};

/// Shows a deposit of 5 base units for each owner, in this order, all in block 1.
async fn show(money: &Money, owners: &[Address]) {
    let block = |number: u8| chain::Block {
        number: number.into(),
        hash: B256::repeat_byte(number + 1),
        parent_hash: B256::repeat_byte(number),
    };
    let events: Vec<_> = owners
        .iter()
        .zip(1..)
        .map(|(owner, seq)| Logged {
            block_number: 1,
            block_hash: block(1).hash,
            tx_hash: B256::repeat_byte(7),
            log_index: seq,
            event_seq: seq,
            event: Event::Deposited {
                account: *owner,
                from: *owner,
                deposit_seq: seq,
                amount: 5,
            },
        })
        .collect();
    let mut tx = money.settler.begin().await.unwrap();
    chain::begin(&mut tx, money.asset, &block(0), NOW)
        .await
        .unwrap();
    chain::append(&mut tx, money.asset, &block(1), &events, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

/// Credits in a transaction of its own, as the settler does; returns how many.
async fn credit(money: &Money) -> u64 {
    let mut conn = money.settler.acquire().await.unwrap();
    let asset = assets::find(&mut conn, money.asset).await.unwrap();
    drop(conn);
    let mut tx = money.settler.begin().await.unwrap();
    let credited = deposits::credit(&mut tx, &asset, 1, NOW).await.unwrap();
    tx.commit().await.unwrap();
    credited
}

/// Returns once a statement waits for another transaction's lock.
pub async fn until_one_waits(money: &Money) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    loop {
        let waits: i64 = sqlx::query_scalar(waiting)
            .fetch_one(&money.owner)
            .await
            .unwrap();
        if waits > 0 {
            return;
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn deposits_are_credited_in_the_ledgers_lock_order_whatever_order_they_came_in(db: PgPool) {
    let money = Money::new(db).await;
    let mut owners = [ALICE, BOB];
    owners.sort_by_key(|owner| AccountKey::Available(*owner).id(money.asset).0);
    let [first, last] = owners;
    for owner in owners {
        money.deposit(owner, 1).await;
    }
    show(&money, &[last, first]).await;
    // Another transaction takes both accounts in order, and crediting comes in between.
    let mut other = money.scheduler.begin().await.unwrap();
    ledger::lock(&mut other, money.asset, [AccountKey::Available(first)])
        .await
        .unwrap();
    let go_on = async {
        until_one_waits(&money).await;
        ledger::lock(&mut other, money.asset, [AccountKey::Available(last)])
            .await
            .expect("no deadlock");
        other.commit().await.unwrap();
    };
    let (credited, ()) = tokio::join!(credit(&money), go_on);
    assert_eq!(credited, 2);
    assert_eq!(credit(&money).await, 0);
    assert_eq!(money.bases(ALICE).await, (6, 0, 0));
    assert_eq!(money.bases(BOB).await, (6, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn five_hundred_deposits_are_credited_by_one_transaction_and_the_rest_by_the_next(
    db: PgPool,
) {
    let money = Money::new(db).await;
    show(&money, &[ALICE; 501]).await;
    assert_eq!(credit(&money).await, 500);
    assert_eq!(money.bases(ALICE).await, (2_500, 0, 0));
    assert_eq!(credit(&money).await, 1);
    assert_eq!(credit(&money).await, 0);
    assert_eq!(money.bases(ALICE).await, (2_505, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_credited_deposit_neither_goes_away_nor_changes(db: PgPool) {
    let money = Money::new(db).await;
    show(&money, &[ALICE]).await;
    assert_eq!(credit(&money).await, 1);
    for statement in [
        "DELETE FROM deposits",
        "UPDATE deposits SET credited_at = NULL",
    ] {
        let refused = sqlx::query(statement).execute(&money.settler).await;
        let error = refused.expect_err(statement);
        assert_eq!(code(&error), RESTRICT_VIOLATION, "{statement}: {error}");
    }
}
