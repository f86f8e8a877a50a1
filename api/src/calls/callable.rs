//! What a call needs to know of a model: read once, and believed for a moment.

use std::sync::Arc;

use axum::http::StatusCode;
use comptoir_domain::{
    digest::Sha256,
    fit::{self, Hosting, ProgramFacts},
    id::{AccountId, ModelId, ModelVersionId},
    model::{Usage, Visibility},
};
use comptoir_store::{
    admissions,
    model_prices::{self, ModelPrice},
    model_versions::{self, Version},
    models::{self, Model},
};
use comptoir_text::chat::ChatTemplate;
use comptoir_wire::calls::{CALL_BYTES_MAX, Tensor};
use time::{Duration, OffsetDateTime};

use super::Asked;
use crate::{AppState, Problem, facts::Kept, reading, routes::admissions::required};

/// Room for what an answer has beside its tensors.
const ANSWER_OVERHEAD: u64 = 64 << 10;
/// How long what was read is believed: prices, new versions and who may call change this much later here.
const BELIEVED_FOR: Duration = Duration::seconds(2);
/// Versions that are looked at for the newest one that is recommended.
const LOOKED_AT: i64 = 50;

/// Which version of which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub model: ModelId,
    /// Left out: the newest that is recommended.
    pub version: Option<ModelVersionId>,
}

/// A version of a model that can be called.
#[derive(Debug)]
pub(crate) struct Callable {
    pub model: Model,
    pub version: Version,
    pub facts: Arc<ProgramFacts>,
    /// How it writes texts, if it does.
    pub writing: Option<Writing>,
    pub hosting: Hosting,
    pub price: ModelPrice,
}

/// How a version writes texts.
#[derive(Debug)]
pub(crate) struct Writing {
    pub facts: Arc<ProgramFacts>,
    /// How a conversation becomes a prompt, where it says so.
    pub chat: Option<Arc<ChatTemplate>>,
}

impl Writing {
    async fn read(state: &AppState, version: &Version) -> Result<Option<Self>, Problem> {
        let manifest = &version.manifest;
        let Some((program, generator)) =
            manifest.programs.generate.zip(manifest.generation.as_ref())
        else {
            return Ok(None);
        };
        let kept = &state.submissions.facts.templates;
        let chat = match (kept.get(&version.id), &generator.chat) {
            (None, Some(chat)) => {
                let read = reading::template(chat.clone()).await;
                // It was read when the version was published.
                let read = Arc::new(read.map_err(|error| Problem::internal(&error))?);
                kept.put(version.id, Arc::clone(&read));
                Some(read)
            }
            (kept, _) => kept,
        };
        let facts = known(state, program).await?;
        Ok(Some(Self { facts, chat }))
    }
}

/// What was read of a program when its version was published.
async fn known(state: &AppState, program: Sha256) -> Result<Arc<ProgramFacts>, Problem> {
    let facts = reading::known_program(state, program).await;
    let facts = facts.map_err(|error| Problem::internal(&error))?;
    facts.ok_or_else(|| Problem::internal(&sqlx::Error::RowNotFound))
}

/// Whether an account was let in to a gated model, and when that was looked up.
pub(crate) type Admitted = Kept<(AccountId, ModelId), (OffsetDateTime, bool)>;

/// What is kept of a target.
pub(crate) type Believed = (OffsetDateTime, Arc<Callable>);

impl Callable {
    /// What a caller asked for: 404 where it may not look at it, 409 where it cannot be called.
    pub(crate) async fn find(
        state: &AppState,
        caller: AccountId,
        target: Target,
    ) -> Result<Arc<Self>, Problem> {
        let now = state.now();
        let found = match state.calls.callables.get(&target) {
            Some((at, callable)) if (now - at).abs() < BELIEVED_FOR => callable,
            before => {
                if let Some((_, callable)) = before {
                    // One reads it again; those that come meanwhile believe what there is.
                    state.calls.callables.put(target, (now, callable));
                }
                Self::read_again(state, caller, target, now).await?
            }
        };
        if !found.may_be_called_by(caller) {
            return Err(Problem::not_found());
        }
        if found.model.is_gated && found.model.account != caller {
            require_admission(state, caller, found.model.id, now).await?;
        }
        if found.version.retires_at.is_some_and(|at| at <= now) {
            return Err(retired(&found.version));
        }
        Ok(found)
    }

    async fn read_again(
        state: &AppState,
        caller: AccountId,
        target: Target,
        now: OffsetDateTime,
    ) -> Result<Arc<Self>, Problem> {
        let read = Self::read(state, caller, target, now).await.map(Arc::new);
        match &read {
            Ok(callable) => {
                let believed = (now, Arc::clone(callable));
                state.calls.callables.put(target, believed);
            }
            Err(_) => state.calls.callables.forget(&target),
        }
        read
    }

    /// A call of tensors.
    ///
    /// # Errors
    /// Where its answer were too large.
    pub(crate) fn ask_tensors(self: &Arc<Self>, inputs: Vec<Tensor>) -> Result<Asked, Problem> {
        let usage = self.usage_of("inputs", &inputs, self.tokens_of(&inputs))?;
        Ok(Asked {
            callable: Arc::clone(self),
            inputs,
            usage,
            texts: None,
        })
    }

