//! What a version is put together from: read, and refused where it does not fit together.

use std::{collections::BTreeMap, sync::Arc};

use comptoir_domain::{
    digest::Sha256,
    fit::ProgramFacts,
    id::{AccountId, JobId},
    job::{JobSpec, state::JobState},
    model::{Manifest, Parts},
    seal::OUTPUT_WEIGHTS,
    tensors::TensorsHeader,
};
use comptoir_store::{
    blobs::{self, Blob},
    jobs,
};

use crate::{
    AppState, FieldError, Problem,
    auth::Identity,
    reading::{self, ReadError},
};

/// What a version is made from, and the job that it comes from.
pub(super) async fn wanted(
    state: &AppState,
    caller: &Identity,
    (manifest, job): (Option<&Manifest>, Option<JobId>),
) -> Result<(Manifest, Option<JobId>), Problem> {
    match (manifest, job) {
        (Some(manifest), None) => Ok((manifest.clone(), None)),
        (None, Some(job)) => Ok((of_job(state, caller, job).await?, Some(job))),
        (Some(_), Some(_)) | (None, None) => Err(Problem::invalid(
            "/manifest",
            "expected either `manifest` or `job`",
        )),
    }
}

/// The program of a training job, with what it learned.
async fn of_job(state: &AppState, caller: &Identity, id: JobId) -> Result<Manifest, Problem> {
    let refused = |why: &str| Problem::invalid("/job", why);
    let job = jobs::find(&mut *caller.read(state).await?, caller.account, id).await?;
    let job = job.ok_or_else(|| refused("no such job"))?;
    let JobSpec::Training(spec) = &job.spec else {
        return Err(refused("it trained nothing"));
    };
    if job.state != JobState::Completed {
        return Err(refused("it is not completed"));
    }
    let trained = job.outputs.iter().find(|it| it.name == OUTPUT_WEIGHTS);
    let trained = trained.ok_or_else(|| refused("its results wait for the seller of its data"))?;
    Ok(Manifest::trained(spec.program, trained.sha256))
}

/// Reads every blob of a manifest, all of them the account's, and refuses what does not fit together; what `infer` is.
pub(super) async fn check(
    state: &AppState,
    account: AccountId,
    manifest: &Manifest,
) -> Result<Arc<ProgramFacts>, Problem> {
    let wanted = manifest.blobs();
    let owned = blobs::find_all(&mut *state.db.acquire().await?, account, &wanted).await?;
    let owned: BTreeMap<Sha256, Blob> = owned.into_iter().map(|it| (it.sha256, it)).collect();
    let mut errors = Vec::new();
    let mut programs: BTreeMap<Sha256, Arc<ProgramFacts>> = BTreeMap::new();
    for (program, sha256) in manifest.programs.iter() {
        let read = match owned.get(&sha256) {
            Some(blob) => reading::program(state, blob).await,
            None => Err(not_there()),
        };
        let pointer = format!("/manifest/programs/{}", program.as_str());
        if let Some(facts) = noted(read, pointer, &mut errors)? {
            programs.insert(sha256, facts);
        }
    }
    let mut weights: Option<Arc<TensorsHeader>> = None;
    if let Some(sha256) = manifest.weights {
        let read = match owned.get(&sha256) {
            Some(blob) => reading::tensors(state, blob).await,
            None => Err(not_there()),
        };
        weights = noted(read, "/manifest/weights".to_owned(), &mut errors)?;
    }
    let mut vocabulary = None;
    if let Some(text) = &manifest.text {
        let read = match owned.get(&text.tokenizer) {
            Some(blob) => reading::tokenizer(state, blob.sha256).await,
            None => Err(not_there()),
        };
        let pointer = "/manifest/text/tokenizer".to_owned();
        if let Some(tokenizer) = noted(read, pointer, &mut errors)? {
            let text = text.clone();
            let read = move || comptoir_text::vocabulary(&tokenizer, &text);
            let read = tokio::task::spawn_blocking(read).await;
            vocabulary = Some(read.map_err(|error| Problem::internal(&error))?);
        }
    }
    if let Some(chat) = manifest.generation.as_ref().and_then(|it| it.chat.clone()) {
        let pointer = "/manifest/generation/chat/template".to_owned();
        noted(reading::template(chat).await, pointer, &mut errors)?;
    }
    let misfits = manifest.misfits(Parts {
        programs: &programs,
        weights: weights.as_deref(),
        vocabulary,
    });
    let misfits = misfits.into_iter();
    errors.extend(misfits.map(|it| FieldError::new(format!("/manifest{}", it.pointer), it.detail)));
    match programs.remove(&manifest.programs.infer) {
        Some(infer) if errors.is_empty() => Ok(infer),
        Some(_) | None => Err(Problem::invalid_fields(errors)),
    }
}

fn not_there() -> ReadError {
    ReadError::Refused("no such blob; upload it first".to_owned())
}

/// What was read; or its refusal, noted.
fn noted<T>(
    read: Result<T, ReadError>,
    pointer: String,
    errors: &mut Vec<FieldError>,
) -> Result<Option<T>, Problem> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) => {
            errors.push(FieldError::new(pointer, error.into_reason()?));
            Ok(None)
        }
    }
}
