//! What the database refuses, whoever asks.

use alloy_primitives::Address;
use comptoir_domain::{
    id::{JobId, JournalEntryId, SplitVersionId},
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use comptoir_store::{
    holds::{HoldError, HoldSource},
    ledger::{self, PostError},
};
use futures::{StreamExt as _, stream};
use sqlx::{PgPool, postgres::PgDatabaseError};

use crate::harness::{ALICE, BOB, Money, NOW, amount};

pub fn code(error: &sqlx::Error) -> String {
    let database = error.as_database_error().expect("refused by the database");
    database.downcast_ref::<PgDatabaseError>().code().to_owned()
}

pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
pub const CHECK_VIOLATION: &str = "23514";
const UNIQUE_VIOLATION: &str = "23505";
pub const RESTRICT_VIOLATION: &str = "23001";

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_service_may_write_a_balance_or_change_what_was_posted(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 100).await;
    let forbidden = [
        "UPDATE ledger_accounts SET balance_base = balance_base + 1",
        "UPDATE ledger_accounts SET version = 0",
        "INSERT INTO ledger_accounts (ledger_account_id, asset_id, code, balance_base) VALUES (gen_random_uuid(), 1, 'fees', 5)",
        "DELETE FROM ledger_accounts",
        "UPDATE postings SET amount_base = 1",
        "DELETE FROM postings",
        "TRUNCATE postings",
        "UPDATE journal_entries SET kind = 'deposit'",
        "DELETE FROM journal_entries",
        "UPDATE holds SET amount_base = 1",
        "DELETE FROM holds",
        "UPDATE releases SET amount_base = 1",
        "DELETE FROM releases",
        "UPDATE receipts SET gross_base = 0",
        "DELETE FROM receipts",
        "UPDATE receipt_splits SET amount_base = 0",
        "UPDATE price_versions SET rate_nano = 1",
        "INSERT INTO price_versions (asset_id, device, rate_nano, minimum_base, platform_ppm, effective_at) VALUES (1, 'cpu', 1, 1, 0, now())",
        "UPDATE assets SET platform = '\\x00'",
        "UPDATE split_parties SET ppm = 1000000",
    ];
    for service in [&money.api, &money.scheduler, &money.settler] {
        for statement in forbidden {
            let error = sqlx::query(statement)
                .execute(service)
                .await
                .expect_err(statement);
            assert_eq!(code(&error), INSUFFICIENT_PRIVILEGE, "{statement}: {error}");
        }
    }
    // What moves carries and marks releases belongs to one service alone.
    for (service, statement) in [
        (&money.api, "UPDATE charge_carries SET cum_atto = 0"),
        (&money.settler, "UPDATE charge_carries SET cum_atto = 0"),
        (&money.api, "UPDATE split_parties SET carry = 0"),
        (&money.api, "UPDATE releases SET released_base = 0"),
        (&money.scheduler, "UPDATE releases SET state = 'released'"),
        (&money.api, "INSERT INTO receipts DEFAULT VALUES"),
        (&money.settler, "INSERT INTO receipts DEFAULT VALUES"),
    ] {
        let error = sqlx::query(statement)
            .execute(service)
            .await
            .expect_err(statement);
        assert_eq!(code(&error), INSUFFICIENT_PRIVILEGE, "{statement}: {error}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn not_even_the_owner_of_the_database_changes_history(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 100).await;
    for statement in [
        "UPDATE postings SET amount_base = 1",
        "DELETE FROM postings",
        "TRUNCATE postings CASCADE",
        "UPDATE journal_entries SET kind = 'hold'",
        "DELETE FROM journal_entries",
        "UPDATE receipts SET gross_base = 0",
        "DELETE FROM receipt_splits",
    ] {
        let error = sqlx::query(statement)
            .execute(&money.owner)
            .await
            .expect_err(statement);
        assert_eq!(code(&error), RESTRICT_VIOLATION, "{statement}: {error}");
    }
}

/// An entry of one deposit, its lines written by hand.
async fn write_lines(money: &Money, lines: &[(AccountKey, i64)]) -> sqlx::Result<JournalEntryId> {
    let id = JournalEntryId::generate();
    let mut tx = money.settler.begin().await?;
    ledger::lock(&mut tx, money.asset, lines.iter().map(|(key, _)| *key)).await?;
    sqlx::query(
        "INSERT INTO journal_entries (journal_entry_id, asset_id, kind, source_kind, source_id, lines, posted_at)
         VALUES ($1, $2, 'deposit', 'deposit', $3, $4, $5)",
    )
    .bind(id.0)
    .bind(money.asset)
    .bind(id.to_string())
    .bind(i16::try_from(lines.len().max(2)).unwrap())
    .bind(NOW)
    .execute(&mut *tx)
    .await?;
    for (line, (key, change)) in (0_i16..).zip(lines) {
        insert_line(&mut tx, money, id, line, (*key, *change)).await?;
    }
    tx.commit().await?;
    Ok(id)
}

async fn insert_line(
    conn: &mut sqlx::PgConnection,
    money: &Money,
    entry: JournalEntryId,
    line: i16,
    (key, change): (AccountKey, i64),
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO postings (journal_entry_id, line, asset_id, ledger_account_id, amount_base)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(entry.0)
    .bind(line)
    .bind(money.asset)
    .bind(key.id(money.asset).0)
    .bind(sqlx::types::BigDecimal::from(change))
    .execute(conn)
    .await?;
    Ok(())
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_entry_that_does_not_sum_to_zero_never_commits(db: PgPool) {
    let money = Money::new(db).await;
    let alice = AccountKey::Available(ALICE);
    for lines in [
        vec![(AccountKey::Deposits, -10), (alice, 9)],
        vec![(AccountKey::Deposits, -10)],
        vec![],
    ] {
        let error = write_lines(&money, &lines).await.expect_err("unbalanced");
        assert_eq!(code(&error), CHECK_VIOLATION, "{error}");
    }
    write_lines(&money, &[(AccountKey::Deposits, -10), (alice, 10)])
        .await
        .unwrap();
    assert_eq!(money.bases(ALICE).await, (10, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_line_is_added_to_an_entry_of_an_earlier_transaction(db: PgPool) {
    let money = Money::new(db).await;
    let alice = AccountKey::Available(ALICE);
    let entry = write_lines(&money, &[(AccountKey::Deposits, -10), (alice, 10)])
        .await
        .unwrap();
    for (line, refusal) in [(2, CHECK_VIOLATION), (1, UNIQUE_VIOLATION)] {
        let mut tx = money.settler.begin().await.unwrap();
        let late = insert_line(&mut tx, &money, entry, line, (alice, 5)).await;
        let error = late.expect_err("a late line");
        assert_eq!(code(&error), refusal, "{error}");
    }
    assert_eq!(money.bases(ALICE).await, (10, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_account_is_overdrawn(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 10).await;
    let mut tx = money.api.begin().await.unwrap();
    let entry = Lines::default()
        .debit(AccountKey::Available(ALICE), amount(11))
        .credit(AccountKey::Held(ALICE), amount(11))
        .into_entry(EntryKind::Hold, Source::JobHold(JobId::generate()))
        .unwrap();
    let refused = ledger::post(&mut tx, money.asset, &entry, NOW).await;
    assert!(
        matches!(refused, Err(PostError::InsufficientFunds)),
        "{refused:?}"
    );
    drop(tx);
    let refused = money
        .hold(HoldSource::Job(JobId::generate()), ALICE, 11)
        .await;
    assert!(
        matches!(refused, Err(HoldError::InsufficientFunds { available }) if available == amount(10))
    );
    assert_eq!(money.bases(ALICE).await, (10, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_database_and_the_domain_name_an_account_alike(db: PgPool) {
    let money = Money::new(db).await;
    let keys = [
        AccountKey::Available(ALICE),
        AccountKey::Held(ALICE),
        AccountKey::HeldBack(BOB),
        AccountKey::Payable(BOB),
        AccountKey::Fees,
        AccountKey::SplitDust(SplitVersionId::generate()),
        AccountKey::Deposits,
    ];
    // The check constraint on the identifier compares; a second lock makes nothing twice.
    for _ in 0..2 {
        let mut tx = money.api.begin().await.unwrap();
        ledger::lock(&mut tx, money.asset, keys).await.unwrap();
        tx.commit().await.unwrap();
    }
    let accounts: i64 = sqlx::query_scalar("SELECT count(*) FROM ledger_accounts")
        .fetch_one(&money.owner)
        .await
        .unwrap();
    assert_eq!(accounts, 7);
    let error = sqlx::query(
        "INSERT INTO ledger_accounts (ledger_account_id, asset_id, owner, code)
         VALUES (gen_random_uuid(), $1, $2, 'available')",
    )
    .bind(money.asset)
    .bind(Address::repeat_byte(7).as_slice())
    .execute(&money.api)
    .await
    .expect_err("another identifier");
    assert_eq!(code(&error), CHECK_VIOLATION, "{error}");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_deposit_counts_once_and_an_entry_is_reversed_once(db: PgPool) {
    let money = Money::new(db).await;
    let entry = money.deposit_as(ALICE, 10, "1:2:3").await.unwrap();
    let again = money.deposit_as(ALICE, 10, "1:2:3").await;
    assert!(matches!(again, Err(PostError::AlreadyPosted)), "{again:?}");
    assert_eq!(money.bases(ALICE).await, (10, 0, 0));
    let reverse = async || {
        let mut tx = money.settler.begin().await.unwrap();
        let reversed = ledger::reverse(&mut tx, entry, NOW).await?;
        tx.commit().await.unwrap();
        Ok::<_, PostError>(reversed)
    };
    let reversal = reverse().await.unwrap();
    assert_eq!(money.bases(ALICE).await, (0, 0, 0));
    assert!(matches!(reverse().await, Err(PostError::AlreadyPosted)));
    let linked: Option<uuid::Uuid> =
        sqlx::query_scalar("SELECT reverses FROM journal_entries WHERE journal_entry_id = $1")
            .bind(reversal.0)
            .fetch_one(&money.owner)
            .await
            .unwrap();
    assert_eq!(linked, Some(entry.0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn two_hundred_opposite_charges_do_not_deadlock(db: PgPool) {
    let money = Money::new(db).await;
    let (alice, bob) = (money.bind(ALICE, true).await, money.bind(BOB, true).await);
    money.deposit(ALICE, 1_000).await;
    money.deposit(BOB, 1_000).await;
    let mut charges = Vec::new();
    for _ in 0..100 {
        // Each pays one base unit to the other, less the platform's 5 %.
        charges.push(money.held_job(alice, ALICE, 1, &[(BOB, 1)]).await);
        charges.push(money.held_job(bob, BOB, 1, &[(ALICE, 1)]).await);
    }
    let settled = stream::iter(&charges)
        .map(|charge| money.settle(charge))
        .buffer_unordered(8);
    let settled: Vec<_> = settled.collect().await;
    for receipt in settled {
        receipt.unwrap();
    }
    assert_eq!(money.bases(ALICE).await, (995, 0, 0));
    assert_eq!(money.bases(BOB).await, (995, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_two_holds_with_money_for_one_one_wins(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 100).await;
    let hold = || money.hold(HoldSource::Job(JobId::generate()), ALICE, 60);
    let (first, second) = tokio::join!(hold(), hold());
    assert_ne!(first.is_ok(), second.is_ok(), "{first:?} {second:?}");
    let lost = first.and(second).unwrap_err();
    assert!(
        matches!(lost, HoldError::InsufficientFunds { available } if available == amount(40)),
        "{lost:?}"
    );
    assert_eq!(money.bases(ALICE).await, (40, 60, 0));
}
