//! `…/files/{file}/parts/{part}`: the bytes of a draft, part by part.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    dataset::{VersionState, part_length},
    envelope,
    id::{DatasetFileId, DatasetId, DatasetVersionId},
};
use comptoir_store::{data_keys, dataset_files, dataset_versions, objects::PutPartError};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{files::remove, versions::no_draft};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    extract::Path,
    routes::{accounts::in_task, blobs::Binary},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(put_dataset_part))
}

/// Stores a part of a draft's file, counted from 0: 16 MiB, the last one what is left. A part that is sent again replaces what was there.
#[utoipa::path(
    put, path = "/v1/datasets/{dataset}/versions/{version}/files/{file}/parts/{part}", tag = "datasets",
    security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("version" = String, Path), ("file" = String, Path), ("part" = u32, Path)),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "It is stored"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn put_dataset_part(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path((dataset, version, file, number)): Path<(DatasetId, DatasetVersionId, DatasetFileId, u32)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    let mut connection = caller.read(&state).await?;
    let place = (dataset, version);
    let found = dataset_versions::find(&mut connection, caller.account, place).await?;
    let own = found.filter(|it| it.account == caller.account);
    let version = own.ok_or_else(Problem::not_found)?;
    let found = dataset_files::find(&mut connection, version.id, file).await?;
    let file = found.ok_or_else(Problem::not_found)?;
    drop(connection);
    let length = part_length(file.entry.bytes, file.part_bytes, number);
    let length = length.ok_or_else(Problem::not_found)?;
    if version.state != VersionState::Draft {
        return Err(no_draft(version.state));
    }
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
    if let Some(found) = announced.filter(|it| *it != length) {
        return Err(wrong_length(length, found));
    }
    let place = state.uploads.begin(caller.account).await?;
    let key =
        data_keys::of_version(&mut *state.db.acquire().await?, &state.root_keys, &version).await;
    let key = key.map_err(|error| Problem::internal(&error))?;
    let salt = envelope::part_salt();
    let part = file.part(number, salt);
    let body = body.into_data_stream();
    let stored = state.objects.put_part(&key, &part, length, body);
    let stored = place.take(length, stored).await?;
    stored.map_err(|error| not_stored(&error))?;
    in_task(async move {
        let now = state.now();
        let mut tx = identity.begin(&state).await?;
        let place = (version.id, file.id);
        let Some(replaced) = dataset_files::store_part(&mut tx, place, number, salt, now).await?
        else {
            tx.rollback().await?;
            remove(&state, &part).await;
            let found = dataset_versions::find(
                &mut *identity.read(&state).await?,
                identity.account,
                (dataset, version.id),
            )
            .await?;
            let found = found.filter(|it| it.state != VersionState::Draft);
            return Err(found.map_or_else(Problem::not_found, |it| no_draft(it.state)));
        };
        tx.commit().await?;
        if let Some(old) = replaced {
            remove(&state, &file.part(number, old)).await;
        }
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

fn not_stored(error: &PutPartError) -> Problem {
    match error {
        PutPartError::Length { expected, found } => wrong_length(*expected, *found),
        PutPartError::Body(_) => Problem::malformed("The body ended early"),
        PutPartError::Store(_) => Problem::internal(error),
    }
}

fn wrong_length(expected: u64, found: u64) -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "part_length",
        "The part has another length",
    )
    .detail(format!("It has {expected} bytes, and {found} came"))
}
