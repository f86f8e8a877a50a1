//! Blobs of one attempt: inputs and checkpoints out, outputs and checkpoints in.

use std::ops::Range;

use axum::{
    body::{Body, BodyDataStream},
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comptoir_domain::{digest::Sha256, id::AttemptId};
use comptoir_http::{Problem, extract::Path};
use comptoir_store::{
    attempts::{self, HeldError},
    objects::{PutError, Stored},
    uploads::{Standing, Upload},
};
use futures::StreamExt as _;
use sha2::Digest as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::attempts::held_problem;
use crate::{
    BLOB_BYTES_MAX, SchedulerState,
    auth::{Caller, Lease},
    groups::not_looked_up,
};

pub(super) fn router() -> OpenApiRouter<SchedulerState> {
    OpenApiRouter::new()
        .routes(routes!(download, upload))
        .layer(DefaultBodyLimit::disable())
}

/// Fetch a blob
///
/// An input of the attempt's job, a checkpoint of an earlier attempt, or what the attempt uploaded itself.
#[utoipa::path(
    get, path = "/v1/attempts/{id}/blobs/{sha256}", tag = "attempts",
    params(
        ("id" = String, Path, description = "The attempt"),
        ("sha256" = String, Path, description = "The blob"),
        ("comptoir-lease-token" = String, Header, description = "The attempt's lease token"),
        ("range" = Option<String>, Header, description = "`bytes=FROM-` or `bytes=FROM-TO`, to go on after a broken download"),
    ),
    responses(
        (status = 200, description = "All bytes", content_type = "application/octet-stream"),
        (status = 206, description = "The bytes of the range", content_type = "application/octet-stream"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`", body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`stale_lease`", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn download(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Path((attempt, sha256)): Path<(AttemptId, Sha256)>,
    Lease(token): Lease,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut conn = state.db.acquire().await?;
    let held = attempts::held(&mut conn, worker.id, attempt, token)
        .await
        .map_err(held_problem)?;
    let bytes = attempts::readable(&mut conn, &held, sha256)
        .await?
        .ok_or_else(Problem::not_found)?;
    drop(conn);
    serve(&state, (sha256, bytes), &headers).await
}

/// A blob of so many bytes, or the range of it that is asked for.
pub(super) async fn serve(
    state: &SchedulerState,
    (sha256, bytes): (Sha256, u64),
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let range = headers
        .get(header::RANGE)
        .and_then(|range| parse_range(range, bytes));
    let content = state
        .objects
        .stream(sha256, range.clone())
        .await
        .map_err(|error| Problem::internal(&error))?;
    let length = range
        .as_ref()
        .map_or(bytes, |range| range.end - range.start);
    let mut response = Body::from_stream(content).into_response();
    let fields = response.headers_mut();
    fields.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(range) = range {
        let told = format!("bytes {}-{}/{bytes}", range.start, range.end - 1);
        fields.insert(
            header::CONTENT_RANGE,
            HeaderValue::from_str(&told).expect("digits are a header value"),
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// One range that lies within the blob; anything else is answered with the whole blob, as RFC 9110 allows.
fn parse_range(range: &HeaderValue, bytes: u64) -> Option<Range<u64>> {
    let (from, to) = range
        .to_str()
        .ok()?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let from: u64 = from.parse().ok()?;
    let end = if to.is_empty() {
        bytes
    } else {
        to.parse::<u64>().ok()?.checked_add(1)?.min(bytes)
    };
    (from < end).then_some(from..end)
}

/// Upload a blob
///
/// An output or a checkpoint of the attempt, by its digest. Uploading it again changes nothing.
#[utoipa::path(
    put, path = "/v1/attempts/{id}/blobs/{sha256}", tag = "attempts",
    request_body(content_type = "application/octet-stream", description = "The bytes, at most 1 GiB"),
    params(
        ("id" = String, Path, description = "The attempt"),
        ("sha256" = String, Path, description = "The blob"),
        ("comptoir-lease-token" = String, Header, description = "The attempt's lease token"),
    ),
    responses(
        (status = 204, description = "It is kept"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`worker_revoked`", body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`stale_lease` or `too_many_blobs`", body = Problem, content_type = "application/problem+json"),
        (status = 411, description = "`length_required`", body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`digest_mismatch`", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn upload(
    State(state): State<SchedulerState>,
    Caller(worker): Caller,
    Path((attempt, sha256)): Path<(AttemptId, Sha256)>,
    Lease(token): Lease,
    request: Request,
) -> Result<StatusCode, Problem> {
    let upload = Upload {
        worker: worker.id,
        attempt,
        token,
        sha256,
    };
    let standing = state.groups.standing.find(upload).await;
    let standing = standing.map_err(not_looked_up)?;
    let registered = judge(standing.unwrap_or(Standing::Unknown))?;
    if content_length(request.headers())? > BLOB_BYTES_MAX {
        return Err(Problem::too_large());
    }
    let body = request.into_body().into_data_stream();
    // Two replicas that agree upload the same bytes: the second proves that it has them, and nothing is written.
    let stored = if registered {
        digest(body, sha256).await
    } else {
        state
            .objects
            .put_stream(body, BLOB_BYTES_MAX, Some(sha256))
            .await
    };
    let stored = stored.map_err(put_problem)?;
    judge(state.groups.note(upload, stored, state.now()).await?)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Are the bytes of an upload known, whoever uploaded them? An error where it may not be taken.
fn judge(standing: Standing) -> Result<bool, Problem> {
    match standing {
        Standing::Open { registered } => Ok(registered),
        Standing::Unknown => Err(held_problem(HeldError::Unknown)),
        Standing::Stale => Err(held_problem(HeldError::Stale)),
        Standing::TooMany => Err(Problem::new(
            StatusCode::CONFLICT,
            "too_many_blobs",
            "The attempt has uploaded all that it can need",
        )),
    }
}

/// Reads the body to its end for its digest alone.
async fn digest(mut body: BodyDataStream, expected: Sha256) -> Result<Stored, PutError> {
    let (mut hash, mut bytes) = (sha2::Sha256::new(), 0_u64);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| PutError::Body(error.into()))?;
        bytes = bytes.saturating_add(chunk.len() as u64);
        if bytes > BLOB_BYTES_MAX {
            return Err(PutError::TooLarge {
                limit: BLOB_BYTES_MAX,
            });
        }
        hash.update(&chunk);
    }
    let actual = Sha256(hash.finalize().into());
    if actual == expected {
        Ok(Stored {
            sha256: actual,
            bytes,
        })
    } else {
        Err(PutError::DigestMismatch { actual })
    }
}

fn content_length(headers: &HeaderMap) -> Result<u64, Problem> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    length.ok_or_else(|| {
        Problem::new(
            StatusCode::LENGTH_REQUIRED,
            "length_required",
            "The request does not say how long its body is",
        )
    })
}

fn put_problem(error: PutError) -> Problem {
    match error {
        PutError::TooLarge { .. } => Problem::too_large(),
        PutError::DigestMismatch { actual } => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "digest_mismatch",
            "The body does not have the digest of its name",
        )
        .detail(format!("It has the digest {actual}")),
        PutError::Body(_) => Problem::malformed("The body ended early"),
        error @ PutError::Store(_) => Problem::internal(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_range_within_the_blob_is_a_range() {
        let parse = |text: &'static str| parse_range(&HeaderValue::from_static(text), 10);
        assert_eq!(parse("bytes=0-"), Some(0..10));
        assert_eq!(parse("bytes=4-6"), Some(4..7));
        assert_eq!(parse("bytes=4-99"), Some(4..10));
        for other in [
            "bytes=10-",
            "bytes=6-4",
            "bytes=-3",
            "bytes=0-1,3-4",
            "rows=0-1",
            "bytes=x-",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
