//! Money on its way to be claimable.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::AccountId,
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use comptoir_store::{
    holds::HoldError,
    ledger::{self, PostError},
    releases::{self, RELEASES_MAX, Release, ReleaseState, WithdrawalError},
};
use sqlx::PgPool;

use crate::harness::{ALICE, BOB, Money, NOW, PLATFORM, amount};

async fn withdraw(
    money: &Money,
    account: AccountId,
    base: u128,
) -> Result<Release, WithdrawalError> {
    let mut tx = money.api.begin().await.unwrap();
    let owner = (account, ALICE);
    let release =
        releases::request_withdrawal(&mut tx, money.asset, owner, amount(base), NOW).await?;
    tx.commit().await.unwrap();
    Ok(release)
}

async fn cancel(
    money: &Money,
    account: AccountId,
    release: &Release,
) -> Result<Release, WithdrawalError> {
    let mut tx = money.api.begin().await.unwrap();
    let release = releases::cancel_withdrawal(&mut tx, account, release.id, NOW).await?;
    tx.commit().await.unwrap();
    Ok(release)
}

async fn seal(money: &Money, name: &str, at_most: u128) -> Result<Amount, PostError> {
    let mut tx = money.settler.begin().await.unwrap();
    let released =
        releases::release_queued(&mut tx, money.asset, name, amount(at_most), NOW).await?;
    tx.commit().await.unwrap();
    Ok(released)
}

