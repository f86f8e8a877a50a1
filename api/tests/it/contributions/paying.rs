use ::time::Duration;
use axum::http::StatusCode;
use comptoir_api::steps;
use comptoir_domain::{
    contribution::RewardBill,
    purchase::DELIVERY_SECONDS,
    settlement::{BatchState, ReceiptDocument},
};
use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::Guild;
use crate::{harness::Session, market, settlement};

/// How long something bought is held that nobody reads.
const KEPT: Duration = Duration::seconds(DELIVERY_SECONDS as i64);

/// Buys the dataset for 1000 with somebody new; it is final once it was kept for long enough.
async fn buy(guild: &Guild) -> Session {
    let owner = guild.app.renewed(&guild.owner);
    let terms = json!({ "kind": "buy", "price": guild.money(1_000) });
    let path = format!("{}/offers", guild.dataset);
    let offer = guild.app.post(&path, &terms).by(&owner).send().await;
    let offer = offer.expect(StatusCode::CREATED);
    let (buyer, _) = market::client(&guild.app, &guild.asset, 1_000).await;
    let wish = json!({ "offer": offer.text("/id"), "expected_price": guild.money(1_000) });
    let call = guild.app.post("/v1/purchases", &wish).by(&buyer);
    call.send().await.expect(StatusCode::CREATED);
    buyer
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_accepted_is_paid_at_once_and_shares_in_later_sales_by_its_rows(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let (other, other_paid) = guild.app.bound_session().await;
    let three = guild.given(&guild.giver, &["1,1", "2,2", "3,3"]).await;
    assert_eq!(
        (
            three.text("/state"),
            &three.json["rows"],
            three.text("/reward/amount")
        ),
        ("pending", &json!(3), "21")
    );
    assert_eq!(
        guild.available(guild.purse).await,
        100,
        "nothing is paid yet"
    );
    let one = guild.given(&other, &["4,4"]).await;
    let accepted = guild.accept(&three).await;
    assert_eq!(accepted.text("/state"), "accepted");
    guild.accept(&one).await;
    assert_eq!(guild.available(guild.purse).await, 72);
    assert_eq!(guild.available(guild.paid).await, 21);
    assert_eq!(guild.available(other_paid).await, 7);

    buy(&guild).await;
    guild.pass(KEPT).await;
    // Of the 950 behind the platform's fee, 40 % are the contributors', three to one, and the rest the owner's.
    assert_eq!(guild.available(guild.purse).await, 72 + 570);
    assert_eq!(guild.available(guild.paid).await, 21 + 285);
    assert_eq!(guild.available(other_paid).await, 7 + 95);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_sale_keeps_the_split_that_it_was_held_with(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let given = guild.given(&guild.giver, &["1,1"]).await;
    buy(&guild).await;
    guild.accept(&given).await;
    buy(&guild).await;
    guild.pass(KEPT).await;
    // The first sale was the owner's alone.
    assert_eq!(guild.available(guild.purse).await, 93 + 950 + 570);
    assert_eq!(guild.available(guild.paid).await, 7 + 380);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn rows_keep_the_terms_that_they_were_offered_on(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let (other, other_paid) = guild.app.bound_session().await;
    let before = guild.given(&guild.giver, &["1,1"]).await;
    let changed = guild.invite(guild.terms(2, 0)).await;
    assert_eq!(changed.json["number"], 2);
    let again = guild.invite(guild.terms(2, 0)).await;
    assert_eq!(again.json["number"], 2, "the same again changes nothing");
    let after = guild.given(&other, &["2,2"]).await;
    assert_eq!(
        (
            guild.accept(&before).await.json["terms_number"].clone(),
            guild.accept(&after).await.json["terms_number"].clone()
        ),
        (json!(1), json!(2))
    );
    assert_eq!(guild.available(guild.paid).await, 7);
    assert_eq!(guild.available(other_paid).await, 2);
    buy(&guild).await;
    guild.pass(KEPT).await;
    // Half of the rows give their contributor 40 %, the other half nothing.
    assert_eq!(guild.available(guild.paid).await, 7 + 190);
    assert_eq!(guild.available(other_paid).await, 2);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_receipt_of_a_reward_is_proven_and_can_be_computed_again(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let given = guild.given(&guild.giver, &["1,1", "2,2"]).await;
    let accepted = guild.accept(&given).await;
    let path = format!("/v1/receipts/{}", accepted.text("/receipt"));
    let receipt = guild.read(&guild.owner, &path).await.expect(StatusCode::OK);
    assert_eq!(
        (
            receipt.text("/kind"),
            receipt.text("/contribution_id"),
            &receipt.json["purchase_id"],
            receipt.text("/gross/amount"),
        ),
        ("contribution", given.text("/id"), &Value::Null, "14")
    );
    assert_eq!(
        receipt.json["splits"],
        json!([{ "payee": guild.asset.caip10(guild.paid), "amount": guild.money(14) }]),
        "the platform takes nothing of it"
    );
    let bill: RewardBill = serde_json::from_value(receipt.json["bill"].clone()).unwrap();
    assert_eq!(bill.recompute(), Ok(()));
    assert_eq!((bill.rows, bill.reward_per_row_base.base()), (2, 7));
    let (batch, _) = settlement::seal(&guild.app, &guild.asset).await;
    settlement::advance(&guild.app, batch, BatchState::Anchored).await;
    let proven = guild.read(&guild.giver, &path).await.expect(StatusCode::OK);
    let document = proven.json["document"].clone();
    let document: ReceiptDocument = serde_json::from_value(document).unwrap();
    document.verify().unwrap();
    assert_eq!((document.receipt.kind, document.receipt.gross), (5, 14));
    assert_eq!(
        document.receipt.meter_hash.0,
        bill.digest().0,
        "its leaf commits to the bill"
    );
    let stranger = guild.app.bound_session().await.0;
    guild
        .read(&stranger, &path)
        .await
        .expect(StatusCode::NOT_FOUND);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn sixty_four_who_accept_at_once_pay_one_reward(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let given = guild.given(&guild.giver, &["1,1", "2,2"]).await;
    let id = given.text("/id");
    let replies = join_all((0..64).map(|_| guild.try_accept(id, 14))).await;
    assert!(replies.iter().all(|it| it.status == StatusCode::OK));
    assert_eq!(guild.available(guild.purse).await, 86);
    assert_eq!(guild.available(guild.paid).await, 14);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_reward_that_cannot_be_paid_leaves_the_contribution_pending(db: PgPool) {
    let guild = Guild::open(db, 13).await;
    let given = guild.given(&guild.giver, &["1,1", "2,2"]).await;
    let id = given.text("/id");
    guild
        .try_accept(id, 14)
        .await
        .expect_problem(StatusCode::PAYMENT_REQUIRED, "insufficient_funds");
    let changed = guild.try_accept(id, 13).await;
    let changed = changed.expect_problem(StatusCode::CONFLICT, "price_changed");
    assert!(changed.text("/detail").contains("14"), "{}", changed.json);
    let limit = json!({ "amount": guild.money(13), "period": "day" });
    let key = json!({ "name": "k", "scopes": ["datasets:write", "purchases:write"], "spend_limit": limit });
    let key = guild
        .app
        .post("/v1/keys", &key)
        .by(&guild.owner)
        .send()
        .await;
    let key = Session {
        token: key.expect(StatusCode::CREATED).text("/key").to_owned(),
        ..guild.owner.clone()
    };
    let body = json!({ "expected_reward": guild.money(14) });
    let path = format!("/v1/contributions/{id}/accept");
    let above = guild.app.post(&path, &body).by(&key).send().await;
    above.expect_problem(StatusCode::PAYMENT_REQUIRED, "spend_limit_reached");
    assert_eq!(guild.state(id).await, "pending");
    assert_eq!(guild.available(guild.purse).await, 13);
    assert!(guild.may_read(id).await);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_with_a_limit_pays_rewards_out_of_it(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let limit = json!({ "amount": guild.money(20), "period": "day" });
    let key = json!({ "name": "k", "scopes": ["datasets:write", "purchases:write"], "spend_limit": limit });
    let key = guild
        .app
        .post("/v1/keys", &key)
        .by(&guild.owner)
        .send()
        .await;
    let key = Session {
        token: key.expect(StatusCode::CREATED).text("/key").to_owned(),
        ..guild.owner.clone()
    };
    let accept = async |given: &str| {
        let body = json!({ "expected_reward": guild.money(14) });
        let path = format!("/v1/contributions/{given}/accept");
        guild.app.post(&path, &body).by(&key).send().await
    };
    let first = guild.given(&guild.giver, &["1,1", "2,2"]).await;
    let second = guild.given(&guild.giver, &["3,3", "4,4"]).await;
    accept(first.text("/id")).await.expect(StatusCode::OK);
    accept(second.text("/id"))
        .await
        .expect_problem(StatusCode::PAYMENT_REQUIRED, "spend_limit_reached");
    assert_eq!(guild.available(guild.purse).await, 86);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn rows_that_earn_nothing_at_once_share_in_sales_without_a_receipt(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    guild.invite(guild.terms(0, 1_000_000)).await;
    let given = guild.given(&guild.giver, &["1,1"]).await;
    let accepted = guild.accept(&given).await;
    assert_eq!(accepted.json["receipt"], Value::Null);
    buy(&guild).await;
    guild.pass(KEPT).await;
    assert_eq!(guild.available(guild.paid).await, 950);
    assert_eq!(guild.available(guild.purse).await, 100);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_thousandth_who_would_share_is_refused_and_those_who_share_may_give_more(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let first = guild.given(&guild.giver, &["1,1"]).await;
    guild.accept(&first).await;
    // 998 others whose contributions are accepted.
    for statement in [
        "INSERT INTO accounts (account_id, email, password_hash, address, address_bound_at, created_at)
         SELECT gen_random_uuid(), 'c' || n || '@example.org', 'x', decode(lpad(to_hex(n), 40, '0'), 'hex'), now(), now()
         FROM generate_series(1, 998) AS n",
        "INSERT INTO contributions (contribution_id, dataset_id, owner_id, account_id, version_id, terms_number, files, rows, reward_base, asset_id,
             state, created_at, answer_due_at, ended_at)
         SELECT gen_random_uuid(), c.dataset_id, c.owner_id, a.account_id, c.version_id, 1, 1, 1, 0, c.asset_id, 'accepted', now(), now(), now()
         FROM contributions c, accounts a WHERE a.email ~ '^c[0-9]+@example.org$'",
    ] {
        sqlx::query(statement).execute(&guild.app.owner).await.unwrap();
    }
    let late = guild.app.bound_session().await.0;
    let given = guild.given(&late, &["2,2"]).await;
    let refused = guild.try_accept(given.text("/id"), 7).await;
    refused.expect_problem(StatusCode::CONFLICT, "too_many_contributors");
    let more = guild.given(&guild.giver, &["3,3"]).await;
    guild.accept(&more).await;
    // A thousand payees beside the platform are as many as a split has.
    buy(&guild).await;
    guild.pass(KEPT).await;
    assert_eq!(steps::step(&guild.app.state).await.unwrap(), 0);
}
