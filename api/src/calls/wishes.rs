//! What somebody wants to be written: a prompt or a conversation, and how tokens are drawn.

use std::{collections::BTreeSet, sync::Arc};

use comptoir_domain::{
    model::Usage,
    sampling::{InvalidSampling, Sampler, Sampling},
};
use comptoir_text::{
    EncodeError, Limits, Specials, Stops, Tokenizer,
    chat::{Message, PromptError},
    specials,
};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Callable,
    texts::{apart, large},
};
use crate::{AppState, Problem, reading};

/// What is gone on from.
#[derive(Debug, Clone)]
pub(crate) enum Prompt {
    /// A text.
    Text(String),
    /// What was said, which the version makes a prompt of.
    Conversation(Vec<Message>),
}

impl Prompt {
    /// The field that has it.
    const fn field(&self) -> &'static str {
        match self {
            Self::Text(_) => "/prompt",
            Self::Conversation(_) => "/messages",
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Conversation(messages) => messages.iter().map(|it| it.content.len()).sum(),
        }
    }
}

/// How tokens are drawn, as callers say it.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct WishFields {
    /// Logits are divided by it; 0 takes the likeliest token each time, without chance. Left out: 1.
    #[serde(default)]
    #[schema(minimum = 0.0, maximum = 2.0)]
    pub temperature: Option<f64>,
    /// Only the likeliest tokens are drawn from that together have this probability. Above 0; left out: 1.
    #[serde(default)]
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f64>,
    /// Where chance begins: the same seed draws the same text on the same kind of machine. Left out: somewhere.
    #[serde(default)]
    pub seed: Option<i64>,
    /// Texts that end it, and are not shown: 16 at most, of 256 bytes each.
    #[serde(default)]
    pub stop: Option<StopsBody>,
}

/// One, or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum StopsBody {
    One(String),
    Several(Vec<String>),
}

impl From<StopsBody> for Vec<String> {
    fn from(body: StopsBody) -> Self {
        match body {
            StopsBody::One(stop) => vec![stop],
            StopsBody::Several(stops) => stops,
        }
    }
}

impl WishFields {
    fn sampling(&self) -> Result<Sampling, Problem> {
        let asked = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            // Any 64 bits are a seed.
            seed: self.seed.map_or_else(somewhere, i64::cast_unsigned),
        };
        match Sampler::new(asked) {
            Ok(_) => Ok(asked),
            Err(error) => {
                let field = match error {
                    InvalidSampling::Temperature(_) => "/temperature",
                    InvalidSampling::TopP(_) => "/top_p",
                };
                Err(Problem::invalid(field, error.to_string()))
            }
        }
    }

    fn stops(&self) -> Result<Stops, Problem> {
        let stops = self.stop.clone().map(Vec::from).unwrap_or_default();
        Stops::new(stops).map_err(|error| Problem::invalid("/stop", error.to_string()))
    }
}

fn somewhere() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low
}

/// A text that is to be written.
#[derive(Debug)]
pub(crate) struct Wish {
    pub callable: Arc<Callable>,
    pub tokenizer: Arc<Tokenizer>,
    /// The prompt.
    pub tokens: Vec<u32>,
    pub limits: Limits,
    pub sampling: Sampling,
    /// Tokens that may be drawn are below this number.
    pub vocabulary_end: u32,
}

impl Wish {
    /// What was counted once so many tokens were written.
    pub(crate) fn usage(&self, written: u32) -> Usage {
        let read = u64::try_from(self.tokens.len()).unwrap_or(u64::MAX);
        let written = u64::from(written);
        // The last token that is written goes through nothing.
        let steps = read.saturating_add(written).saturating_sub(1);
        let facts = self.callable.writing.as_ref().map(|it| &it.facts);
        let madds = facts.map_or(0, |it| it.madds_per_row);
        Usage {
            rows: 1,
            input_tokens: read,
            output_tokens: written,
            madds: u128::from(madds).saturating_mul(steps.into()),
        }
    }
}

