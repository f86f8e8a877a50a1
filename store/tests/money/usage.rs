//! Calls of models: what is held for them, counted once, charged exactly, and given back.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    atto::Atto,
    digest::Sha256,
    id::{AccountId, AllowanceId, ApiKeyId, CallId, ModelId, ModelVersionId, ReceiptId, WorkerId},
    model::{Shares, Tariff, Usage},
    price::Rate,
};
use comptoir_store::{
    allowances::{self, AllowanceError, CloseError, NewAllowance},
    ledger,
    model_prices::{self, ModelPrice},
    receipts::{self, Receipt, Subject},
    spending,
    usage::{self, Recorded, UsageEvent},
};
use futures::future::join_all;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

use crate::harness::{ALICE, BOB, CAROL, Money, NOW, PLATFORM, amount};

/// Who made the models.
pub const CREATOR: Address = CAROL;
/// Who owns the workers.
pub const OWNERS: [Address; 2] = [BOB, Address::repeat_byte(0xda)];

pub struct Calling {
    pub money: Money,
    pub account: AccountId,
    pub process: Uuid,
    creator: AccountId,
}

/// A version of a model, at one of its prices.
#[derive(Debug, Clone, Copy)]
pub struct Called {
    pub model: ModelId,
    pub version: ModelVersionId,
    pub price: i32,
    pub tariff: Tariff,
}

impl Calling {
    pub async fn new(db: PgPool) -> Self {
        let money = Money::new(db).await;
        let creator = money.bind(CREATOR, false).await;
        let account = money.bind(ALICE, false).await;
        Self {
            money,
            account,
            process: Uuid::now_v7(),
            creator,
        }
    }

    /// A model of one version and one price: 85 % are its creator's, 10 % the worker's, 5 % the platform's.
    pub async fn model(&self, tariff: Tariff) -> Called {
        let (model, version) = (ModelId::generate(), ModelVersionId::generate());
        let mut tx = self.money.owner.begin().await.unwrap();
        sqlx::query(
            "INSERT INTO models (model_id, account_id, name, title, description, licence, provenance, tags, visibility, shown_at, created_at, updated_at)
             VALUES ($1, $2, $3, 'x', '', 'MIT', '', '{}', 'unlisted', $4, $4, $4)",
        )
        .bind(model.0)
        .bind(self.creator.0)
        .bind(model.to_string())
        .bind(NOW)
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO model_versions (version_id, model_id, account_id, number, manifest, manifest_sha256, licence, notes, created_at)
             VALUES ($1, $2, $3, 1, '{}', $4, 'MIT', '', $5)",
        )
        .bind(version.0)
        .bind(model.0)
        .bind(self.creator.0)
        .bind(&Sha256::of(b"manifest").0[..])
        .bind(NOW)
        .execute(&mut *tx)
        .await
        .unwrap();
        let price = ModelPrice {
            model,
            number: 1,
            asset_id: self.money.asset,
            tariff,
            platform_ppm: 50_000,
            shares: Shares::of_creator(CREATOR),
            effective_at: NOW,
            created_at: NOW,
        };
        model_prices::add(&mut tx, &price).await.unwrap();
        tx.commit().await.unwrap();
        Called {
            model,
            version,
            price: 1,
            tariff,
        }
    }

    /// A key of the account, with a limit for its lifetime.
    pub async fn key(&self, limit: u128) -> ApiKeyId {
        let key = ApiKeyId::generate();
        sqlx::query(
            "INSERT INTO api_keys (api_key_id, account_id, name, prefix, key_hmac, scopes, created_at, spend_limit_base, spend_period)
             VALUES ($1, $2, 'k', $3, $4, '{models:read}', $5, $6::numeric, 'lifetime')",
        )
        .bind(key.0)
        .bind(self.account.0)
        .bind(key.to_string())
        .bind(&Sha256::of(key.0.as_bytes()).0[..])
        .bind(NOW)
        .bind(limit.to_string())
        .execute(&self.money.owner)
        .await
        .unwrap();
        key
    }

    pub async fn open(
        &self,
        key: Option<ApiKeyId>,
        least: u128,
        wanted: u128,
        now: OffsetDateTime,
    ) -> Result<(AllowanceId, Amount), AllowanceError> {
        let new = NewAllowance {
            id: AllowanceId::generate(),
            account: self.account,
            key,
            payer: ALICE,
            asset_id: self.money.asset,
            process: self.process,
            least: amount(least),
            wanted: amount(wanted),
        };
        let mut tx = self.money.api.begin().await.unwrap();
        let granted = allowances::open(&mut tx, &new, now).await?;
        tx.commit().await.unwrap();
        Ok((new.id, granted))
    }

    pub fn event(
        &self,
        called: &Called,
        allowance: AllowanceId,
        key: Option<ApiKeyId>,
        usage: Usage,
    ) -> UsageEvent {
        UsageEvent {
            call: CallId::generate(),
            allowance: Some(allowance),
            account: self.account,
            key,
            model: called.model,
            version: called.version,
            price: called.price,
            worker: WorkerId(Uuid::nil()),
            worker_owner: OWNERS[0],
            usage,
            cost: called.tariff.cost(&usage).unwrap(),
            at: NOW,
            duration_us: 700,
        }
    }

    pub async fn record(&self, events: &[UsageEvent]) -> Vec<bool> {
        let recorded = self.said(events).await.into_iter();
        recorded.map(|it| it != Recorded::Refused).collect()
    }

    pub async fn said(&self, events: &[UsageEvent]) -> Vec<Recorded> {
        let mut tx = self.money.api.begin().await.unwrap();
        let said = usage::record(&mut tx, events).await.unwrap();
        tx.commit().await.unwrap();
        said
    }

    pub async fn close(&self, allowance: AllowanceId) -> Result<Vec<ReceiptId>, CloseError> {
        let mut tx = self.money.api.begin().await.unwrap();
        let receipts = allowances::close(&mut tx, allowance, NOW).await?;
        tx.commit().await.unwrap();
        Ok(receipts)
    }

    pub async fn receipt(&self, id: ReceiptId) -> Receipt {
        let mut conn = self.money.api.acquire().await.unwrap();
        receipts::find(&mut conn, id).await.unwrap().unwrap()
    }
}

