//! Texts of a call, as they are sent, and what is made of them: the inputs of a program, and results of its outputs.

use std::{fmt, sync::Arc};

use axum::http::StatusCode;
use comptoir_text::{Applied, Fed, FeedError, Overlong, ResultError, Sequence, feed, results};
use comptoir_wire::calls::Outputs;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::spawn_blocking,
};
use utoipa::ToSchema;

use super::{Asked, Callable};
use crate::{AppState, Problem, reading};

/// Texts of one call at most.
pub(crate) const TEXTS_MAX: usize = 2_048;
/// So much is done where it stands; what is larger has a thread of its own, so that nobody else waits for it.
const LARGE_BYTES: usize = 4 << 10;
/// Large texts that are tokenized at a time: a hostile tokenizer takes seconds for as much as a call may have.
const LARGE_AT_ONCE: usize = 4;

static LARGE: Semaphore = Semaphore::const_new(LARGE_AT_ONCE);

/// What a call reads: a text, or its tokens. One of them, or an array of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Texts(Vec<Text>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    Words(String),
    Tokens(Vec<u32>),
}

impl Text {
    fn sequence(&self) -> Sequence<'_> {
        match self {
            Self::Words(text) => Sequence::Text(text),
            Self::Tokens(ids) => Sequence::Tokens(ids),
        }
    }
}

/// As the document has it.
#[derive(ToSchema)]
#[schema(as = CallTexts)]
#[serde(untagged)]
#[expect(dead_code, reason = "it documents what is read into `Texts`")]
pub(crate) enum TextsBody {
    /// A text.
    Text(String),
    /// The tokens of a text. Nothing is put around them.
    Tokens(Vec<u32>),
    /// Texts, or the tokens of each.
    Texts(Vec<TextBody>),
}

/// One of them.
#[derive(ToSchema)]
#[schema(as = CallText)]
#[serde(untagged)]
#[expect(dead_code, reason = "it documents what is read into `Texts`")]
pub(crate) enum TextBody {
    /// A text.
    Text(String),
    /// Its tokens.
    Tokens(Vec<u32>),
}

/// Texts of a call, and what is asked for of those that are too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asking {
    pub texts: Texts,
    pub overlong: Overlong,
    /// The field that has them.
    pub field: &'static str,
}

/// Runs what may take long: here where there is little of it, else apart.
pub(crate) async fn apart<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    if bytes <= LARGE_BYTES {
        return Ok(work());
    }
    let done = spawn_blocking(work).await;
    done.map_err(|error| Problem::internal(&error))
}

/// Waits until so much text may be tokenized; what is little need not wait.
pub(super) async fn large(bytes: usize) -> Option<SemaphorePermit<'static>> {
    if bytes > LARGE_BYTES {
        Some(LARGE.acquire().await.expect("it is never closed"))
    } else {
        None
    }
}

impl Callable {
    /// A call of texts.
    ///
    /// # Errors
    /// Where the version takes none, or not these.
    pub(crate) async fn ask_texts(
        self: &Arc<Self>,
        state: &AppState,
        asking: Asking,
    ) -> Result<Asked, Problem> {
        let field = asking.field;
        let refused = |detail: String| Problem::invalid(format!("/{field}"), detail);
        let manifest = &self.version.manifest;
        let text = manifest.text.as_ref();
        let text = text.ok_or_else(|| refused("the version takes tensors alone".to_owned()))?;
        let tokenizer = reading::tokenizer(state, text.tokenizer).await;
        // It was read when the version was published.
        let tokenizer = tokenizer.map_err(|error| Problem::internal(&error))?;
        let (this, bytes) = (Arc::clone(self), asking.texts.bytes());
        let permit = large(bytes).await;
        let fed = apart(bytes, move || {
            // It goes on when the caller hangs up, and counts until it is over.
            let _permit = permit;
            let text = this.version.manifest.text.as_ref();
            let text = text.expect("it is there, as above");
            let texts: Vec<_> = asking.texts.0.iter().map(Text::sequence).collect();
            feed((text, &tokenizer), &this.facts, &texts, asking.overlong)
        });
        let fed = fed.await?.map_err(|error| unfit(field, &error))?;
        let usage = self.usage_of(field, &fed.inputs, fed.tokens_total())?;
        let Fed { inputs, tokens } = fed;
        Ok(Asked {
            callable: Arc::clone(self),
            inputs,
            usage,
            texts: Some(tokens),
        })
    }
}

