//! Takedowns over HTTP: who may say what, what a freeze does to everything that was sold, and what either end of it does to the money.

use axum::http::{Method, StatusCode, header};
use comptoir_domain::{id::AccountId, ledger::EntryKind, takedown::Act};
use comptoir_store::{
    datasets as store_datasets,
    holdback::proceeds,
    pool::{self, ServiceRole},
    takedowns::{self, ActError},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;
use tower::ServiceExt as _;

use crate::{
    admin::{self, told},
    datasets::{self, get},
    harness::{Reply, Session, TestApp},
    passwords::letters,
    purchases::Shop,
};

const HOUR: u32 = 3_600;

fn claim() -> Value {
    json!({ "ground": "copyright", "statement": "I wrote these rows." })
}

impl Shop {
    /// Files a takedown of the dataset; by somebody else than the buyer.
    async fn filed(&self) -> (Session, String) {
        let claimant = self.app.session().await;
        let filed = self.file(&claimant, &claim()).await;
        let filed = filed.expect(StatusCode::CREATED);
        let path = filed.header(header::LOCATION).to_owned();
        (claimant, path)
    }

    async fn file(&self, by: &Session, claim: &Value) -> Reply {
        let path = format!("{}/takedowns", self.dataset);
        let by = self.app.renewed(by);
        self.app.post(&path, claim).by(&by).send().await
    }

    /// What an operator does with a takedown.
    async fn decide(&self, takedown: &str, act: &str) -> Reply {
        let admin = admin::admin(&self.app).await;
        let path = takedown.replace("/v1/", "/v1/admin/");
        admin::act(&self.app, &admin, &format!("{path}/{act}")).await
    }

    async fn frozen(&self) -> (Session, String) {
        let (claimant, takedown) = self.filed().await;
        let frozen = self.decide(&takedown, "freeze").await;
        frozen.expect(StatusCode::OK);
        self.settle().await;
        (claimant, takedown)
    }

    async fn contest(&self, takedown: &str) -> Reply {
        let body = json!({ "statement": "I wrote them, and have the drafts." });
        self.sell(&format!("{takedown}/contest"), &body).await
    }

    async fn state_of(&self, takedown: &str) -> String {
        let seller = self.app.renewed(&self.seller);
        let read = get(&self.app, &seller, takedown).await;
        read.expect(StatusCode::OK).text("/state").to_owned()
    }

    async fn asks(&self, by: &Session, path: &str) -> Reply {
        get(&self.app, &self.app.renewed(by), path).await
    }

    /// What is held back for the seller, and for the house.
    async fn held_back(&self) -> (u128, u128) {
        let seller = self.balances(self.paid).await.held_back.base();
        let platform = self.balances(super::purchases::PLATFORM).await;
        (seller, platform.held_back.base())
    }

    /// As the scheduler does in its steps, with its rights.
    async fn move_proceeds(&self) -> usize {
        let options = self.app.owner.connect_options().as_ref().clone();
        let scheduler = pool::connect(options, ServiceRole::Scheduler, 1).await;
        let scheduler = scheduler.unwrap();
        let mut moved = 0;
        let mut connection = scheduler.acquire().await.unwrap();
        let due = proceeds::due(&mut connection, self.app.now(), 10)
            .await
            .unwrap();
        drop(connection);
        for dataset in due {
            let mut tx = scheduler.begin().await.unwrap();
            let now = self.app.now();
            moved += proceeds::move_due(&mut tx, dataset, now).await.unwrap().1;
            tx.commit().await.unwrap();
        }
        moved
    }

    /// A rental of 1,000 seconds at 7 a second, 500 of them at least, that a freeze ended after 100.
    async fn rented_and_frozen(&self) -> String {
        let terms = json!({ "kind": "rent", "period_seconds": HOUR, "minimum_seconds": 500 });
        let offer = self.offer(terms, 7).await;
        let mut wish = self.wish(&offer, 7_000);
        wish["seconds"] = json!(1_000);
        let rental = self.taken(&wish).await;
        // Whoever read it did not choose that it ends: no least time is charged.
        self.read(&self.content().await).await;
        self.app.pass(Duration::seconds(100));
        let (_, takedown) = self.frozen().await;
        let ended = self.read(&rental).await;
        assert_eq!(ended.text("/state"), "settled");
        assert_eq!(ended.text("/final_because"), "taken_down");
        assert_eq!(ended.text("/charged/amount"), "700");
        takedown
    }
}

fn is_blocked(reply: Reply, takedown: &str) {
    let reply = reply.expect_problem(StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS, "dataset_blocked");
    let link = reply.header(header::LINK);
    assert!(link.ends_with(r#">; rel="blocked-by""#), "{link}");
    let id = takedown.rsplit('/').next().unwrap();
    assert!(reply.text("/detail").contains(id), "{:?}", reply.json);
}

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
async fn a_freeze_blocks_sales_bytes_and_the_catalogue_for_everybody(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let terms = json!({ "kind": "buy", "refund_seconds": HOUR });
    let offer = shop.offer(terms, 10).await;
    let content = shop.content().await;
    shop.taken(&shop.wish(&offer, 10)).await;
    shop.read(&content).await;
    let link = content.replace("/content", "/links");
    let link = shop.act(&link).await.expect(StatusCode::CREATED);
    let link = link.text("/url").split_once("/v1/").unwrap().1.to_owned();
    let search = shop.asks(&shop.buyer, "/v1/catalog").await;
    assert_eq!(search.json["data"].as_array().unwrap().len(), 1);

    let (claimant, takedown) = shop.frozen().await;
    let late = shop.app.session().await;
    for reader in [&shop.buyer, &shop.seller, &late] {
        is_blocked(shop.asks(reader, &content).await, &takedown);
    }
    let links = content.replace("/content", "/links");
    is_blocked(shop.act(&links).await, &takedown);
    let followed = shop.app.get(&format!("/v1/{link}")).send().await;
    is_blocked(followed, &takedown);
    let wish = shop.wish(&offer, 10);
    let taken = shop.app.post("/v1/purchases", &wish).by(&claimant);
    let taken = taken.send().await;
    is_blocked(taken, &takedown);
    let quote = shop
        .app
        .post(&format!("/v1/offers/{offer}/quote"), &json!({}));
    is_blocked(quote.by(&late).send().await, &takedown);
    let search = shop.asks(&shop.buyer, "/v1/catalog").await;
    assert_eq!(search.json["data"], json!([]));
    let dataset = shop.read(&shop.dataset).await;
    assert!(takedown.ends_with(dataset.text("/blocked_by")));

    let rejected = shop.decide(&takedown, "reject").await;
    assert_eq!(rejected.text("/state"), "rejected");
    assert_eq!(
        shop.read(&shop.dataset).await.json["blocked_by"],
        Value::Null
    );
    shop.read(&content).await;
    let search = shop.asks(&shop.buyer, "/v1/catalog").await;
    assert_eq!(search.json["data"].as_array().unwrap().len(), 1);
    let (available, held) = shop.purse().await;
    assert_eq!((available, held), (90, 0), "what was read is paid");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_freeze_gives_back_what_nobody_read_and_ends_what_renews_itself(db: PgPool) {
    let shop = Shop::open(db, 1_000).await;
    let kinds = [
        json!({ "kind": "buy", "answer_seconds": HOUR }),
        json!({ "kind": "subscribe", "period_seconds": HOUR }),
        json!({ "kind": "buy", "refund_seconds": HOUR }),
    ];
    let mut taken = Vec::new();
    for terms in kinds {
        let offer = shop.offer(terms, 100).await;
        taken.push(shop.taken(&shop.wish(&offer, 100)).await);
    }
    let subscription = shop.read(&taken[1]).await.text("/subscription").to_owned();
    assert_eq!(shop.purse().await, (700, 300));
    shop.frozen().await;
    for path in [&taken[0], &taken[2]] {
        let refunded = shop.read(path).await;
        assert_eq!(refunded.text("/state"), "refunded", "{path}");
        assert_eq!(refunded.text("/reason"), "the dataset is blocked");
    }
    let ended = shop
        .read(&format!("/v1/subscriptions/{subscription}"))
        .await;
    assert_eq!(ended.text("/ended_because"), "taken_down");
    assert_eq!(shop.purse().await, (1_000, 0));
    shop.adds_up(1_000).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_used_until_a_freeze_is_held_back_and_goes_back_when_nobody_contests_it(
    db: PgPool,
) {
    let shop = Shop::open(db, 10_000).await;
    let takedown = shop.rented_and_frozen().await;
    assert_eq!(shop.purse().await, (9_300, 0));
    assert_eq!(shop.held_back().await, (665, 35));
    assert_eq!((shop.earned().await, shop.house().await), (0, 0));
    shop.pass(Duration::days(14) - Duration::seconds(1)).await;
    assert_eq!(shop.state_of(&takedown).await, "frozen");
    assert_eq!(shop.move_proceeds().await, 0);

    shop.app.pass(Duration::seconds(1));
    // Its step is late, and the seller too.
    let late = shop.contest(&takedown).await;
    late.expect_problem(StatusCode::CONFLICT, "takedown_state");
    shop.settle().await;
    assert_eq!(shop.state_of(&takedown).await, "upheld");
    assert_eq!(told(&shop.app, "takedown.upheld").await.len(), 1);
    assert_eq!(shop.move_proceeds().await, 2);
    assert_eq!(shop.purse().await, (10_000, 0));
    assert_eq!(shop.held_back().await, (0, 0));
    assert_eq!(forfeits(&shop.app).await, 2);
    let content = shop.content().await;
    is_blocked(shop.asks(&shop.buyer, &content).await, &takedown);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_contested_is_back_when_nobody_decides_and_the_seller_gets_what_was_held_back(
    db: PgPool,
) {
    let shop = Shop::open(db, 10_000).await;
    let takedown = shop.rented_and_frozen().await;
    shop.app.pass(Duration::days(13));
    let contested = shop.contest(&takedown).await.expect(StatusCode::OK);
    assert_eq!(contested.text("/state"), "contested");
    shop.contest(&takedown)
        .await
        .expect_problem(StatusCode::CONFLICT, "takedown_state");
    shop.pass(Duration::days(14) - Duration::seconds(1)).await;
    assert_eq!(shop.state_of(&takedown).await, "contested");
    shop.pass(Duration::seconds(1)).await;
    assert_eq!(shop.state_of(&takedown).await, "rejected");
    let read = shop.asks(&shop.seller, &takedown).await;
    assert_eq!(read.json["reason"], Value::Null, "the clock gives none");
    assert_eq!(told(&shop.app, "takedown.rejected").await.len(), 1);
    assert_eq!(shop.move_proceeds().await, 2);
    assert_eq!(shop.held_back().await, (0, 0));
    assert_eq!((shop.purse().await, shop.earned().await), ((9_300, 0), 665));
    assert_eq!(forfeits(&shop.app).await, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_dataset_is_blocked_until_the_last_takedown_of_it_is_decided(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let first = shop.rented_and_frozen().await;
    let (claimant, second) = shop.frozen().await;
    shop.decide(&first, "reject").await.expect(StatusCode::OK);
    assert_eq!(
        shop.move_proceeds().await,
        0,
        "the other one is not decided"
    );
    let content = shop.content().await;
    is_blocked(shop.asks(&shop.buyer, &content).await, &second);
    // Who filed it does not take back what an operator did.
    let withdraw = format!("{second}/withdraw");
    let claimant = shop.app.renewed(&claimant);
    let late = datasets::act(&shop.app, &claimant, &withdraw).await;
    late.expect_problem(StatusCode::CONFLICT, "takedown_state");
    shop.decide(&second, "reject").await.expect(StatusCode::OK);
    assert_eq!(shop.move_proceeds().await, 2);
    assert_eq!(shop.earned().await, 665);
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
async fn a_dataset_that_its_seller_took_off_the_list_is_taken_down_all_the_same(db: PgPool) {
    let shop = Shop::open(db, 100).await;
    let offer = shop.offer(json!({ "kind": "buy" }), 10).await;
    let content = shop.content().await;
    shop.taken(&shop.wish(&offer, 10)).await;
    let withdraw = format!("{}/withdraw", shop.dataset);
    let withdrawn = datasets::act(&shop.app, &shop.seller, &withdraw).await;
    withdrawn.expect(StatusCode::OK);
    shop.read(&content).await;
    let (_, takedown) = shop.frozen().await;
    is_blocked(shop.asks(&shop.buyer, &content).await, &takedown);
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
async fn a_freeze_counts_before_its_steps_have_come(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let gated = json!({ "kind": "buy", "answer_seconds": HOUR });
    let gated = shop.offer(gated, 10).await;
    let asked = shop.taken(&shop.wish(&gated, 10)).await;
    let bought = json!({ "kind": "buy", "refund_seconds": HOUR });
    let bought = shop.offer(bought, 100).await;
    let bought = shop.taken(&shop.wish(&bought, 100)).await;
    let (_, takedown) = shop.filed().await;
    shop.app.pass(Duration::minutes(30));
    shop.decide(&takedown, "freeze")
        .await
        .expect(StatusCode::OK);

    let approve = asked.replace("/v1/purchases/", "/v1/sales/") + "/approve";
    is_blocked(shop.sell(&approve, &json!({})).await, &takedown);
    // What nobody could read for the last half hour of its window is not charged at its end.
    shop.pass(Duration::HOUR).await;
    for path in [&asked, &bought] {
        assert_eq!(shop.read(path).await.text("/state"), "refunded", "{path}");
    }
    assert_eq!(shop.purse().await, (10_000, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_freeze_waits_for_who_is_charging_what_is_not_blocked(db: PgPool) {
    let shop = Shop::open(db, 0).await;
    let (_, takedown) = shop.filed().await;
    let [dataset, takedown] = [&shop.dataset, &takedown].map(|it| it.rsplit('/').next().unwrap());
    let (dataset, takedown) = (dataset.parse().unwrap(), takedown.parse().unwrap());
    let freeze = async || {
        let mut tx = shop.app.owner.begin().await.unwrap();
        sqlx::query("SET LOCAL lock_timeout = '100ms'")
            .execute(&mut *tx)
            .await
            .unwrap();
        let by = (AccountId::generate(), takedown);
        let decided = takedowns::decide(&mut tx, by, (Act::Freeze, "x"), shop.app.now()).await;
        tx.commit().await.unwrap();
        decided.map(drop)
    };
    let mut charging = shop.app.state.db.begin().await.unwrap();
    let block = store_datasets::block(&mut charging, dataset).await.unwrap();
    assert_eq!(block, None);
    let waits = freeze().await.unwrap_err();
    assert!(matches!(waits, ActError::Database(_)), "{waits:?}");
    charging.commit().await.unwrap();
    freeze().await.unwrap();
    let mut charging = shop.app.state.db.begin().await.unwrap();
    let block = store_datasets::block(&mut charging, dataset).await.unwrap();
    assert_eq!(block.map(|it| it.by), Some(takedown));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn time_after_a_freeze_is_not_charged_whoever_ends_it(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let terms = json!({ "kind": "rent", "period_seconds": HOUR, "minimum_seconds": 0 });
    let offer = shop.offer(terms, 7).await;
    let mut wish = shop.wish(&offer, 7_000);
    wish["seconds"] = json!(1_000);
    let rental = shop.taken(&wish).await;
    shop.app.pass(Duration::seconds(100));
    let (_, takedown) = shop.filed().await;
    shop.decide(&takedown, "freeze")
        .await
        .expect(StatusCode::OK);
    shop.app.pass(Duration::seconds(400));
    let ended = shop.act(&format!("{rental}/end")).await;
    assert_eq!(ended.text("/charged/amount"), "700");
    assert_eq!(shop.held_back().await, (665, 35));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_leaves_by_the_contract_does_not_wait_for_an_operator(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    shop.rented_and_frozen().await;
    let exit = "INSERT INTO exits (asset_id, event_seq, owner, block_number, due_at, seen_at) VALUES ($1, 1, $2, 1, $3, $4)";
    sqlx::query(exit)
        .bind(shop.asset.id)
        .bind(shop.paid.to_vec())
        .bind(shop.app.now() + Duration::weeks(3))
        .bind(shop.app.now())
        .execute(&shop.app.owner)
        .await
        .unwrap();
    shop.app.pass(Duration::weeks(2) - Duration::seconds(1));
    assert_eq!(shop.move_proceeds().await, 0);
    shop.app.pass(Duration::seconds(1));
    assert_eq!(
        shop.move_proceeds().await,
        1,
        "the seller's, and nobody else's"
    );
    assert_eq!(
        (shop.held_back().await, shop.earned().await),
        ((0, 35), 665)
    );
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

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_download_that_is_under_way_ends_soon_after_its_dataset_is_frozen(db: PgPool) {
    let app = TestApp::new(db).await;
    let (seller, claimant) = (app.session().await, app.session().await);
    let bytes = datasets::patterned(5 * datasets::PART);
    let (dataset, _, files) = datasets::published(&app, &seller, &[("a.bin", &bytes)]).await;
    let listed = datasets::act(&app, &seller, &format!("{dataset}/list")).await;
    listed.expect(StatusCode::OK);
    let content = format!("{}/content", files[0]);
    let call = app.get(&content).by(&seller).build();
    let router = comptoir_api::app(app.state.clone()).0;
    let response = router.oneshot(call).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let mut read = first.to_vec();

    let filed = app.post(&format!("{dataset}/takedowns"), &claim());
    let filed = filed.by(&claimant).send().await.expect(StatusCode::CREATED);
    let freeze = format!("/v1/admin/takedowns/{}/freeze", filed.text("/id"));
    let frozen = admin::act(&app, &admin::admin(&app).await, &freeze).await;
    frozen.expect(StatusCode::OK);
    let cut = loop {
        match body.frame().await {
            Some(Ok(frame)) => read.extend_from_slice(&frame.into_data().unwrap()),
            Some(Err(cut)) => break cut,
            None => panic!("all {} bytes came", read.len()),
        }
    };
    // The length that was announced did not come: no client takes what it has for the whole.
    assert_eq!(cut.to_string(), "the right is over");
    assert!(read.len() < bytes.len() && read == bytes[..read.len()]);
    get(&app, &seller, &content)
        .await
        .expect_problem(StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS, "dataset_blocked");
}

/// How much was forfeited, in entries.
async fn forfeits(app: &TestApp) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM journal_entries WHERE kind = $1")
        .bind(EntryKind::Forfeit.as_str())
        .fetch_one(&app.owner)
        .await
        .unwrap()
}

/// For the walk over every route: a takedown that the owner filed.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let seller = app.session().await;
    vec![against(app, owner, &seller).await.text("/id").to_owned()]
}

/// For the walk over every route: a takedown of a dataset of the owner's that is frozen.
pub async fn make_frozen(app: &TestApp, owner: &Session) -> Vec<String> {
    let claimant = app.session().await;
    let filed = against(app, &claimant, owner).await;
    let id = filed.text("/id");
    let admin = admin::admin(app).await;
    let frozen = admin::act(app, &admin, &format!("/v1/admin/takedowns/{id}/freeze")).await;
    frozen.expect(StatusCode::OK);
    vec![id.to_owned()]
}

async fn against(app: &TestApp, claimant: &Session, seller: &Session) -> Reply {
    let (dataset, ..) = datasets::published(app, seller, &[("a.csv", b"a\n1\n")]).await;
    let listed = datasets::act(app, seller, &format!("{dataset}/list")).await;
    listed.expect(StatusCode::OK);
    let path = format!("{dataset}/takedowns");
    let filed = app.post(&path, &claim()).by(claimant).send().await;
    filed.expect(StatusCode::CREATED)
}
