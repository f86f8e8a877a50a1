use ::time::Duration;
use axum::http::StatusCode;
use comptoir_store::purchases;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{Shop, shared};

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
