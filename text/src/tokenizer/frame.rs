//! Post-processors: the tokens that are put before and behind a text. Pairs of texts are not encoded here.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{
    InvalidTokenizer,
    added::AddedTokens,
    check, document,
    limits::{FRAME_TOKENS_MAX, STEPS_MAX},
    model::Model,
};

const PLACE: &str = "/post_processor";

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Component {
    ByteLevel {
        #[serde(default, rename = "add_prefix_space")]
        _add_prefix_space: IgnoredAny,
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: IgnoredAny,
        #[serde(default, rename = "use_regex")]
        _use_regex: IgnoredAny,
    },
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
        #[serde(default, rename = "add_prefix_space")]
        _add_prefix_space: IgnoredAny,
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: IgnoredAny,
    },
    TemplateProcessing {
        single: Vec<Piece>,
        #[serde(default, rename = "pair")]
        _pair: IgnoredAny,
        special_tokens: BTreeMap<String, Special>,
    },
    Sequence {
        processors: Vec<Component>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
enum Piece {
    Sequence {
        id: Side,
        #[serde(default, rename = "type_id")]
        _type_id: IgnoredAny,
    },
    SpecialToken {
        id: String,
        #[serde(default, rename = "type_id")]
        _type_id: IgnoredAny,
    },
}

#[derive(PartialEq, Eq, Deserialize)]
enum Side {
    A,
    B,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Special {
    #[serde(rename = "id")]
    _id: IgnoredAny,
    ids: Vec<u32>,
    #[serde(rename = "tokens")]
    _tokens: IgnoredAny,
}

/// Tokens around a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    pub before: Vec<u32>,
    pub behind: Vec<u32>,
}

impl Frame {
    /// Reads the component.
    pub fn read(
        json: Option<&RawValue>,
        model: &Model,
        added: &AddedTokens,
    ) -> Result<Self, InvalidTokenizer> {
        let mut frames = Vec::new();
        if let Some(component) = document::component(PLACE, json)? {
            add(component, &mut frames)?;
        }
        check::count(PLACE, "steps", frames.len(), STEPS_MAX)?;
        let mut frames = frames.into_iter().flatten();
        let frame = frames.next().unwrap_or_default();
        if frames.next().is_some() {
            return Err(check::unsupported(
                PLACE,
                "Sequence",
                "two of its processors put tokens around a text",
            ));
        }
        let all = || frame.before.iter().chain(&frame.behind);
        check::count(PLACE, "tokens", all().count(), FRAME_TOKENS_MAX)?;
        match all().find(|id| added.get(**id).is_none() && model.token(**id).is_none()) {
            Some(id) => Err(check::contradiction(
                PLACE,
                format!("there is no token {id}"),
            )),
            None => Ok(frame),
        }
    }
}

fn add(component: Component, frames: &mut Vec<Option<Frame>>) -> Result<(), InvalidTokenizer> {
    frames.push(match component {
        Component::Sequence { processors } => {
            return processors.into_iter().try_for_each(|it| add(it, frames));
        }
        Component::ByteLevel { .. } => None,
        Component::BertProcessing { sep, cls } | Component::RobertaProcessing { sep, cls, .. } => {
            Some(Frame {
                before: vec![cls.1],
                behind: vec![sep.1],
            })
        }
        Component::TemplateProcessing {
            single,
            special_tokens,
            ..
        } => Some(template(single, &special_tokens)?),
    });
    Ok(())
}

/// What stands before the text and behind it. The text stands there once.
fn template(
    pieces: Vec<Piece>,
    specials: &BTreeMap<String, Special>,
) -> Result<Frame, InvalidTokenizer> {
    let broken = |detail: String| check::contradiction(format!("{PLACE}/single"), detail);
    let (mut before, mut behind) = (Vec::new(), None);
    for piece in pieces {
        match piece {
            Piece::Sequence { id: Side::A, .. } if behind.is_none() => behind = Some(Vec::new()),
            Piece::Sequence { .. } => {
                return Err(broken("has another text than the one".to_owned()));
            }
            Piece::SpecialToken { id, .. } => {
                let special = specials
                    .get(&id)
                    .ok_or_else(|| broken(format!("there is no special token `{id}`")))?;
                behind.as_mut().unwrap_or(&mut before).extend(&special.ids);
            }
        }
    }
    let behind = behind.ok_or_else(|| broken("has no text".to_owned()))?;
    Ok(Frame { before, behind })
}
