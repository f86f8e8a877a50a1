use std::{
    fs::{self, File},
    path::Path,
    time::SystemTime,
};

use axum::http::StatusCode;
use comptoir_api::sweeping::{STRAY_AFTER, sweep};
use sqlx::PgPool;
use time::Duration;

use super::{get, objects, published};
use crate::harness::TestApp;

/// Written that long before now.
fn age(app: &TestApp, path: &Path, by: Duration) {
    let file = File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::from(app.now() - by)).unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_nobody_refers_to_is_removed_a_day_later_and_nothing_else(db: PgPool) {
    let app = TestApp::new(db).await;
    let seller = app.session().await;
    let (_, _, files) = published(&app, &seller, &[("a.csv", b"a\n1\n")]).await;
    let known = objects(&app).remove(0);
    let other = |name: &str| known.with_file_name(name);
    let (stray, young) = (
        other(&format!("0-{}", "ab".repeat(16))),
        other(&format!("0-{}", "cd".repeat(16))),
    );
    let blobs = app.blobs.path().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let (staged, staging) = (blobs.join("half#1"), other("half#23"));
    for path in [&stray, &young, &staged, &staging] {
        fs::write(path, b"left over").unwrap();
    }
    let past = STRAY_AFTER + Duration::MINUTE;
    for old in [&known, &stray, &staged] {
        age(&app, old, past);
    }
    for new in [&young, &staging] {
        age(&app, new, past - Duration::minutes(2));
    }
    assert_eq!(sweep(&app.state).await.unwrap(), 2);
    assert!(!stray.exists() && !staged.exists());
    assert!(young.exists() && staging.exists());
    let content = get(&app, &seller, &format!("{}/content", files[0])).await;
    assert_eq!(content.expect(StatusCode::OK).bytes, b"a\n1\n");
    assert_eq!(sweep(&app.state).await.unwrap(), 0);
}
