//! Who may say what of a takedown, and who is told.

use axum::http::{Method, StatusCode, header};
use serde_json::json;
use sqlx::PgPool;
use time::Duration;

use super::claim;
use crate::{
    admin::{self, told},
    datasets,
    harness::Session,
    passwords::letters,
    purchases::Shop,
};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_takedown_is_filed_once_by_somebody_else_and_changes_nothing_until_it_is_frozen(
    db: PgPool,
) {
    let shop = Shop::open(db, 100).await;
    let terms = json!({ "kind": "buy", "refund_seconds": 0 });
    let offer = shop.offer(terms, 10).await;
    let (claimant, takedown) = shop.filed().await;
    for (claim, pointer) in [
        (
            json!({ "ground": "copyright", "statement": " \n" }),
            "/statement",
        ),
        (
            json!({ "ground": "copyright", "statement": "a".repeat(8_193) }),
            "/statement",
        ),
    ] {
        let refused = shop.file(&shop.buyer, &claim).await;
        let refused = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused.text("/errors/0/pointer"), pointer);
    }
    let again = shop.file(&claimant, &claim()).await;
    again.expect_problem(StatusCode::CONFLICT, "takedown_filed");
    let own = shop.file(&shop.seller, &claim()).await;
    own.expect_problem(StatusCode::CONFLICT, "own_dataset");
    let unknown = shop.app.post(
        "/v1/datasets/ds_01h455vb4pex5vsknk084sn02q/takedowns",
        &claim(),
    );
    let unknown = unknown.by(&claimant).send().await;
    unknown.expect_problem(StatusCode::NOT_FOUND, "not_found");

    for side in [&claimant, &shop.seller] {
        let read = shop.asks(side, &takedown).await.expect(StatusCode::OK);
        assert_eq!(read.text("/state"), "filed");
    }
    let other = shop.asks(&shop.buyer, &takedown).await;
    other.expect_problem(StatusCode::NOT_FOUND, "not_found");
    let received = shop.asks(&shop.seller, "/v1/takedowns?side=received").await;
    assert_eq!(received.text("/data/0/statement"), "I wrote these rows.");
    let filed = shop.asks(&shop.seller, "/v1/takedowns").await;
    assert_eq!(filed.json["data"], json!([]));

    shop.contest(&takedown)
        .await
        .expect_problem(StatusCode::CONFLICT, "takedown_state");
    shop.taken(&shop.wish(&offer, 10)).await;
    let dismissed = shop.decide(&takedown, "dismiss").await;
    assert_eq!(dismissed.text("/state"), "dismissed");
    shop.decide(&takedown, "freeze")
        .await
        .expect_problem(StatusCode::CONFLICT, "takedown_state");
    let anew = shop.file(&claimant, &claim()).await;
    anew.expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_account_has_more_than_twenty_takedowns_that_no_operator_has_looked_at(db: PgPool) {
    let mut shop = Shop::open(db, 0).await;
    let claimant = shop.app.session().await;
    let mut last = String::new();
    for number in 0..=20 {
        let card = json!({ "name": format!("d{number}"), "title": "D", "licence": "MIT" });
        let made = shop.app.post("/v1/datasets", &card).by(&shop.seller);
        let made = made.send().await.expect(StatusCode::CREATED);
        made.header(header::LOCATION).clone_into(&mut shop.dataset);
        sqlx::query("UPDATE datasets SET state = 'listed'")
            .execute(&shop.app.owner)
            .await
            .unwrap();
        let filed = shop.file(&claimant, &claim()).await;
        if number < 20 {
            let filed = filed.expect(StatusCode::CREATED);
            filed.header(header::LOCATION).clone_into(&mut last);
        } else {
            filed.expect_problem(StatusCode::CONFLICT, "too_many_takedowns");
        }
    }
    shop.decide(&last, "freeze").await.expect(StatusCode::OK);
    let filed = shop.file(&claimant, &claim()).await;
    filed.expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_filed_a_takedown_takes_it_back_until_an_operator_has_looked_at_it(db: PgPool) {
    let shop = Shop::open(db, 0).await;
    let (claimant, takedown) = shop.filed().await;
    let withdraw = format!("{takedown}/withdraw");
    let not_his = datasets::act(&shop.app, &shop.seller, &withdraw).await;
    not_his.expect_problem(StatusCode::NOT_FOUND, "not_found");
    for _ in 0..2 {
        let withdrawn = datasets::act(&shop.app, &claimant, &withdraw).await;
        assert_eq!(withdrawn.text("/state"), "withdrawn");
    }
    let frozen = shop.decide(&takedown, "freeze").await;
    frozen.expect_problem(StatusCode::CONFLICT, "takedown_state");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_decides_a_case_of_ones_own(db: PgPool) {
    let shop = Shop::open(db, 0).await;
    let (_, takedown) = shop.filed().await;
    let freeze = format!("{}/freeze", takedown.replace("/v1/", "/v1/admin/"));
    admin::make_admin(&shop.app, shop.seller.account).await;
    let own = admin::act(&shop.app, &shop.seller, &freeze).await;
    own.expect_problem(StatusCode::FORBIDDEN, "second_person_required");

    let operator = admin::admin(&shop.app).await;
    let filed = shop.file(&operator, &claim()).await;
    let path = filed.header(header::LOCATION).replace("/v1/", "/v1/admin/");
    let frozen = admin::act(&shop.app, &operator, &format!("{path}/freeze")).await;
    frozen.expect(StatusCode::OK);
    let uphold = format!("{path}/uphold");
    let own = admin::act(&shop.app, &operator, &uphold).await;
    own.expect_problem(StatusCode::FORBIDDEN, "second_person_required");
    let other = admin::admin(&shop.app).await;
    let upheld = admin::act(&shop.app, &other, &uphold).await;
    upheld.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_takedown_is_about_is_not_shredded_before_and_may_be_after_it_is_upheld(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 10).await;
    shop.taken(&shop.wish(&offer, 10)).await;
    let shred = async || {
        let seller = shop.app.renewed(&shop.seller);
        let call = shop.app.request(Method::DELETE, &shop.version);
        call.by(&seller).send().await
    };
    shred()
        .await
        .expect_problem(StatusCode::CONFLICT, "version_sold");
    let (_, takedown) = shop.frozen().await;
    shred()
        .await
        .expect_problem(StatusCode::CONFLICT, "version_disputed");
    shop.decide(&takedown, "uphold")
        .await
        .expect(StatusCode::OK);
    shred().await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_operator_s_word_is_in_the_audit_log_and_both_sides_are_told(db: PgPool) {
    let shop = Shop::open(db, 0).await;
    for by in [&shop.seller, &shop.buyer] {
        crate::webhooks::make(&shop.app, by).await;
    }
    let filed = shop.file(&shop.buyer, &claim()).await;
    let filed = filed.expect(StatusCode::CREATED);
    let takedown = filed.header(header::LOCATION).to_owned();
    shop.decide(&takedown, "freeze")
        .await
        .expect(StatusCode::OK);
    shop.decide(&takedown, "uphold")
        .await
        .expect(StatusCode::OK);
    for action in ["takedown.frozen", "takedown.upheld"] {
        let told = told(&shop.app, action).await;
        assert_eq!(told.len(), 1, "{action}");
        assert!(takedown.ends_with(&told[0].subject));
    }
    let kinds = async |by: &Session| {
        let events = shop.asks(by, "/v1/events").await.expect(StatusCode::OK);
        let rows = events.json["data"].as_array().unwrap().clone();
        let kinds = rows
            .iter()
            .map(|it| it["type"].as_str().unwrap().to_owned());
        let mut kinds: Vec<_> = kinds
            .filter(|it| it.starts_with("takedown.") || it.starts_with("dataset."))
            .collect();
        kinds.sort();
        kinds
    };
    let told = ["takedown.filed", "takedown.frozen", "takedown.upheld"];
    assert_eq!(kinds(&shop.buyer).await, told);
    assert_eq!(
        kinds(&shop.seller).await,
        [&["dataset.blocked"][..], &told].concat()
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn both_sides_are_told_by_mail_what_becomes_of_a_takedown(db: PgPool) {
    let mut shop = Shop::open(db, 0).await;
    let folder = tempfile::tempdir().unwrap();
    shop.app.with_mail(folder.path());
    let address = "SELECT email FROM accounts WHERE account_id = $1";
    let address = sqlx::query_scalar(address).bind(shop.seller.account.0);
    let seller: String = address.fetch_one(&shop.app.owner).await.unwrap();
    // To the seller, and to who filed it: nothing of the one is in the letter of the other.
    let told = async |shop: &Shop, takedown: &str, says: [&str; 2]| {
        shop.settle().await;
        let letters = letters(folder.path());
        assert_eq!(letters.len(), 2, "{letters:?}");
        for says in says {
            let telling = letters.iter().filter(|it| it.contains(says));
            let telling: Vec<_> = telling.collect();
            assert_eq!(telling.len(), 1, "{says} in {letters:?}");
            assert!(telling[0].contains(takedown.rsplit('/').next().unwrap()));
            let is_seller = says.to_lowercase().contains("your dataset");
            let is_to_seller = telling[0].contains(&format!("To: {seller}"));
            assert_eq!(is_to_seller, is_seller, "{}", telling[0]);
        }
    };
    let (claimant, takedown) = shop.filed().await;
    let filed = ["that your dataset", "You said that the dataset"];
    told(&shop, &takedown, filed).await;
    let frozen = shop.decide(&takedown, "freeze").await;
    frozen.expect(StatusCode::OK);
    let frozen = ["Your dataset was taken down", "Its seller may contest"];
    told(&shop, &takedown, frozen).await;
    shop.contest(&takedown).await.expect(StatusCode::OK);
    let contested = ["that your dataset", "contests your takedown"];
    told(&shop, &takedown, contested).await;
    let rejected = shop.decide(&takedown, "reject").await;
    rejected.expect(StatusCode::OK);
    let rejected = ["Your dataset is back", "Your takedown was rejected"];
    told(&shop, &takedown, rejected).await;

    let filed = shop.file(&claimant, &claim()).await;
    let withdrawn = filed.header(header::LOCATION).to_owned();
    letters_of(&shop, folder.path()).await;
    let path = format!("{withdrawn}/withdraw");
    let done = datasets::act(&shop.app, &shop.app.renewed(&claimant), &path).await;
    done.expect(StatusCode::OK);
    let words = ["said that your dataset", "You took a takedown back"];
    told(&shop, &withdrawn, words).await;

    let (_, dismissed) = shop.filed().await;
    letters_of(&shop, folder.path()).await;
    let done = shop.decide(&dismissed, "dismiss").await;
    done.expect(StatusCode::OK);
    let words = ["block your dataset", "Your takedown was dismissed"];
    told(&shop, &dismissed, words).await;

    // One that nobody contests is upheld by its clock.
    let (_, upheld) = shop.frozen().await;
    letters_of(&shop, folder.path()).await;
    shop.app.pass(Duration::days(30));
    let words = ["Your dataset stays blocked", "The dataset stays blocked"];
    told(&shop, &upheld, words).await;
}

/// Those that are sent by now, which are not there any more.
async fn letters_of(shop: &Shop, folder: &std::path::Path) -> Vec<String> {
    shop.settle().await;
    letters(folder)
}
