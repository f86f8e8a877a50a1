//! From a specification to a priced quote: whose blobs, what program, does it fit, what does it cost.

use std::{collections::BTreeMap, sync::Arc};

use comptoir_domain::{
    digest::Sha256,
    fit::{self, ProgramFacts},
    id::AccountId,
    job::{Device, JobSpec, TensorRef, Tier},
    price,
    tensors::TensorsHeader,
};
use comptoir_store::{
    assets::AssetError,
    blobs::{self, Blob},
    quotes::NewQuote,
};
use time::Duration;

use crate::{
    AppState, FieldError, Problem, dataset_inputs,
    facts::Terms,
    reading::{self, ReadError},
};

/// How long a quote binds.
pub(crate) const QUOTE_LIFETIME: Duration = Duration::minutes(15);

/// Why a program is not verified.
const UNSTABLE: &str = "workers of every class that is there could not agree on this program; take `none`, or come back when others joined";

/// What is to be priced.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub spec: JobSpec,
    pub tier: Tier,
    pub device: Device,
}

/// Prices a job. Nothing is written but what was found out about its program.
///
/// # Errors
/// 422 with every field that cannot be accepted, and what [`dataset_inputs::read`] says of a dataset. A blob that is another account's is as unknown as one that is
/// nobody's.
pub(crate) async fn price(
    state: &AppState,
    account: AccountId,
    wanted: Wanted,
    terms: &Terms,
) -> Result<NewQuote, Problem> {
    let Wanted { spec, tier, device } = wanted;
    spec.validate()
        .map_err(|error| Problem::invalid(in_spec(&error.pointer), error.detail))?;
    let files = owned(state, account, &spec).await?;
    let now = state.now();
    let version = *terms.price(device).ok_or_else(not_published)?;
    let dataset = dataset_inputs::read(state, (account, terms.asset.id), &spec).await?;
    let (program, mut heads) = read(state, &spec, &files).await?;
    heads.extend(dataset.iter().flat_map(|it| it.heads.clone()));
    let fit = fit::check(&spec, tier, &program, &heads).map_err(|misfits| {
        let error = |it: fit::Misfit| FieldError::new(in_spec(&it.pointer), it.detail);
        Problem::invalid_fields(misfits.into_iter().map(error))
    })?;
    let data_terms = dataset.as_ref().and_then(|it| it.terms.as_ref());
    if let Some(allowed) = data_terms.map(|it| it.output_bytes_max)
        && fit.output_bytes > allowed
    {
        let bytes = fit.output_bytes;
        let detail = format!("the results would have {bytes} bytes; the offer allows {allowed}");
        return Err(Problem::invalid("/spec", detail));
    }
    let verified = (spec.program(), device);
    let facts = &state.submissions.facts;
    if tier != Tier::None && facts.is_unstable(&state.db, verified, now).await? {
        return Err(Problem::invalid("/tier", UNSTABLE));
    }
    let amount = price::amount(&fit.meter, &version)
        .ok_or_else(|| Problem::invalid("/spec", "the job is too large to be priced"))?;
    Ok(NewQuote {
        account,
        asset_id: terms.asset.id,
        spec,
        tier,
        device,
        meter: fit.meter,
        price_version: version.id,
        amount,
        data: dataset.map(|it| it.quoted),
        min_memory_bytes: fit.min_memory_bytes,
        expires_at: now + QUOTE_LIFETIME,
    })
}

/// The terms for a price that nobody compares again: read now.
///
/// # Errors
/// 503 while no token is registered.
pub(crate) async fn terms_now(state: &AppState) -> Result<Arc<Terms>, Problem> {
    let facts = &state.submissions.facts;
    let mut connection = state.db.acquire().await?;
    let terms = facts.read_terms(&mut connection, state.now()).await;
    terms.map_err(no_asset)
}

/// The terms for a price that is compared with them in the transaction that uses it: those that were read last, if they
/// have a price for the device.
///
/// # Errors
/// 503 while no token is registered.
pub(crate) async fn terms_kept(
    state: &AppState,
    device: Option<Device>,
) -> Result<Arc<Terms>, Problem> {
    let kept = state.submissions.facts.terms();
    let fits = |terms: &Arc<Terms>| device.is_none_or(|device| terms.price(device).is_some());
    match kept.filter(fits) {
        Some(terms) => Ok(terms),
        None => terms_now(state).await,
    }
}

