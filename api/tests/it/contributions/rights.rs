use ::time::Duration;
use axum::http::{Method, StatusCode};
use comptoir_domain::scope::Scope;
use serde_json::json;
use sqlx::PgPool;

use super::Guild;
use crate::harness::Reply;

/// Where the one file of a contribution is.
async fn content_of(guild: &Guild, given: &Reply) -> String {
    let (source, version) = (given.text("/source"), given.text("/version"));
    let files = format!("/v1/datasets/{source}/versions/{version}/files");
    let listed = guild.read(&guild.owner, &files).await;
    let listed = listed.expect(StatusCode::OK);
    format!("{files}/{}/content", listed.text("/data/0/id"))
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_owner_may_read_what_is_offered_until_it_ends_unaccepted(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    for verb in ["reject", "withdraw"] {
        let given = guild.given(&guild.giver, &[&format!("{verb},1")]).await;
        let id = given.text("/id");
        assert!(guild.may_read(id).await);
        let content = content_of(&guild, &given).await;
        let read = guild.read(&guild.owner, &content).await;
        assert_eq!(
            read.expect(StatusCode::OK).bytes,
            format!("a,b\n{verb},1\n").as_bytes()
        );
        let by = if verb == "reject" {
            &guild.owner
        } else {
            &guild.giver
        };
        for _ in 0..2 {
            guild.end(by, id, verb).await.expect(StatusCode::OK);
        }
        assert!(!guild.may_read(id).await, "{verb}");
        let over = guild.read(&guild.owner, &content).await;
        assert!(over.status.is_client_error(), "{verb}: {}", over.status);
    }
    let given = guild.given(&guild.giver, &["kept,1"]).await;
    guild.accept(&given).await;
    assert!(guild.may_read(given.text("/id")).await);
    let library = guild.read(&guild.owner, "/v1/library").await;
    let rows = library.json["data"].as_array().unwrap();
    let states: Vec<_> = rows.iter().map(|it| &it["state"]).collect();
    assert_eq!(states, ["active", "taken_back", "taken_back"]);
    assert_eq!(rows[0]["contribution"], given.text("/id"));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_stands_is_not_shredded_and_what_was_withdrawn_may_be(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let given = guild.given(&guild.giver, &["1,1"]).await;
    let path = format!(
        "/v1/datasets/{}/versions/{}",
        given.text("/source"),
        given.text("/version")
    );
    let shred = async || {
        let giver = guild.app.renewed(&guild.giver);
        let call = guild.app.request(Method::DELETE, &path).by(&giver);
        call.send().await
    };
    shred()
        .await
        .expect_problem(StatusCode::CONFLICT, "version_contributed");
    guild
        .end(&guild.giver, given.text("/id"), "withdraw")
        .await
        .expect(StatusCode::OK);
    let version = given.text("/version");
    let again = guild.offer(&guild.giver, version).await;
    guild.accept(&again.expect(StatusCode::CREATED)).await;
    shred()
        .await
        .expect_problem(StatusCode::CONFLICT, "version_contributed");
    // One that nobody has a right to any more.
    let other = guild.given(&guild.giver, &["2,2"]).await;
    guild
        .end(&guild.owner, other.text("/id"), "reject")
        .await
        .expect(StatusCode::OK);
    let path = format!(
        "/v1/datasets/{}/versions/{}",
        other.text("/source"),
        other.text("/version")
    );
    let call = guild.app.request(Method::DELETE, &path).by(&guild.giver);
    call.send().await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_answered_or_too_late_is_not_answered_again(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let answered = "contribution_answered";
    let given = guild.given(&guild.giver, &["1,1"]).await;
    guild.accept(&given).await;
    let id = given.text("/id");
    for (by, verb) in [(&guild.owner, "reject"), (&guild.giver, "withdraw")] {
        let late = guild.end(by, id, verb).await;
        late.expect_problem(StatusCode::CONFLICT, answered);
    }
    assert_eq!(guild.state(id).await, "accepted");
    let given = guild.given(&guild.giver, &["2,2"]).await;
    let id = given.text("/id");
    guild
        .end(&guild.owner, id, "reject")
        .await
        .expect(StatusCode::OK);
    guild
        .try_accept(id, 7)
        .await
        .expect_problem(StatusCode::CONFLICT, answered);
    let read = guild
        .read(&guild.giver, &format!("/v1/contributions/{id}"))
        .await;
    assert_eq!(read.text("/reason"), "not what was asked for");
    let given = guild.given(&guild.giver, &["3,3"]).await;
    let id = given.text("/id");
    // Its time is over, whether or not the step was there.
    guild.app.pass(Duration::days(30));
    guild
        .try_accept(id, 7)
        .await
        .expect_problem(StatusCode::CONFLICT, answered);
    guild.pass(Duration::ZERO).await;
    assert_eq!(guild.state(id).await, "lapsed");
    assert!(!guild.may_read(id).await);
    guild
        .offer(&guild.giver, given.text("/version"))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(guild.available(guild.purse).await, 93);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_that_may_buy_nothing_accepts_nothing(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let given = guild.given(&guild.giver, &["1,1"]).await;
    let path = format!("/v1/contributions/{}/accept", given.text("/id"));
    let body = json!({ "expected_reward": guild.money(7) });
    let accept = async |scopes: &[Scope]| {
        let scopes = scopes.iter().copied().collect();
        let key = guild.app.api_key(&guild.owner, &scopes).await;
        guild.app.post(&path, &body).by(&key).send().await
    };
    accept(&[Scope::DatasetsRead, Scope::DatasetsWrite])
        .await
        .expect_problem(StatusCode::FORBIDDEN, "insufficient_scope");
    assert_eq!(guild.available(guild.purse).await, 100);
    let accepted = accept(&[Scope::PurchasesWrite]).await;
    assert_eq!(accepted.expect(StatusCode::OK).text("/state"), "accepted");
    assert_eq!(guild.available(guild.purse).await, 93);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_contribution_is_its_two_sides_and_nobody_elses(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    let given = guild.given(&guild.giver, &["1,1"]).await;
    let id = given.text("/id");
    let stranger = guild.app.bound_session().await.0;
    let path = format!("/v1/contributions/{id}");
    for (by, status) in [
        (&guild.owner, StatusCode::OK),
        (&guild.giver, StatusCode::OK),
        (&stranger, StatusCode::NOT_FOUND),
    ] {
        guild.read(by, &path).await.expect(status);
    }
    for (by, verb) in [
        (&guild.giver, "reject"),
        (&guild.owner, "withdraw"),
        (&stranger, "reject"),
        (&stranger, "withdraw"),
    ] {
        let refused = guild.end(by, id, verb).await;
        refused.expect(StatusCode::NOT_FOUND);
    }
    for by in [&guild.giver, &stranger] {
        let body = json!({ "expected_reward": guild.money(7) });
        let call = guild.app.post(&format!("{path}/accept"), &body).by(by);
        call.send().await.expect(StatusCode::NOT_FOUND);
    }
    let of_dataset = format!("{}/contributions", guild.dataset);
    for (by, path, count) in [
        (&guild.giver, "/v1/contributions", 1),
        (&guild.giver, "/v1/contributions?state=accepted", 0),
        (&guild.giver, of_dataset.as_str(), 1),
        (&guild.owner, "/v1/contributions", 0),
        (&guild.owner, of_dataset.as_str(), 1),
        (&stranger, of_dataset.as_str(), 0),
        (&stranger, "/v1/contributions", 0),
    ] {
        let page = guild.read(by, path).await.expect(StatusCode::OK);
        assert_eq!(page.json["data"].as_array().unwrap().len(), count, "{path}");
    }
    // What was made stays readable to both, also when the dataset is off the list.
    let withdraw = format!("{}/withdraw", guild.dataset);
    let withdrawn = crate::datasets::act(&guild.app, &guild.owner, &withdraw).await;
    withdrawn.expect(StatusCode::OK);
    for by in [&guild.owner, &guild.giver] {
        guild.read(by, &path).await.expect(StatusCode::OK);
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn both_sides_are_told_what_becomes_of_a_contribution(db: PgPool) {
    let guild = Guild::open(db, 100).await;
    for by in [&guild.owner, &guild.giver] {
        let endpoint = json!({ "url": "https://example.org/" });
        let call = guild.app.post("/v1/webhook-endpoints", &endpoint).by(by);
        call.send().await.expect(StatusCode::CREATED);
    }
    let kept = guild.given(&guild.giver, &["1,1"]).await;
    guild.accept(&kept).await;
    let refused = guild.given(&guild.giver, &["2,2"]).await;
    let id = refused.text("/id");
    guild
        .end(&guild.owner, id, "reject")
        .await
        .expect(StatusCode::OK);
    for by in [&guild.owner, &guild.giver] {
        let events = guild.read(by, "/v1/events?limit=100").await;
        let events = events.expect(StatusCode::OK).json["data"].clone();
        let events = events.as_array().unwrap();
        let kinds: Vec<_> = events.iter().rev().map(|it| it["type"].clone()).collect();
        let told = ["received", "accepted", "received", "rejected"];
        assert_eq!(kinds, told.map(|it| json!(format!("contribution.{it}"))));
        assert_eq!(
            events[0]["data"],
            json!({
                "contribution_id": id, "dataset_id": super::id_of(&guild.dataset), "rows": 1, "reward": guild.money(7),
                "reason": "not what was asked for",
            })
        );
    }
}
