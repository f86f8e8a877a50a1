//! A machine that cannot wall jobs in takes none, unless its owner says so; then everybody is told.

use comptoir_domain::job::JobState;
use comptoir_worker::{
    daemon::{
        doctor::{self, Status},
        join::JoinError,
        run::RunError,
    },
    engine::Launcher,
    sandbox::{Features, Sandbox},
};
use sqlx::PgPool;

use crate::harness::{Bench, inference, launcher, start_with};

/// A machine whose kernel has seccomp and no Landlock.
fn half_walled(allow_unsandboxed: bool) -> Launcher {
    launcher().behind(Sandbox {
        features: Features {
            landlock: None,
            ..launcher().sandbox().features
        },
        allow_unsandboxed,
    })
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_without_walls_joins_only_as_one_that_says_so(db: PgPool) {
    let bench = Bench::new(db).await;
    let folder = bench.folder("worker");
    let refused = bench
        .join_with(&folder, bench.token(1).await, &half_walled(false))
        .await;
    let Err(error @ JoinError::Unsandboxed(_)) = refused else {
        panic!("it joined: {refused:?}")
    };
    let refusal = error.to_string();
    assert!(
        refusal.contains("Landlock") && refusal.contains("--allow-unsandboxed"),
        "{refusal}"
    );
    bench
        .join_with(&folder, bench.token(2).await, &half_walled(true))
        .await
        .unwrap();
    let listed: Vec<bool> = sqlx::query_scalar("SELECT unsandboxed FROM workers")
        .fetch_all(&bench.owner)
        .await
        .unwrap();
    assert_eq!(listed, [true]);

    let silent = start_with(&folder, half_walled(false)).end().await;
    assert!(
        matches!(silent, Err(RunError::Unsandboxed(_))),
        "{silent:?}"
    );
    let running = start_with(&folder, half_walled(true));
    let job = bench.submit(&inference()).await;
    bench.ends(job, JobState::Completed).await;
    running.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_joined_behind_walls_does_not_run_without_them(db: PgPool) {
    let bench = Bench::new(db).await;
    let folder = bench.folder("worker");
    if !launcher().sandbox().is_complete() {
        eprintln!("skipped: this machine does not offer all walls");
        return;
    }
    bench.join(&folder, bench.token(1).await).await.unwrap();
    let ended = start_with(&folder, half_walled(true)).end().await;
    assert!(matches!(ended, Err(RunError::WallsChanged)), "{ended:?}");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_doctor_names_the_wall_that_is_missing(db: PgPool) {
    let bench = Bench::new(db).await;
    let folder = bench.folder("worker");
    let found = |allowed: bool| {
        let folder = folder.clone();
        async move {
            let diagnosis = doctor::examine(&folder, &half_walled(allowed)).await;
            let status = |name: &str| {
                let check = diagnosis.checks.iter().find(|check| check.name == name);
                check.unwrap().status
            };
            (
                diagnosis.ok,
                status("landlock"),
                status("seccomp"),
                status("sandbox"),
            )
        }
    };
    assert_eq!(
        found(false).await,
        (false, Status::Missing, Status::Ok, Status::Missing)
    );
    assert_eq!(
        found(true).await,
        (true, Status::Info, Status::Ok, Status::Info)
    );
}
