//! `/v1/blobs`: files by the digest of their bytes.

use std::{ops::Range, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
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
};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::{sync::Semaphore, time::timeout};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, needs},
    extract::{Json, Path},
    limiting::limited,
    reading::{self, Content},
};

/// Largest blob: a result must fit, to be used as an input again.
pub const BLOB_BYTES_MAX: u64 = OUTPUT_BYTES_MAX;
/// Uploads that are taken at once; each holds up to three parts in memory.
const UPLOADS_AT_ONCE: usize = 32;
/// How long an upload waits for its turn.
const UPLOAD_WAIT: Duration = Duration::from_secs(10);

static UPLOADS: Semaphore = Semaphore::const_new(UPLOADS_AT_ONCE);

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(put_blob, get_blob))
}

/// Bytes, as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it only describes bodies")]
struct Binary(Vec<u8>);

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
    let Ok(permit) = timeout(UPLOAD_WAIT, UPLOADS.acquire()).await else {
        return Err(Problem::unavailable("Too many uploads at once"));
    };
    let stored = state
        .objects
        .put_stream(body.into_data_stream(), room.bytes, Some(sha256))
        .await
        .map_err(|error| match (error, room.limit) {
            (PutError::TooLarge { .. }, Some(reached)) => limited(reached.into()),
            (error, _) => not_stored(&error),
        })?;
    drop(permit);
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

/// Downloads a blob that the account uploaded or received as a result, whole or in part.
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
    let blob = blobs::find(&mut *caller.read(&state).await?, caller.account, sha256).await?;
    let blob = blob.ok_or_else(Problem::not_found)?;
    let tag = format!("\"{sha256}\"");
    if names(&headers, &header::IF_NONE_MATCH, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, described(&tag)).into_response());
    }
    let is_same =
        !headers.contains_key(header::IF_RANGE) || names(&headers, &header::IF_RANGE, &tag);
    let asked = headers
        .get(header::RANGE)
        .filter(|_| is_same)
        .and_then(|it| it.to_str().ok());
    let (status, range) = match asked.map_or(Asked::Whole, |asked| Asked::of(asked, blob.bytes)) {
        Asked::Whole => (StatusCode::OK, 0..blob.bytes),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Nothing => return Err(unsatisfiable(blob.bytes)),
    };
    let length = range.end - range.start;
    let body = if length == 0 {
        Body::empty()
    } else {
        let read = state.objects.stream(sha256, Some(range.clone())).await;
        Body::from_stream(read.map_err(|error| Problem::internal(&error))?)
    };
    let mut response = (status, described(&tag), body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if status == StatusCode::PARTIAL_CONTENT {
        let span = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.bytes);
        headers.insert(
            header::CONTENT_RANGE,
            HeaderValue::try_from(span).expect("digits are ASCII"),
        );
    }
    Ok(response)
}

fn described(tag: &str) -> HeaderMap {
    let fixed = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::ACCEPT_RANGES, "bytes"),
        // The name is the digest of the bytes, so they never change.
        (
            header::CACHE_CONTROL,
            "private, max-age=31536000, immutable",
        ),
    ];
    let mut headers: HeaderMap = fixed
        .into_iter()
        .map(|(name, value)| (name, HeaderValue::from_static(value)))
        .collect();
    headers.insert(
        header::ETAG,
        HeaderValue::try_from(tag).expect("a digest is ASCII"),
    );
    headers
}

fn names(headers: &HeaderMap, condition: &header::HeaderName, tag: &str) -> bool {
    let listed = headers
        .get_all(condition)
        .iter()
        .filter_map(|it| it.to_str().ok());
    listed
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|it| it == tag || it == "*")
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Everything: no range, one that is not understood, or several, which RFC 9110 lets a server ignore.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that are not there.
    Nothing,
}

impl Asked {
    fn of(range: &str, bytes: u64) -> Self {
        let Some((first, last)) = range
            .strip_prefix("bytes=")
            .and_then(|it| it.split_once('-'))
        else {
            return Self::Whole;
        };
        // A number alone: `parse` would take a sign too.
        let digits = |text: &str| {
            text.bytes()
                .all(|it| it.is_ascii_digit())
                .then(|| text.parse::<u64>().ok())
                .flatten()
        };
        let (start, end) = match (
            first.is_empty(),
            digits(first),
            last.is_empty(),
            digits(last),
        ) {
            (true, _, false, Some(suffix)) => (bytes.saturating_sub(suffix), bytes),
            (false, Some(first), true, _) => (first, bytes),
            (false, Some(first), false, Some(last)) if first <= last => {
                (first, last.saturating_add(1).min(bytes))
            }
            _ => return Self::Whole,
        };
        if start < end {
            Self::Part(start..end)
        } else {
            Self::Nothing
        }
    }
}

fn unsatisfiable(bytes: u64) -> Problem {
    let size = HeaderValue::try_from(format!("bytes */{bytes}")).expect("digits are ASCII");
    Problem::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "range_not_satisfiable",
        "The range begins behind the end of the blob",
    )
    .header(header::CONTENT_RANGE, size)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood_in_each_of_its_forms() {
        let asked = |range: &str| Asked::of(range, 10);
        assert_eq!(asked("bytes=0-0"), Asked::Part(0..1));
        assert_eq!(asked("bytes=2-4"), Asked::Part(2..5));
        assert_eq!(asked("bytes=2-99"), Asked::Part(2..10));
        assert_eq!(asked("bytes=7-"), Asked::Part(7..10));
        assert_eq!(asked("bytes=-3"), Asked::Part(7..10));
        assert_eq!(asked("bytes=-99"), Asked::Part(0..10));
        for nothing in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert_eq!(asked(nothing), Asked::Nothing, "{nothing}");
        }
        for ignored in [
            "bytes=4-2",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=0-1,3-4",
            "lines=0-1",
            "",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(asked(ignored), Asked::Whole, "{ignored}");
        }
        assert_eq!(Asked::of("bytes=0-", 0), Asked::Nothing);
    }
}