    /// Tokens in tensors that somebody made for a version that takes texts: those that the mask counts, or all, where there is none.
    fn tokens_of(&self, inputs: &[Tensor]) -> u64 {
        let Some(text) = &self.version.manifest.text else {
            return 0;
        };
        let counting = text.mask.as_ref().unwrap_or(&text.ids);
        let mut named = self.facts.inputs.iter().zip(inputs);
        let Some((_, tensor)) = named.find(|(input, _)| input.name == *counting) else {
            return 0;
        };
        let size = usize::try_from(tensor.dtype.size()).unwrap_or(1);
        let elements = tensor.bytes.chunks_exact(size.max(1));
        let counts = |it: &&[u8]| text.mask.is_none() || it.iter().any(|byte| *byte != 0);
        elements.filter(counts).count() as u64
    }

    /// What is counted of a call, of what a field has; refused where its answer were too large.
    pub(super) fn usage_of(
        &self,
        field: &str,
        inputs: &[Tensor],
        tokens: u64,
    ) -> Result<Usage, Problem> {
        let rows = inputs.first().and_then(Tensor::rows).unwrap_or_default();
        let outputs = self.facts.outputs.iter();
        let row_bytes = outputs.fold(0_u64, |sum, it| sum.saturating_add(it.row_bytes));
        let bytes = row_bytes
            .saturating_mul(rows)
            .saturating_add(ANSWER_OVERHEAD);
        if usize::try_from(bytes).unwrap_or(usize::MAX) > CALL_BYTES_MAX {
            let detail = format!("{rows} rows have an answer of more than {CALL_BYTES_MAX} bytes");
            return Err(Problem::invalid(format!("/{field}"), detail));
        }
        Ok(Usage {
            rows,
            input_tokens: tokens,
            madds: u128::from(self.facts.madds_per_row).saturating_mul(rows.into()),
            ..Usage::default()
        })
    }

    fn may_be_called_by(&self, caller: AccountId) -> bool {
        is_open_to(&self.model, caller)
    }

    async fn read(
        state: &AppState,
        caller: AccountId,
        target: Target,
        now: OffsetDateTime,
    ) -> Result<Self, Problem> {
        let mut conn = state.db.acquire().await?;
        let model = models::find_called(&mut conn, target.model).await?;
        let model = model.filter(|it| is_open_to(it, caller));
        let model = model.ok_or_else(Problem::not_found)?;
        let version = match target.version {
            Some(version) => model_versions::find(&mut conn, (model.id, version)).await?,
            None => newest(&mut conn, model.id, now).await?,
        };
        let price = model_prices::current(&mut conn, model.id, now).await?;
        drop(conn);
        let version = version.ok_or_else(|| match target.version {
            Some(_) => Problem::not_found(),
            None => conflict("no_version", "The model has no version that can be called"),
        })?;
        let price = price.ok_or_else(|| conflict("no_price", "The model has no price yet"))?;
        let facts = known(state, version.manifest.programs.infer).await?;
        let writing = Writing::read(state, &version).await?;
        Ok(Self {
            hosting: fit::hosting(&facts, writing.as_ref().map(|it| &*it.facts)),
            writing,
            model,
            version,
            facts,
            price,
        })
    }
}

/// Looked up at most so often as what is called.
async fn require_admission(
    state: &AppState,
    caller: AccountId,
    model: ModelId,
    now: OffsetDateTime,
) -> Result<(), Problem> {
    let kept = &state.calls.admitted;
    let believed = kept.get(&(caller, model));
    let believed = believed.filter(|(at, _)| (now - *at).abs() < BELIEVED_FOR);
    let is_granted = if let Some((_, is_granted)) = believed {
        is_granted
    } else {
        let mut conn = state.db.acquire().await?;
        let is_granted = admissions::is_granted(&mut conn, caller, model).await?;
        kept.put((caller, model), (now, is_granted));
        is_granted
    };
    if is_granted {
        Ok(())
    } else {
        Err(required(model))
    }
}

fn is_open_to(model: &Model, caller: AccountId) -> bool {
    model.account == caller || model.visibility != Visibility::Private
}

/// The newest version that is recommended; else the newest that is not retired.
async fn newest(
    conn: &mut sqlx::PgConnection,
    model: ModelId,
    now: OffsetDateTime,
) -> sqlx::Result<Option<Version>> {
    let versions = model_versions::list(conn, model, None, LOOKED_AT).await?;
    let is_served = |it: &&Version| it.retires_at.is_none_or(|at| at > now);
    let served = || versions.iter().filter(is_served);
    let recommended = served().find(|it| it.deprecation.is_none());
    Ok(recommended.or_else(|| served().next()).cloned())
}

fn retired(version: &Version) -> Problem {
    let why = version.deprecation.clone().unwrap_or_default();
    Problem::new(
        StatusCode::GONE,
        "version_retired",
        "The version is not called any more",
    )
    .detail(why)
}

fn conflict(code: &'static str, title: &'static str) -> Problem {
    Problem::new(StatusCode::CONFLICT, code, title)
}
