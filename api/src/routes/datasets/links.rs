//! `…/files/{file}/links` and `/v1/links/{secret}`: a file for something that has no credential, for a short time.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use comptoir_domain::{
    digest::Sha256,
    id::{DatasetFileId, DatasetId, DatasetLinkId, DatasetVersionId},
};
use comptoir_store::dataset_links::{self, FollowError, Link};
use serde::Serialize;
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::content::{self, Reader};
use crate::{
    AppState, Problem,
    auth::{Caller, keys::random, needs},
    extract::{Json, Path},
    routes::blobs::Binary,
};

/// What the secret of a link begins with.
const PREFIX: &str = "cdl_";
/// How long a link holds.
const LIFETIME: Duration = Duration::seconds(120);
/// Files up to this many bytes are read once; whoever reads a larger one may have to resume.
const SINGLE_USE_BYTES_MAX: u64 = 16 << 20;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_dataset_link))
        .routes(routes!(follow_dataset_link))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DatasetLinkObject {
    DatasetLink,
}

#[derive(Serialize, ToSchema)]
struct DatasetLink {
    #[schema(value_type = String, example = "dsl_01h455vb4pex5vsknk084sn02q")]
    id: DatasetLinkId,
    object: DatasetLinkObject,
    /// Where the file is read with GET, without a credential. Shown once: who has it has the file.
    url: String,
    /// Does the first use end it? Larger files may be resumed with ranges until it is over.
    is_single_use: bool,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// Makes a link to one file that you may read, for two minutes. Whoever follows it reads by your right, which is looked at again then.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/versions/{version}/files/{file}/links", tag = "datasets",
    security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), ("version" = String, Path), ("file" = String, Path)),
    responses(
        (status = 201, body = DatasetLink),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_dataset_link(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path((dataset, version, file)): Path<(DatasetId, DatasetVersionId, DatasetFileId)>,
) -> Result<Response, Problem> {
    let reader = Reader::of(&caller);
    let opened = content::open(&state, reader, (dataset, version), file).await?;
    let is_single_use = opened.bytes() <= SINGLE_USE_BYTES_MAX;
    drop(opened);
    let now = state.now();
    let link = Link {
        id: DatasetLinkId::generate(),
        account: caller.account,
        dataset,
        version,
        file,
        is_single_use,
        expires_at: now.saturating_add(LIFETIME),
    };
    let secret = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random::<32>()));
    let mut tx = caller.begin(&state).await?;
    dataset_links::create(&mut tx, &link, Sha256::of(secret.as_bytes()), now).await?;
    tx.commit().await?;
    let body = DatasetLink {
        id: link.id,
        object: DatasetLinkObject::DatasetLink,
        url: format!("{}/v1/links/{secret}", state.config.public_origin),
        is_single_use: link.is_single_use,
        created_at: now,
        expires_at: link.expires_at,
    };
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Reads the file of a link, whole or in part.
#[utoipa::path(
    get, path = "/v1/links/{secret}", tag = "datasets",
    params(
        ("secret" = String, Path),
        ("Range" = Option<String>, Header, description = "One range of bytes, such as `bytes=0-99`"),
    ),
    responses(
        (status = 200, body = Binary, content_type = "application/octet-stream", headers(("ETag" = String))),
        (status = 206, body = Binary, content_type = "application/octet-stream", headers(("Content-Range" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn follow_dataset_link(
    State(state): State<AppState>,
    method: Method,
    Path(secret): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // A link is for one method: looking without reading would use it up.
    if method != Method::GET {
        return Err(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "A link is read with GET",
        ));
    }
    let followed = {
        let mut connection = state.db.acquire().await?;
        let secret = Sha256::of(secret.as_bytes());
        dataset_links::follow(&mut connection, secret, state.now()).await
    };
    let link = followed.map_err(not_followed)?;
    let reader = Reader {
        account: link.account,
        address: None,
        link: Some(link.id),
    };
    let place = (link.dataset, link.version);
    let mut response = content::serve(&state, reader, place, link.file, &headers).await?;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        // No name of a stranger's choice: browsers save it, and never show it as a page of ours.
        (header::CONTENT_DISPOSITION, "attachment"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

fn not_followed(error: FollowError) -> Problem {
    let gone = |code, title| Problem::new(StatusCode::GONE, code, title);
    match error {
        FollowError::NotFound => Problem::not_found(),
        FollowError::Expired => gone("link_expired", "The link is over"),
        FollowError::Used => gone("link_used", "The link was for one use"),
        FollowError::Database(error) => error.into(),
    }
}
