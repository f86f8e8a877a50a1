use axum::http::StatusCode;
use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{Guild, id_of};
use crate::datasets;

const DUPLICATE: &str = "duplicate_contribution";

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_same_bytes_are_taken_once_per_dataset(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let giver = &guild.giver;
    let other = guild.app.bound_session().await.0;
    // In a ready version of the dataset already, under whatever name.
    let known = guild
        .version(giver, &[("new.csv", b"a\n9\n"), ("old.csv", b"a,b\n1,2\n")])
        .await;
    let refused = guild.offer(giver, &known).await;
    let refused = refused.expect_problem(StatusCode::CONFLICT, DUPLICATE);
    assert_eq!(refused.text("/detail"), "old.csv", "it names the file");
    // Twice in itself.
    let twice = [("x.csv", &b"a\n5\n"[..]), ("y.csv", b"a\n5\n")];
    let twice = guild.version(giver, &twice).await;
    let refused = guild.offer(giver, &twice).await;
    refused.expect_problem(StatusCode::CONFLICT, DUPLICATE);
    // Offered by somebody else, pending or accepted.
    let fresh = guild.version(giver, &[("f.csv", b"a\n6\n")]).await;
    let copied = [("g.csv", &b"a\n6\n"[..]), ("h.csv", b"a\n7\n")];
    let copied = guild.version(&other, &copied).await;
    let mut last = guild.offer(giver, &fresh).await.expect(StatusCode::CREATED);
    for verb in ["reject", "withdraw"] {
        let refused = guild.offer(&other, &copied).await;
        let refused = refused.expect_problem(StatusCode::CONFLICT, DUPLICATE);
        assert_eq!(refused.text("/detail"), "g.csv");
        // What ended without being accepted may be offered again, by anybody.
        let by = if verb == "reject" {
            &guild.owner
        } else {
            giver
        };
        guild
            .end(by, last.text("/id"), verb)
            .await
            .expect(StatusCode::OK);
        last = guild.offer(giver, &fresh).await.expect(StatusCode::CREATED);
    }
    guild.accept(&last).await;
    let refused = guild.offer(&other, &copied).await;
    refused.expect_problem(StatusCode::CONFLICT, DUPLICATE);
    guild
        .offer(giver, &fresh)
        .await
        .expect_problem(StatusCode::CONFLICT, DUPLICATE);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn of_many_who_offer_the_same_bytes_at_once_one_is_taken(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let mut offers = Vec::new();
    for number in 0..8 {
        let by = guild.app.bound_session().await.0;
        // Two shared tables, named so that nobody claims them in the same order, and one of one's own.
        let names = if number % 2 == 0 {
            ["a.csv", "b.csv"]
        } else {
            ["b.csv", "a.csv"]
        };
        let own = format!("a\n{number}00\n");
        let files = [
            (names[0], &b"a\n1\n"[..]),
            (names[1], b"a\n2\n"),
            ("c.csv", own.as_bytes()),
        ];
        let version = guild.version(&by, &files).await;
        offers.push((by, version));
    }
    let calls = offers.iter().map(|(by, version)| guild.offer(by, version));
    let replies = join_all(calls).await;
    let made = replies.iter().filter(|it| it.status == StatusCode::CREATED);
    assert_eq!(made.count(), 1);
    for refused in replies.iter().filter(|it| it.status != StatusCode::CREATED) {
        assert_eq!(refused.code(), DUPLICATE, "{:?}", refused.json);
    }
    let listed = guild
        .read(&guild.owner, &format!("{}/contributions", guild.dataset))
        .await;
    assert_eq!(listed.json["data"].as_array().unwrap().len(), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn each_offer_that_cannot_be_has_its_answer(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let giver = &guild.giver;
    let invalid = async |by, version: &str| {
        let refused = guild.offer(by, version).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(refused.text("/errors/0/pointer"), "/version");
    };
    invalid(giver, &format!("dsv_{}", "0".repeat(26))).await;
    // Somebody else's, a draft, and one without rows.
    let other = guild.app.bound_session().await.0;
    let good = guild.version(&other, &[("t.csv", b"a\n1\n")]).await;
    invalid(giver, &good).await;
    let dataset = datasets::dataset(&guild.app, giver).await;
    let draft = datasets::draft(&guild.app, giver, &dataset).await;
    invalid(giver, &id_of(&draft)).await;
    let files = [("t.csv", &b"a\n"[..]), ("t.bin", b"bytes")];
    let empty = guild.version(giver, &files).await;
    invalid(giver, &empty).await;
    // Files without rows do not count, nor stand in the way.
    let files = [("t.csv", &b"a\n1\n2\n"[..]), ("t.bin", b"bytes")];
    let two = guild.version(giver, &files).await;
    let mut few = guild.terms(7, 0);
    few["rows_max"] = json!(1);
    guild.invite(few.clone()).await;
    invalid(giver, &two).await;
    few["is_open"] = json!(false);
    guild.invite(few).await;
    guild
        .offer(giver, &two)
        .await
        .expect_problem(StatusCode::CONFLICT, "contributions_closed");
    guild.invite(guild.terms(7, 0)).await;
    let made = guild.offer(giver, &two).await.expect(StatusCode::CREATED);
    assert_eq!(
        (&made.json["files"], &made.json["rows"]),
        (&json!(1), &json!(2))
    );
    // The owner's own, nobody's address, and a dataset that is not listed.
    let own = guild.version(&guild.owner, &[("o.csv", b"a\n3\n")]).await;
    guild
        .offer(&guild.owner, &own)
        .await
        .expect_problem(StatusCode::CONFLICT, "own_dataset");
    let unbound = guild.app.session().await;
    let theirs = guild.version(&unbound, &[("u.csv", b"a\n4\n")]).await;
    guild
        .offer(&unbound, &theirs)
        .await
        .expect_problem(StatusCode::CONFLICT, "address_not_bound");
    datasets::act(
        &guild.app,
        &guild.owner,
        &format!("{}/withdraw", guild.dataset),
    )
    .await
    .expect(StatusCode::OK);
    guild
        .offer(&other, &good)
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_dataset_that_never_invited_takes_nothing(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let files: [(&str, &[u8]); 1] = [("z.csv", b"a\n1\n")];
    let (silent, _, _) = datasets::published(&guild.app, &guild.owner, &files).await;
    datasets::act(&guild.app, &guild.owner, &format!("{silent}/list"))
        .await
        .expect(StatusCode::OK);
    guild
        .read(&guild.giver, &format!("{silent}/contribution-terms"))
        .await
        .expect_problem(StatusCode::NOT_FOUND, "not_found");
    let version = guild.version(&guild.giver, &[("t.csv", b"a\n2\n")]).await;
    let path = format!("{silent}/contributions");
    let body = json!({ "version": version });
    let call = guild.app.post(&path, &body).by(&guild.giver);
    let refused = call.send().await;
    refused.expect_problem(StatusCode::CONFLICT, "contributions_closed");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn bodies_that_cannot_be_are_refused_by_field(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let most = (1_u128 << 120) - 1;
    for (field, value, pointer) in [
        ("pool_ppm", json!(1_000_001), "/pool_ppm"),
        ("pool_ppm", json!(-1), "/pool_ppm"),
        ("pool_ppm", json!(0.5), "/pool_ppm"),
        ("rows_max", json!(0), "/rows_max"),
        ("rows_max", json!(1_000_000_001_u64), "/rows_max"),
        ("is_open", json!("yes"), "/is_open"),
        (
            "reward_per_row",
            guild.money(most),
            "/reward_per_row/amount",
        ),
        (
            "reward_per_row",
            json!({ "amount": "1", "asset": "eip155:1/erc20:0x0", "decimals": 18 }),
            "/reward_per_row/asset",
        ),
        ("surprise", json!(1), "/surprise"),
    ] {
        let mut terms = guild.terms(7, 0);
        terms[field] = value.clone();
        let refused = guild.try_invite(&guild.owner, &terms).await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(
            refused.text("/errors/0/pointer"),
            pointer,
            "{field}: {value}"
        );
    }
    let stranger = guild.try_invite(&guild.giver, &guild.terms(7, 0)).await;
    stranger.expect(StatusCode::NOT_FOUND);
    let given = guild.given(&guild.giver, &["1,1"]).await;
    let post = async |path: &str, by, body: Value| {
        let refused = guild.app.post(path, &body).by(by).send().await;
        let refused = refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        refused.text("/errors/0/pointer").to_owned()
    };
    let offer = format!("{}/contributions", guild.dataset);
    let version = given.text("/version");
    for (body, pointer) in [
        (json!({ "version": 1 }), "/version"),
        (json!({ "version": "ds_1" }), "/version"),
        (
            json!({ "version": version, "note": "x".repeat(4_097) }),
            "/note",
        ),
        (json!({ "version": version, "rows": 9 }), "/rows"),
    ] {
        assert_eq!(post(&offer, &guild.giver, body).await, pointer);
    }
    let at = format!("/v1/contributions/{}", given.text("/id"));
    for reason in [String::new(), "x".repeat(1_001)] {
        let body = json!({ "reason": reason });
        let path = format!("{at}/reject");
        assert_eq!(post(&path, &guild.owner, body).await, "/reason");
    }
    let other = json!({ "expected_reward": { "amount": "7", "asset": "x", "decimals": 18 } });
    let pointer = post(&format!("{at}/accept"), &guild.owner, other).await;
    assert_eq!(pointer, "/expected_reward/asset");
    let keyless = guild.app.request(axum::http::Method::POST, &offer);
    let keyless = keyless
        .by(&guild.giver)
        .json(&json!({ "version": version }));
    keyless
        .send()
        .await
        .expect_problem(StatusCode::BAD_REQUEST, "idempotency_key_missing");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn only_ten_contributions_of_one_account_wait_at_once(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let mut first = None;
    for number in 0..10 {
        let made = guild.given(&guild.giver, &[&format!("{number},0")]).await;
        first.get_or_insert(made);
    }
    let table = [("more.csv", &b"a\nlast\n"[..])];
    let version = guild.version(&guild.giver, &table).await;
    guild
        .offer(&guild.giver, &version)
        .await
        .expect_problem(StatusCode::CONFLICT, "too_many_contributions");
    guild.accept(&first.unwrap()).await;
    guild
        .offer(&guild.giver, &version)
        .await
        .expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_contributes_to_what_is_blocked_and_nobody_pays_for_it(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let pending = guild.given(&guild.giver, &["3,4"]).await;
    let more = guild.version(&guild.giver, &[("n.csv", b"a\n8\n")]).await;
    let claimant = guild.app.session().await;
    let path = format!("{}/takedowns", guild.dataset);
    let claim = json!({ "ground": "other", "statement": "mine" });
    let filed = guild.app.post(&path, &claim).by(&claimant).send().await;
    let freeze = format!("/v1/admin/takedowns/{}/freeze", filed.text("/id"));
    let admin = crate::admin::admin(&guild.app).await;
    let frozen = crate::admin::act(&guild.app, &admin, &freeze).await;
    frozen.expect(StatusCode::OK);

    let blocked = StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS;
    let offered = guild.offer(&guild.giver, &more).await;
    offered.expect_problem(blocked, "dataset_blocked");
    let accepted = guild.try_accept(pending.text("/id"), 7).await;
    accepted.expect_problem(blocked, "dataset_blocked");
    assert_eq!(guild.available(guild.purse).await, 100);
}
