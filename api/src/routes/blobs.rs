//! `/v1/blobs`: files by the digest of their bytes.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{
    digest::Sha256,
    fit::{OUTPUT_BYTES_MAX, RowShape},
    id::AccountId,
    limits::Reached,
};
use comptoir_store::{
    blobs::{self, Blob},
    limits,
    objects::PutError,
    withheld_results,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::withheld;
use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::{Json, Path},
    limiting::limited,
    ranges::{Bytes, Wanted},
    reading::{self, Content},
};

/// Largest blob: a result must fit, to be used as an input again.
pub const BLOB_BYTES_MAX: u64 = OUTPUT_BYTES_MAX;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(put_blob, get_blob))
}

/// Bytes, as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it only describes bodies")]
pub(super) struct Binary(Vec<u8>);

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BlobObject {
    Blob,
}

/// What the bytes are.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BlobKind {
    /// A `.pt2` archive that jobs can run.
    Program,
    /// A safetensors file.
    Tensors,
    /// Neither.
    Other,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Blob)]
struct BlobBody {
    /// The SHA-256 of the bytes.
    #[schema(value_type = String)]
    id: Sha256,
    object: BlobObject,
    bytes: u64,
    /// What the bytes are, found by reading them; names play no part.
    kind: BlobKind,
    /// Why they are no program, where they look like one.
    #[schema(required = true)]
    detail: Option<String>,
    /// What a job of the program needs.
    #[schema(required = true)]
    program: Option<ProgramBody>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Program)]
struct ProgramBody {
    torch_version: String,
    /// May a training job name it?
    trainable: bool,
    /// The smallest batch that it runs with.
    batch_min: u64,
    /// The largest; `null` where nothing bounds it.
    #[schema(required = true)]
    batch_max: Option<u64>,
    /// What `inputs` of a job must name, and the shape of one row of each.
    inputs: Vec<RowBody>,
    /// In order: `output` of a training job counts them from 0.
    outputs: Vec<RowBody>,
    /// Multiply-adds of one row, in decimal digits: what prices are computed from.
    madds_per_row: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Row)]
struct RowBody {
    name: String,
    /// As safetensors files name it.
    dtype: String,
    /// Dimensions of one row; the first dimension, the rows, is left out.
    row: Vec<u64>,
}

impl From<&RowShape> for RowBody {
    fn from(shape: &RowShape) -> Self {
        Self {
            name: shape.name.clone(),
            dtype: shape.dtype.clone(),
            row: shape.row.clone(),
        }
    }
}

impl BlobBody {
    fn new(blob: &Blob, content: Content) -> Self {
        let (kind, detail, program) = match content {
            Content::Program(facts) => {
                let program = ProgramBody {
                    torch_version: facts.torch_version.clone(),
                    trainable: facts.is_trainable,
                    batch_min: facts.batch_min,
                    batch_max: (facts.batch_max < u64::MAX).then_some(facts.batch_max),
                    inputs: facts.inputs.iter().map(RowBody::from).collect(),
                    outputs: facts.outputs.iter().map(RowBody::from).collect(),
                    madds_per_row: facts.madds_per_row.to_string(),
                };
                (BlobKind::Program, None, Some(program))
            }
            Content::Tensors => (BlobKind::Tensors, None, None),
            Content::Other(reason) => (BlobKind::Other, reason, None),
        };
        Self {
            id: blob.sha256,
            object: BlobObject::Blob,
            bytes: blob.bytes,
            kind,
            detail,
            program,
            created_at: blob.created_at,
        }
    }
}

