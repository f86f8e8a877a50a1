//! Files of a dataset that an attempt's job reads: the key that opens them, and their sealed parts, for as long as the lease lives.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    dataset::part_length,
    id::{AttemptId, DatasetFileId, WorkerId},
    job::{Cause, state::EndedAs},
};
use comptoir_http::{
    Problem,
    extract::{Json, Path},
};
use comptoir_store::{
    attempts::{self, HeldAttempt, HeldError},
    data_keys::{self, KeyError},
    dataset_files, dataset_inputs, dataset_versions,
    jobs::{self, EndError, Failure},
    objects::ReadPartError,
    wake::Channel,
};
use comptoir_wire::{
    dataset::{DataKey, SealedDataset, SealedFile},
    encoded::Base64,
};
use tokio::sync::Semaphore;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{attempts::held_problem, detached};
use crate::{
    SchedulerState,
    auth::{Caller, Lease},
    metrics::{DATASET_DAMAGES, DATASET_SERVINGS},
};

/// The code of a job whose right to its dataset ended before it had run.
pub const DATA_RIGHT_ENDED: &str = "data_right_ended";
/// The code of a job whose dataset is lost.
pub const DATA_DAMAGED: &str = "data_damaged";
/// Parts that are read at once; each is in memory twice while it is checked.
const PARTS_AT_ONCE: usize = 8;

static PARTS: Semaphore = Semaphore::const_new(PARTS_AT_ONCE);

pub(super) fn router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::new()
        .routes(routes!(open_dataset))
        .routes(routes!(download_part))
}

