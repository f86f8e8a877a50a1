//! How a worker becomes one, and what keeps it from running.

use std::fs;

use axum::http::Method;
use comptoir_domain::{digest::Sha256, job::JobState, join_token::JoinToken};
use comptoir_worker::daemon::{folder::FolderError, join::JoinError, run::RunError};
use sqlx::PgPool;

use crate::{
    harness::{Bench, inference, start},
    proxy::{Seen, Spoil},
};

fn is_join(seen: &Seen) -> bool {
    seen.is(&Method::POST, "/v1/join")
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_token_is_not_shown_to_another_server_than_its_own(db: PgPool) {
    let bench = Bench::new(db).await;
    let real = bench.token(1).await;
    let of_another = JoinToken::new(Sha256::of(b"other keys"), real.id, [1; 32]);
    let folder = bench.folder("worker");
    let error = bench.join(&folder, of_another).await.unwrap_err();
    assert!(matches!(error, JoinError::WrongServer { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("is not the server that this token is for")
    );
    assert_eq!(bench.proxy.count(is_join), 0);
    bench.join(&folder, real).await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_identity_is_never_overwritten(db: PgPool) {
    let bench = Bench::new(db).await;
    let folder = bench.folder("worker");
    bench.join(&folder, bench.token(1).await).await.unwrap();
    let before = fs::read(folder.join("identity.json")).unwrap();
    let error = bench.join(&folder, bench.token(2).await).await.unwrap_err();
    assert!(
        matches!(error, JoinError::Folder(FolderError::Taken(_))),
        "{error}"
    );
    assert_eq!(fs::read(folder.join("identity.json")).unwrap(), before);
    assert_eq!(bench.proxy.count(is_join), 1);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_join_whose_answer_is_lost_is_the_same_join(db: PgPool) {
    let bench = Bench::new(db).await;
    bench.proxy.spoil(1, Spoil::LoseAnswer, is_join);
    let identity = bench
        .join(&bench.folder("worker"), bench.token(1).await)
        .await
        .unwrap();
    assert_eq!(bench.proxy.count(is_join), 2);
    let workers: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT worker_id FROM workers")
        .fetch_all(&bench.owner)
        .await
        .unwrap();
    assert_eq!(workers, [identity.worker_id.0]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn two_workers_do_not_share_a_folder(db: PgPool) {
    let bench = Bench::new(db).await;
    let first = bench.worker("worker", 1).await;
    let job = bench.submit(&inference()).await;
    bench.ends(job, JobState::Completed).await;
    let second = start(&bench.folder("worker")).end().await;
    assert!(
        matches!(second, Err(RunError::Folder(FolderError::InUse(_)))),
        "{second:?}"
    );
    first.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_computes_otherwise_than_it_said_does_not_run(db: PgPool) {
    let bench = Bench::new(db).await;
    let folder = bench.folder("worker");
    let identity = bench.join(&folder, bench.token(1).await).await.unwrap();
    let path = folder.join("identity.json");
    let class = identity.facts.numeric_class;
    let changed = fs::read_to_string(&path)
        .unwrap()
        .replace(&class, "cpu-1t-0000000000000000");
    fs::write(&path, changed).unwrap();
    let ended = start(&folder).end().await;
    assert!(
        matches!(&ended, Err(RunError::ClassChanged { expected, found }) if *found == class && expected != found),
        "{ended:?}"
    );
    assert_eq!(
        bench
            .proxy
            .count(|seen| seen.is(&Method::POST, "/v1/worker-token")),
        0
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_revoked_worker_ends_and_says_why(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker("worker", 1).await;
    bench
        .proxy
        .until(1, |seen| seen.is(&Method::POST, "/v1/work"))
        .await;
    sqlx::query("UPDATE workers SET revoked_at = now()")
        .execute(&bench.owner)
        .await
        .unwrap();
    let job = bench.submit(&inference()).await;
    let ended = worker.end().await;
    assert!(matches!(&ended, Err(RunError::Refused(_))), "{ended:?}");
    bench.cancel(job).await;
}
