use axum::http::{StatusCode, header};
use comptoir_domain::{digest::Sha256, id::JobId, policy::audit::commitment};
use comptoir_store::pool::{self, ServiceRole};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    harness::TestApp,
    jobs::RICH,
    market::{self, client, job},
};

const SEED: [u8; 32] = [7; 32];

/// Gives a job a verdict, as the scheduler does it, without the money.
pub async fn decide(app: &TestApp, job: JobId, evidence: &Value) {
    sqlx::query(
        "INSERT INTO verdicts (job_id, kind, evidence, evidence_sha256, decided_at) VALUES ($1, 'sampled', $2, $3, $4)",
    )
    .bind(job.0)
    .bind(evidence)
    .bind(Sha256::of_document(evidence).unwrap().0)
    .bind(app.now())
    .execute(&app.owner)
    .await
    .unwrap();
}

/// What a sampled job has beside its verdict: an attempt of a worker, the draw for it, and pay that is held back.
async fn sample(app: &TestApp, job: JobId) {
    for statement in [
        "INSERT INTO join_tokens (join_token_id, account_id, name, secret_sha256, max_uses, created_at, expires_at)
         SELECT job_id, account_id, 'w', $2, 1, $3, $3 FROM jobs WHERE job_id = $1",
        "INSERT INTO workers (worker_id, account_id, join_token_id, name, public_key, device, device_name, memory_bytes,
             threads, numeric_class, libtorch, version, joined_at)
         SELECT job_id, account_id, job_id, 'w', $2, 'cpu', 'd', 1, 1, 'x', 'l', 'v', $3 FROM jobs WHERE job_id = $1",
        "INSERT INTO attempts (attempt_id, replica_id, job_id, number, worker_id, numeric_class, state, started_at, seal)
         SELECT replica_id, replica_id, job_id, 1, job_id, 'x', 'accepted', $3, $2 FROM replicas WHERE job_id = $1",
        "INSERT INTO draw_seeds (draw_seed_id, commitment, seed, opened_at) SELECT $1, $2, $2, $3",
        "INSERT INTO draws (job_id, attempt_id, draw_seed_id, trusted, rate_ppm, drawn_ppm, drawn_at)
         SELECT job_id, attempt_id, job_id, 41, 50000, 60000, $3 FROM attempts WHERE job_id = $1 AND $2::bytea IS NOT NULL",
        "INSERT INTO holdbacks (job_id, owner, worker_id, number, asset_id, payer, amount_base, created_at)
         SELECT job_id, substring($2::bytea FOR 20), job_id, 1, asset_id, payer, 95, $3 FROM jobs WHERE job_id = $1",
    ] {
        let done = sqlx::query(statement)
            .bind(job.0)
            .bind(SEED)
            .bind(app.now())
            .execute(&app.owner)
            .await
            .unwrap();
        assert_eq!(done.rows_affected(), 1, "{statement}");
    }
    sqlx::query("UPDATE draw_seeds SET commitment = $1")
        .bind(commitment(&SEED).0)
        .execute(&app.owner)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_verdict_shows_its_evidence_the_draw_and_what_is_held_back(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let made = job(&app, &session, "sampled").await;
    let id: JobId = made.text("/id").parse().unwrap();
    let path = format!("{}/verdict", made.header(header::LOCATION));
    let read = || app.get(&path).by(&session).send();
    read()
        .await
        .expect_problem(StatusCode::CONFLICT, "no_verdict");

    sample(&app, id).await;
    let evidence = json!({ "kind": "sampled", "tier": "sampled", "results": [] });
    decide(&app, id, &evidence).await;
    let found = read().await.expect(StatusCode::OK).json;
    assert_eq!(
        (&found["kind"], &found["evidence"]),
        (&json!("sampled"), &evidence)
    );
    let digest = Sha256::of_document(&evidence).unwrap();
    assert_eq!(found["evidence_sha256"], json!(digest));
    let draw = &found["draw"];
    assert_eq!(
        [
            &draw["audited"],
            &draw["rate_ppm"],
            &draw["seed_commitment"],
            &draw["seed"]
        ],
        [
            &json!(false),
            &json!(50_000),
            &json!(commitment(&SEED)),
            &Value::Null
        ]
    );
    assert_eq!(
        (
            &found["holdbacks"][0]["state"],
            &found["holdbacks"][0]["amount"]["amount"]
        ),
        (&json!("held"), &json!("95"))
    );
    // Nobody else reads it, and nobody reads the seed before it is shown.
    let stranger = app.session().await;
    let refused = app.get(&path).by(&stranger).send().await;
    refused.expect_problem(StatusCode::NOT_FOUND, "not_found");
    let options = app.owner.connect_options().as_ref().clone();
    let api = pool::connect(options, ServiceRole::Api, 1).await.unwrap();
    let hidden = sqlx::query("SELECT seed FROM draw_seeds")
        .execute(&api)
        .await;
    assert!(
        hidden
            .unwrap_err()
            .to_string()
            .contains("permission denied")
    );
    sqlx::query("UPDATE draw_seeds SET closed_at = opened_at, shown = seed")
        .execute(&app.owner)
        .await
        .unwrap();
    assert_eq!(read().await.json["draw"]["seed"], json!(Sha256(SEED)));
}