async fn find(money: &Money, account: AccountId, release: &Release) -> Release {
    let mut conn = money.api.acquire().await.unwrap();
    releases::find_withdrawal(&mut conn, account, release.id)
        .await
        .unwrap()
        .expect("it exists")
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_withdrawal_is_held_at_once_and_payable_with_the_next_seal(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    let release = withdraw(&money, alice, 60).await.unwrap();
    assert_eq!(money.bases(ALICE).await, (40, 60, 0));
    assert_eq!(seal(&money, "1", 1_000).await.unwrap(), amount(60));
    assert_eq!(money.bases(ALICE).await, (40, 0, 60));
    let release = find(&money, alice, &release).await;
    assert_eq!(
        (release.state, release.released),
        (ReleaseState::Released, amount(60))
    );
    assert!(matches!(
        cancel(&money, alice, &release).await,
        Err(WithdrawalError::AlreadyReleased)
    ));
    assert_eq!(seal(&money, "2", 1_000).await.unwrap(), Amount::ZERO);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_cap_releases_a_withdrawal_in_parts(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    let release = withdraw(&money, alice, 60).await.unwrap();
    assert_eq!(seal(&money, "1", 25).await.unwrap(), amount(25));
    assert_eq!(money.bases(ALICE).await, (40, 35, 25));
    assert_eq!(
        find(&money, alice, &release).await.state,
        ReleaseState::Queued
    );
    assert_eq!(seal(&money, "2", 0).await.unwrap(), Amount::ZERO);
    assert_eq!(seal(&money, "3", 25).await.unwrap(), amount(25));
    // What is not released yet can be taken back.
    let cancelled = cancel(&money, alice, &release).await.unwrap();
    assert_eq!(
        (cancelled.state, cancelled.released),
        (ReleaseState::Cancelled, amount(50))
    );
    assert_eq!(money.bases(ALICE).await, (50, 0, 50));
    assert_eq!(
        cancel(&money, alice, &release).await.unwrap(),
        cancelled,
        "once more changes nothing"
    );
    assert_eq!(seal(&money, "4", 25).await.unwrap(), Amount::ZERO);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_withdraws_what_it_does_not_have(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    let bob = money.bind(BOB, true).await;
    money.deposit(ALICE, 100).await;
    let refused = withdraw(&money, alice, 101).await;
    assert!(
        matches!(
            refused,
            Err(WithdrawalError::Hold(HoldError::InsufficientFunds { .. }))
        ),
        "{refused:?}"
    );
    assert!(matches!(
        withdraw(&money, alice, 0).await,
        Err(WithdrawalError::Nothing)
    ));
    let release = withdraw(&money, alice, 100).await.unwrap();
    assert!(matches!(
        cancel(&money, bob, &release).await,
        Err(WithdrawalError::NotFound)
    ));
    let mut conn = money.api.acquire().await.unwrap();
    assert!(
        releases::find_withdrawal(&mut conn, bob, release.id)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        releases::list_withdrawals(&mut conn, bob, None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        releases::list_withdrawals(&mut conn, alice, None, 10)
            .await
            .unwrap(),
        [release]
    );
    assert!(
        releases::list_withdrawals(&mut conn, alice, Some(release.id), 10)
            .await
            .unwrap()
            .is_empty()
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn earnings_that_were_spent_before_the_seal_are_not_released(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    let bob = money.bind(BOB, true).await;
    money.deposit(ALICE, 1_000).await;
    for _ in 0..2 {
        let charge = money.held_job(alice, ALICE, 1_000, &[(BOB, 1)]).await;
        money.settle(&charge).await.unwrap();
    }
    // Bob earned twice 351.5 and spends 400 of it on a job of his own.
    assert_eq!(money.bases(BOB).await, (703, 0, 0));
    money.held_job(bob, BOB, 1_081, &[(ALICE, 1)]).await;
    assert_eq!(money.bases(BOB).await, (303, 400, 0));
    assert_eq!(seal(&money, "1", 10_000).await.unwrap(), amount(303 + 37));
    assert_eq!(money.bases(BOB).await, (0, 400, 303));
    assert_eq!(money.bases(PLATFORM).await, (0, 0, 37));
    let mut conn = money.settler.acquire().await.unwrap();
    assert!(
        releases::queued(&mut conn, money.asset, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_seal_releases_once(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    withdraw(&money, alice, 10).await.unwrap();
    seal(&money, "1", 1_000).await.unwrap();
    withdraw(&money, alice, 10).await.unwrap();
    assert!(matches!(
        seal(&money, "1", 1_000).await,
        Err(PostError::AlreadyPosted)
    ));
    assert_eq!(money.bases(ALICE).await, (80, 10, 10));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_cancellation_and_a_seal_of_one_moment_move_the_money_once(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    for round in 0..10 {
        let release = withdraw(&money, alice, 10).await.unwrap();
        let name = format!("race {round}");
        let (cancelled, sealed) =
            tokio::join!(cancel(&money, alice, &release), seal(&money, &name, 1_000));
        let release = find(&money, alice, &release).await;
        assert_eq!(
            cancelled.is_ok(),
            release.state == ReleaseState::Cancelled,
            "{cancelled:?}"
        );
        assert_eq!(sealed.unwrap(), release.released);
    }
    let (available, held, payable) = money.bases(ALICE).await;
    assert_eq!((available + payable, held), (100, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_seal_takes_its_fill_and_leaves_the_rest(db: PgPool) {
    let money = Money::new(db).await;
    let owners: Vec<_> = (0..=RELEASES_MAX)
        .map(|number| Address::left_padding_from(&(number + 1).to_be_bytes()))
        .collect();
    let mut lines = Lines::default();
    for owner in &owners {
        lines = lines
            .debit(AccountKey::Deposits, amount(2))
            .credit(AccountKey::Available(*owner), amount(2));
    }
    let entry = lines
        .into_entry(EntryKind::Deposit, Source::Deposit("all".into()))
        .unwrap();
    let mut tx = money.settler.begin().await.unwrap();
    ledger::post(&mut tx, money.asset, &entry, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    sqlx::query(
        "INSERT INTO releases (release_id, asset_id, owner, kind, amount_base, created_at)
         SELECT gen_random_uuid(), $1, owner, 'earning', 1, $3 FROM UNNEST($2::bytea[]) AS owner",
    )
    .bind(money.asset)
    .bind(
        owners
            .iter()
            .map(|owner| owner.to_vec())
            .collect::<Vec<_>>(),
    )
    .bind(NOW)
    .execute(&money.owner)
    .await
    .unwrap();
    let most = u128::try_from(RELEASES_MAX).unwrap();
    assert_eq!(seal(&money, "1", 1 << 100).await.unwrap(), amount(most));
    assert_eq!(seal(&money, "2", 1 << 100).await.unwrap(), amount(1));
    assert_eq!(seal(&money, "3", 1 << 100).await.unwrap(), Amount::ZERO);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nothing_is_spent_for_an_owner_that_asked_to_leave(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 100).await;
    sqlx::query(
        "INSERT INTO exits (asset_id, event_seq, owner, block_number, due_at, seen_at) VALUES ($1, 1, $2, 1, $3, $3)",
    )
    .bind(money.asset)
    .bind(ALICE.as_slice())
    .bind(NOW)
    .execute(&money.owner)
    .await
    .unwrap();
    let refused = withdraw(&money, alice, 10).await;
    assert!(
        matches!(refused, Err(WithdrawalError::Hold(HoldError::Leaving))),
        "{refused:?}"
    );
    sqlx::query("UPDATE exits SET answered_block_number = 2")
        .execute(&money.owner)
        .await
        .unwrap();
    withdraw(&money, alice, 10).await.unwrap();
}
