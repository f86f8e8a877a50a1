//! How texts are written by `generate`, a token at a time: declared as data, so that whoever calls sends texts and gets texts.
//!
//! The program has the shape of the static-cache export of the transformers library (`transformers.integrations.executorch`): the number of a token and its place in the text go
//! in, logits of the next token come out, and what was computed of the tokens before stays in buffers that are not saved. Those begin for each text as the
//! archive stores them, and are never weights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Manifest, Parts, TEXT_TOKENS_MAX, misfit};
use crate::fit::{Misfit, ProgramFacts, RowShape};

/// Tokens that end a text, at most.
pub const ENDS_MAX: usize = 16;
/// Texts that a template is given by name, at most.
pub const CHAT_SPECIALS_MAX: usize = 32;
/// Element types that numbers of tokens and places have.
const DTYPES: [&str; 2] = ["I64", "I32"];
/// The element type of logits.
const LOGITS: &str = "F32";

/// How texts are written by `generate`. What the program takes is one token: every first dimension is 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelGeneration)]
pub struct Generator {
    /// The input that takes the number of a token: one number.
    pub ids: String,
    /// The input that takes its place in the text, from 0: one number.
    pub positions: String,
    /// The output with a number for each token that may come next.
    pub logits: String,
    /// Tokens that a text may have, those of its prompt included: as many as the program's buffers hold.
    #[schema(minimum = 2, maximum = 262_144)]
    pub context: u32,
    /// Tokens that end a text. They are counted and not shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16)]
    pub ends: Vec<u32>,
    /// How a conversation becomes a prompt. Left out: the version takes prompts alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub chat: Option<Chat>,
}

/// How a conversation becomes a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModelChat)]
pub struct Chat {
    /// A Jinja template of 64 KiB at most, as `tokenizer_config.json` has it: it is given `messages` and `add_generation_prompt`.
    pub template: String,
    /// Texts that it is given by name, such as `bos_token`: 32 at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = std::collections::HashMap<String, String>)]
    pub specials: BTreeMap<String, String>,
}

impl Manifest {
    pub(super) fn generation_misfits(&self, parts: Parts<'_>) -> Vec<Misfit> {
        let (generator, program) = match (&self.generation, self.programs.generate) {
            (None, None) => return Vec::new(),
            (Some(_), None) => {
                let detail = "`generation` says how this program writes texts; name it";
                return vec![misfit("/programs/generate", detail)];
            }
            (None, Some(_)) => {
                let detail = "say how `generate` writes texts";
                return vec![misfit("/generation", detail)];
            }
            (Some(generator), Some(program)) => (generator, program),
        };
        let mut misfits = Vec::new();
        if self.text.is_none() {
            let detail = "`generation` reads and writes with the tokenizer of `text`; declare it";
            misfits.push(misfit("/text", detail));
        }
        if let Some(facts) = parts.programs.get(&program) {
            misfits.extend(generator.port_misfits(facts));
        }
        let end = parts.vocabulary.map(|it| it.end);
        misfits.extend(generator.value_misfits(end));
        misfits
    }
}

impl Generator {
    /// Numbers that `generate` gives: as many as tokens that it tells apart. `None` where it is not of this shape.
    #[must_use]
    pub fn width(&self, generate: &ProgramFacts) -> Option<u64> {
        let logits = find(&generate.outputs, &self.logits)?;
        logits.row.last().copied()
    }

