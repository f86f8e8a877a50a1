//! `/v1/datasets/{dataset}/versions`: drafts, publishing them, and shredding.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    card::check_notes,
    dataset::{self, ManifestFile, VersionState},
    envelope::Key,
    id::{AccountId, DatasetId, DatasetVersionId},
    root_keys,
};
use comptoir_store::{
    PgTransaction, data_keys,
    dataset_files::{self, File},
    dataset_versions::{self, CreateVersionError, Refusal, ShredError, Version},
    datasets, limits, tenant,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, Page, PageQuery},
    ranges::{Bytes, Wanted},
    routes::accounts::in_task,
};

/// Incomplete files that a refusal names.
const NAMED_MAX: usize = 10;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_dataset_versions, create_dataset_version))
        .routes(routes!(find_dataset_version, shred_dataset_version))
        .routes(routes!(publish_dataset_version))
        .routes(routes!(find_dataset_manifest))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewVersion {
    /// What is new in it.
    #[serde(default)]
    #[schema(max_length = 16384)]
    notes: String,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum VersionObject {
    DatasetVersion,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DatasetVersion)]
struct VersionBody {
    #[schema(value_type = String, example = "dsv_01h455vb4pex5vsknk084sn02q")]
    id: DatasetVersionId,
    object: VersionObject,
    #[schema(value_type = String)]
    dataset: DatasetId,
    /// Which of the published ones, from 1; `null` before it is ready.
    #[schema(required = true)]
    number: Option<u32>,
    state: VersionState,
    notes: String,
    /// The dataset's licence when this was to be published; `null` before.
    #[schema(required = true)]
    licence: Option<String>,
    /// The root of its manifest; `null` before it is ready.
    #[schema(required = true)]
    manifest_root: Option<String>,
    files: u32,
    bytes: u64,
    /// Why it was refused, file by file.
    refusals: Vec<RefusalBody>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    submitted_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    published_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    shredded_at: Option<OffsetDateTime>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DatasetRefusal)]
struct RefusalBody {
    path: String,
    reason: String,
}

impl From<Refusal> for RefusalBody {
    fn from(refusal: Refusal) -> Self {
        Self {
            path: refusal.path,
            reason: refusal.reason,
        }
    }
}

impl From<Version> for VersionBody {
    fn from(version: Version) -> Self {
        Self {
            id: version.id,
            object: VersionObject::DatasetVersion,
            dataset: version.dataset,
            number: version.number,
            state: version.state,
            notes: version.notes,
            licence: version.licence,
            manifest_root: version.manifest_root.map(|root| root.to_string()),
            files: version.files,
            bytes: version.bytes,
            refusals: version
                .refusals
                .into_iter()
                .map(RefusalBody::from)
                .collect(),
            created_at: version.created_at,
            submitted_at: version.submitted_at,
            published_at: version.published_at,
            shredded_at: version.shredded_at,
        }
    }
}

/// Describes a manifest in the document; it is answered with in canonical JSON.
#[derive(ToSchema)]
#[schema(as = DatasetManifest)]
#[expect(dead_code, reason = "it only describes bodies")]
struct ManifestBody {
    object: String,
    /// Its Merkle root.
    root: String,
    /// By path.
    files: Vec<ManifestFile>,
}

/// A version that the account may know of.
pub(super) async fn read_version(
    connection: &mut PgConnection,
    account: AccountId,
    place: (DatasetId, DatasetVersionId),
) -> Result<Version, Problem> {
    let found = dataset_versions::find(connection, account, place).await?;
    found.ok_or_else(Problem::not_found)
}

/// The caller's draft, locked: 409 where it is none any more.
pub(super) async fn lock_draft(
    tx: &mut PgTransaction<'_>,
    caller: &Identity,
    place: (DatasetId, DatasetVersionId),
) -> Result<Version, Problem> {
    let found = dataset_versions::lock(tx, caller.account, place).await?;
    let version = found.ok_or_else(Problem::not_found)?;
    match version.state {
        VersionState::Draft => Ok(version),
        _ => Err(no_draft(version.state)),
    }
}

pub(super) fn no_draft(state: VersionState) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "version_not_draft",
        "The version is not a draft any more",
    )
    .detail(format!("It is {state}"))
}