/// The blobs of the specification, all of them the account's. That an account may read a blob is kept: it stays so.
async fn owned(
    state: &AppState,
    account: AccountId,
    spec: &JobSpec,
) -> Result<BTreeMap<Sha256, Blob>, Problem> {
    let kept = &state.submissions.facts.owned;
    let wanted: Vec<Sha256> = spec.blobs().into_iter().collect();
    let known = wanted
        .iter()
        .filter_map(|sha256| Some((*sha256, kept.get(&(account, *sha256))?)));
    let mut found: BTreeMap<Sha256, Blob> = known.collect();
    if found.len() < wanted.len() {
        let mut connection = state.db.acquire().await?;
        for blob in blobs::find_all(&mut connection, account, &wanted).await? {
            kept.put((account, blob.sha256), blob);
            found.insert(blob.sha256, blob);
        }
    }
    let missing = wanted.iter().filter(|sha256| !found.contains_key(*sha256));
    let errors = missing.flat_map(|sha256| at_each(spec, *sha256, "no such blob; upload it first"));
    let errors: Vec<FieldError> = errors.collect();
    if errors.is_empty() {
        Ok(found)
    } else {
        Err(Problem::invalid_fields(errors))
    }
}

async fn read(
    state: &AppState,
    spec: &JobSpec,
    files: &BTreeMap<Sha256, Blob>,
) -> Result<(Arc<ProgramFacts>, BTreeMap<Sha256, TensorsHeader>), Problem> {
    let (mut heads, mut errors) = (BTreeMap::new(), Vec::new());
    let is_data = |sha256: Sha256| {
        !at_each(spec, sha256, "")
            .iter()
            .all(|it| it.pointer == "/spec/program")
    };
    for (sha256, blob) in files.iter().filter(|(sha256, _)| is_data(**sha256)) {
        match reading::tensors(state, blob).await {
            Ok(head) => drop(heads.insert(*sha256, head.as_ref().clone())),
            Err(error) => {
                let at = at_each(spec, *sha256, &error.into_reason()?);
                errors.extend(at.into_iter().filter(|it| it.pointer != "/spec/program"));
            }
        }
    }
    let program = reading::program(state, &files[&spec.program()]).await;
    match program.map_err(ReadError::into_reason) {
        Ok(program) if errors.is_empty() => Ok((program, heads)),
        Ok(_) => Err(Problem::invalid_fields(errors)),
        Err(reason) => {
            errors.push(FieldError::new("/spec/program", reason?));
            Err(Problem::invalid_fields(errors))
        }
    }
}

/// The same error at each place where the specification names the blob.
fn at_each(spec: &JobSpec, sha256: Sha256, detail: &str) -> Vec<FieldError> {
    let mut pointers = Vec::new();
    if spec.program() == sha256 {
        pointers.push("/spec/program".to_owned());
    }
    if spec.weights() == Some(sha256) {
        pointers.push("/spec/weights".to_owned());
    }
    let is_it = |tensor: &TensorRef| tensor.blob == sha256 && tensor.dataset_version.is_none();
    let tensors = spec.tensors().filter(|(_, tensor)| is_it(tensor));
    pointers.extend(tensors.map(|(pointer, _)| format!("/spec{pointer}/blob")));
    pointers
        .into_iter()
        .map(|pointer| FieldError::new(pointer, detail))
        .collect()
}

fn in_spec(pointer: &str) -> String {
    format!("/spec{pointer}")
}

fn not_published() -> Problem {
    Problem::invalid("/device", "no price is published for this kind of device")
}

/// There is no money yet, so there are no prices: an operator's matter.
pub(crate) fn no_asset(error: AssetError) -> Problem {
    match error {
        AssetError::NoneRegistered => Problem::unavailable("The deployment has no token yet"),
        AssetError::Database(error) => error.into(),
    }
}