fn unfit(field: &str, error: &FeedError) -> Problem {
    let place = match error {
        FeedError::Rows { .. } | FeedError::TextsTooLong { .. } => at(field, None),
        FeedError::Text { place, .. }
        | FeedError::NoSuchToken { place, .. }
        | FeedError::NoToken { place } => at(field, Some(*place)),
        FeedError::Undeclared(_) => return Problem::internal(error),
    };
    Problem::invalid(place, error.to_string())
}

fn at(field: &str, place: Option<usize>) -> String {
    place.map_or_else(|| format!("/{field}"), |place| format!("/{field}/{place}"))
}

impl Asked {
    /// What the version makes of outputs, for calls of texts, and for all calls where it takes none: in a call of tensors nobody says what of
    /// them is text. Gives back the outputs, too.
    ///
    /// # Errors
    /// Where nothing can be made of them, because a number is none.
    pub(super) async fn results(
        &self,
        outputs: Outputs,
    ) -> Result<(Outputs, Option<Vec<Applied>>), Problem> {
        let manifest = &self.callable.version.manifest;
        if manifest.result.is_none() || (manifest.text.is_some() && self.texts.is_none()) {
            return Ok((outputs, None));
        }
        let bytes = outputs.tensors.iter().map(|it| it.bytes.len()).sum();
        let (callable, tokens) = (Arc::clone(&self.callable), self.texts.clone());
        let made = apart(bytes, move || {
            let outcome = callable.version.manifest.result.as_ref();
            let outcome = outcome.expect("it is there, as above");
            let made = results(
                outcome,
                &callable.facts,
                &outputs.tensors,
                tokens.as_deref(),
            );
            made.map(|made| (outputs, Some(made)))
        });
        made.await?.map_err(|error| match error {
            ResultError::Row { .. } => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "not_computed",
                "The model does not compute these inputs",
            )
            .detail(error.to_string()),
            ResultError::Foreign => Problem::internal(&error),
        })
    }
}

impl Texts {
    fn bytes(&self) -> usize {
        let each = self.0.iter().map(|it| match it {
            Text::Words(text) => text.len(),
            Text::Tokens(ids) => size_of_val(&ids[..]),
        });
        each.sum()
    }
}

/// What begins an array: a text, the tokens of one, or the first of its tokens.
enum Item {
    Token(u32),
    Row(Text),
}

struct Items;

impl<'de> Visitor<'de> for Items {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or its tokens")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Row(Text::Words(text.to_owned())))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Item, E> {
        Ok(Item::Row(Text::Words(text)))
    }

    fn visit_u64<E: serde::de::Error>(self, token: u64) -> Result<Item, E> {
        let token = u32::try_from(token);
        token
            .map(Item::Token)
            .map_err(|_| E::custom("a token is too large"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        let mut tokens = Vec::new();
        while let Some(token) = seq.next_element()? {
            tokens.push(token);
        }
        Ok(Item::Row(Text::Tokens(tokens)))
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Items)
    }
}

struct Whole;

impl<'de> Visitor<'de> for Whole {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, its tokens, or an array of these")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Texts, E> {
        Ok(Texts(vec![Text::Words(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
        let mut rows = match seq.next_element()? {
            None => return Err(A::Error::custom("there is no text")),
            Some(Item::Token(first)) => {
                let mut tokens = vec![first];
                while let Some(token) = seq.next_element()? {
                    tokens.push(token);
                }
                return Ok(Texts(vec![Text::Tokens(tokens)]));
            }
            Some(Item::Row(first)) => vec![first],
        };
        while let Some(item) = seq.next_element()? {
            let Item::Row(row) = item else {
                return Err(A::Error::custom("a token among texts"));
            };
            if rows.len() == TEXTS_MAX {
                let many = format_args!("more than {TEXTS_MAX} texts");
                return Err(A::Error::custom(many));
            }
            rows.push(row);
        }
        Ok(Texts(rows))
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Whole)
    }
}