/// Is there something to read? 409 before it is ready, 410 when it is shredded.
pub(crate) fn require_ready(version: &Version) -> Result<(), Problem> {
    match version.state {
        VersionState::Ready => Ok(()),
        VersionState::Shredded => Err(Problem::new(
            StatusCode::GONE,
            "version_shredded",
            "The version was shredded: nobody can read it any more",
        )),
        VersionState::Draft | VersionState::Checking | VersionState::Refused => Err(Problem::new(
            StatusCode::CONFLICT,
            "version_not_ready",
            "The version is not ready",
        )
        .detail(format!("It is {}", version.state))),
    }
}

/// Makes a draft with a key of its own. One that nobody touches for seven days is shredded.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/versions", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewVersion,
    responses(
        (status = 201, body = VersionBody, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn create_dataset_version(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(dataset): Path<DatasetId>,
    request: IdempotentJson<NewVersion>,
) -> Result<Response, Problem> {
    let (now, account, roots) = (state.now(), caller.account, state.root_keys.clone());
    let notes = request.body.notes;
    if let Some(reason) = check_notes(&notes) {
        return Err(Problem::invalid("/notes", reason));
    }
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            limits::refuse_frozen(tx, account).await.map_err(limited)?;
            let found = datasets::lock(tx, account, dataset).await?;
            found.ok_or_else(Problem::not_found)?;
            let tenant = data_keys::of_tenant(tx, &roots, account, now).await;
            let tenant = tenant.map_err(|error| Problem::internal(&error))?;
            let id = DatasetVersionId::generate();
            let wrapped = root_keys::wrap_data_key(&tenant, id, &Key::generate());
            dataset_versions::create(tx, (dataset, account), (id, wrapped), &notes, now)
                .await
                .map_err(|error| not_created(&error))?;
            let body = VersionBody::from(read_version(tx, account, (dataset, id)).await?);
            let location = format!("/v1/datasets/{dataset}/versions/{id}");
            Ok(Reply::created(location, &body))
        })
    })
    .await
}

fn not_created(error: &CreateVersionError) -> Problem {
    match error {
        CreateVersionError::TooMany => Problem::new(
            StatusCode::CONFLICT,
            "too_many_drafts",
            "The dataset has as many versions that are not published as it may",
        ),
        CreateVersionError::Database(_) => Problem::internal(error),
    }
}

/// Versions of a dataset, newest first: all of your own, ready ones of a listed one.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/versions", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), PageQuery),
    responses(
        (status = 200, body = Page<VersionBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_dataset_versions(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    list: List,
    Path(dataset): Path<DatasetId>,
) -> Result<Page<VersionBody>, Problem> {
    let before: Option<DatasetVersionId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let found = datasets::find(&mut connection, caller.account, dataset).await?;
    found.ok_or_else(Problem::not_found)?;
    let page = (before, list.fetch());
    let rows =
        dataset_versions::list(&mut connection, caller.account, dataset, page.0, page.1).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, VersionBody::from))
}

/// A version.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/versions/{version}", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, body = VersionBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_dataset_version(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(place): Path<(DatasetId, DatasetVersionId)>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let version = read_version(&mut connection, caller.account, place).await?;
    Ok(conditions.answer(VersionBody::from(version)))
}

/// Publishes a draft whose files are all there: they are checked, and it is ready, or refused. From now on it does not change. Again changes
/// nothing.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/versions/{version}/publish", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, body = VersionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn publish_dataset_version(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(place): Path<(DatasetId, DatasetVersionId)>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        limits::refuse_frozen(&mut tx, identity.account)
            .await
            .map_err(limited)?;
        let found = dataset_versions::lock(&mut tx, identity.account, place).await?;
        let mut version = found.ok_or_else(Problem::not_found)?;
        match version.state {
            VersionState::Checking | VersionState::Ready | VersionState::Refused => {}
            VersionState::Shredded => return Err(no_draft(version.state)),
            VersionState::Draft => {
                require_complete(&dataset_files::all(&mut tx, version.id).await?)?;
                dataset_versions::submit(&mut tx, version.id, state.now()).await?;
                version = read_version(&mut tx, identity.account, place).await?;
                tx.commit().await?;
            }
        }
        Ok(Json(VersionBody::from(version)).into_response())
    })
    .await
}