    fn port_misfits(&self, generate: &ProgramFacts) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        if generate.batch_min != 1 {
            let detail = "it takes more than one token at a time";
            misfits.push(misfit("/programs/generate", detail));
        }
        for (field, name) in [("ids", &self.ids), ("positions", &self.positions)] {
            let why = match find(&generate.inputs, name) {
                None => Some(unknown("input", &generate.inputs)),
                Some(it) if !DTYPES.contains(&it.dtype.as_str()) => {
                    Some(format!("it holds {}; expected I64 or I32", it.dtype))
                }
                Some(it) => (!matches!(it.row[..], [] | [1])).then(|| not_one(it)),
            };
            misfits.extend(why.map(|why| misfit(format!("/generation/{field}"), why)));
        }
        if self.ids == self.positions {
            let detail = "the input is named twice";
            misfits.push(misfit("/generation/positions", detail));
        }
        let is_filled = |it: &&RowShape| it.name == self.ids || it.name == self.positions;
        for input in generate.inputs.iter().filter(|it| !is_filled(it)) {
            let detail = format!("nothing fills the input `{}`", input.name);
            misfits.push(misfit("/generation", detail));
        }
        let why = match find(&generate.outputs, &self.logits) {
            None => Some(unknown("output", &generate.outputs)),
            Some(it) if it.dtype != LOGITS => {
                Some(format!("it holds {}; expected {LOGITS}", it.dtype))
            }
            Some(it) => (!matches!(it.row[..], [(1..)] | [1, (1..)])).then(|| {
                let row = &it.row;
                format!("a row has the shape {row:?}; expected [n] or [1, n]")
            }),
        };
        misfits.extend(why.map(|why| misfit("/generation/logits", why)));
        misfits
    }

    fn value_misfits(&self, vocabulary_end: Option<u32>) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        if !(2..=TEXT_TOKENS_MAX).contains(&self.context.into()) {
            let detail = format!("expected 2 to {TEXT_TOKENS_MAX}");
            misfits.push(misfit("/generation/context", detail));
        }
        if self.ends.len() > ENDS_MAX {
            let detail = format!("expected {ENDS_MAX} at most");
            misfits.push(misfit("/generation/ends", detail));
        }
        for (place, end) in self.ends.iter().enumerate().take(ENDS_MAX) {
            if vocabulary_end.is_some_and(|it| *end >= it) {
                let detail = format!("the tokenizer has no token {end}");
                misfits.push(misfit(format!("/generation/ends/{place}"), detail));
            }
        }
        let specials = self.chat.as_ref().map_or(0, |it| it.specials.len());
        if specials > CHAT_SPECIALS_MAX {
            let detail = format!("expected {CHAT_SPECIALS_MAX} at most");
            misfits.push(misfit("/generation/chat/specials", detail));
        }
        misfits
    }
}

fn find<'a>(ports: &'a [RowShape], name: &str) -> Option<&'a RowShape> {
    ports.iter().find(|it| it.name == name)
}

fn not_one(it: &RowShape) -> String {
    format!("a row has the shape {:?}; expected [] or [1]", it.row)
}

