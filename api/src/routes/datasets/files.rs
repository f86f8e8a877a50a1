//! `/v1/datasets/{dataset}/versions/{version}/files`: what a version is to have in it.

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{
    dataset::{
        ANNOUNCED_MAX, FILE_BYTES_MAX, FILES_MAX, Facts, FilePath, Format, ManifestFile, PART_BYTES,
    },
    digest::Sha256,
    id::{DatasetFileId, DatasetId, DatasetVersionId},
};
use comptoir_store::{
    dataset_files::{self, AnnounceError, File, Salts},
    dataset_versions, limits,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::versions::{lock_draft, read_version};
use crate::{
    AppState, FieldError, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::Path,
    idempotency::{self, IdempotentJson, Reply},
    limiting::limited,
    page::{List, ListObject, Page, PageQuery},
    routes::accounts::in_task,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_dataset_files, announce_dataset_files))
        .routes(routes!(find_dataset_file, delete_dataset_file))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewFiles {
    #[schema(min_items = 1, max_items = 500)]
    files: Vec<NewFile>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewDatasetFile)]
struct NewFile {
    /// Where it is in the dataset: names with `/` between them.
    #[schema(min_length = 1, max_length = 512, example = "train/images.csv")]
    path: String,
    /// How many bytes it has.
    #[schema(minimum = 1, maximum = 68_719_476_736_i64)]
    bytes: u64,
    /// Their SHA-256.
    #[schema(value_type = String)]
    sha256: Sha256,
    /// What it is read as before it is published; by its name when absent.
    #[serde(default)]
    format: Option<Format>,
    /// May everybody who signed in read it while the dataset is listed?
    #[serde(default)]
    is_sample: bool,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FileObject {
    DatasetFile,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DatasetFile)]
struct FileBody {
    #[schema(value_type = String, example = "dsf_01h455vb4pex5vsknk084sn02q")]
    id: DatasetFileId,
    object: FileObject,
    path: String,
    bytes: u64,
    #[schema(value_type = String)]
    sha256: Sha256,
    format: Format,
    is_sample: bool,
    /// What was found by reading it; `null` before, and where nothing was looked for.
    #[schema(required = true)]
    facts: Option<Facts>,
    /// How many bytes each part but the last has.
    part_bytes: u32,
    /// How many parts it has.
    parts: u64,
    /// How many of them are stored.
    parts_stored: u64,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DatasetFileAndParts)]
struct FoundFile {
    #[serde(flatten)]
    file: FileBody,
    /// The numbers of the parts that are not stored yet.
    missing_parts: Vec<u64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DatasetFiles)]
struct Announced {
    object: ListObject,
    /// In the order that they were announced in.
    data: Vec<FileBody>,
}

impl From<File> for FileBody {
    fn from(file: File) -> Self {
        Self {
            id: file.id,
            object: FileObject::DatasetFile,
            part_bytes: file.part_bytes,
            parts: file.parts(),
            parts_stored: file.parts_stored,
            created_at: file.created_at,
            path: file.entry.path.into(),
            bytes: file.entry.bytes,
            sha256: file.entry.sha256,
            format: file.entry.format,
            is_sample: file.entry.is_sample,
            facts: file.entry.facts,
        }
    }
}

fn check(new: Vec<NewFile>) -> Result<Vec<ManifestFile>, Problem> {
    if new.is_empty() || new.len() > ANNOUNCED_MAX {
        return Err(Problem::invalid(
            "/files",
            format!("expected 1 to {ANNOUNCED_MAX} files"),
        ));
    }
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for (place, new) in new.into_iter().enumerate() {
        let mut refuse = |field: &str, detail: String| {
            errors.push(FieldError::new(format!("/files/{place}/{field}"), detail));
        };
        if !(1..=FILE_BYTES_MAX).contains(&new.bytes) {
            refuse("bytes", format!("expected 1 to {FILE_BYTES_MAX}"));
        }
        match new.path.parse::<FilePath>() {
            Ok(path) => files.push(ManifestFile {
                format: new.format.unwrap_or_else(|| Format::of_path(&path)),
                path,
                sha256: new.sha256,
                bytes: new.bytes,
                is_sample: new.is_sample,
                facts: None,
            }),
            Err(error) => refuse("path", error.to_string()),
        }
    }
    if errors.is_empty() {
        Ok(files)
    } else {
        Err(Problem::invalid_fields(errors))
    }
}