/// Uploads a blob of at most 1 GiB under its SHA-256. The same bytes may be uploaded again: nothing changes.
#[utoipa::path(
    put, path = "/v1/blobs/{sha256}", tag = "blobs", security(("session" = []), ("api_key" = ["blobs:write"])),
    params(("sha256" = String, Path, description = "64 lower-case hexadecimal digits")),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = BlobBody, description = "The account had it already"),
        (status = 201, body = BlobBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn put_blob(
    State(state): State<AppState>,
    caller: Caller<needs::BlobsWrite>,
    Path(sha256): Path<Sha256>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > BLOB_BYTES_MAX) {
        return Err(Problem::too_large());
    }
    let room = room(&state, caller.account, sha256).await?;
    let place = state.uploads.begin(caller.account).await?;
    let body = body.into_data_stream();
    let stored = state.objects.put_stream(body, room.bytes, Some(sha256));
    let stored = place
        .take(announced.unwrap_or(room.bytes), stored)
        .await?
        .map_err(|error| match (error, room.limit) {
            (PutError::TooLarge { .. }, Some(reached)) => limited(reached.into()),
            (error, _) => not_stored(&error),
        })?;
    let now = state.now();
    let mut tx = caller.begin(&state).await?;
    let new = (sha256, stored.bytes);
    limits::admit_blob(&mut tx, caller.account, new, state.config.limits)
        .await
        .map_err(limited)?;
    let known = blobs::find(&mut tx, caller.account, sha256).await?;
    blobs::register(&mut tx, stored, now).await?;
    blobs::grant(&mut tx, caller.account, sha256, now).await?;
    tx.commit().await?;
    let blob = known.unwrap_or(Blob {
        sha256,
        bytes: stored.bytes,
        created_at: now,
    });
    let content = reading::content(&state, &blob)
        .await
        .map_err(|error| Problem::internal(&error))?;
    let body = Json(BlobBody::new(&blob, content));
    if known.is_some() {
        return Ok(body.into_response());
    }
    let location = [(header::LOCATION, format!("/v1/blobs/{sha256}"))];
    Ok((StatusCode::CREATED, location, body).into_response())
}

/// How many bytes an upload may have, and the limit of the account that says so, where it is one.
struct Room {
    bytes: u64,
    limit: Option<Reached>,
}

/// Asked before the bytes are taken, and once more when they are there. What the account has already takes no room.
async fn room(state: &AppState, account: AccountId, sha256: Sha256) -> Result<Room, Problem> {
    let mut connection = state.db.acquire().await?;
    let (bytes, reached) = limits::storage_room(&mut connection, account, state.config.limits)
        .await
        .map_err(limited)?;
    let is_known = blobs::find(&mut connection, account, sha256)
        .await?
        .is_some();
    Ok(if is_known || bytes >= BLOB_BYTES_MAX {
        Room {
            bytes: BLOB_BYTES_MAX,
            limit: None,
        }
    } else {
        Room {
            bytes,
            limit: Some(reached),
        }
    })
}

/// Downloads a blob that the account uploaded or received as a result, whole or in part. 403 `awaiting_release` for a result that waits for
/// the seller of a dataset.
#[utoipa::path(
    get, path = "/v1/blobs/{sha256}", tag = "blobs", security(("session" = []), ("api_key" = ["blobs:read"])),
    params(
        ("sha256" = String, Path, description = "64 lower-case hexadecimal digits"),
        ("Range" = Option<String>, Header, description = "One range of bytes, such as `bytes=0-99`"),
    ),
    responses(
        (status = 200, body = Binary, content_type = "application/octet-stream", headers(("ETag" = String))),
        (status = 206, body = Binary, content_type = "application/octet-stream", headers(("Content-Range" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn get_blob(
    State(state): State<AppState>,
    caller: Caller<needs::BlobsRead>,
    Path(sha256): Path<Sha256>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let Some(blob) = blobs::find(&mut connection, caller.account, sha256).await? else {
        let account = caller.account;
        let why = withheld_results::of_result(&mut connection, account, sha256).await?;
        return Err(why.map_or_else(Problem::not_found, withheld));
    };
    drop(connection);
    let bytes = Bytes {
        tag: format!("\"{sha256}\""),
        count: blob.bytes,
        // The name is the digest of the bytes, so they never change.
        cache: "private, max-age=31536000, immutable",
    };
    let answer = match bytes.wanted(&headers)? {
        Wanted::Nothing(response) => return Ok(response),
        Wanted::Range(answer) => answer,
    };
    let body = if answer.range.is_empty() {
        Body::empty()
    } else {
        let read = state
            .objects
            .stream(sha256, Some(answer.range.clone()))
            .await;
        Body::from_stream(read.map_err(|error| Problem::internal(&error))?)
    };
    Ok(answer.with(body))
}

fn not_stored(error: &PutError) -> Problem {
    match error {
        PutError::TooLarge { .. } => Problem::too_large(),
        PutError::DigestMismatch { actual } => {
            let title = "The bytes are not those that the address names";
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "digest_mismatch", title)
                .detail(format!("The bytes that arrived have the digest {actual}"))
        }
        PutError::Body(_) => Problem::malformed("The body ended early"),
        PutError::Store(_) => Problem::internal(error),
    }
}
