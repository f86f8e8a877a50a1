//! `…/files/{file}/content`: the bytes of a published file.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes as Piece},
    extract::State,
    http::HeaderMap,
    response::Response,
};
use comptoir_domain::id::{DatasetFileId, DatasetId, DatasetVersionId};
use comptoir_store::{dataset_files, objects::ReadPartError};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::versions::{read_version, require_ready};
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    extract::Path,
    ranges::{Bytes, Wanted},
    routes::blobs::Binary,
    sealed::SealedFile,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_dataset_content))
}

/// Opens a file for somebody who may have its bytes: its seller, or everybody where it is a sample of a listed dataset. This is the one place
/// that decides it. 404 for who may not know of the file at all, 403 for who may not have its bytes.
async fn open(
    state: &AppState,
    caller: &Identity,
    place: (DatasetId, DatasetVersionId),
    file: DatasetFileId,
) -> Result<SealedFile, Problem> {
    let mut connection = caller.read(state).await?;
    let version = read_version(&mut connection, caller.account, place).await?;
    let found = dataset_files::find(&mut connection, version.id, file).await?;
    let file = found.ok_or_else(Problem::not_found)?;
    drop(connection);
    require_ready(&version)?;
    let may_read = version.account == caller.account || file.entry.is_sample;
    if !may_read {
        return Err(Problem::new(
            axum::http::StatusCode::FORBIDDEN,
            "not_entitled",
            "The account has no right to these bytes",
        ));
    }
    let opened = SealedFile::open(state, &version, file).await;
    opened.map_err(|error| Problem::internal(&error))
}

/// Downloads a file of a ready version, whole or in part: one of yours, or a sample of a listed dataset.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/versions/{version}/files/{file}/content", tag = "datasets",
    security(("session" = []), ("api_key" = ["datasets:read"])),
    params(
        ("dataset" = String, Path), ("version" = String, Path), ("file" = String, Path),
        ("Range" = Option<String>, Header, description = "One range of bytes, such as `bytes=0-99`"),
    ),
    responses(
        (status = 200, body = Binary, content_type = "application/octet-stream", headers(("ETag" = String))),
        (status = 206, body = Binary, content_type = "application/octet-stream", headers(("Content-Range" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn get_dataset_content(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path((dataset, version, file)): Path<(DatasetId, DatasetVersionId, DatasetFileId)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let file = open(&state, &caller, (dataset, version), file).await?;
    let entry = &file.file().entry;
    let bytes = Bytes {
        tag: format!("\"{}\"", entry.sha256),
        count: entry.bytes,
        // A right may end, and nobody but who has it is to keep the bytes.
        cache: "private, no-store",
    };
    let answer = match bytes.wanted(&headers)? {
        Wanted::Nothing(response) => return Ok(response),
        Wanted::Range(answer) => answer,
    };
    // The first piece before the head: what is lost is told with a status. What is found to be lost later ends the answer.
    let mut pieces = Box::pin(Arc::new(file).stream(answer.range.clone()));
    let first = pieces
        .try_next()
        .await
        .map_err(|error| Problem::internal(&error))?;
    let first = stream::iter(first.map(Ok::<Piece, ReadPartError>));
    Ok(answer.with(Body::from_stream(first.chain(pieces))))
}
