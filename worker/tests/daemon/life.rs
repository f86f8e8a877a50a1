//! A job from lease to accepted result, and the ways in which one ends early.

use axum::http::Method;
use comptoir_domain::job::{JobState, Tier};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::PgPool;

use crate::{
    harness::{Bench, children, inference, process, scratch_is_empty, training},
    proxy::Seen,
};

fn is_segment(seen: &Seen) -> bool {
    seen.is(&Method::POST, "/segments")
}

fn state(state: &str, code: Option<&str>) -> (String, Option<String>) {
    (state.to_owned(), code.map(str::to_owned))
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn jobs_run_from_lease_to_accepted_result_and_inputs_are_fetched_once(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker("worker", 1).await;
    let first = bench.submit(&training(3)).await;
    bench.ends(first, JobState::Completed).await;
    let second = bench.submit(&inference()).await;
    bench.ends(second, JobState::Completed).await;
    assert_eq!(
        bench.attempts().await,
        [state("accepted", None), state("accepted", None)]
    );
    assert_eq!(bench.segments().await, [0, 0, 0]);
    assert_eq!(bench.proxy.count(|seen| seen.is(&Method::GET, "/blobs")), 2);
    scratch_is_empty(&bench.folder("worker")).await;
    worker.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_sampled_training_is_confirmed_by_replaying_a_piece_of_it(db: PgPool) {
    let bench = Bench::new(db).await;
    let workers = [bench.worker("one", 1).await, bench.worker("two", 2).await];
    let job = bench.submit_under(&training(3), Tier::Sampled).await;
    bench.ends(job, JobState::Completed).await;
    assert_eq!(
        bench.attempts().await,
        [state("accepted", None), state("accepted", None)]
    );
    assert_eq!(bench.segments().await, [0, 0, 0], "those of the run alone");
    let evidence: serde_json::Value = sqlx::query_scalar("SELECT evidence FROM verdicts")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(evidence["results"][0]["replayed"], serde_json::Value::Null);
    assert_eq!(
        evidence["results"][1]["replayed"]["piece"],
        evidence["draw"]["piece"]
    );
    for worker in workers {
        worker.stop().await.unwrap();
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_cancelled_job_s_child_ends_and_its_slot_is_free(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker("worker", 1).await;
    // With its checkpoint held, the attempt cannot run to its end before it is cancelled.
    let _gate = bench.proxy.hold(is_segment);
    let long = bench.submit(&training(1_000)).await;
    bench.proxy.until(1, is_segment).await;
    assert_eq!(children(&bench.folder("worker")), 1);
    bench.cancel(long).await;
    scratch_is_empty(&bench.folder("worker")).await;
    let next = bench.submit(&inference()).await;
    bench.ends(next, JobState::Completed).await;
    assert_eq!(
        bench.attempts().await,
        [state("cancelled", None), state("accepted", None)]
    );
    worker.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_lost_lease_drops_the_attempt_and_the_next_goes_on_at_its_checkpoint(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker("worker", 1).await;
    let gate = bench
        .proxy
        .hold(|seen| is_segment(seen) && seen.body["segment"] == 1);
    let job = bench.submit(&training(8)).await;
    bench.proxy.until(2, is_segment).await;
    bench.lose_leases().await;
    gate.add_permits(1);
    bench
        .proxy
        .until(2, |seen| is_segment(seen) && seen.body["segment"] == 1)
        .await;
    bench.ends(job, JobState::Completed).await;
    let attempts = bench.attempts().await;
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(attempts[0].0, "lost");
    assert_eq!(attempts[1], state("accepted", None));
    assert_eq!(bench.segments().await, [0, 1, 1, 1, 1, 1, 1, 1]);
    // Of the dropped attempt nothing was reported.
    assert_eq!(bench.proxy.count(|seen| seen.reports("seals")), 1);
    assert_eq!(bench.proxy.count(|seen| seen.reports("failures")), 0);
    worker.stop().await.unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_stops_gives_back_what_computes(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker("worker", 1).await;
    let _gate = bench.proxy.hold(is_segment);
    let job = bench.submit(&training(1_000)).await;
    bench.proxy.until(1, is_segment).await;
    worker.stop().await.unwrap();
    assert_eq!(
        bench.attempts().await,
        [state("failed", Some("worker_stopping"))]
    );
    assert_eq!(children(&bench.folder("worker")), 0);
    bench.cancel(job).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_that_stops_delivers_what_is_computed(db: PgPool) {
    let bench = Bench::new(db).await;
    let worker = bench.worker("worker", 1).await;
    let gate = bench.proxy.hold(|seen| seen.is(&Method::PUT, "/blobs"));
    let job = bench.submit(&inference()).await;
    bench
        .proxy
        .until(1, |seen| seen.is(&Method::PUT, "/blobs"))
        .await;
    let stopped = tokio::spawn(worker.stop());
    gate.add_permits(1);
    bench.ends(job, JobState::Completed).await;
    stopped.await.unwrap().unwrap();
    assert_eq!(bench.attempts().await, [state("accepted", None)]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_killed_worker_starts_again_in_its_folder_and_resumes(db: PgPool) {
    let bench = Bench::new(db).await;
    let folder = bench.folder("worker");
    bench.join(&folder, bench.token(1).await).await.unwrap();
    let mut first = process(&folder, "run").spawn().unwrap();
    let _gate = bench
        .proxy
        .hold(|seen| is_segment(seen) && seen.body["segment"] == 2);
    let job = bench.submit(&training(8)).await;
    bench.proxy.until(3, is_segment).await;
    first.kill().await.unwrap();
    bench.lose_leases().await;
    let mut second = process(&folder, "run").spawn().unwrap();
    bench.ends(job, JobState::Completed).await;
    assert_eq!(bench.segments().await, [0, 0, 1, 1, 1, 1, 1, 1]);
    scratch_is_empty(&folder).await;
    let id = i32::try_from(second.id().unwrap()).unwrap();
    kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
    assert_eq!(second.wait().await.unwrap().code(), Some(0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_doctor_knows_a_worker_that_is_well_from_one_that_is_not(db: PgPool) {
    let bench = Bench::new(db).await;
    let folder = bench.folder("worker");
    bench.join(&folder, bench.token(1).await).await.unwrap();
    let well = process(&folder, "doctor")
        .arg("--json")
        .output()
        .await
        .unwrap();
    let found: serde_json::Value = serde_json::from_slice(&well.stdout).unwrap();
    assert_eq!(
        (well.status.code(), &found["ok"]),
        (Some(0), &true.into()),
        "{found:#}"
    );
    let path = folder.join("identity.json");
    let identity = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        identity.replace(bench.base.as_str(), "http://127.0.0.1:1"),
    )
    .unwrap();
    let ill = process(&folder, "doctor")
        .arg("--json")
        .output()
        .await
        .unwrap();
    let found: serde_json::Value = serde_json::from_slice(&ill.stdout).unwrap();
    let checks = found["checks"].as_array().unwrap();
    let missing: Vec<_> = checks
        .iter()
        .filter(|check| check["status"] == "missing")
        .collect();
    assert_eq!(
        (ill.status.code(), missing.len()),
        (Some(1), 1),
        "{found:#}"
    );
    assert_eq!(missing[0]["name"], "server");
}
