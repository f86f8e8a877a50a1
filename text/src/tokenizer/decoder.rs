//! Decoders: tokens into text, one after another. There is one implementation, for streams; a whole list of tokens is a stream too,
//! so the pieces of a stream are the text of all its tokens.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    DecodeError, InvalidTokenizer, check, document,
    limits::STEPS_MAX,
    normalizer::PatternSource,
    pattern::{Pattern, TooSlow},
    pre_tokenizer::{Metaspace, Prepend},
    stage::Stage,
};

const PLACE: &str = "/decoder";

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Component {
    BPEDecoder {
        suffix: String,
    },
    ByteFallback {},
    ByteLevel {
        #[serde(default, rename = "add_prefix_space")]
        _add_prefix_space: serde::de::IgnoredAny,
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: serde::de::IgnoredAny,
        #[serde(default, rename = "use_regex")]
        _use_regex: serde::de::IgnoredAny,
    },
    Fuse {},
    Metaspace(Metaspace),
    Replace {
        pattern: PatternSource,
        content: String,
    },
    Sequence {
        decoders: Vec<Component>,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    #[serde(rename = "CTC")]
    Ctc(serde::de::IgnoredAny),
}

/// How tokens become text.
#[derive(Debug, Clone)]
pub struct Decoder(Vec<Stage>);

impl Decoder {
    /// Reads the component. Without one, tokens stand with spaces between them.
    pub fn read(json: Option<&RawValue>) -> Result<Self, InvalidTokenizer> {
        let Some(component) = document::component(PLACE, json)? else {
            return Ok(Self(vec![Stage::Spaced { is_first: true }]));
        };
        let mut stages = Vec::new();
        add(component, &mut stages)?;
        check::count(PLACE, "steps", stages.len(), STEPS_MAX)?;
        Ok(Self(stages))
    }

    /// The stages, before the first token.
    pub fn stages(&self) -> Vec<Stage> {
        self.0.clone()
    }
}

fn add(component: Component, stages: &mut Vec<Stage>) -> Result<(), InvalidTokenizer> {
    // Behind these all tokens are one text, of which no end is seen before the last token.
    let is_fused = stages
        .iter()
        .any(|it| matches!(it, Stage::Bytes { .. } | Stage::Fuse));
    let unsupported = |name| {
        let reason =
            "behind what makes one text of all tokens it cannot say anything before the last one";
        Err(check::unsupported(PLACE, name, reason))
    };
    stages.push(match component {
        Component::Sequence { decoders } => {
            return decoders.into_iter().try_for_each(|it| add(it, stages));
        }
        Component::Ctc(_) => {
            let reason = "it merges tokens of speech, which are not generated one by one";
            return Err(check::unsupported(PLACE, "CTC", reason));
        }
        Component::Fuse {} => Stage::Fuse,
        Component::Strip {
            content,
            start,
            stop: 0,
        } if is_fused => Stage::StripStart {
            content,
            left: start,
        },
        Component::Strip {
            content,
            start,
            stop,
        } if !is_fused => Stage::Strip {
            content,
            start,
            stop,
        },
        Component::Strip { .. } => return unsupported("Strip"),
        _ if is_fused => return unsupported("Sequence"),
        Component::BPEDecoder { suffix } => {
            check::replacement(PLACE, &suffix)?;
            if suffix.is_empty() {
                return Err(check::contradiction(PLACE, "suffix is empty"));
            }
            Stage::Suffix { suffix, held: None }
        }
        Component::ByteFallback {} => Stage::ByteFallback { held: Vec::new() },
        Component::ByteLevel { .. } => Stage::Bytes { held: Vec::new() },
        Component::Metaspace(metaspace) => {
            let drops_first = metaspace.prepend(PLACE)? != Prepend::Never;
            Stage::Metaspace {
                replacement: metaspace.replacement,
                drops: drops_first,
            }
        }
        Component::Replace { pattern, content } => {
            check::replacement(PLACE, &content)?;
            Stage::Replace(pattern.compile(PLACE)?, content)
        }
        Component::WordPiece { prefix, cleanup } => {
            check::replacement(PLACE, &prefix)?;
            Stage::WordPiece {
                prefix,
                cleanup,
                is_first: true,
            }
        }
    });
    Ok(())
}

/// A token with everything that matches replaced.
pub fn replaced(pattern: &Pattern, content: &str, token: &str) -> Result<String, DecodeError> {
    let pieces = pattern
        .pieces(token)
        .map_err(|TooSlow| DecodeError::PatternTooSlow)?;
    let pieces = pieces.into_iter();
    Ok(pieces
        .map(|(range, is_match)| if is_match { content } else { &token[range] })
        .collect())
}
