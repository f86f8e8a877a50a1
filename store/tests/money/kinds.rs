//! Which service may post what, and what an entry of each kind may move.

use comptoir_domain::{
    id::JobId,
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use comptoir_store::{
    holds::HoldSource,
    ledger::{self, PostError},
};
use sqlx::PgPool;

use crate::{
    guards::{CHECK_VIOLATION, INSUFFICIENT_PRIVILEGE, code},
    harness::{ALICE, BOB, Money, NOW, amount},
};

/// Posts an entry of these lines as a service would, or learns why not.
async fn post(
    service: &PgPool,
    asset: i32,
    lines: Lines,
    (kind, source): (EntryKind, Source),
) -> Result<(), PostError> {
    let mut tx = service.begin().await?;
    let entry = lines.into_entry(kind, source)?;
    ledger::post(&mut tx, asset, &entry, NOW).await?;
    tx.commit().await?;
    Ok(())
}

fn refusal(posted: Result<(), PostError>) -> String {
    match posted {
        Err(PostError::Database(error)) => code(&error),
        posted => panic!("not refused by the database: {posted:?}"),
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_service_posts_what_its_work_makes_and_nothing_else(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 100).await;
    let lines = |from, to| {
        Lines::default()
            .debit(from, amount(1))
            .credit(to, amount(1))
    };
    let (alice, held) = (AccountKey::Available(ALICE), AccountKey::Held(ALICE));
    let entries: [(_, _, fn() -> Source); 5] = [
        (
            EntryKind::Deposit,
            lines(AccountKey::Deposits, alice),
            || Source::Deposit("9".into()),
        ),
        (EntryKind::Hold, lines(alice, held), || {
            Source::JobHold(JobId::generate())
        }),
        (EntryKind::HoldRelease, lines(held, alice), || {
            Source::JobHoldRelease(JobId::generate())
        }),
        (
            EntryKind::Charge,
            lines(held, AccountKey::Available(BOB)),
            || Source::JobCharge(JobId::generate()),
        ),
        (
            EntryKind::Release,
            lines(alice, AccountKey::Payable(ALICE)),
            || Source::Seal("9".into()),
        ),
    ];
    money
        .hold(HoldSource::Job(JobId::generate()), ALICE, 50)
        .await
        .unwrap();
    for (kind, lines, source) in entries {
        let may = [
            (
                &money.api,
                matches!(kind, EntryKind::Hold | EntryKind::HoldRelease),
            ),
            (
                &money.scheduler,
                matches!(kind, EntryKind::HoldRelease | EntryKind::Charge),
            ),
            (
                &money.settler,
                matches!(kind, EntryKind::Deposit | EntryKind::Release),
            ),
        ];
        for (service, may) in may {
            let posted = post(service, money.asset, lines.clone(), (kind, source())).await;
            if may {
                posted.unwrap_or_else(|error| panic!("{kind:?}: {error:?}"));
            } else {
                assert_eq!(refusal(posted), INSUFFICIENT_PRIVILEGE, "{kind:?}");
            }
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_lines_of_an_entry_are_those_of_its_kind(db: PgPool) {
    let money = Money::new(db).await;
    for owner in [ALICE, BOB] {
        money.deposit(owner, 100).await;
        money
            .hold(HoldSource::Job(JobId::generate()), owner, 50)
            .await
            .unwrap();
    }
    let lines = |from, to| {
        Lines::default()
            .debit(from, amount(1))
            .credit(to, amount(1))
    };
    let (alice, held) = (AccountKey::Available(ALICE), AccountKey::Held(ALICE));
    let (bob, bob_held) = (AccountKey::Available(BOB), AccountKey::Held(BOB));
    let job = JobId::generate();
    let wicked = [
        // A hold that pays somebody else, or out.
        (
            &money.api,
            EntryKind::Hold,
            Source::JobHold(job),
            lines(alice, bob_held),
        ),
        (
            &money.api,
            EntryKind::Hold,
            Source::JobHold(job),
            lines(alice, bob),
        ),
        (
            &money.api,
            EntryKind::HoldRelease,
            Source::JobHoldRelease(job),
            lines(held, bob),
        ),
        (
            &money.api,
            EntryKind::HoldRelease,
            Source::JobHoldRelease(job),
            lines(held, AccountKey::Payable(ALICE)),
        ),
        // A charge of what is not held.
        (
            &money.scheduler,
            EntryKind::Charge,
            Source::JobCharge(job),
            lines(alice, bob),
        ),
        (
            &money.scheduler,
            EntryKind::Charge,
            Source::JobCharge(job),
            lines(AccountKey::Deposits, bob),
        ),
        // A release to somebody else.
        (
            &money.settler,
            EntryKind::Release,
            Source::Seal("9".into()),
            lines(alice, AccountKey::Payable(BOB)),
        ),
        (
            &money.settler,
            EntryKind::Release,
            Source::Seal("9".into()),
            lines(alice, bob),
        ),
        (
            &money.settler,
            EntryKind::Deposit,
            Source::Deposit("9".into()),
            lines(alice, bob),
        ),
    ];
    for (service, kind, source, lines) in wicked {
        let context = format!("{kind:?} {lines:?}");
        let posted = post(service, money.asset, lines, (kind, source)).await;
        assert_eq!(refusal(posted), CHECK_VIOLATION, "{context}");
    }
    // A source of another kind of entry.
    let posted = post(
        &money.api,
        money.asset,
        lines(alice, held),
        (EntryKind::Hold, Source::JobCharge(job)),
    )
    .await;
    assert_eq!(refusal(posted), CHECK_VIOLATION);
    assert_eq!(money.bases(ALICE).await, (50, 50, 0));
    assert_eq!(money.bases(BOB).await, (50, 50, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_service_queues_the_releases_that_are_its_to_decide(db: PgPool) {
    let money = Money::new(db).await;
    let insert = async |service: &PgPool, kind: &str| {
        sqlx::query(
            "INSERT INTO releases (release_id, asset_id, owner, kind, amount_base, created_at)
             VALUES (gen_random_uuid(), $1, $2, $3, 1, $4)",
        )
        .bind(money.asset)
        .bind(ALICE.as_slice())
        .bind(kind)
        .bind(NOW)
        .execute(service)
        .await
    };
    for (service, allowed) in [
        // What sales bring is queued by the api, which charges them.
        (&money.api, &["earning", "fees", "withdrawal"][..]),
        (&money.scheduler, &["earning", "fees"]),
        (&money.settler, &[]),
    ] {
        for kind in ["earning", "fees", "withdrawal"] {
            let inserted = insert(service, kind).await;
            assert_eq!(
                inserted.is_ok(),
                allowed.contains(&kind),
                "{kind}: {inserted:?}"
            );
        }
    }
    // The API may cancel what was asked for, and cannot mark anything released or touch what was earned.
    let released = sqlx::query("UPDATE releases SET state = 'released'")
        .execute(&money.api)
        .await;
    assert_eq!(code(&released.unwrap_err()), INSUFFICIENT_PRIVILEGE);
    let cancelled = sqlx::query("UPDATE releases SET state = 'cancelled'")
        .execute(&money.api)
        .await;
    assert_eq!(
        cancelled.unwrap().rows_affected(),
        1,
        "the withdrawal alone"
    );
}
