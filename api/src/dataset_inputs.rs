//! Datasets as inputs of jobs: may the account compute on what it names, on what terms, and what is in the files.

use std::{collections::BTreeMap, sync::Arc};

use axum::http::StatusCode;
use comptoir_domain::{
    dataset::Format,
    dataset_input::{ComputeTerms, NoRight},
    digest::Sha256,
    id::AccountId,
    job::JobSpec,
    tensors::TensorsHeader,
};
use comptoir_store::{
    dataset_files::{self, File},
    dataset_inputs::{self, QuotedData},
    dataset_versions::{self, Version},
};

use crate::{
    AppState, FieldError, Problem,
    reading::{self, Bytewise, ReadError},
    routes::{blocked, require_ready},
    sealed::SealedFile,
};

/// The dataset that a job reads.
pub(crate) struct Input {
    /// What is quoted for it.
    pub quoted: QuotedData,
    /// The terms that it is computed on under; `None` where the account may read it anyhow.
    pub terms: Option<ComputeTerms>,
    /// The heads of the files that the job names.
    pub heads: BTreeMap<Sha256, TensorsHeader>,
}

/// Finds out whether a job of the account may read the dataset that it names, if it does, and reads the heads of its files.
///
/// # Errors
/// 404 for a version that the account may not know of, 403 and 410 where it has no right, or none any more, 422 for files that are not there
/// or hold no tensors.
pub(crate) async fn read(
    state: &AppState,
    (account, asset_id): (AccountId, i32),
    spec: &JobSpec,
) -> Result<Option<Input>, Problem> {
    let Some((id, wanted)) = spec.dataset() else {
        return Ok(None);
    };
    let mut connection = state.db.acquire().await?;
    let of = (account, asset_id);
    let standing = dataset_inputs::standing(&mut connection, of, id, state.now()).await?;
    let version = dataset_versions::find_any(&mut connection, id).await?;
    let Some((standing, version)) = standing.zip(version) else {
        let unknown = "no such version of a dataset";
        return Err(Problem::not_found().errors(at_each(spec, "dataset_version", None, unknown)));
    };
    require_ready(&version)?;
    let terms = standing.judge(spec.program()).map_err(refused)?;
    let files = dataset_files::find_by_digests(&mut connection, id, wanted.iter().copied()).await?;
    drop(connection);
    let missing = wanted.iter().filter(|it| !files.contains_key(it));
    let errors = missing.flat_map(|it| {
        at_each(
            spec,
            "blob",
            Some(*it),
            "the version has no file of this digest",
        )
    });
    let mut errors: Vec<FieldError> = errors.collect();
    let mut heads = BTreeMap::new();
    for (sha256, file) in files {
        match head(state, &version, file).await {
            Ok(head) => drop(heads.insert(sha256, head.as_ref().clone())),
            Err(error) => {
                let reason = error.into_reason()?;
                errors.extend(at_each(spec, "blob", Some(sha256), &reason));
            }
        }
    }
    if !errors.is_empty() {
        return Err(Problem::invalid_fields(errors));
    }
    Ok(Some(Input {
        quoted: QuotedData {
            version: id,
            price: terms.as_ref().map(|it| it.price),
        },
        terms,
        heads,
    }))
}

/// The head of a file. Nothing behind it is opened.
async fn head(
    state: &AppState,
    version: &Version,
    file: File,
) -> Result<Arc<TensorsHeader>, ReadError> {
    let (sha256, bytes) = (file.entry.sha256, file.entry.bytes);
    if file.entry.format != Format::Safetensors {
        let format = file.entry.format;
        let reason = format!("the file is {format}; jobs read safetensors files");
        return Err(ReadError::Refused(reason));
    }
    if let Some(head) = state.submissions.facts.heads.get(&sha256) {
        return Ok(head);
    }
    let sealed = SealedFile::open(state, version, file).await?;
    let head = reading::head_of(Bytewise::Sealed(&sealed), bytes).await?;
    let head = Arc::new(head);
    state.submissions.facts.heads.put(sha256, Arc::clone(&head));
    Ok(head)
}

/// The same error at each place where the specification names the dataset, or one file of it.
fn at_each(spec: &JobSpec, field: &str, file: Option<Sha256>, detail: &str) -> Vec<FieldError> {
    let of_dataset = spec
        .tensors()
        .filter(|(_, it)| it.dataset_version.is_some());
    of_dataset
        .filter(|(_, it)| file.is_none_or(|file| it.blob == file))
        .map(|(pointer, _)| FieldError::new(format!("/spec{pointer}/{field}"), detail))
        .collect()
}

fn refused(error: NoRight) -> Problem {
    match error {
        NoRight::Blocked(takedown) => blocked(takedown),
        NoRight::NotEntitled => Problem::new(
            StatusCode::FORBIDDEN,
            "not_entitled",
            "The account has no right to compute on the dataset",
        ),
        NoRight::Ended => ended(),
        NoRight::Program => Problem::new(
            StatusCode::FORBIDDEN,
            "program_not_allowed",
            "The dataset's seller does not let this program compute on it",
        )
        .errors([FieldError::new(
            "/spec/program",
            "not among the programs that the offer names",
        )]),
    }
}

/// A right that was, and is no more.
pub(crate) fn ended() -> Problem {
    Problem::new(
        StatusCode::GONE,
        "entitlement_expired",
        "The account's right to the dataset has ended",
    )
}
