//! Added tokens: texts that are tokens of their own before the model sees anything, found leftmost first, the longest of them.

use std::{collections::BTreeMap, ops::Range};

use aho_corasick::{AhoCorasick, MatchKind};

use super::{
    InvalidTokenizer, check,
    document::AddedToken,
    limits::{ADDED_TOKEN_BYTES_MAX, ADDED_TOKENS_MAX},
    model::Model,
    normalizer::Normalizer,
};

const PLACE: &str = "/added_tokens";

/// The added tokens of a tokenizer.
#[derive(Debug, Clone)]
pub struct AddedTokens {
    by_id: BTreeMap<u32, Added>,
    by_content: BTreeMap<String, u32>,
    /// Found in the text as it came.
    raw: Finder,
    /// Found in the text once it is normalised.
    normalised: Finder,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Added {
    /// What it is decoded from: as it stands in a normalised text, where it is found there.
    pub text: String,
    /// Is it left out of what people read?
    pub is_special: bool,
}

/// A part of a text: from where to where, and the token that it is.
type Part = (Range<usize>, Option<u32>);

impl AddedTokens {
    /// Reads them. Their numbers must be those that the library gives them: the model's, where the model has the text, and else the
    /// next ones behind it.
    pub fn read(
        tokens: Vec<AddedToken>,
        model: &Model,
        normalizer: &Normalizer,
    ) -> Result<Self, InvalidTokenizer> {
        check::count(PLACE, "tokens", tokens.len(), ADDED_TOKENS_MAX)?;
        let (mut by_id, mut by_content) = (BTreeMap::new(), BTreeMap::new());
        let (mut raw, mut normalised) = (Vec::new(), Vec::new());
        let mut next_id = model.len();
        for (at, token) in tokens.into_iter().enumerate() {
            let place = format!("{PLACE}/{at}");
            check::count(&place, "bytes", token.content.len(), ADDED_TOKEN_BYTES_MAX)?;
            let id = match model.id(&token.content) {
                Some(id) => id,
                None if model.token(next_id).is_some() => {
                    let detail = format!("would be given id {next_id}, which another token has");
                    return Err(check::contradiction(place, detail));
                }
                None => {
                    next_id += 1;
                    next_id - 1
                }
            };
            if id != token.id {
                let detail = format!("is said to have id {}, and would be given {id}", token.id);
                return Err(check::contradiction(place, detail));
            }
            let mut text = token.content.clone();
            if token.normalized {
                let normal = normalizer.apply_alone(&text);
                text = normal.map_err(|error| check::contradiction(&place, error.to_string()))?;
            }
            if token.content.is_empty() || text.is_empty() {
                return Err(check::contradiction(place, "is empty"));
            }
            let is_special = token.special;
            let is_new = by_id
                .insert(
                    id,
                    Added {
                        text: text.clone(),
                        is_special,
                    },
                )
                .is_none();
            if !is_new || by_content.insert(token.content.clone(), id).is_some() {
                return Err(check::contradiction(place, "is given twice"));
            }
            let list = if token.normalized {
                &mut normalised
            } else {
                &mut raw
            };
            list.push((text, token));
        }
        let (raw, normalised) = (Finder::new(raw)?, Finder::new(normalised)?);
        Ok(Self {
            by_id,
            by_content,
            raw,
            normalised,
        })
    }

    /// The token of this number.
    pub fn get(&self, id: u32) -> Option<&Added> {
        self.by_id.get(&id)
    }

    /// The largest number.
    pub fn last(&self) -> Option<u32> {
        self.by_id.last_key_value().map(|(id, _)| *id)
    }

    /// The number of this text.
    pub fn id(&self, content: &str) -> Option<u32> {
        self.by_content.get(content).copied()
    }

    /// Parts of a text as it came.
    pub fn in_raw(&self, text: &str) -> Vec<Part> {
        self.raw.parts(text)
    }

    /// Parts of a normalised text.
    pub fn in_normalised(&self, text: &str) -> Vec<Part> {
        self.normalised.parts(text)
    }
}

/// Finds tokens.
#[derive(Debug, Clone)]
struct Finder {
    automaton: Option<AhoCorasick>,
    tokens: Vec<AddedToken>,
}

impl Finder {
    fn new(list: Vec<(String, AddedToken)>) -> Result<Self, InvalidTokenizer> {
        let strips = list.iter().any(|it| it.1.rstrip);
        if strips
            && let Some((_, token)) = list.iter().find(|it| it.0.starts_with(char::is_whitespace))
        {
            let reason = "it begins with a space, which a token with `rstrip` before it would take";
            return Err(check::unsupported(PLACE, token.content.clone(), reason));
        }
        let (mut texts, tokens): (Vec<_>, Vec<_>) = list.into_iter().unzip();
        let automaton = if texts.is_empty() {
            None
        } else {
            let found = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(&texts);
            Some(found.map_err(|error| check::contradiction(PLACE, error.to_string()))?)
        };
        texts.sort_unstable();
        if texts.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(check::contradiction(
                PLACE,
                "two are the same once they are normalised",
            ));
        }
        Ok(Self { automaton, tokens })
    }

    fn parts(&self, text: &str) -> Vec<Part> {
        let (mut parts, mut done) = (Vec::new(), 0);
        for found in self.automaton.iter().flat_map(|it| it.find_iter(text)) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            let joins = |letter: Option<char>| letter.is_some_and(regex_syntax::is_word_character);
            if token.single_word
                && (joins(text[..start].chars().next_back()) || joins(text[end..].chars().next()))
            {
                continue;
            }
            if token.lstrip {
                start = done + text[done..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                parts.push((done..start, None));
            }
            parts.push((start..end, Some(token.id)));
            done = end;
        }
        if done < text.len() {
            parts.push((done..text.len(), None));
        }
        parts
    }
}