fn require_complete(files: &[File]) -> Result<(), Problem> {
    let incomplete = |detail: String| {
        Problem::new(
            StatusCode::CONFLICT,
            "version_incomplete",
            "The version is not complete",
        )
        .detail(detail)
    };
    if files.is_empty() {
        return Err(incomplete("It has no files".to_owned()));
    }
    let missing: Vec<String> = files
        .iter()
        .filter(|file| file.parts_stored < file.parts())
        .take(NAMED_MAX)
        .map(|file| {
            format!(
                "{} has {} of {} parts",
                file.entry.path,
                file.parts_stored,
                file.parts()
            )
        })
        .collect();
    if !missing.is_empty() {
        return Err(incomplete(missing.join("; ")));
    }
    if let Some(path) = dataset::conflict(files.iter().map(|file| &file.entry.path)) {
        return Err(incomplete(format!(
            "{path} is a file, and other files would be in it"
        )));
    }
    Ok(())
}

/// Shreds a version: its key is thrown away at once, and what was encrypted with it is removed soon. Nothing brings it back. Again
/// changes nothing.
#[utoipa::path(
    delete, path = "/v1/datasets/{dataset}/versions/{version}", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, body = VersionBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn shred_dataset_version(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path(place): Path<(DatasetId, DatasetVersionId)>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        // The dataset first: two of its versions are not shredded at once, as if the other one stayed.
        datasets::lock(&mut tx, identity.account, place.0).await?;
        let found = dataset_versions::lock(&mut tx, identity.account, place).await?;
        let version = found.ok_or_else(Problem::not_found)?;
        tenant::widen(&mut tx).await?;
        dataset_versions::shred(&mut tx, &version, state.now())
            .await
            .map_err(|error| not_shredded(&error))?;
        let version = read_version(&mut tx, identity.account, place).await?;
        tx.commit().await?;
        tracing::info!(version.id = %version.id, "the key of a version is gone");
        Ok(Json(VersionBody::from(version)).into_response())
    })
    .await
}

fn not_shredded(error: &ShredError) -> Problem {
    match error {
        ShredError::Checking => Problem::new(
            StatusCode::CONFLICT,
            "version_checking",
            "The version is being checked",
        )
        .retry_after(1),
        ShredError::Disputed => Problem::new(
            StatusCode::CONFLICT,
            "version_disputed",
            "A takedown of the dataset is not decided",
        ),
        ShredError::Contributed => Problem::new(
            StatusCode::CONFLICT,
            "version_contributed",
            "The version is contributed to the dataset of another",
        ),
        ShredError::LastOfListed => Problem::new(
            StatusCode::CONFLICT,
            "version_last",
            "The dataset is listed, and has no other version that is ready",
        ),
        ShredError::Sold => Problem::new(
            StatusCode::CONFLICT,
            "version_sold",
            "Somebody has a right to the version",
        ),
        ShredError::Database(_) => Problem::internal(error),
    }
}

/// The manifest of a ready version in canonical JSON: what its files are, and the root that names it.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/versions/{version}/manifest", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), ("version" = String, Path)),
    responses(
        (status = 200, body = ManifestBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_dataset_manifest(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path(place): Path<(DatasetId, DatasetVersionId)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let version = read_version(&mut connection, caller.account, place).await?;
    require_ready(&version)?;
    let files = dataset_files::all(&mut connection, version.id).await?;
    let mut entries: Vec<_> = files.into_iter().map(|file| file.entry).collect();
    let manifest = dataset::manifest(&mut entries);
    let bytes = Bytes {
        tag: format!("\"{}\"", dataset::root(&entries)),
        count: manifest.len() as u64,
        cache: "private, no-cache",
    };
    let answer = match bytes.wanted(&headers)? {
        Wanted::Nothing(response) => return Ok(response),
        Wanted::Range(answer) => answer,
    };
    let within = |at: u64| {
        usize::try_from(at)
            .unwrap_or(usize::MAX)
            .min(manifest.len())
    };
    let range = within(answer.range.start)..within(answer.range.end);
    let mut response = answer.with(Body::from(manifest[range].to_vec()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}
