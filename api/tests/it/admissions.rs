//! Admissions over HTTP: who calls a gated model, who decides that, and who is told.

use axum::http::{Method, StatusCode, header};
use comptoir_domain::id::ModelId;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::{
    calls::{World, good},
    datasets::get,
    harness::{Reply, Session, TestApp},
    models, webhooks,
};

/// Longer than what was looked up is believed.
const BELIEVED: Duration = Duration::seconds(3);
const REASON: &str = "we do not know you";

async fn gate(app: &TestApp, creator: &Session, model: &str, gated: bool) -> Reply {
    let body = json!({ "visibility": "public", "gated": gated });
    let call = app.post(&format!("{model}/visibility"), &body);
    call.by(creator).send().await
}

async fn ask(app: &TestApp, by: &Session, model: &str, body: &Value) -> Reply {
    let path = format!("{model}/admissions");
    app.post(&path, body).by(&app.renewed(by)).send().await
}

async fn say(app: &TestApp, by: &Session, admission: &str, act: &str) -> Reply {
    let path = format!("{admission}/{act}");
    let call = match act {
        "grant" => app.request(Method::POST, &path),
        _ => app.post(&path, &json!({ "reason": REASON })),
    };
    call.by(&app.renewed(by)).send().await
}

/// An admission that was asked for, by its path.
async fn asked(app: &TestApp, by: &Session, model: &str) -> String {
    let asked = ask(app, by, model, &json!({ "note": "for a paper" })).await;
    let asked = asked.expect(StatusCode::CREATED);
    assert_eq!(asked.text("/state"), "requested");
    asked.header(header::LOCATION).to_owned()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_gated_model_is_looked_at_by_everybody_and_called_by_whom_its_creator_lets_in(
    db: PgPool,
) {
    let world = World::new(db, 100, vec![good()]).await;
    let (app, model) = (&world.app, &world.path);
    world.call(1).await.expect(StatusCode::OK);
    let gated = gate(app, &world.creator, model, true).await;
    assert_eq!(gated.expect(StatusCode::OK).json["gated"], true);
    app.pass(BELIEVED);
    let shown = get(app, &app.renewed(&world.caller), model).await;
    assert_eq!(shown.expect(StatusCode::OK).json["gated"], true);
    let refused = world.call(1).await;
    let refused = refused.expect_problem(StatusCode::FORBIDDEN, "admission_required");
    assert!(
        refused
            .text("/detail")
            .contains(&format!("{model}/admissions"))
    );

    let admission = asked(app, &world.caller, model).await;
    app.pass(BELIEVED);
    world
        .call(1)
        .await
        .expect_problem(StatusCode::FORBIDDEN, "admission_required");
    for _ in 0..2 {
        let granted = say(app, &world.creator, &admission, "grant").await;
        assert_eq!(granted.expect(StatusCode::OK).text("/state"), "granted");
    }
    app.pass(BELIEVED);
    world.call(1).await.expect(StatusCode::OK);

    for _ in 0..2 {
        let revoked = say(app, &world.creator, &admission, "revoke").await;
        let revoked = revoked.expect(StatusCode::OK);
        assert_eq!(
            (revoked.text("/state"), revoked.text("/reason")),
            ("revoked", REASON)
        );
    }
    app.pass(BELIEVED);
    world
        .call(1)
        .await
        .expect_problem(StatusCode::FORBIDDEN, "admission_required");
    let open = gate(app, &world.creator, model, false).await;
    assert_eq!(open.expect(StatusCode::OK).json["gated"], false);
    app.pass(BELIEVED);
    world.call(1).await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nobody_asks_twice_nor_for_what_needs_no_asking(db: PgPool) {
    let app = TestApp::new(db).await;
    crate::market::open(&app).await;
    let (creator, _) = app.bound_session().await;
    let caller = app.session().await;
    let model = models::shown(&app, &creator).await;
    let none = json!({});
    let conflict = StatusCode::CONFLICT;
    ask(&app, &caller, &model, &none)
        .await
        .expect_problem(conflict, "model_not_gated");
    gate(&app, &creator, &model, true)
        .await
        .expect(StatusCode::OK);
    ask(&app, &creator, &model, &none)
        .await
        .expect_problem(conflict, "own_model");
    for note in ["", "  ", &"x".repeat(4_097)] {
        let bad = ask(&app, &caller, &model, &json!({ "note": note })).await;
        let bad = bad.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request");
        assert_eq!(bad.text("/errors/0/pointer"), "/note");
    }
    let admission = asked(&app, &caller, &model).await;
    let again = ask(&app, &caller, &model, &none).await;
    let again = again.expect_problem(conflict, "already_asked");
    let id = admission.rsplit('/').next().unwrap();
    assert!(again.text("/detail").contains(id));

    let denied = say(&app, &creator, &admission, "deny").await;
    assert_eq!(denied.expect(StatusCode::OK).text("/state"), "denied");
    say(&app, &creator, &admission, "grant")
        .await
        .expect_problem(conflict, "admission_state");
    ask(&app, &caller, &model, &none)
        .await
        .expect_problem(conflict, "asked_too_soon");
    app.pass(Duration::DAY);
    let second = asked(&app, &caller, &model).await;
    assert_ne!(second, admission);
    say(&app, &creator, &second, "revoke")
        .await
        .expect_problem(conflict, "admission_state");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_admission_is_listed_by_both_sides_and_answered_by_the_creator_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    crate::market::open(&app).await;
    let (creator, _) = app.bound_session().await;
    let [caller, stranger] = [app.session().await, app.session().await];
    let model = models::shown(&app, &creator).await;
    gate(&app, &creator, &model, true)
        .await
        .expect(StatusCode::OK);
    let admission = asked(&app, &caller, &model).await;
    let listed = async |by: &Session, query: &str| {
        let page = get(&app, by, &format!("/v1/admissions?{query}")).await;
        let page = page.expect(StatusCode::OK);
        page.json["data"].as_array().unwrap().len()
    };
    assert_eq!(listed(&caller, "side=asked").await, 1);
    assert_eq!(listed(&caller, "side=received").await, 0);
    assert_eq!(listed(&creator, "side=received&state=requested").await, 1);
    assert_eq!(listed(&creator, "side=received&state=granted").await, 0);
    assert_eq!(listed(&creator, "").await, 0);
    assert_eq!(listed(&stranger, "side=received").await, 0);
    for nobody in [&caller, &stranger] {
        for act in ["grant", "deny", "revoke"] {
            say(&app, nobody, &admission, act)
                .await
                .expect_problem(StatusCode::NOT_FOUND, "not_found");
        }
    }
    let read = get(&app, &caller, &admission).await.expect(StatusCode::OK);
    assert_eq!(
        (read.text("/state"), read.text("/note")),
        ("requested", "for a paper")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn both_sides_are_told_what_becomes_of_an_admission(db: PgPool) {
    let app = TestApp::new(db).await;
    crate::market::open(&app).await;
    let (creator, _) = app.bound_session().await;
    let caller = app.session().await;
    for by in [&creator, &caller] {
        webhooks::make(&app, by).await;
    }
    let model = models::shown(&app, &creator).await;
    gate(&app, &creator, &model, true)
        .await
        .expect(StatusCode::OK);
    let admission = asked(&app, &caller, &model).await;
    for act in ["grant", "revoke"] {
        say(&app, &creator, &admission, act)
            .await
            .expect(StatusCode::OK);
    }
    for by in [&creator, &caller] {
        let events = get(&app, by, "/v1/events").await.expect(StatusCode::OK);
        let events = events.json["data"].as_array().unwrap().clone();
        let mut told: Vec<_> = events
            .iter()
            .filter(|it| it["type"].as_str().unwrap().starts_with("admission."))
            .map(|it| (it["type"].as_str().unwrap(), it["data"]["reason"].as_str()))
            .collect();
        told.sort_unstable();
        let expected = [
            ("admission.granted", None),
            ("admission.requested", None),
            ("admission.revoked", Some(REASON)),
        ];
        assert_eq!(told, expected);
        assert!(model.ends_with(events[0]["data"]["model_id"].as_str().unwrap()));
    }
}

/// For the walk over every route: an admission to a model of the owner's.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let caller = app.session().await;
    let model = models::make(app, owner).await.remove(0);
    // Without a token there is no price, and without a price nothing is shown.
    let id: ModelId = model.parse().unwrap();
    sqlx::query("UPDATE models SET visibility = 'unlisted', is_gated = true, shown_at = created_at WHERE model_id = $1")
        .bind(id.0)
        .execute(&app.owner)
        .await
        .unwrap();
    let model = format!("/v1/models/{model}");
    let asked = asked(app, &caller, &model).await;
    vec![asked.rsplit('/').next().unwrap().to_owned()]
}
