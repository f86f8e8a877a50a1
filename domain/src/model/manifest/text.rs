//! How texts become inputs of `infer`: declared as data, so that whoever calls sends texts and whoever serves sees numbers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::misfit;
use crate::{
    digest::Sha256,
    fit::{Misfit, ProgramFacts, RowShape},
};

/// Tokens of one text: the longest context in use.
pub const TEXT_TOKENS_MAX: u64 = 1 << 18;
/// Inputs that are filled with zeros.
pub const ZEROS_MAX: usize = 16;
/// Element types that numbers of tokens have.
const DTYPES: [&str; 2] = ["I64", "I32"];

/// How a text becomes the inputs of `infer`: its tokens, filled up to the program's length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelText)]
pub struct TextInput {
    /// A `tokenizer.json` blob of 32 MiB at most. What it says of truncation and padding is not applied.
    #[schema(value_type = String)]
    pub tokenizer: Sha256,
    /// The input that takes the numbers of the tokens. The length of its rows is what a text is filled up to, and the most tokens it may have.
    pub ids: String,
    /// The input that takes 1 for each token of the text and 0 for each that only fills a row. Left out: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mask: Option<String>,
    /// Inputs that take zeros, such as `token_type_ids`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16)]
    pub zeros: Vec<String>,
    /// The token that fills a row.
    pub pad_id: u32,
    /// Are the tokenizer's special tokens put around a text? Left out: they are.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    #[schema(default = true)]
    pub special_tokens: bool,
}

/// What was read of a tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// One more than the largest number of a token.
    pub end: u32,
    /// Tokens of the empty text: those that are put around every text.
    pub around: u64,
    /// Is the `pad_id` that was declared one of its tokens?
    pub has_pad: bool,
}

impl TextInput {
    /// Tokens that a text may have, those around it included.
    #[must_use]
    pub fn tokens_max(&self, infer: &ProgramFacts) -> Option<u64> {
        match input(infer, &self.ids)?.row[..] {
            [tokens] => Some(tokens),
            _ => None,
        }
    }

    /// Its inputs, each with its place.
    fn named(&self) -> impl Iterator<Item = (String, &str)> {
        let mask = self.mask.iter().map(|it| ("/text/mask".to_owned(), it));
        let zeros = self.zeros.iter().enumerate().take(ZEROS_MAX);
        let zeros = zeros.map(|(place, it)| (format!("/text/zeros/{place}"), it));
        std::iter::once(("/text/ids".to_owned(), &self.ids))
            .chain(mask)
            .chain(zeros)
            .map(|(pointer, name)| (pointer, name.as_str()))
    }

    pub(super) fn misfits(
        &self,
        infer: &ProgramFacts,
        vocabulary: Option<Vocabulary>,
    ) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        if self.zeros.len() > ZEROS_MAX {
            let detail = format!("expected {ZEROS_MAX} at most");
            misfits.push(misfit("/text/zeros", detail));
        }
        let mut filled = Vec::new();
        for (pointer, name) in self.named() {
            let why = match input(infer, name) {
                None => {
                    let names: Vec<_> = infer.inputs.iter().map(|it| it.name.as_str()).collect();
                    let names = names.join("`, `");
                    Some(format!("`infer` has no such input; it has `{names}`"))
                }
                Some(_) if filled.contains(&name) => Some("the input is named twice".to_owned()),
                Some(input) => self.refusal(infer, input),
            };
            filled.push(name);
            misfits.extend(why.map(|why| misfit(pointer, why)));
        }
        for input in &infer.inputs {
            if !filled.contains(&input.name.as_str()) {
                let detail = format!("nothing fills the input `{}`", input.name);
                misfits.push(misfit("/text", detail));
            }
        }
        if let Some(vocabulary) = vocabulary {
            self.check_vocabulary(infer, vocabulary, &mut misfits);
        }
        misfits
    }

    /// Why an input cannot take what tokens are made of.
    fn refusal(&self, infer: &ProgramFacts, input: &RowShape) -> Option<String> {
        let RowShape { dtype, row, .. } = input;
        if !DTYPES.contains(&dtype.as_str()) {
            return Some(format!("it holds {dtype}; expected I64 or I32"));
        }
        match row[..] {
            [tokens] if !(1..=TEXT_TOKENS_MAX).contains(&tokens) => Some(format!(
                "a row has {tokens} tokens; expected 1 to {TEXT_TOKENS_MAX}"
            )),
            [tokens] => {
                let others = self.tokens_max(infer)?;
                let why = format!("a row has {tokens} tokens, where one of `ids` has {others}");
                (tokens != others).then_some(why)
            }
            _ => Some(format!(
                "a row has the shape {row:?}; expected one fixed number of tokens"
            )),
        }
    }

    /// Numbers that nothing of the program has a row for would fail in it, whoever calls.
    fn check_vocabulary(&self, infer: &ProgramFacts, it: Vocabulary, misfits: &mut Vec<Misfit>) {
        let tables = infer.weights.values().filter(|it| it.sizes.len() == 2);
        let rows = tables.flat_map(|it| &it.sizes).max().copied();
        if rows.unwrap_or_default() < u64::from(it.end) {
            let detail = format!(
                "its tokens have numbers up to {}, and the largest table of `infer` has {} rows",
                it.end.saturating_sub(1),
                rows.unwrap_or_default()
            );
            misfits.push(misfit("/text/tokenizer", detail));
        }
        if !it.has_pad {
            let detail = format!("the tokenizer has no token {}", self.pad_id);
            misfits.push(misfit("/text/pad_id", detail));
        }
        if self.tokens_max(infer).is_some_and(|max| max <= it.around) {
            let detail = format!(
                "{} tokens around a text leave no room for one in a row",
                it.around
            );
            misfits.push(misfit("/text/ids", detail));
        }
    }
}

fn input<'a>(infer: &'a ProgramFacts, name: &str) -> Option<&'a RowShape> {
    infer.inputs.iter().find(|it| it.name == name)
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_yes(it: &bool) -> bool {
    *it
}