/// Announces files of a draft, 500 at most at once and 10,000 in all. Their bytes count towards the account's limit from now on.
#[utoipa::path(
    post, path = "/v1/datasets/{dataset}/versions/{version}/files", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("version" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = NewFiles,
    responses(
        (status = 201, body = Announced, headers(("Location" = String))),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn announce_dataset_files(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path((dataset, version)): Path<(DatasetId, DatasetVersionId)>,
    request: IdempotentJson<NewFiles>,
) -> Result<Response, Problem> {
    let files = check(request.body.files)?;
    let (now, identity) = (state.now(), Identity::clone(&caller));
    let deployment = state.config.limits;
    idempotency::run(&state, &caller, request.key, move |tx| {
        Box::pin(async move {
            let draft = lock_draft(tx, &identity, (dataset, version)).await?;
            let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
            if draft.files.saturating_add(count) > FILES_MAX {
                return Err(too_many(draft.files));
            }
            let bytes = files
                .iter()
                .fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
            limits::admit_bytes(tx, identity.account, bytes, deployment)
                .await
                .map_err(limited)?;
            let made = dataset_files::announce(tx, version, &files, PART_BYTES, now).await;
            let made = made.map_err(|error| not_announced(&error))?;
            dataset_versions::count(tx, version, count.cast_signed(), bytes.cast_signed()).await?;
            let body = Announced {
                object: ListObject::List,
                data: made.into_iter().map(FileBody::from).collect(),
            };
            let location = format!("/v1/datasets/{dataset}/versions/{version}/files");
            Ok(Reply::created(location, &body))
        })
    })
    .await
}

fn too_many(present: u32) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "too_many_files",
        "The version would have more files than it may",
    )
    .detail(format!("{FILES_MAX} are the most, and it has {present}"))
}

fn not_announced(error: &AnnounceError) -> Problem {
    match error {
        AnnounceError::PathTaken => Problem::new(
            StatusCode::CONFLICT,
            "path_taken",
            "A path is given twice, or the version has it already, in whatever case",
        ),
        AnnounceError::Database(_) => Problem::internal(error),
    }
}

/// Files of a version, those announced last first.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/versions/{version}/files", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), ("version" = String, Path), PageQuery),
    responses(
        (status = 200, body = Page<FileBody>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn list_dataset_files(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    list: List,
    Path(place): Path<(DatasetId, DatasetVersionId)>,
) -> Result<Page<FileBody>, Problem> {
    let before: Option<DatasetFileId> = list.position(&state, &caller)?;
    let mut connection = caller.read(&state).await?;
    let version = read_version(&mut connection, caller.account, place).await?;
    let rows = dataset_files::list(&mut connection, version.id, before, list.fetch()).await?;
    Ok(list.page(&state, &caller, rows, |row| row.id, FileBody::from))
}

/// A file of a version, and which of its parts are missing: an upload that broke off goes on with those.
#[utoipa::path(
    get, path = "/v1/datasets/{dataset}/versions/{version}/files/{file}", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:read"])),
    params(("dataset" = String, Path), ("version" = String, Path), ("file" = String, Path)),
    responses(
        (status = 200, body = FoundFile, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_dataset_file(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsRead>,
    Path((dataset, version, file)): Path<(DatasetId, DatasetVersionId, DatasetFileId)>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let place = (dataset, version);
    read_version(&mut connection, caller.account, place).await?;
    let found = dataset_files::find(&mut connection, version, file).await?;
    let file = found.ok_or_else(Problem::not_found)?;
    let stored = if file.parts_stored == file.parts() {
        None
    } else {
        Some(dataset_files::salts(&mut connection, &file).await?)
    };
    let is_missing = |part: &u64| {
        let is_stored =
            |salts: &Salts| u32::try_from(*part).is_ok_and(|it| salts.contains_key(&it));
        stored.as_ref().is_some_and(|salts| !is_stored(salts))
    };
    let missing_parts = (0..file.parts()).filter(is_missing).collect();
    Ok(conditions.answer(FoundFile {
        file: file.into(),
        missing_parts,
    }))
}

/// Takes a file out of a draft.
#[utoipa::path(
    delete, path = "/v1/datasets/{dataset}/versions/{version}/files/{file}", tag = "datasets", security(("session" = []), ("api_key" = ["datasets:write"])),
    params(("dataset" = String, Path), ("version" = String, Path), ("file" = String, Path)),
    responses(
        (status = 204, description = "It is gone"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn delete_dataset_file(
    State(state): State<AppState>,
    caller: Caller<needs::DatasetsWrite>,
    Path((dataset, version, file)): Path<(DatasetId, DatasetVersionId, DatasetFileId)>,
) -> Result<Response, Problem> {
    let identity = Identity::clone(&caller);
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let draft = lock_draft(&mut tx, &identity, (dataset, version)).await?;
        let found = dataset_files::find(&mut tx, draft.id, file).await?;
        let file = found.ok_or_else(Problem::not_found)?;
        let salts = dataset_files::salts(&mut tx, &file).await?;
        dataset_files::delete(&mut tx, file.id).await?;
        let bytes = file.entry.bytes.cast_signed().saturating_neg();
        dataset_versions::count(&mut tx, draft.id, -1, bytes).await?;
        tx.commit().await?;
        for (part, salt) in salts {
            remove(&state, &file.part(part, salt)).await;
        }
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

/// Removes an object that no row names. Where that fails it goes with the version.
pub(super) async fn remove(state: &AppState, part: &comptoir_domain::envelope::Part) {
    if let Err(error) = state.objects.remove_part(part).await {
        tracing::warn!(version.id = %part.version, file.id = %part.file, part.number, %error, "a part that is not needed stays until its version goes");
    }
}