fn unknown(kind: &str, ports: &[RowShape]) -> String {
    let names: Vec<_> = ports.iter().map(|it| it.name.as_str()).collect();
    let names = names.join("`, `");
    format!("`generate` has no such {kind}; it has `{names}`")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        digest::Sha256,
        model::{Programs, TextInput, Vocabulary},
    };

    const INFER: Sha256 = Sha256([1; 32]);
    const GENERATE: Sha256 = Sha256([2; 32]);

    fn port(name: &str, dtype: &str, row: &[u64]) -> RowShape {
        RowShape {
            name: name.to_owned(),
            dtype: dtype.to_owned(),
            row: row.to_vec(),
            row_bytes: 8,
        }
    }

    fn facts(inputs: Vec<RowShape>, outputs: Vec<RowShape>) -> ProgramFacts {
        ProgramFacts {
            torch_version: "2.13.0".to_owned(),
            is_trainable: false,
            batch_min: 1,
            batch_max: 1,
            inputs,
            outputs,
            weights: BTreeMap::new(),
            madds_per_row: 1,
            stored_bytes: 1,
            learned_bytes: 0,
            value_bytes: vec![1],
        }
    }

    fn one_token() -> ProgramFacts {
        facts(
            vec![
                port("input_ids", "I64", &[1]),
                port("cache_position", "I64", &[]),
            ],
            vec![port("logits", "F32", &[1, 9])],
        )
    }

    fn manifest(generator: Generator) -> Manifest {
        Manifest {
            programs: Programs {
                generate: Some(GENERATE),
                train: None,
                infer: INFER,
            },
            weights: Some(Sha256([3; 32])),
            text: Some(TextInput {
                tokenizer: Sha256([4; 32]),
                ids: "x".to_owned(),
                mask: None,
                zeros: Vec::new(),
                pad_id: 0,
                special_tokens: true,
            }),
            generation: Some(generator),
            ..Manifest::trained(INFER, Sha256([3; 32]))
        }
    }

    fn generator() -> Generator {
        Generator {
            ids: "input_ids".to_owned(),
            positions: "cache_position".to_owned(),
            logits: "logits".to_owned(),
            context: 128,
            ends: vec![8],
            chat: None,
        }
    }

    fn pointers(manifest: &Manifest, generate: ProgramFacts) -> Vec<String> {
        let programs = BTreeMap::from([(GENERATE, Arc::new(generate))]);
        let vocabulary = Vocabulary {
            end: 9,
            around: 0,
            has_pad: true,
        };
        let misfits = manifest.generation_misfits(Parts {
            programs: &programs,
            weights: None,
            vocabulary: Some(vocabulary),
        });
        misfits.into_iter().map(|it| it.pointer).collect()
    }

    #[test]
    fn a_program_that_takes_one_token_and_its_place_writes_texts() {
        assert!(pointers(&manifest(generator()), one_token()).is_empty());
        assert_eq!(generator().width(&one_token()), Some(9));
    }

    #[test]
    fn what_the_program_does_not_have_is_named() {
        let renamed = |change: fn(&mut Generator)| {
            let mut it = generator();
            change(&mut it);
            pointers(&manifest(it), one_token())
        };
        let twice = ["/generation/positions", "/generation"];
        assert_eq!(renamed(|it| it.positions = it.ids.clone()), twice);
        assert_eq!(
            renamed(|it| "y".clone_into(&mut it.logits)),
            ["/generation/logits"]
        );
        assert_eq!(renamed(|it| it.context = 1), ["/generation/context"]);
        assert_eq!(renamed(|it| it.ends = vec![8, 9]), ["/generation/ends/1"]);
        assert_eq!(renamed(|it| it.ends = vec![1; 17]), ["/generation/ends"]);
    }

    #[test]
    fn a_program_of_another_shape_is_refused() {
        let refused = |change: fn(&mut ProgramFacts)| {
            let mut it = one_token();
            change(&mut it);
            pointers(&manifest(generator()), it)
        };
        assert_eq!(
            refused(|it| it.inputs[0].row = vec![2]),
            ["/generation/ids"]
        );
        assert_eq!(
            refused(|it| it.outputs[0].row = vec![2, 9]),
            ["/generation/logits"]
        );
        assert_eq!(refused(|it| it.batch_min = 2), ["/programs/generate"]);
        let float = |it: &mut ProgramFacts| it.inputs[1].dtype = "F32".to_owned();
        assert_eq!(refused(float), ["/generation/positions"]);
        let more = |it: &mut ProgramFacts| it.inputs.push(port("mask", "I64", &[1]));
        assert_eq!(refused(more), ["/generation"]);
    }

    #[test]
    fn a_program_and_how_it_writes_are_declared_together_and_with_a_tokenizer() {
        let mut it = manifest(generator());
        it.generation = None;
        assert_eq!(pointers(&it, one_token()), ["/generation"]);
        let mut it = manifest(generator());
        it.programs.generate = None;
        assert_eq!(pointers(&it, one_token()), ["/programs/generate"]);
        let mut it = manifest(generator());
        it.text = None;
        assert_eq!(pointers(&it, one_token()), ["/text"]);
    }
}
