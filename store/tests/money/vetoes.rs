//! A veto takes back what its batch released, and nothing else.

use comptoir_domain::{
    amount::Amount,
    id::{AccountId, BatchId},
    settlement::{BatchState, Header},
};
use comptoir_store::{
    batches::{self, NewBatch},
    exits,
    releases::{self, Release, ReleaseState, WithdrawalError},
};
use sqlx::PgPool;

use crate::harness::{ALICE, BOB, Money, NOW, amount};

/// Releases what is queued, and stores the batch that it is for.
async fn sealed(money: &Money, (number, generation): (u64, u32), at_most: u128) -> BatchId {
    let id = BatchId::generate();
    let mut tx = money.settler.begin().await.unwrap();
    releases::release_queued(&mut tx, money.asset, &id.to_string(), amount(at_most), NOW)
        .await
        .unwrap();
    let header = Header {
        id: number,
        generation,
        receipt_count: 0,
        deposit_seq_seen: 0,
        total_payable: 0,
        total_available: 0,
        deposits_seen: 0,
        prev_hash: alloy_primitives::B256::ZERO,
        receipts_root: alloy_primitives::B256::repeat_byte(1),
        accounts_root: alloy_primitives::B256::repeat_byte(2),
        data_hash: alloy_primitives::B256::repeat_byte(3),
    };
    let batch = NewBatch {
        id,
        header,
        hash: alloy_primitives::keccak256(id.to_string()),
        data_bytes: 1,
        account_count: 0,
        items: &[],
    };
    batches::insert(&mut tx, money.asset, &batch, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    id
}

async fn vetoed(money: &Money, batch: BatchId) {
    let mut tx = money.settler.begin().await.unwrap();
    batches::advance(&mut tx, batch, BatchState::Cancelled, None, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn withdraw(money: &Money, account: AccountId, base: u128) -> Release {
    let mut tx = money.api.begin().await.unwrap();
    let owner = (account, ALICE);
    let release = releases::request_withdrawal(&mut tx, money.asset, owner, amount(base), NOW);
    let release = release.await.unwrap();
    tx.commit().await.unwrap();
    release
}

async fn cancel(money: &Money, account: AccountId, release: &Release) {
    let mut tx = money.api.begin().await.unwrap();
    releases::cancel_withdrawal(&mut tx, account, release.id, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn find(money: &Money, account: AccountId, release: &Release) -> Release {
    let mut conn = money.owner.acquire().await.unwrap();
    releases::find_withdrawal(&mut conn, account, release.id)
        .await
        .unwrap()
        .unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_vetoed_batch_released_waits_again_and_what_others_released_stays(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    let release = withdraw(&money, alice, 60).await;
    let first = sealed(&money, (1, 0), 20).await;
    let second = sealed(&money, (2, 0), 15).await;
    assert_eq!(money.bases(ALICE).await, (40, 25, 35));

    vetoed(&money, second).await;
    assert_eq!(money.bases(ALICE).await, (40, 40, 20));
    let left = find(&money, alice, &release).await;
    assert_eq!(
        (left.state, left.released),
        (ReleaseState::Queued, amount(20))
    );
    // Once, however often it is said.
    vetoed(&money, second).await;
    assert_eq!(money.bases(ALICE).await, (40, 40, 20));

    sealed(&money, (2, 1), 1_000).await;
    assert_eq!(money.bases(ALICE).await, (40, 0, 60));
    assert_eq!(
        find(&money, alice, &release).await.state,
        ReleaseState::Released
    );
    let mut conn = money.owner.acquire().await.unwrap();
    let kept = batches::find(&mut conn, first).await.unwrap().unwrap();
    assert_eq!(kept.state, BatchState::Sealed);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_taken_back_of_a_withdrawal_stays_taken_back_after_a_veto(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    let release = withdraw(&money, alice, 60).await;
    let batch = sealed(&money, (1, 0), 20).await;
    cancel(&money, alice, &release).await;
    assert_eq!(money.bases(ALICE).await, (80, 0, 20));

    vetoed(&money, batch).await;
    assert_eq!(money.bases(ALICE).await, (80, 20, 0));
    let again = find(&money, alice, &release).await;
    assert_eq!(
        (again.state, again.amount, again.released),
        (ReleaseState::Queued, amount(20), Amount::ZERO)
    );
    // This part was released once: it cannot be taken back, and goes out with the next batch.
    let mut tx = money.api.begin().await.unwrap();
    let refused = releases::cancel_withdrawal(&mut tx, alice, again.id, NOW).await;
    assert!(matches!(refused, Err(WithdrawalError::AlreadyReleased)));
    drop(tx);
    sealed(&money, (1, 1), 1_000).await;
    assert_eq!(money.bases(ALICE).await, (80, 0, 20));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_seal_that_was_cut_short_belongs_to_the_batch_that_comes_of_the_next(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    withdraw(&money, alice, 30).await;
    let mut tx = money.settler.begin().await.unwrap();
    releases::release_queued(&mut tx, money.asset, "cut short", amount(10), NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let batch = sealed(&money, (1, 0), 1_000).await;
    assert_eq!(money.bases(ALICE).await, (70, 0, 30));
    vetoed(&money, batch).await;
    assert_eq!(money.bases(ALICE).await, (70, 30, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn exits_release_what_each_owner_has_oldest_first_and_a_veto_gives_it_back(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 100).await;
    money.deposit(BOB, 50).await;
    for (event, owner) in [(7_i64, BOB), (8, ALICE)] {
        sqlx::query(
            "INSERT INTO exits (asset_id, event_seq, owner, block_number, due_at, seen_at) VALUES ($1, $2, $3, 1, $4, $4)",
        )
        .bind(money.asset)
        .bind(event)
        .bind(owner.as_slice())
        .bind(NOW)
        .execute(&money.owner)
        .await
        .unwrap();
    }
    let mut tx = money.settler.begin().await.unwrap();
    let moved = exits::release(&mut tx, money.asset, "1/exits", amount(120), NOW).await;
    assert_eq!(moved.unwrap(), amount(120));
    tx.commit().await.unwrap();
    assert_eq!(money.bases(BOB).await, (0, 0, 50));
    assert_eq!(money.bases(ALICE).await, (30, 0, 70));
    let batch = sealed(&money, (1, 0), 0).await;
    vetoed(&money, batch).await;
    assert_eq!(money.bases(BOB).await, (50, 0, 0));
    assert_eq!(money.bases(ALICE).await, (100, 0, 0));
}
