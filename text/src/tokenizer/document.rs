//! What a `tokenizer.json` says, before anything of it is believed. Every component that can be taken is spelled out, with every
//! field: what is not here is refused by name, because a tokenizer that ignores it would count wrong.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    InvalidTokenizer,
    limits::{COMPONENT_BYTES_MAX, DEPTH_MAX, FILE_BYTES_MAX, MERGES_MAX, VOCABULARY_MAX},
};

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document<'a> {
    pub version: Option<String>,
    /// Not applied: nothing is cut.
    #[serde(default, rename = "truncation")]
    _truncation: de::IgnoredAny,
    /// Not applied: texts come one by one.
    #[serde(default, rename = "padding")]
    _padding: de::IgnoredAny,
    #[serde(default)]
    pub added_tokens: Option<Bounded<AddedToken, { super::limits::ADDED_TOKENS_MAX }>>,
    #[serde(borrow, default)]
    pub normalizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub post_processor: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub decoder: Option<&'a RawValue>,
    pub model: Model,
}

impl<'a> Document<'a> {
    /// Reads a file within the limits on its length and depth.
    pub fn read(bytes: &'a [u8]) -> Result<Self, InvalidTokenizer> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(InvalidTokenizer::TooLong { found: bytes.len() });
        }
        if is_deeper(bytes, DEPTH_MAX) {
            return Err(InvalidTokenizer::TooDeep);
        }
        serde_json::from_slice(bytes).map_err(InvalidTokenizer::Malformed)
    }
}

/// Reads a component within the limit on its length.
pub fn component<T: DeserializeOwned>(
    place: &'static str,
    json: Option<&RawValue>,
) -> Result<Option<T>, InvalidTokenizer> {
    let Some(json) = json.map(RawValue::get) else {
        return Ok(None);
    };
    if json.len() > COMPONENT_BYTES_MAX {
        let found = json.len();
        return Err(InvalidTokenizer::ComponentTooLong { place, found });
    }
    match serde_json::from_str(json) {
        Ok(component) => Ok(Some(component)),
        Err(source) => Err(InvalidTokenizer::Component { place, source }),
    }
}

/// Is the JSON nested deeper? Text that is no JSON is refused by the parser, whatever this says of it.
fn is_deeper(json: &[u8], levels: usize) -> bool {
    let (mut depth, mut in_text, mut is_escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > levels {
            return true;
        }
    }
    false
}

/// A list that ends with an error where it is longer than it may be.
pub struct Bounded<T, const MAX: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = Vec<T>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(to, "a list of {MAX} at most")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
                let mut read = Vec::new();
                while let Some(item) = list.next_element()? {
                    if read.len() == MAX {
                        return Err(de::Error::invalid_length(MAX + 1, &self));
                    }
                    read.push(item);
                }
                Ok(read)
            }
        }
        from.deserialize_seq(List::<T, MAX>(PhantomData)).map(Self)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "the format has them")]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub normalized: bool,
    pub special: bool,
}

/// Every model in one: which it is may have to be told from its fields, and its vocabulary is not to be held twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub r#type: Option<ModelType>,
    pub vocab: Vocabulary,
    pub merges: Option<Bounded<Merge, MERGES_MAX>>,
    pub dropout: Option<f32>,
    pub unk_token: Option<String>,
    pub unk_id: Option<usize>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub fuse_unk: bool,
    #[serde(default)]
    pub byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
    pub max_input_chars_per_word: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(clippy::upper_case_acronyms, reason = "the format has these names")]
pub enum ModelType {
    BPE,
    WordPiece,
    WordLevel,
    Unigram,
}

/// Entries by number, or in their order with scores.
pub enum Vocabulary {
    Numbered(Vec<(String, u32)>),
    Scored(Vec<(String, f64)>),
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocabulary;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(to, "a vocabulary of {VOCABULARY_MAX} entries at most")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if entries.len() == VOCABULARY_MAX {
                        return Err(de::Error::invalid_length(VOCABULARY_MAX + 1, &self));
                    }
                    entries.push(entry);
                }
                Ok(Vocabulary::Numbered(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == VOCABULARY_MAX {
                        return Err(de::Error::invalid_length(VOCABULARY_MAX + 1, &self));
                    }
                    entries.push(entry);
                }
                Ok(Vocabulary::Scored(entries))
            }
        }
        from.deserialize_any(Entries)
    }
}

/// Two entries that become one, written as a pair or with a space between them.
pub struct Merge(pub String, pub String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("two entries")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right))
                        if !right.contains(' ') && !left.starts_with("#version") =>
                    {
                        Ok(Merge(left.to_owned(), right.to_owned()))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let missing = |found| de::Error::invalid_length(found, &"two entries");
                let left = list.next_element()?.ok_or_else(|| missing(0))?;
                let right = list.next_element()?.ok_or_else(|| missing(1))?;
                match list.next_element::<de::IgnoredAny>()? {
                    Some(_) => Err(missing(3)),
                    None => Ok(Merge(left, right)),
                }
            }
        }
        from.deserialize_any(Pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_text() {
        assert!(!is_deeper(br#"{"a":"[[[[\"[["}"#, 1));
        assert!(is_deeper(br#"{"a":[]}"#, 1));
        assert!(!is_deeper(b"[[],[],[]]", 2));
    }

    #[test]
    fn a_merge_is_two_entries_either_way() {
        for json in [r#""a b""#, r#"["a","b"]"#] {
            let merge: Merge = serde_json::from_str(json).unwrap();
            assert_eq!((merge.0.as_str(), merge.1.as_str()), ("a", "b"));
        }
        for json in [
            r#""ab""#,
            r#""a b c""#,
            r#"["a"]"#,
            r#"["a","b","c"]"#,
            r#""\#version 0""#,
            "1",
        ] {
            assert!(serde_json::from_str::<Merge>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_list_ends_where_it_is_too_long() {
        assert!(serde_json::from_str::<Bounded<u8, 2>>("[1,2]").is_ok());
        assert!(serde_json::from_str::<Bounded<u8, 2>>("[1,2,3]").is_err());
    }
}
