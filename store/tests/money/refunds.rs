//! What is given back of a charge: by two people, out of the platform's own money, within bounds, once.

use comptoir_domain::{
    amount::Amount,
    id::{AccountId, JobId, RefundId},
    ledger::{AccountKey, EntryKind, Lines, Source},
    refund::{Caps, NotFunded, RefundState},
};
use comptoir_store::{
    ledger, receipts,
    refunds::{self, NewRefund, Refund, RefundError},
    statement,
};
use futures::{StreamExt as _, stream};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

use crate::{
    guards::{CHECK_VIOLATION, INSUFFICIENT_PRIVILEGE, code},
    harness::{ALICE, BOB, Money, NOW, PLATFORM, amount},
};

const CAPS: Caps = Caps {
    per_refund: Amount::from_base(50).expect("below 2^120"),
    per_day: Amount::from_base(60).expect("below 2^120"),
};

/// A job that Alice paid 100 base units for: 90 to Bob, 10 to the platform.
async fn charged(money: &Money, alice: AccountId) -> JobId {
    let charge = money.held_job(alice, ALICE, 100, &[(BOB, 1)]).await;
    money.settle(&charge).await.unwrap();
    charge.job
}

/// One base unit per multiply-add, 10 % for the platform; Alice has 1,000, and earnings stay where they are.
async fn books(db: PgPool) -> (Money, AccountId) {
    let money = Money::with_price(db, 1_000_000_000_000_000_000, 100_000).await;
    let alice = money.bind(ALICE, false).await;
    money.bind(BOB, false).await;
    money.bind(PLATFORM, false).await;
    money.deposit(ALICE, 1_000).await;
    money.hire().await;
    (money, alice)
}

async fn propose(
    money: &Money,
    (job, base): (JobId, Option<u128>),
    by: AccountId,
    now: OffsetDateTime,
) -> Result<Refund, RefundError> {
    let mut tx = money.admin.begin().await?;
    let new = NewRefund {
        job,
        amount: base.map(amount),
        reason: "the result was of no use",
        proposed_by: by,
    };
    let refund = refunds::propose(&mut tx, &new, CAPS, now).await?;
    tx.commit().await?;
    Ok(refund)
}

async fn approve(
    money: &Money,
    id: RefundId,
    by: AccountId,
    now: OffsetDateTime,
) -> Result<Refund, RefundError> {
    let mut tx = money.admin.begin().await?;
    let refund = refunds::approve(&mut tx, id, by, CAPS, now).await?;
    tx.commit().await?;
    Ok(refund)
}