/// Open the dataset of a job
///
/// What the attempt needs to open the files of a dataset that its job names. Keep the key in memory, for the process that computes alone, and
/// put nothing that it opens on a disk. Where the right to the dataset has ended, the job ends here, and nobody is blamed.
#[utoipa::path(
    post, path = "/v1/attempts/{id}/dataset", tag = "attempts",
    params(
        ("id" = String, Path, description = "The attempt"),
        ("comptoir-lease-token" = String, Header, description = "Its lease token"),
    ),
    responses(
        (status = 200, body = SealedDataset),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`", body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`stale_lease`: also where the job has just ended", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn open_dataset(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Path(attempt): Path<AttemptId>,
    Lease(token): Lease,
) -> Result<Json<SealedDataset>, Problem> {
    detached(async move {
        let mut tx = state.db.begin().await?;
        let held = attempts::held(&mut tx, worker.id, attempt, token)
            .await
            .map_err(held_problem)?;
        let (_, wanted) = held.spec.dataset().ok_or_else(Problem::not_found)?;
        let quoted = dataset_inputs::of_job(&mut tx, held.job).await?;
        let (account, data) = quoted.ok_or_else(Problem::not_found)?;
        let now = state.now();
        let stands = dataset_inputs::still_stand(&mut tx, &[(account, data)], now).await?;
        let version = dataset_versions::find_any(&mut tx, data.version).await?;
        let version = version.filter(|_| stands == [true]);
        let key = match &version {
            Some(version) => data_keys::of_version(&mut tx, &state.root_keys, version).await,
            None => Err(KeyError::Gone(data.version)),
        };
        let key = match key {
            Ok(key) => key,
            Err(KeyError::Gone(_)) => {
                drop(tx);
                return Err(end(&state, &held, right_ended()).await);
            }
            Err(error) if error.is_damage() => {
                drop(tx);
                let detail = "its key does not open";
                return Err(end(&state, &held, damaged(detail)).await);
            }
            Err(error) => return Err(Problem::internal(&error)),
        };
        let files = dataset_files::find_by_digests(&mut tx, data.version, wanted.iter().copied());
        let mut sealed = Vec::with_capacity(wanted.len());
        for (sha256, file) in files.await? {
            let salts = dataset_files::salts(&mut tx, &file).await?;
            sealed.push(SealedFile {
                file_id: file.id,
                sha256,
                bytes: file.entry.bytes,
                part_bytes: file.part_bytes,
                salts: salts.into_values().map(Base64).collect(),
            });
        }
        if sealed.len() < wanted.len() || !sealed.iter().all(SealedFile::is_whole) {
            drop(tx);
            let detail = "a part of it is not there";
            return Err(end(&state, &held, damaged(detail)).await);
        }
        tx.commit().await?;
        log_serving(&held, worker.id, &sealed);
        Ok(Json(SealedDataset {
            version_id: data.version,
            key: DataKey(key),
            files: sealed,
        }))
    })
    .await
}

fn log_serving(held: &HeldAttempt, worker: WorkerId, files: &[SealedFile]) {
    let bytes = files
        .iter()
        .fold(0_u64, |sum, it| sum.saturating_add(it.bytes));
    let (job, attempt, account) = (held.job, held.attempt, held.account);
    tracing::info!(%job, %attempt, %worker, %account, files = files.len(), bytes, "dataset opened to a worker");
    metrics::counter!(DATASET_SERVINGS).increment(1);
}

/// Fetch a part of a file
///
/// The sealed bytes of a part of a file that the attempt's job names, counted from 0. They were opened once before they are handed out: what
/// does not open at the worker was damaged on its way, or there.
#[utoipa::path(
    get, path = "/v1/attempts/{id}/dataset/{file}/parts/{part}", tag = "attempts",
    params(
        ("id" = String, Path, description = "The attempt"),
        ("file" = String, Path, description = "The file"),
        ("part" = u32, Path, description = "The part"),
        ("comptoir-lease-token" = String, Header, description = "The attempt's lease token"),
    ),
    responses(
        (status = 200, description = "The sealed bytes", content_type = "application/octet-stream"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`", body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`stale_lease`: also where the job has just ended", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn download_part(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Path((attempt, file, part)): Path<(AttemptId, DatasetFileId, u32)>,
    Lease(token): Lease,
) -> Result<Response, Problem> {
    let mut conn = state.db.acquire().await?;
    let held = attempts::held(&mut conn, worker.id, attempt, token)
        .await
        .map_err(held_problem)?;
    let (version, wanted) = held.spec.dataset().ok_or_else(Problem::not_found)?;
    let file = dataset_files::find(&mut conn, version, file).await?;
    let file = file.filter(|it| wanted.contains(&it.entry.sha256));
    let file = file.ok_or_else(Problem::not_found)?;
    let length = part_length(file.entry.bytes, file.part_bytes, part);
    let length = length.ok_or_else(Problem::not_found)?;
    let version = dataset_versions::find_any(&mut conn, version).await?;
    let version = version.ok_or_else(Problem::not_found)?;
    let key = match data_keys::of_version(&mut conn, &state.root_keys, &version).await {
        Ok(key) => key,
        Err(KeyError::Gone(_)) => {
            drop(conn);
            return Err(end(&state, &held, right_ended()).await);
        }
        Err(error) if error.is_damage() => {
            drop(conn);
            return Err(end(&state, &held, damaged("its key does not open")).await);
        }
        Err(error) => return Err(Problem::internal(&error)),
    };
    let salt = dataset_files::salt(&mut conn, file.id, part).await?;
    drop(conn);
    let _permit = PARTS.acquire().await.expect("it is never closed");
    let sealed = match salt {
        Some(salt) => {
            state
                .objects
                .read_sealed(&key, &file.part(part, salt), length)
                .await
        }
        None => Err(ReadPartError::Missing {
            file: file.id,
            part,
        }),
    };
    match sealed {
        Ok(sealed) => {
            serve_purchase(&state, &held).await?;
            let octets = HeaderValue::from_static("application/octet-stream");
            Ok(([(header::CONTENT_TYPE, octets)], Body::from(sealed)).into_response())
        }
        Err(error) if error.is_damage() => {
            metrics::counter!(DATASET_DAMAGES).increment(1);
            tracing::error!(version.id = %version.id, file.id = %file.id, job = %held.job, %error, "a file of a dataset is damaged");
            Err(end(&state, &held, damaged(&error.to_string())).await)
        }
        Err(error) => Err(Problem::internal(&error)),
    }
}

/// Bytes that were read and checked are about to leave: by what was bought, that is served now, unless it was given back in this moment.
async fn serve_purchase(state: &SchedulerState, held: &HeldAttempt) -> Result<(), Problem> {
    let mut tx = state.db.begin().await?;
    let quoted = dataset_inputs::of_job(&mut tx, held.job).await?;
    let (account, data) = quoted.ok_or_else(Problem::not_found)?;
    if dataset_inputs::serve(&mut tx, account, data, state.now()).await? {
        return Ok(tx.commit().await?);
    }
    tx.rollback().await?;
    Err(end(state, held, right_ended()).await)
}

fn right_ended() -> Failure {
    Failure {
        cause: Cause::Client,
        code: DATA_RIGHT_ENDED.to_owned(),
        detail: Some("the right to the dataset ended before the job had run".to_owned()),
    }
}

fn damaged(detail: &str) -> Failure {
    Failure {
        cause: Cause::Operator,
        code: DATA_DAMAGED.to_owned(),
        detail: Some(format!("the dataset is damaged: {detail}")),
    }
}

/// Fails a job that no worker can run, and says to the one that has it that it is over: it is called off, and not blamed.
async fn end(state: &SchedulerState, held: &HeldAttempt, failure: Failure) -> Problem {
    let (state, job) = (state.clone(), held.job);
    let ended = detached(async move {
        let mut tx = state.db.begin().await?;
        let ended = jobs::end(&mut tx, job, EndedAs::Failed, Some(&failure), state.now()).await;
        match ended {
            Ok(ended) => {
                tx.commit().await?;
                tracing::info!(%job, code = failure.code, "job failed for its dataset");
                state.wake.publish(Channel::Job(job));
                let workers = ended.workers.into_iter();
                workers.for_each(|worker| state.wake.publish(Channel::Worker(worker)));
                Ok(())
            }
            // Another replica's worker was told before.
            Err(EndError::Invalid(_)) => Ok(()),
            Err(error) => Err(Problem::internal(&error)),
        }
    });
    match ended.await {
        Ok(()) => held_problem(HeldError::Stale),
        Err(problem) => problem,
    }
}