impl Callable {
    /// A text that goes on from a prompt, with `tokens_max` more tokens at most: as named by a field of the caller's.
    ///
    /// # Errors
    /// Where the version writes no texts, or not this one.
    pub(crate) async fn wish(
        self: &Arc<Self>,
        state: &AppState,
        prompt: Prompt,
        (tokens_max, tokens_field): (Option<u32>, &'static str),
        fields: &WishFields,
    ) -> Result<Wish, Problem> {
        let place = prompt.field();
        let (sampling, stops) = (fields.sampling()?, fields.stops()?);
        let manifest = &self.version.manifest;
        let (Some(generator), Some(text), Some(writing)) =
            (&manifest.generation, &manifest.text, &self.writing)
        else {
            return Err(Problem::invalid("/model", "the version writes no texts"));
        };
        let tokenizer = reading::tokenizer(state, text.tokenizer).await;
        // It was read when the version was published.
        let tokenizer = tokenizer.map_err(|error| Problem::internal(&error))?;
        let context = usize::try_from(generator.context).unwrap_or(usize::MAX);
        let bytes = prompt.bytes();
        let permit = large(bytes).await;
        let (this, encoder) = (Arc::clone(self), Arc::clone(&tokenizer));
        let encode = move || {
            // It goes on when the caller hangs up, and counts until it is over.
            let _permit = permit;
            this.encode(prompt, &encoder, context)
        };
        let tokens = apart(bytes, encode).await??;
        let room = generator.context - u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        if tokens.is_empty() || room == 0 {
            let detail = format!(
                "it has {} tokens; expected 1 to {}",
                tokens.len(),
                generator.context - 1
            );
            return Err(Problem::invalid(place, detail));
        }
        let tokens_max = tokens_max.unwrap_or(room);
        if !(1..=room).contains(&tokens_max) {
            let detail = format!(
                "expected 1 to {room}: a text has {} tokens at most, its prompt included",
                generator.context
            );
            return Err(Problem::invalid(tokens_field, detail));
        }
        let width = generator.width(&writing.facts).unwrap_or_default();
        let width = u32::try_from(width).unwrap_or(u32::MAX);
        Ok(Wish {
            callable: Arc::clone(self),
            vocabulary_end: tokenizer.end().min(width),
            tokenizer,
            tokens,
            limits: Limits {
                tokens_max,
                stops,
                ends: generator.ends.iter().copied().collect::<BTreeSet<_>>(),
            },
            sampling,
        })
    }

    /// The tokens of a prompt.
    fn encode(
        &self,
        prompt: Prompt,
        tokenizer: &Tokenizer,
        context: usize,
    ) -> Result<Vec<u32>, Problem> {
        let place = prompt.field();
        let (text, specials) = match prompt {
            Prompt::Text(text) => {
                let declared = self.version.manifest.text.as_ref();
                (text, declared.map_or(Specials::Skip, specials))
            }
            // A template writes what goes around its text.
            Prompt::Conversation(messages) => (self.prompt(&messages)?, Specials::Skip),
        };
        let encoded = tokenizer.encode(&text, specials, context);
        encoded.map(|it| it.ids).map_err(|error| match error {
            EncodeError::TooManyTokens { found, .. } => {
                let detail = format!("it has {found} tokens; a text has {context} at most");
                Problem::invalid(place, detail)
            }
            error => Problem::invalid(place, error.to_string()),
        })
    }

    fn prompt(&self, messages: &[Message]) -> Result<String, Problem> {
        let refused = |detail: String| Problem::invalid("/messages", detail);
        let chat = self.writing.as_ref().and_then(|it| it.chat.as_ref());
        let chat = chat.ok_or_else(|| refused("the version takes prompts alone".to_owned()))?;
        if messages.is_empty() {
            return Err(refused("expected one at least".to_owned()));
        }
        chat.prompt(messages, true).map_err(|error| match error {
            PromptError::Thread(error) => Problem::internal(&error),
            error => refused(error.to_string()),
        })
    }
}
