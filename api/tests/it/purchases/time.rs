use ::time::Duration;
use axum::http::{Method, StatusCode, header};
use comptoir_api::steps;
use comptoir_store::purchases;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{Shop, shared};
use crate::datasets;

const DAY: u32 = 86_400;

fn rental(shop: &Shop, offer: &str, seconds: u32, price: u128) -> Value {
    let mut wish = shop.wish(offer, price);
    wish["seconds"] = json!(seconds);
    wish
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_rental_that_ends_early_is_charged_to_the_second(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let offer = shop
        .offer(
            json!({ "kind": "rent", "period_seconds": 3600, "minimum_seconds": 0 }),
            2,
        )
        .await;
    let path = shop.taken(&rental(&shop, &offer, 1_000, 2_000)).await;
    assert_eq!(shop.purse().await, (8_000, 2_000));
    shop.act(&format!("{path}/refund"))
        .await
        .expect_problem(StatusCode::CONFLICT, "purchase_kind");
    shop.app.pass(Duration::milliseconds(123_999));
    for _ in 0..2 {
        let ended = shop
            .act(&format!("{path}/end"))
            .await
            .expect(StatusCode::OK);
        assert_eq!(
            (ended.text("/state"), ended.text("/charged/amount")),
            ("settled", "246"),
            "a begun second is the buyer's"
        );
    }
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((9_754, 0), shared(246).0)
    );
    let receipt = shop.read(&path).await;
    let receipt = shop
        .read(&format!("/v1/receipts/{}", receipt.text("/receipt")))
        .await;
    assert_eq!(
        (
            receipt.text("/kind"),
            &receipt.json["bill"]["time"]["used_seconds"]
        ),
        ("rental", &json!(123))
    );
    shop.adds_up(10_000).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_ends_a_rental_that_was_read_pays_for_its_least_time_and_who_read_nothing_does_not(
    db: PgPool,
) {
    let shop = Shop::open(db, 20_000).await;
    let terms = json!({ "kind": "rent", "period_seconds": 7_200 });
    let offer = shop.offer(terms, 2).await;
    let read = shop.read(&format!("/v1/offers/{offer}")).await;
    assert_eq!(
        read.json["minimum_seconds"], 3_600,
        "its seller did not say"
    );
    let quote = format!("/v1/offers/{offer}/quote");
    let wish = json!({ "seconds": 7_200 });
    let quoted = shop.app.post(&quote, &wish).by(&shop.buyer).send().await;
    assert_eq!(
        (quoted.text("/price/amount"), quoted.text("/minimum/amount")),
        ("14400", "7200")
    );
    let content = shop.content().await;

    let unread = shop.taken(&rental(&shop, &offer, 7_200, 14_400)).await;
    let ended = shop.act(&format!("{unread}/end")).await;
    assert_eq!(
        (ended.text("/charged/amount"), &ended.json["receipt"]),
        ("0", &Value::Null),
        "nothing was read, and no time passed"
    );
    let unread = shop.taken(&rental(&shop, &offer, 7_200, 14_400)).await;
    shop.app.pass(Duration::seconds(5));
    let ended = shop.act(&format!("{unread}/end")).await;
    assert_eq!(ended.text("/charged/amount"), "10", "nothing was read");

    let path = shop.taken(&rental(&shop, &offer, 7_200, 14_400)).await;
    shop.read(&content).await;
    shop.app.pass(Duration::seconds(5));
    let ended = shop.act(&format!("{path}/end")).await;
    assert_eq!(
        (
            ended.text("/charged/amount"),
            &ended.json["minimum_seconds"]
        ),
        ("7200", &json!(3_600))
    );
    let receipt = format!("/v1/receipts/{}", ended.text("/receipt"));
    let receipt = shop.read(&receipt).await;
    assert_eq!(
        receipt.json["bill"]["time"],
        json!({ "agreed_seconds": 7_200, "used_seconds": 5, "minimum_seconds": 3_600 })
    );
    assert_eq!(shop.purse().await, (12_790, 0), "the rest went back");

    // Nor is it cheaper to agree on less.
    let short = shop.take(&rental(&shop, &offer, 3_599, 7_198)).await;
    let short = short.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(short.text("/errors/0/detail"), "expected 3600 to 7200");
    shop.adds_up(20_000).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_period_that_was_read_is_charged_for_its_least_time_or_for_what_its_seller_says(
    db: PgPool,
) {
    let shop = Shop::open(db, 300_000).await;
    let content = shop.content().await;
    for (minimum, charged) in [
        (json!(null), "3333"),
        (json!(0), "0"),
        (json!(30 * DAY), "100000"),
    ] {
        let mut terms = json!({ "kind": "subscribe", "period_seconds": 30 * DAY });
        terms["minimum_seconds"] = minimum;
        let offer = shop.offer(terms, 100_000).await;
        let path = shop.taken(&shop.wish(&offer, 100_000)).await;
        shop.read(&content).await;
        shop.app.pass(Duration::seconds(20));
        let ended = shop.act(&format!("{path}/end")).await;
        assert_eq!(ended.text("/charged/amount"), charged);
        shop.adds_up(300_000).await;
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_rental_is_extended_by_renting_again_without_paying_a_second_twice(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let offer = shop
        .offer(
            json!({ "kind": "rent", "period_seconds": 3600, "minimum_seconds": 0 }),
            1,
        )
        .await;
    let first = shop.taken(&rental(&shop, &offer, 1_000, 1_000)).await;
    shop.app.pass(Duration::seconds(400));
    let second = shop.taken(&rental(&shop, &offer, 500, 500)).await;
    let (first_read, second_read) = (shop.read(&first).await, shop.read(&second).await);
    assert_eq!(first_read.text("/ends_at"), second_read.text("/starts_at"));
    // Together they may not reach further than the offer lets.
    let too_long = shop.take(&rental(&shop, &offer, 2_501, 2_501)).await;
    let too_long = too_long.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    assert_eq!(too_long.text("/errors/0/pointer"), "/seconds");
    for seconds in [0, 3_601] {
        let refused = shop
            .take(&rental(&shop, &offer, seconds, u128::from(seconds)))
            .await;
        refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    }
    // One that has not begun costs nothing.
    let ended = shop
        .act(&format!("{second}/end"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        (ended.text("/charged/amount"), &ended.json["receipt"]),
        ("0", &Value::Null)
    );
    shop.pass(Duration::seconds(600)).await;
    assert_eq!(shop.read(&first).await.text("/final_because"), "time_over");
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((9_000, 0), shared(1_000).0)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_rental_fills_the_gap_that_one_which_ended_early_left_if_it_fits(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let terms = json!({ "kind": "rent", "period_seconds": 3600, "minimum_seconds": 0 });
    let offer = shop.offer(terms, 1).await;
    let rent = async |seconds: u32| {
        let wish = rental(&shop, &offer, seconds, u128::from(seconds));
        shop.taken(&wish).await
    };
    let (first, second) = (rent(1_000).await, rent(500).await);
    shop.app.pass(Duration::seconds(400));
    shop.act(&format!("{first}/end"))
        .await
        .expect(StatusCode::OK);
    let too_long = shop.read(&rent(601).await).await;
    let second = shop.read(&second).await;
    assert_eq!(too_long.text("/starts_at"), second.text("/ends_at"));
    let fits = shop.read(&rent(600).await).await;
    assert_eq!(fits.text("/ends_at"), second.text("/starts_at"));
    // The gap is full.
    let next = shop.read(&rent(1).await).await;
    assert_eq!(next.text("/starts_at"), too_long.text("/ends_at"));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_subscription_renews_itself_without_a_gap_and_once_however_many_renew_it(db: PgPool) {
    let shop = Shop::open(db, 250).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await;
    let subscription = format!("/v1/subscriptions/{}", subscription.text("/subscription"));
    shop.take(&shop.wish(&offer, 100))
        .await
        .expect_problem(StatusCode::CONFLICT, "already_subscribed");
    // Four minutes before the end the next period is held already; the first one goes on.
    shop.app.pass(Duration::seconds(i64::from(DAY) - 240));
    let renewals = (0..4).map(|_| steps::step(&shop.app.state));
    for renewed in futures::future::join_all(renewals).await {
        renewed.unwrap();
    }
    assert_eq!(
        (shop.read(&path).await.text("/state"), shop.purse().await),
        ("granted", (50, 200))
    );
    let next = shop.read(&subscription).await.text("/period").to_owned();
    let next = shop.read(&format!("/v1/purchases/{next}")).await;
    assert_eq!(
        next.text("/starts_at"),
        shop.read(&path).await.text("/ends_at")
    );
    shop.pass(Duration::seconds(240)).await;
    assert_eq!(
        (
            shop.read(&path).await.text("/charged/amount"),
            shop.purse().await
        ),
        ("100", (50, 100))
    );
    // The money does not cover a third: the subscription ends with its second period, and says why.
    shop.pass(Duration::seconds(i64::from(DAY) - 1)).await;
    assert_eq!(shop.read(&subscription).await.text("/state"), "active");
    shop.pass(Duration::seconds(1)).await;
    let ended = shop.read(&subscription).await;
    assert_eq!(
        (ended.text("/state"), ended.text("/ended_because")),
        ("ended", "insufficient_funds")
    );
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((50, 0), shared(200).0)
    );
    shop.adds_up(250).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_period_that_is_ended_is_prorated_and_ends_its_subscription(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    // In the time in which the next one is held already.
    shop.pass(Duration::seconds(i64::from(DAY) - 60)).await;
    assert_eq!(shop.purse().await, (800, 200));
    let ended = shop
        .act(&format!("{path}/end"))
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        ended.text("/charged/amount"),
        "99",
        "86,340 of 86,400 seconds of 100, rounded down"
    );
    assert_eq!(
        shop.purse().await,
        (901, 0),
        "the period that had not begun costs nothing"
    );
    let subscription = format!("/v1/subscriptions/{}", ended.text("/subscription"));
    assert_eq!(
        shop.read(&subscription).await.text("/ended_because"),
        "cancelled"
    );
    shop.pass(Duration::days(3)).await;
    assert_eq!(shop.purse().await, (901, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_cancelled_subscription_lasts_until_the_end_of_what_is_paid(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let cancel = format!("/v1/subscriptions/{subscription}/cancel");
    for _ in 0..2 {
        assert_eq!(
            shop.act(&cancel)
                .await
                .expect(StatusCode::OK)
                .text("/state"),
            "ending"
        );
    }
    shop.pass(Duration::seconds(i64::from(DAY) - 1)).await;
    assert_eq!(shop.read(&path).await.text("/state"), "granted");
    shop.pass(Duration::days(2)).await;
    let subscription = shop
        .read(&format!("/v1/subscriptions/{subscription}"))
        .await;
    assert_eq!(
        (
            subscription.text("/state"),
            subscription.text("/ended_because")
        ),
        ("ended", "cancelled")
    );
    assert_eq!(shop.purse().await, (900, 0));
    // Whoever comes back subscribes anew.
    shop.taken(&shop.wish(&offer, 100)).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_period_that_was_begun_ahead_goes_back_with_its_subscription(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let subscription = format!("/v1/subscriptions/{subscription}");
    shop.pass(Duration::seconds(i64::from(DAY) - 60)).await;
    assert_eq!(
        shop.purse().await,
        (800, 200),
        "the next one is held already"
    );
    let ending = shop.act(&format!("{subscription}/cancel")).await;
    let ending = ending.expect(StatusCode::OK);
    assert_eq!(ending.text("/state"), "ending");
    assert!(path.ends_with(ending.text("/period")));
    assert_eq!(shop.purse().await, (900, 100));
    shop.read(&shop.content().await).await;
    shop.pass(Duration::days(2)).await;
    let ended = shop.read(&subscription).await;
    assert_eq!(
        (ended.text("/state"), ended.text("/ended_because")),
        ("ended", "cancelled")
    );
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((900, 0), shared(100).0)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_period_that_cannot_be_served_goes_back_with_the_one_that_was_begun_ahead(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let content = shop.content().await;
    shop.pass(Duration::seconds(i64::from(DAY) - 60)).await;
    assert_eq!(shop.purse().await, (800, 200));
    for object in datasets::objects(&shop.app) {
        std::fs::remove_file(object).unwrap();
    }
    let buyer = shop.app.renewed(&shop.buyer);
    let lost = datasets::get(&shop.app, &buyer, &content).await;
    lost.expect_problem(StatusCode::SERVICE_UNAVAILABLE, "dataset_unavailable");
    assert_eq!(shop.read(&path).await.text("/state"), "refunded");
    assert_eq!(shop.purse().await, (1_000, 0));
    shop.pass(Duration::days(2)).await;
    assert_eq!(shop.purse().await, (1_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_step_that_fails_waits_a_minute_and_hinders_no_other(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let terms = json!({ "kind": "rent", "period_seconds": DAY, "minimum_seconds": 0 });
    let other = shop.offer(terms.clone(), 1).await;
    let other = shop.taken(&rental(&shop, &other, 120, 120)).await;
    // A statement that fails, a commit that does, and a hold that is not there, which fails no statement.
    let mut stuck = vec![];
    for seconds in [60, 61, 62] {
        let offer = shop.offer(terms.clone(), 1).await;
        stuck.push(
            shop.taken(&rental(&shop, &offer, seconds, seconds.into()))
                .await,
        );
    }
    let change = |text| sqlx::raw_sql(text).execute(&shop.app.owner);
    change(
        "ALTER TABLE purchases ADD CONSTRAINT stuck CHECK (NOT (seconds = 60 AND state = 'settled'));
         CREATE CONSTRAINT TRIGGER stuck_commit AFTER UPDATE ON purchases DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
             WHEN (NEW.seconds = 61 AND NEW.state = 'settled') EXECUTE FUNCTION refuse_change();
         ALTER TABLE holds DISABLE TRIGGER USER;
         UPDATE holds SET ended_at = now() WHERE source_id = (SELECT purchase_id FROM purchases WHERE seconds = 62)",
    )
    .await
    .unwrap();
    shop.app.pass(Duration::seconds(120));
    let due = || async {
        let mut connection = shop.app.owner.acquire().await.unwrap();
        let due = purchases::due(&mut connection, shop.app.now(), 10).await;
        due.unwrap().len()
    };
    assert_eq!(due().await, 4);
    shop.settle().await;
    assert_eq!(shop.read(&other).await.text("/charged/amount"), "120");
    for path in &stuck {
        assert_eq!(shop.read(path).await.text("/state"), "granted");
    }
    change(
        "ALTER TABLE purchases DROP CONSTRAINT stuck; DROP TRIGGER stuck_commit ON purchases;
         UPDATE holds SET ended_at = NULL WHERE source_id = (SELECT purchase_id FROM purchases WHERE seconds = 62);
         ALTER TABLE holds ENABLE TRIGGER USER",
    )
    .await
    .unwrap();
    assert_eq!(due().await, 0, "they wait");
    shop.app.pass(Duration::minutes(1));
    assert_eq!(due().await, 3);
    shop.settle().await;
    for (path, charged) in stuck.iter().zip(["60", "61", "62"]) {
        assert_eq!(shop.read(path).await.text("/charged/amount"), charged);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_higher_price_counts_after_its_notice_and_never_above_the_cap(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let offer = shop
        .offer(
            json!({ "kind": "subscribe", "period_seconds": 5 * DAY }),
            100,
        )
        .await;
    let mut wish = shop.wish(&offer, 100);
    wish["cap"] = shop.money(99);
    let refused = shop.take(&wish).await;
    refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
    wish["cap"] = shop.money(150);
    let path = shop.taken(&wish).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let subscription = format!("/v1/subscriptions/{subscription}");
    let price = |base| json!({ "price": shop.money(base) });
    let prices = format!("/v1/offers/{offer}/prices");
    let post = |body: Value| {
        let seller = shop.app.renewed(&shop.seller);
        let (app, prices) = (&shop.app, prices.clone());
        async move {
            app.post(&prices, &body)
                .by(&seller)
                .send()
                .await
                .expect(StatusCode::CREATED)
        }
    };
    let announced = post(price(150)).await;
    assert_eq!(
        (
            announced.text("/price/price/amount"),
            announced.text("/next_price/price/amount")
        ),
        ("100", "150")
    );
    // The first renewal is within the notice of seven days, the second is not.
    shop.pass(Duration::days(5)).await;
    assert_eq!(shop.purse().await, (9_800, 100));
    shop.pass(Duration::days(5)).await;
    assert_eq!(shop.purse().await, (9_650, 150));
    post(price(151)).await;
    shop.pass(Duration::days(5)).await;
    assert_eq!(shop.purse().await, (9_500, 150), "within the notice");
    // Its subscriber allows more, with the tag of what it read; and then less.
    let read = shop.read(&subscription).await;
    let patch = |tag: &str, base| {
        let buyer = shop.app.renewed(&shop.buyer);
        let call = shop.app.request(Method::PATCH, &subscription).by(&buyer);
        call.header(header::IF_MATCH, tag)
            .json(&json!({ "cap": shop.money(base) }))
            .send()
    };
    let tag = read.header(header::ETAG).to_owned();
    let changed = patch(&tag, 1_000).await.expect(StatusCode::OK);
    patch(&tag, 1).await.expect(StatusCode::PRECONDITION_FAILED);
    patch(changed.header(header::ETAG), 150)
        .await
        .expect(StatusCode::OK);
    shop.pass(Duration::days(5)).await;
    let ended = shop.read(&subscription).await;
    assert_eq!(
        (ended.text("/state"), ended.text("/ended_because")),
        ("ended", "price_above_cap")
    );
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((9_500, 0), shared(500).0)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_closed_offer_ends_subscriptions_with_their_period(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    shop.sell(&format!("/v1/offers/{offer}/close"), &json!({}))
        .await
        .expect(StatusCode::OK);
    shop.pass(Duration::days(1)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    let subscription = shop
        .read(&format!("/v1/subscriptions/{subscription}"))
        .await;
    assert_eq!(subscription.text("/ended_because"), "offer_closed");
    assert_eq!(shop.purse().await, (900, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_leaves_pays_for_what_was_used_or_its_least_time_and_nothing_more(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let rent = shop
        .offer(
            json!({ "kind": "rent", "period_seconds": 3600, "minimum_seconds": 1_000 }),
            1,
        )
        .await;
    let rented = shop.taken(&rental(&shop, &rent, 1_000, 1_000)).await;
    shop.read(&shop.content().await).await;
    let version = shop.version.rsplit('/').next().unwrap().to_owned();
    let buy = shop
        .offer(
            json!({ "kind": "buy", "refund_seconds": 3600, "version": version }),
            333,
        )
        .await;
    let bought = shop.taken(&shop.wish(&buy, 333)).await;
    shop.app.pass(Duration::seconds(100));
    sqlx::query(
        "INSERT INTO exits (asset_id, event_seq, owner, block_number, due_at, seen_at) VALUES ($1, 1, $2, 1, now() + interval '1 hour', now())",
    )
    .bind(shop.asset.id)
    .bind(shop.payer.to_vec())
    .execute(&shop.app.owner)
    .await
    .unwrap();
    shop.settle().await;
    assert_eq!(
        (
            shop.read(&bought).await.text("/state"),
            shop.read(&rented).await.text("/charged/amount")
        ),
        ("refunded", "1000")
    );
    assert_eq!(
        (shop.purse().await, shop.earned().await),
        ((9_000, 0), shared(1_000).0)
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_with_a_limit_renews_no_further_than_that(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": 3_600 }), 100)
        .await;
    let limit = json!({ "amount": shop.money(250), "period": "lifetime" });
    let key = json!({ "name": "k", "scopes": ["purchases:write", "purchases:read", "datasets:read"], "spend_limit": limit });
    let buyer = shop.app.renewed(&shop.buyer);
    let made = shop.app.post("/v1/keys", &key).by(&buyer).send().await;
    let secret = made.expect(StatusCode::CREATED).text("/key").to_owned();
    let taken = shop
        .app
        .post("/v1/purchases", &shop.wish(&offer, 100))
        .header(header::AUTHORIZATION, &format!("Bearer {secret}"))
        .send()
        .await;
    let subscription = taken.expect(StatusCode::CREATED);
    let subscription = format!("/v1/subscriptions/{}", subscription.text("/subscription"));
    for _ in 0..4 {
        shop.pass(Duration::hours(1)).await;
    }
    let ended = shop.read(&subscription).await;
    assert_eq!(
        (ended.text("/state"), ended.text("/ended_because")),
        ("ended", "spend_limit")
    );
    assert_eq!(shop.purse().await, (800, 0), "two periods of three");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nothing_is_renewed_for_who_is_frozen_or_has_it_for_good(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    for because in ["owned", "frozen"] {
        let offer = shop
            .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
            .await;
        let path = shop.taken(&shop.wish(&offer, 100)).await;
        let subscription = shop.read(&path).await.text("/subscription").to_owned();
        let subscription = format!("/v1/subscriptions/{subscription}");
        if because == "owned" {
            let buy = json!({ "kind": "buy", "refund_seconds": DAY });
            let buy = shop.offer(buy, 10).await;
            let bought = shop.taken(&shop.wish(&buy, 10)).await;
            shop.pass(Duration::days(1)).await;
            let ended = shop.read(&subscription).await;
            assert_eq!(ended.text("/ended_because"), because);
            // Given back, so that the next one can be subscribed to.
            sqlx::query("UPDATE entitlements SET ended_at = now() WHERE ends_at IS NULL")
                .execute(&shop.app.owner)
                .await
                .unwrap();
            drop(bought);
        } else {
            super::freeze(&shop.app, shop.buyer.account).await;
            shop.pass(Duration::days(1)).await;
            let why: String = sqlx::query_scalar(
                "SELECT ended_because FROM subscriptions ORDER BY subscription_id DESC LIMIT 1",
            )
            .fetch_one(&shop.app.owner)
            .await
            .unwrap();
            assert_eq!(why, because);
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_pays_for_time_that_a_late_step_left_without_a_right(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 100)
        .await;
    let path = shop.taken(&shop.wish(&offer, 100)).await;
    let subscription = shop.read(&path).await.text("/subscription").to_owned();
    shop.pass(Duration::hours(36)).await;
    let next = shop
        .read(&format!("/v1/subscriptions/{subscription}"))
        .await;
    let next = format!("/v1/purchases/{}", next.text("/period"));
    let ended = shop.act(&format!("{next}/end")).await;
    assert_eq!(ended.expect(StatusCode::OK).text("/charged/amount"), "0");
    assert_eq!(shop.purse().await, (900, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_two_announced_prices_the_next_one_is_told(db: PgPool) {
    let shop = Shop::open(db, 10).await;
    let offer = shop
        .offer(json!({ "kind": "subscribe", "period_seconds": DAY }), 10)
        .await;
    let prices = format!("/v1/offers/{offer}/prices");
    let announce = async |base| {
        let body = json!({ "price": shop.money(base) });
        let seller = shop.app.renewed(&shop.seller);
        let made = shop.app.post(&prices, &body).by(&seller).send().await;
        made.expect(StatusCode::CREATED)
    };
    announce(100).await;
    shop.app.pass(Duration::hours(12));
    let told = announce(11).await;
    assert_eq!(told.text("/next_price/price/amount"), "100");
    shop.app.pass(Duration::days(7) - Duration::hours(12));
    let read = shop.read(&format!("/v1/offers/{offer}")).await;
    assert_eq!(
        (
            read.text("/price/price/amount"),
            read.text("/next_price/price/amount")
        ),
        ("100", "11")
    );
}
