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
        "DELETE FROM holds",
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
        // A withdrawal that was released in part shrinks when a veto gives that back; nothing else shrinks.
        (&money.api, "UPDATE holds SET amount_base = 1"),
        (&money.scheduler, "UPDATE holds SET amount_base = 1"),
        (&money.api, "UPDATE releases SET amount_base = 1"),
        (&money.scheduler, "UPDATE releases SET amount_base = 1"),
        (&money.api, "UPDATE charge_carries SET cum_atto = 0"),
        (&money.settler, "UPDATE charge_carries SET cum_atto = 0"),
        (&money.settler, "UPDATE split_parties SET carry = 0"),
        (&money.api, "UPDATE releases SET released_base = 0"),
        (&money.scheduler, "UPDATE releases SET state = 'released'"),
        // The api charges what it sells, and no job.
        (&money.api, "INSERT INTO receipts (kind) VALUES (1)"),
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

/// A line written by hand: its account and change, and how far it is off the balance and version that follow.
#[derive(Clone, Copy)]
struct Line(AccountKey, i64, i64, i64);

fn line((key, change): (AccountKey, i64)) -> Line {
    Line(key, change, 0, 0)
}

const INSERT_LINES: &str = "INSERT INTO postings (journal_entry_id, line, asset_id, ledger_account_id, amount_base,
         balance_after_base, account_version)
     SELECT $1, it.number, $2, it.account, it.amount,
         la.balance_base + sum(it.amount) OVER chain + it.balance_off, la.version + row_number() OVER chain + it.version_off
     FROM unnest($3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::smallint[])
         AS it (account, amount, balance_off, version_off, number)
     JOIN ledger_accounts la ON la.ledger_account_id = it.account
     WINDOW chain AS (PARTITION BY it.account ORDER BY it.number)";

/// Writes lines, with the entry of a deposit that announces `lines` of them, or to one that exists.
async fn write(
    money: &Money,
    entry: JournalEntryId,
    announced: Option<usize>,
    numbers: std::ops::Range<i16>,
    lines: &[Line],
) -> sqlx::Result<()> {
    let mut tx = money.settler.begin().await?;
    ledger::lock(&mut tx, money.asset, lines.iter().map(|line| line.0)).await?;
    let statement = match announced {
        Some(_) => format!(
            "WITH entry AS (
                 INSERT INTO journal_entries (journal_entry_id, asset_id, kind, source_kind, source_id, lines, posted_at)
                 VALUES ($1, $2, 'deposit', 'deposit', $1::text, $8, $9)
             ) {INSERT_LINES}"
        ),
        None => INSERT_LINES.to_owned(),
    };
    let column = |part: fn(&Line) -> i64| lines.iter().map(part).collect::<Vec<_>>();
    let accounts: Vec<_> = lines.iter().map(|line| line.0.id(money.asset).0).collect();
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(entry.0)
        .bind(money.asset)
        .bind(accounts)
        .bind(column(|line| line.1))
        .bind(column(|line| line.2))
        .bind(column(|line| line.3))
        .bind(numbers.collect::<Vec<_>>());
    if let Some(announced) = announced {
        query = query.bind(i16::try_from(announced).unwrap()).bind(NOW);
    }
    query.execute(&mut *tx).await?;
    tx.commit().await
}

/// An entry of one deposit, its lines written by hand.
async fn write_entry(money: &Money, lines: &[Line]) -> sqlx::Result<JournalEntryId> {
    let id = JournalEntryId::generate();
    let count = lines.len();
    let numbers = 0..i16::try_from(count).unwrap();
    write(money, id, Some(count.max(2)), numbers, lines).await?;
    Ok(id)
}

async fn write_lines(money: &Money, lines: &[(AccountKey, i64)]) -> sqlx::Result<JournalEntryId> {
    let lines: Vec<_> = lines.iter().copied().map(line).collect();
    write_entry(money, &lines).await
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
    let late = [(AccountKey::Deposits, -5), (alice, 5)].map(line);
    for (numbers, refusal) in [
        (2..3, CHECK_VIOLATION),
        (1..2, UNIQUE_VIOLATION),
        (2..4, CHECK_VIOLATION),
    ] {
        let lines = &late[..numbers.len()];
        let late = write(&money, entry, None, numbers.clone(), lines).await;
        let error = late.expect_err("a late line");
        assert_eq!(code(&error), refusal, "{numbers:?} {error}");
    }
    assert_eq!(money.bases(ALICE).await, (10, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_line_says_the_balance_and_version_that_follow_or_is_refused(db: PgPool) {
    let money = Money::new(db).await;
    let alice = AccountKey::Available(ALICE);
    let deposits = line((AccountKey::Deposits, -10));
    for forged in [
        Line(alice, 10, 1, 0),
        Line(alice, 10, -1, 0),
        Line(alice, 10, 0, 1),
        Line(alice, 10, 0, -1),
    ] {
        let refused = write_entry(&money, &[deposits, forged]).await;
        let error = refused.expect_err("a forged line");
        assert_eq!(code(&error), CHECK_VIOLATION, "{error}");
        let constraint = error.as_database_error().unwrap().constraint();
        assert_eq!(constraint, Some("postings_follow"), "{error}");
    }
    write_entry(&money, &[deposits, line((alice, 10))])
        .await
        .unwrap();
    assert_eq!(money.bases(ALICE).await, (10, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_balance_on_the_way_through_a_statement_is_below_zero(db: PgPool) {
    let money = Money::new(db).await;
    let (alice, held) = (AccountKey::Available(ALICE), AccountKey::Held(ALICE));
    let id = |key: AccountKey| key.id(money.asset).0;
    // A deposit of ten and a hold of ten in one statement, in both orders: what counts is not where they end.
    for (hold_first, covered) in [(true, false), (false, true)] {
        let mut tx = money.owner.begin().await.unwrap();
        ledger::lock(&mut tx, money.asset, [alice, held, AccountKey::Deposits])
            .await
            .unwrap();
        let written = sqlx::query(
            "WITH entry AS (
                 INSERT INTO journal_entries (journal_entry_id, asset_id, kind, source_kind, source_id, lines, posted_at)
                 VALUES ($1, $3, 'deposit', 'deposit', $1::text, 2, $4), ($2, $3, 'hold', 'job_hold', $2::text, 2, $4)
             )
             INSERT INTO postings (journal_entry_id, line, asset_id, ledger_account_id, amount_base, balance_after_base, account_version)
             SELECT it.entry, it.number, $3, it.account, it.amount, sum(it.amount) OVER chain, row_number() OVER chain
             FROM (VALUES ($1, 0, $5, -10), ($1, 1, $6, 10), ($2, 0, $6, -10), ($2, 1, $7, 10))
                 AS it (entry, number, account, amount)
             WINDOW chain AS (PARTITION BY it.account ORDER BY (it.entry = $2) = $8)",
        )
        .bind(JournalEntryId::generate().0)
        .bind(JournalEntryId::generate().0)
        .bind(money.asset)
        .bind(NOW)
        .bind(id(AccountKey::Deposits))
        .bind(id(alice))
        .bind(id(held))
        .bind(!hold_first)
        .execute(&mut *tx)
        .await;
        match written {
            Ok(_) => assert!(covered),
            Err(error) => {
                let constraint = error.as_database_error().unwrap().constraint();
                assert_eq!(
                    (constraint, covered),
                    (Some("ledger_accounts_not_overdrawn"), false),
                    "{error}"
                );
            }
        }
    }
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