async fn fees(money: &Money) -> u128 {
    let mut conn = money.admin.acquire().await.unwrap();
    let house = ledger::house_balances(&mut conn, money.asset)
        .await
        .unwrap();
    house.fees.base()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_platform_gives_back_and_payees_keep_what_they_earned(db: PgPool) {
    let (money, alice) = books(db).await;
    let job = charged(&money, alice).await;
    money.deposit(PLATFORM, 100).await;
    let [first, second] = money.admins;
    let proposed = propose(&money, (job, Some(30)), first, NOW).await.unwrap();
    assert_eq!(
        money.bases(ALICE).await,
        (900, 0, 0),
        "nothing moves before the approval"
    );
    let posted = approve(&money, proposed.id, second, NOW).await.unwrap();
    assert_eq!(
        (posted.state, posted.decided_by),
        (RefundState::Posted, Some(second))
    );
    // 10 of it were the platform's fees; the rest came from what its address has.
    assert_eq!(
        (fees(&money).await, money.bases(PLATFORM).await),
        (0, (80, 0, 0))
    );
    assert_eq!(
        (money.bases(ALICE).await, money.bases(BOB).await),
        ((930, 0, 0), (90, 0, 0))
    );

    let mut conn = money.admin.acquire().await.unwrap();
    let receipt = receipts::find_of_job(&mut conn, job)
        .await
        .unwrap()
        .unwrap();
    let linked: (String, Option<uuid::Uuid>) =
        sqlx::query_as("SELECT kind, reverses FROM journal_entries WHERE journal_entry_id = $1")
            .bind(posted.entry.unwrap().0)
            .fetch_one(&mut *conn)
            .await
            .unwrap();
    assert_eq!(linked, ("reversal".to_owned(), Some(receipt.entry.0)));
    let lines = statement::page(&mut conn, ALICE, money.asset, None, 1)
        .await
        .unwrap();
    assert_eq!(
        (lines[0].source_kind.as_str(), lines[0].source_id.clone()),
        ("refund", posted.id.to_string())
    );
    assert_eq!(
        (lines[0].change.base(), lines[0].balance_after),
        (30, amount(930))
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_person_alone_gives_money_and_nobody_gives_to_himself(db: PgPool) {
    let (money, alice) = books(db).await;
    let job = charged(&money, alice).await;
    let [first, second] = money.admins;
    let own = propose(&money, (job, Some(5)), alice, NOW).await;
    assert!(matches!(own, Err(RefundError::OwnAccount)), "{own:?}");
    let id = propose(&money, (job, Some(5)), first, NOW)
        .await
        .unwrap()
        .id;
    let again = propose(&money, (job, Some(5)), second, NOW).await;
    assert!(
        matches!(again, Err(RefundError::Waits(waits)) if waits == id),
        "{again:?}"
    );
    let alone = approve(&money, id, first, NOW).await;
    assert!(matches!(alone, Err(RefundError::SamePerson)), "{alone:?}");
    let own = approve(&money, id, alice, NOW).await;
    assert!(matches!(own, Err(RefundError::OwnAccount)), "{own:?}");
    // Who is no administrator any more has proposed nothing.
    let role = |roles: &'static str| {
        sqlx::query("UPDATE accounts SET roles = $2::text[] WHERE account_id = $1")
            .bind(first.0)
            .bind(roles)
            .execute(&money.owner)
    };
    role("{user}").await.unwrap();
    let gone = approve(&money, id, second, NOW).await;
    assert!(matches!(gone, Err(RefundError::ProposerGone)), "{gone:?}");
    role("{user,platform}").await.unwrap();
    assert_eq!(money.bases(ALICE).await, (900, 0, 0));
    approve(&money, id, second, NOW).await.unwrap();
    let twice = approve(&money, id, second, NOW).await;
    assert!(
        matches!(twice, Err(RefundError::Decided(RefundState::Posted))),
        "{twice:?}"
    );
    assert_eq!(money.bases(ALICE).await, (905, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn all_refunds_of_a_charge_are_at_most_the_charge_and_within_the_caps(db: PgPool) {
    let (money, alice) = books(db).await;
    let job = charged(&money, alice).await;
    money.deposit(PLATFORM, 1_000).await;
    let [first, second] = money.admins;
    let give = async |job, base, now| {
        let id = propose(&money, (job, base), first, now).await?.id;
        approve(&money, id, second, now).await
    };
    let above = give(job, Some(101), NOW).await;
    assert!(
        matches!(above, Err(RefundError::AboveCharge { left }) if left == amount(100)),
        "{above:?}"
    );
    let above = give(job, None, NOW).await;
    assert!(
        matches!(above, Err(RefundError::AboveCap { cap }) if cap == amount(50)),
        "{above:?}"
    );
    give(job, Some(50), NOW).await.unwrap();
    let above = give(job, Some(11), NOW).await;
    assert!(
        matches!(above, Err(RefundError::AboveDayCap { left }) if left == amount(10)),
        "{above:?}"
    );
    // The proposal stays; a day later there is room again.
    let tomorrow = NOW + Duration::DAY;
    let mut conn = money.admin.acquire().await.unwrap();
    let waiting = refunds::list(&mut conn, refunds::Filter::default(), None, 10, tomorrow)
        .await
        .unwrap();
    assert_eq!(waiting[0].state, RefundState::Proposed);
    approve(&money, waiting[0].id, second, tomorrow)
        .await
        .unwrap();
    let rest = give(job, Some(40), tomorrow).await;
    assert!(
        matches!(rest, Err(RefundError::AboveCharge { left }) if left == amount(39)),
        "{rest:?}"
    );
    give(job, None, tomorrow).await.unwrap();
    let nothing = give(job, None, tomorrow).await;
    assert!(
        matches!(nothing, Err(RefundError::AboveCharge { left }) if left.is_zero()),
        "{nothing:?}"
    );
    assert_eq!(money.bases(ALICE).await, (1_000, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_proposal_that_nobody_approves_in_time_gives_nothing(db: PgPool) {
    let (money, alice) = books(db).await;
    let job = charged(&money, alice).await;
    let [first, second] = money.admins;
    let id = propose(&money, (job, Some(5)), first, NOW)
        .await
        .unwrap()
        .id;
    let late = NOW + Duration::hours(72);
    let expired = approve(&money, id, second, late).await;
    assert!(
        matches!(expired, Err(RefundError::Decided(RefundState::Expired))),
        "{expired:?}"
    );
    let next = propose(&money, (job, Some(5)), first, late)
        .await
        .unwrap()
        .id;
    let mut tx = money.admin.begin().await.unwrap();
    let cancelled = refunds::cancel(&mut tx, next, first, late).await.unwrap();
    assert_eq!(cancelled.state, RefundState::Cancelled);
    tx.commit().await.unwrap();
    let off = approve(&money, next, second, late).await;
    assert!(
        matches!(off, Err(RefundError::Decided(RefundState::Cancelled))),
        "{off:?}"
    );
    let mut conn = money.admin.acquire().await.unwrap();
    let first = refunds::find(&mut conn, id, late).await.unwrap().unwrap();
    assert_eq!(
        (first.state, first.decided_by),
        (RefundState::Expired, None)
    );
    assert_eq!(money.bases(ALICE).await, (900, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_platform_without_money_gives_nothing_back(db: PgPool) {
    let (money, alice) = books(db).await;
    let job = charged(&money, alice).await;
    let [first, second] = money.admins;
    let id = propose(&money, (job, Some(11)), first, NOW)
        .await
        .unwrap()
        .id;
    let short = approve(&money, id, second, NOW).await;
    assert!(
        matches!(short, Err(RefundError::NotFunded(NotFunded::Short(has))) if has == amount(10)),
        "{short:?}"
    );
    assert_eq!(
        (fees(&money).await, money.bases(ALICE).await),
        (10, (900, 0, 0))
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn refunds_of_one_moment_do_not_pass_the_days_cap_together(db: PgPool) {
    let (money, alice) = books(db).await;
    money.deposit(PLATFORM, 1_000).await;
    let [first, second] = money.admins;
    let mut proposed = Vec::new();
    for _ in 0..8 {
        let job = charged(&money, alice).await;
        proposed.push(
            propose(&money, (job, Some(20)), first, NOW)
                .await
                .unwrap()
                .id,
        );
    }
    let approvals = stream::iter(proposed).map(|id| approve(&money, id, second, NOW));
    let done: Vec<_> = approvals.buffer_unordered(8).collect().await;
    let posted = done.iter().filter(|it| it.is_ok()).count();
    assert_eq!(posted, 3, "{done:?}");
    assert_eq!(money.bases(ALICE).await, (1_000 - 800 + 60, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn one_refund_that_is_approved_many_times_at_once_is_given_once(db: PgPool) {
    let (money, alice) = books(db).await;
    let job = charged(&money, alice).await;
    let [first, second] = money.admins;
    let id = propose(&money, (job, Some(10)), first, NOW)
        .await
        .unwrap()
        .id;
    let approvals = stream::iter(0..16).map(|_| approve(&money, id, second, NOW));
    let done: Vec<_> = approvals.buffer_unordered(8).collect().await;
    assert_eq!(done.iter().filter(|it| it.is_ok()).count(), 1, "{done:?}");
    assert_eq!(money.bases(ALICE).await, (910, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_database_itself_refuses_a_refund_that_was_not_approved(db: PgPool) {
    let (money, alice) = books(db).await;
    let job = charged(&money, alice).await;
    money.deposit(PLATFORM, 100).await;
    let [first, second] = money.admins;
    let mut conn = money.admin.acquire().await.unwrap();
    let receipt = receipts::find_of_job(&mut conn, job)
        .await
        .unwrap()
        .unwrap();
    drop(conn);
    let id = propose(&money, (job, Some(5)), first, NOW)
        .await
        .unwrap()
        .id;
    let post = async |from, to, base, approve: bool| {
        let mut tx = money.admin.begin().await?;
        let entry = Lines::default()
            .debit(from, amount(base))
            .credit(to, amount(base))
            .into_entry(EntryKind::Reversal, Source::Refund(id, receipt.entry))
            .unwrap();
        let entry = ledger::post(&mut tx, money.asset, &entry, NOW)
            .await
            .unwrap();
        if approve {
            sqlx::query(
                "UPDATE refunds SET state = 'posted', decided_by = $2, decided_at = $3, journal_entry_id = $4
                 WHERE refund_id = $1",
            )
            .bind(id.0)
            .bind(second.0)
            .bind(NOW)
            .bind(entry.0)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    };
    let (fees, alice_has) = (AccountKey::Fees, AccountKey::Available(ALICE));
    let wicked = [
        // Nobody approved it.
        (fees, alice_has, 5, false),
        // To somebody else, another amount, from a payee.
        (fees, AccountKey::Available(BOB), 5, true),
        (fees, alice_has, 6, true),
        (AccountKey::Available(BOB), alice_has, 5, true),
    ];
    for (from, to, base, approved) in wicked {
        let error = post(from, to, base, approved)
            .await
            .expect_err("not an approved refund");
        assert_eq!(
            code(&error),
            CHECK_VIOLATION,
            "{from:?} {to:?} {base}: {error}"
        );
    }
    // Whoever proposed it does not approve it either, in the database.
    let error = sqlx::query(
        "UPDATE refunds SET state = 'posted', decided_by = $2, decided_at = $3, journal_entry_id = $4 WHERE refund_id = $1",
    )
    .bind(id.0)
    .bind(first.0)
    .bind(NOW)
    .bind(receipt.entry.0)
    .execute(&money.admin)
    .await
    .expect_err("one person");
    assert_eq!(code(&error), CHECK_VIOLATION, "{error}");
    assert_eq!(money.bases(ALICE).await, (900, 0, 0));
    post(fees, alice_has, 5, true).await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_says_what_was_given_back(db: PgPool) {
    let (money, alice) = books(db).await;
    let job = charged(&money, alice).await;
    let [first, second] = money.admins;
    let id = propose(&money, (job, Some(10)), first, NOW)
        .await
        .unwrap()
        .id;
    approve(&money, id, second, NOW).await.unwrap();
    let mut conn = money.api.acquire().await.unwrap();
    let events = comptoir_store::events::after(&mut conn, job, 0, 10)
        .await
        .unwrap();
    let event = events.last().unwrap();
    assert_eq!(
        (event.kind.as_str(), event.data["amount"].as_str()),
        ("refunded", Some("10"))
    );
    let refunded: Option<sqlx::types::BigDecimal> = sqlx::query_scalar(
        "SELECT sum(amount_base) FROM refunds WHERE job_id = $1 AND state = 'posted'",
    )
    .bind(job.0)
    .fetch_one(&mut *conn)
    .await
    .unwrap();
    assert_eq!(refunded, Some(10.into()));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn administrators_change_no_ledger_table_and_move_nothing_but_refunds(db: PgPool) {
    let (money, alice) = books(db).await;
    charged(&money, alice).await;
    for statement in [
        "UPDATE ledger_accounts SET balance_base = balance_base + 1",
        "UPDATE postings SET amount_base = 1",
        "DELETE FROM postings",
        "UPDATE journal_entries SET kind = 'deposit'",
        "UPDATE holds SET amount_base = 1",
        "UPDATE releases SET amount_base = 1",
        "UPDATE receipts SET gross_base = 0",
        "UPDATE price_versions SET rate_nano = 1",
        "UPDATE split_parties SET carry = 0",
        "UPDATE audit_events SET body = '{}'",
        "DELETE FROM refunds",
    ] {
        let error = sqlx::query(statement)
            .execute(&money.admin)
            .await
            .expect_err(statement);
        assert_eq!(code(&error), INSUFFICIENT_PRIVILEGE, "{statement}: {error}");
    }
    let mut tx = money.admin.begin().await.unwrap();
    let entry = Lines::default()
        .debit(AccountKey::Deposits, amount(5))
        .credit(AccountKey::Available(ALICE), amount(5))
        .into_entry(EntryKind::Deposit, Source::Deposit("9".into()))
        .unwrap();
    let minted = ledger::post(&mut tx, money.asset, &entry, NOW).await;
    assert!(
        matches!(&minted, Err(ledger::PostError::Database(error)) if code(error) == INSUFFICIENT_PRIVILEGE),
        "{minted:?}"
    );
}