/// So many base units for a call.
pub fn per_call(base: u128) -> Tariff {
    Tariff {
        call_nano: Rate::from_nano(base * 1_000_000_000).unwrap(),
        ..Tariff::default()
    }
}

pub const ONE: Usage = Usage {
    rows: 1,
    input_tokens: 0,
    output_tokens: 0,
    madds: 200_000,
};

/// How many calls the exact test makes: a million were run once.
fn calls() -> usize {
    let calls = std::env::var("USAGE_CALLS").ok();
    calls.map_or(20_000, |it| it.parse().unwrap())
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn calls_are_charged_when_their_allowance_is_closed_and_the_rest_goes_back(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 1_000).await;
    let called = it.model(per_call(7)).await;
    let (allowance, granted) = it.open(None, 7, 200, NOW).await.unwrap();
    assert_eq!(granted, amount(200));
    assert_eq!(it.money.bases(ALICE).await, (800, 200, 0));
    let events: Vec<_> = (0..20)
        .map(|_| it.event(&called, allowance, None, ONE))
        .collect();
    assert_eq!(it.record(&events).await, [true; 20]);
    let receipts = it.close(allowance).await.unwrap();
    assert_eq!(it.money.bases(ALICE).await, (860, 0, 0));
    assert_eq!(it.money.bases(CREATOR).await.0, 119);
    assert_eq!(it.money.bases(OWNERS[0]).await.0, 14);
    let [id] = receipts[..] else {
        panic!("one window has one receipt")
    };
    let receipt = it.receipt(id).await;
    assert_eq!((receipt.gross, receipt.payer), (amount(140), ALICE));
    assert!(matches!(receipt.subject, Subject::Calls(_)));
    let shares: Vec<_> = receipt
        .shares
        .iter()
        .map(|it| (it.payee, it.amount))
        .collect();
    assert!(shares.contains(&(PLATFORM, amount(7))), "{shares:?}");
    // Again, and afterwards: nothing more.
    assert_eq!(it.close(allowance).await.unwrap(), receipts);
    let late = it.event(&called, allowance, None, ONE);
    assert_eq!(it.record(&[late, events[0]]).await, [false, true]);
    assert_eq!(it.money.bases(ALICE).await, (860, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn many_calls_at_7_units_pay_85_10_and_5_percent_to_the_unit(db: PgPool) {
    const GROUP: usize = 500;
    /// Of which groups one window is.
    const GROUPS: usize = 8;
    let it = Calling::new(db).await;
    let calls = calls();
    let cost = 7 * calls as u128;
    it.money.deposit(ALICE, cost).await;
    let called = it.model(per_call(7)).await;
    let mut left = calls;
    while left > 0 {
        let of_window = left.min(GROUP * GROUPS);
        let whole = 7 * of_window as u128;
        let (allowance, granted) = it.open(None, whole, whole, NOW).await.unwrap();
        assert_eq!(granted, amount(whole));
        let events: Vec<_> = (0..of_window)
            .map(|_| it.event(&called, allowance, None, ONE))
            .collect();
        for group in events.chunks(GROUP) {
            assert!(it.record(group).await.iter().all(|taken| *taken));
        }
        it.close(allowance).await.unwrap();
        left -= of_window;
    }
    assert_eq!(it.money.bases(ALICE).await, (0, 0, 0));
    assert_eq!(it.money.bases(CREATOR).await.0, cost * 85 / 100);
    assert_eq!(it.money.bases(OWNERS[0]).await.0, cost * 10 / 100);
    let mut conn = it.money.api.acquire().await.unwrap();
    let house = ledger::house_balances(&mut conn, it.money.asset).await;
    let house = house.unwrap();
    assert_eq!(house.fees.base(), cost * 5 / 100);
    assert_eq!(house.split_dust, Amount::ZERO);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_receipt_of_a_call_is_named_before_there_is_one(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 1_000).await;
    let called = it.model(per_call(7)).await;
    let (allowance, _) = it.open(None, 14, 14, NOW).await.unwrap();
    let events: Vec<_> = (0..2)
        .map(|_| it.event(&called, allowance, None, ONE))
        .collect();
    let Recorded::In(window) = it.said(&events[..1]).await[0] else {
        panic!("it is charged");
    };
    // Of the same window; and the first one again, in one group and alone.
    let same = Recorded::In(window);
    assert_eq!(it.said(&[events[1], events[0]]).await, [same; 2]);
    assert_eq!(it.close(allowance).await.unwrap(), [window.receipt()]);
    assert_eq!(it.said(&events[..1]).await, [same]);
    assert_eq!(it.receipt(window.receipt()).await.gross, amount(14));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_event_that_is_recorded_fifty_times_at_once_counts_once(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 1_000).await;
    let called = it.model(per_call(7)).await;
    let (allowance, _) = it.open(None, 7, 7, NOW).await.unwrap();
    let event = it.event(&called, allowance, None, ONE);
    let outcomes = join_all((0..50).map(|_| it.record(std::slice::from_ref(&event)))).await;
    assert_eq!(outcomes, vec![vec![true]; 50]);
    // Twice in one group, and once with another content.
    let other = UsageEvent {
        worker: WorkerId(Uuid::now_v7()),
        ..event
    };
    assert_eq!(it.record(&[event, event, other]).await, [true, true, false]);
    it.close(allowance).await.unwrap();
    assert_eq!(it.money.bases(ALICE).await, (993, 0, 0));
    assert_eq!(it.record(&[event]).await, [true], "it was taken");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_races_the_closing_is_charged_or_refused_and_never_both(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 100_000).await;
    let called = it.model(per_call(7)).await;
    let mut paid = 0;
    for _ in 0..10 {
        let (allowance, _) = it.open(None, 1, 700, NOW).await.unwrap();
        let groups: Vec<Vec<_>> = (0..6)
            .map(|_| {
                let events = (0..5).map(|_| it.event(&called, allowance, None, ONE));
                events.collect()
            })
            .collect();
        let record = join_all(groups.iter().map(|group| it.record(group)));
        let close = join_all((0..3).map(|_| it.close(allowance)));
        let (taken, closed) = futures::join!(record, close);
        let closed: Vec<_> = closed.into_iter().map(Result::unwrap).collect();
        assert!(closed.windows(2).all(|it| it[0] == it[1]), "{closed:?}");
        let taken = taken.into_iter().flatten().filter(|taken| *taken).count();
        paid += 7 * taken as u128;
        assert_eq!(it.money.bases(ALICE).await, (100_000 - paid, 0, 0));
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_allowance_leaves_three_quarters_of_what_there_is_to_others(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 1_000).await;
    let key = it.key(400).await;
    let granted = async |key, least, wanted| it.open(key, least, wanted, NOW).await.unwrap().1;
    assert_eq!(
        granted(Some(key), 7, 999).await,
        amount(100),
        "of the limit"
    );
    assert_eq!(granted(None, 7, 999).await, amount(225), "of the balance");
    assert_eq!(granted(None, 600, 999).await, amount(600), "or the least");
    assert_eq!(it.money.bases(ALICE).await, (75, 925, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_spends_to_the_unit_of_its_limit_and_no_further(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 10_000).await;
    let called = it.model(per_call(7)).await;
    let key = it.key(100).await;
    // Opened at once, they share what the limit leaves.
    let opened = join_all((0..5).map(|_| it.open(Some(key), 30, 30, NOW))).await;
    let mut opened: Vec<_> = opened.into_iter().filter_map(Result::ok).collect();
    let granted: u128 = opened.iter().map(|(_, granted)| granted.base()).sum();
    assert_eq!((opened.len(), granted), (3, 90));
    let refused = it.open(Some(key), 11, 30, NOW).await.unwrap_err();
    assert!(
        matches!(refused, AllowanceError::KeyLimit { left } if left == amount(10)),
        "{refused}"
    );
    // Each pays for as many calls as it covers, and gives the rest back to the limit.
    let mut calls = 0;
    while let Some((allowance, granted)) = opened.pop() {
        let events: Vec<_> = (0..10)
            .map(|_| it.event(&called, allowance, Some(key), ONE))
            .collect();
        let taken = it.record(&events).await.into_iter().filter(|it| *it);
        let taken = taken.count();
        assert_eq!(taken as u128, granted.base() / 7);
        calls += taken;
        it.close(allowance).await.unwrap();
        if let Ok(more) = it.open(Some(key), 7, 30, NOW).await {
            opened.push(more);
        }
    }
    assert_eq!(calls, 14, "98 of 100 units");
    let mut conn = it.money.api.acquire().await.unwrap();
    let spent = spending::spent(&mut conn, key, NOW.date()).await.unwrap();
    assert_eq!(spent, amount(98));
    assert_eq!(it.money.bases(ALICE).await, (10_000 - 98, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn free_calls_of_a_day_are_taken_exactly_and_given_back_to_their_day(db: PgPool) {
    let it = Calling::new(db).await;
    let called = it.model(per_call(7)).await;
    let (account, model) = (it.account, called.model);
    let take = async |per_day, now| {
        let mut conn = it.money.api.acquire().await.unwrap();
        allowances::take_free(&mut conn, account, model, per_day, now)
            .await
            .unwrap()
    };
    let taken = join_all((0..40).map(|_| take(25, NOW))).await;
    assert_eq!(taken.into_iter().filter(|taken| *taken).count(), 25);
    assert!(!take(0, NOW + Duration::DAY).await);
    let midnight = datetime!(2026-11-23 00:00 UTC);
    assert!(take(25, midnight).await);
    let mut conn = it.money.api.acquire().await.unwrap();
    let late = midnight - Duration::microseconds(1);
    allowances::give_back_free(&mut conn, account, model, late)
        .await
        .unwrap();
    assert!(take(25, late).await && !take(25, late).await);
    // A free call is in no window and costs nothing.
    let free = |cost| UsageEvent {
        allowance: None,
        cost,
        ..it.event(&called, AllowanceId::generate(), None, ONE)
    };
    let costly = called.tariff.cost(&ONE).unwrap();
    assert_eq!(
        it.record(&[free(Atto::ZERO), free(costly)]).await,
        [true, false]
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_does_not_fit_its_allowance_is_not_taken_and_hinders_no_other(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 1_000).await;
    let (called, other) = (it.model(per_call(7)).await, it.model(per_call(1)).await);
    let (allowance, _) = it.open(None, 1, 20, NOW).await.unwrap();
    let good = it.event(&called, allowance, None, ONE);
    let fresh = || UsageEvent {
        call: CallId::generate(),
        ..good
    };
    let events = [
        good,
        UsageEvent {
            cost: Atto::ZERO,
            ..fresh()
        },
        UsageEvent {
            account: AccountId::generate(),
            ..fresh()
        },
        UsageEvent {
            key: Some(ApiKeyId::generate()),
            ..fresh()
        },
        UsageEvent {
            version: other.version,
            ..fresh()
        },
        UsageEvent {
            price: 2,
            ..fresh()
        },
        UsageEvent {
            worker_owner: Address::ZERO,
            ..fresh()
        },
        UsageEvent {
            allowance: Some(AllowanceId::generate()),
            ..fresh()
        },
        UsageEvent {
            usage: Usage {
                rows: 1 << 33,
                ..ONE
            },
            ..fresh()
        },
        fresh(),
        // 21 of 20 units.
        fresh(),
        it.event(&other, allowance, None, ONE),
    ];
    let taken = it.record(&events).await;
    let expected = [0, 9, 11].map(|place| (place, true));
    let taken: Vec<_> = taken
        .into_iter()
        .enumerate()
        .filter(|(_, it)| *it)
        .collect();
    assert_eq!(taken, expected);
    // What was taken is no reason to refuse what still fits.
    let last = it.event(&other, allowance, None, ONE);
    assert_eq!(it.record(&[good, last]).await, [true, true]);
    assert_eq!(it.close(allowance).await.unwrap().len(), 2);
    assert_eq!(it.money.bases(ALICE).await, (984, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_is_frozen_or_leaving_opens_none_and_what_is_open_is_closed_as_it_is(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 100).await;
    let called = it.model(per_call(7)).await;
    let (allowance, _) = it.open(None, 1, 50, NOW).await.unwrap();
    let event = it.event(&called, allowance, None, ONE);
    assert_eq!(it.record(&[event]).await, [true]);
    sqlx::query(
        "INSERT INTO account_controls (account_id, frozen_at, frozen_reason, updated_at) VALUES ($1, $2, 'x', $2)",
    )
    .bind(it.account.0)
    .bind(NOW)
    .execute(&it.money.owner)
    .await
    .unwrap();
    let refused = it.open(None, 1, 50, NOW).await.unwrap_err();
    assert!(matches!(refused, AllowanceError::Frozen), "{refused}");
    assert_eq!(it.close(allowance).await.unwrap().len(), 1);
    assert_eq!(it.money.bases(ALICE).await, (93, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_allowance_is_abandoned_when_its_process_was_silent_for_the_grace(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 100).await;
    let (allowance, _) = it.open(None, 1, 50, NOW).await.unwrap();
    let mut conn = it.money.api.acquire().await.unwrap();
    let grace = Duration::try_from(allowances::ALLOWANCE_GRACE).unwrap();
    let abandoned = async |conn: &mut sqlx::PgConnection, at| {
        allowances::abandoned(conn, at, 10).await.unwrap()
    };
    let (kept, later) = (NOW + grace, NOW + grace + Duration::SECOND);
    assert_eq!(abandoned(&mut conn, kept).await, []);
    assert_eq!(abandoned(&mut conn, later).await, [allowance]);
    let keep = allowances::keep(&mut conn, it.process, later).await;
    assert_eq!(keep.unwrap(), 1);
    assert_eq!(abandoned(&mut conn, later + grace).await, []);
    let other = allowances::keep(&mut conn, Uuid::now_v7(), later).await;
    assert_eq!(other.unwrap(), 0);
    it.close(allowance).await.unwrap();
    assert_eq!(abandoned(&mut conn, later + grace * 2).await, []);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_database_keeps_what_was_counted(db: PgPool) {
    let it = Calling::new(db).await;
    it.money.deposit(ALICE, 100).await;
    let called = it.model(per_call(7)).await;
    let (allowance, _) = it.open(None, 1, 50, NOW).await.unwrap();
    let event = it.event(&called, allowance, None, ONE);
    it.record(&[event]).await;
    let refused = async |statement: &'static str| {
        let refused = sqlx::query(statement).execute(&it.money.owner).await;
        let refused = refused.expect_err(statement);
        let refused = refused.as_database_error().unwrap();
        refused.constraint().unwrap().to_owned()
    };
    let cases = [
        (
            "UPDATE usage_windows SET cost_atto = cost_atto - 1",
            "usage_windows_stay",
        ),
        ("UPDATE allowances SET drawn_atto = 0", "allowances_stay"),
        (
            "UPDATE allowances SET drawn_atto = 50000000000000000001",
            "allowances_not_overdrawn",
        ),
        ("UPDATE usage_events SET cost_atto = 0", "append_only"),
        ("DELETE FROM usage_windows", "append_only"),
    ];
    for (statement, constraint) in cases {
        assert_eq!(refused(statement).await, constraint);
    }
    it.close(allowance).await.unwrap();
    let cases = [
        (
            "UPDATE usage_windows SET calls = calls + 1",
            "usage_windows_stay",
        ),
        (
            "UPDATE allowances SET kept_until = opened_at",
            "allowances_stay",
        ),
        (
            "INSERT INTO usage_events SELECT gen_random_uuid(), window_id, account_id, api_key_id, model_id, version_id, price_number, worker_id,
                 worker_owner, rows, input_tokens, output_tokens, madds, cost_atto, duration_us, at FROM usage_events",
            "usage_events_fit_window",
        ),
    ];
    for (statement, constraint) in cases {
        assert_eq!(refused(statement).await, constraint);
    }
}
