use std::fs;

use axum::http::{StatusCode, header};
use http_body_util::BodyExt as _;
use sqlx::PgPool;
use tower::ServiceExt as _;

use super::{PART, act, dataset, draft, fill, get, objects, patterned, published, submit};
use crate::harness::TestApp;

/// What may happen to a stored object.
type Damage = fn(&mut Vec<u8>);

const CHUNK: usize = (64 << 10) + 16;
const DAMAGES: &[(&str, Damage)] = &[
    ("a flipped byte", |it| it[100] ^= 1),
    ("a flipped tag", |it| *it.last_mut().unwrap() ^= 1),
    ("swapped chunks", |it| {
        let (first, second) = it.split_at_mut(CHUNK);
        first.swap_with_slice(&mut second[..CHUNK]);
    }),
    ("a dropped chunk", |it| drop(it.drain(..CHUNK))),
    ("a cut end", |it| it.truncate(it.len() - 1)),
    ("a cut chunk", |it| it.truncate(it.len() - CHUNK)),
    ("nothing left", Vec::clear),
];

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_damage_is_ever_served(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let bytes = patterned(3 * (64 << 10));
    let (_, _, files) = published(&app, &seller, &[("a.bin", &bytes)]).await;
    let content = format!("{}/content", files[0]);
    let object = objects(&app).remove(0);
    let good = fs::read(&object).unwrap();
    for (name, damage) in DAMAGES {
        let mut bad = good.clone();
        damage(&mut bad);
        fs::write(&object, bad).unwrap();
        let read = get(&app, &seller, &content).await;
        assert_eq!(read.status, StatusCode::INTERNAL_SERVER_ERROR, "{name}");
        assert_eq!(read.code(), "internal", "{name}");
    }
    fs::remove_file(&object).unwrap();
    get(&app, &seller, &content)
        .await
        .expect_problem(StatusCode::INTERNAL_SERVER_ERROR, "internal");
    fs::write(&object, good).unwrap();
    assert!(
        get(&app, &seller, &content)
            .await
            .expect(StatusCode::OK)
            .bytes
            == bytes
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_download_ends_where_the_damage_begins(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let bytes = patterned(2 * PART);
    let (_, _, files) = published(&app, &seller, &[("a.bin", &bytes)]).await;
    let stored = objects(&app);
    // The second part in the place of the first, and the other way round: both are whole, and both elsewhere.
    let parts: Vec<_> = stored.iter().map(|it| fs::read(it).unwrap()).collect();
    fs::write(&stored[1], &parts[0]).unwrap();
    let router = comptoir_api::app(app.state.clone()).0;
    let call = app
        .get(&format!("{}/content", files[0]))
        .by(&seller)
        .build();
    let response = router.oneshot(call).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        response.headers()[header::CONTENT_LENGTH],
        (2 * PART).to_string()
    );
    let mut body = response.into_body();
    let mut read = Vec::new();
    let mut is_cut = false;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => read.extend_from_slice(&frame.into_data().unwrap()),
            Err(_) => is_cut = true,
        }
    }
    assert!(is_cut, "the end is no regular one");
    assert!(read == bytes[..PART], "what came before is right");
    fs::write(&stored[0], &parts[1]).unwrap();
    get(&app, &seller, &format!("{}/content", files[0]))
        .await
        .expect(StatusCode::INTERNAL_SERVER_ERROR);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn parts_of_another_version_do_not_open(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let bytes = patterned(1000);
    let (_, _, mine) = published(&app, &seller, &[("a.bin", &bytes)]).await;
    let first = objects(&app).remove(0);
    let other = app.session().await;
    published(&app, &other, &[("a.bin", &bytes)]).await;
    let second = objects(&app).into_iter().find(|it| *it != first).unwrap();
    fs::copy(second, first).unwrap();
    get(&app, &seller, &format!("{}/content", mine[0]))
        .await
        .expect(StatusCode::INTERNAL_SERVER_ERROR);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_damaged_before_it_is_checked_is_not_published(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let dataset = dataset(&app, &seller).await;
    let version = draft(&app, &seller, &dataset).await;
    fill(&app, &seller, &version, &[("a.bin", &patterned(1000))]).await;
    let object = objects(&app).remove(0);
    let mut bad = fs::read(&object).unwrap();
    bad[7] ^= 1;
    fs::write(&object, bad).unwrap();
    let refused = submit(&app, &seller, &version).await;
    assert_eq!(refused.text("/state"), "refused");
    assert!(refused.text("/refusals/0/reason").contains("damaged"));
    act(&app, &seller, &format!("{dataset}/list"))
        .await
        .expect_problem(StatusCode::CONFLICT, "nothing_ready");
}
