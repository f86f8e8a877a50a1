//! What is asked of the catalogue.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    amount::Amount, card, dataset::Format, id::AccountId, job::state::text_enum, offer::OfferKind,
};

/// Characters of the words that are searched for.
pub const WORDS_CHARS_MAX: usize = 256;
/// Tags that are asked for at once.
pub const TAGS_MAX: usize = 20;
/// Characters of a licence.
const LICENCE_CHARS_MAX: usize = 200;

text_enum! {
    /// What can be listed.
    ItemKind {
        /// A dataset.
        Dataset = "dataset",
        /// A model.
        Model = "model",
    }
}

text_enum! {
    /// What comes first.
    Sort {
        /// What was made last.
        Newest = "newest",
        /// What fits the words best.
        Relevance = "relevance",
        /// What costs least, of the offers of the kind that is asked for.
        Price = "price",
    }
}

/// What is looked for. `None`, and no tags: anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// What it is.
    pub kind: Option<ItemKind>,
    /// Words of the title, name, tags or description; `"…"`, `or` and `-` as search engines know them.
    pub words: Option<String>,
    /// It has all of these.
    pub tags: Vec<String>,
    /// The SPDX expression that it has.
    pub licence: Option<String>,
    /// A file of its newest version is of this.
    pub format: Option<Format>,
    /// Its newest version has so many bytes at least.
    pub bytes_min: Option<u64>,
    /// Its newest version has so many bytes at most.
    pub bytes_max: Option<u64>,
    /// It has an open offer of this kind.
    pub offer: Option<OfferKind>,
    /// One of these offers costs so much at most.
    pub price_max: Option<Amount>,
    /// Whose it is.
    pub seller: Option<AccountId>,
    /// What comes first.
    pub sort: Sort,
}

impl Search {
    /// What cannot be asked: the parameter, and why.
    #[must_use]
    pub fn refusals(&self) -> Vec<(&'static str, &'static str)> {
        let is_text = |text: &str, chars: usize| {
            (1..=chars).contains(&text.chars().count()) && !text.contains(char::is_control)
        };
        let too_many = |bytes: Option<u64>| bytes.is_some_and(|it| i64::try_from(it).is_err());
        let has_offer = self.offer.is_some();
        let rules = [
            (
                self.words
                    .as_deref()
                    .is_some_and(|it| !is_text(it, WORDS_CHARS_MAX)),
                "q",
                "expected 1 to 256 characters without control characters",
            ),
            (
                self.tags.len() > TAGS_MAX || !self.tags.iter().all(|it| card::is_tag(it)),
                "tags",
                "expected 20 tags at most, with commas between them",
            ),
            (
                self.licence
                    .as_deref()
                    .is_some_and(|it| !is_text(it, LICENCE_CHARS_MAX)),
                "licence",
                "expected 1 to 200 characters without control characters",
            ),
            (
                too_many(self.bytes_min),
                "min_bytes",
                "expected at most 9223372036854775807",
            ),
            (
                too_many(self.bytes_max),
                "max_bytes",
                "expected at most 9223372036854775807",
            ),
            (
                self.bytes_max.is_some_and(|max| Some(max) < self.bytes_min),
                "max_bytes",
                "expected at least min_bytes",
            ),
            (
                self.price_max.is_some() && !has_offer,
                "max_price",
                "prices are of a kind of offer: name it in `offer`",
            ),
            (
                self.sort == Sort::Price && !has_offer,
                "sort",
                "prices are of a kind of offer: name it in `offer`",
            ),
            (
                self.sort == Sort::Relevance && self.words.is_none(),
                "sort",
                "only words in `q` are more or less relevant",
            ),
        ];
        let broken = rules.into_iter().filter(|(is_broken, ..)| *is_broken);
        broken.map(|(_, name, why)| (name, why)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> Search {
        Search {
            kind: None,
            words: None,
            tags: vec![],
            licence: None,
            format: None,
            bytes_min: None,
            bytes_max: None,
            offer: None,
            price_max: None,
            seller: None,
            sort: Sort::Newest,
        }
    }

    #[test]
    fn what_cannot_be_asked_names_the_parameter() {
        let refused = |change: &dyn Fn(&mut Search)| {
            let mut search = any();
            change(&mut search);
            let names = search.refusals().into_iter().map(|(name, _)| name);
            names.collect::<Vec<_>>()
        };
        assert!(refused(&|_| ()).is_empty());
        assert!(refused(&|it| it.words = Some("ä".repeat(256))).is_empty());
        for words in ["", "a\0b", &"a".repeat(257)] {
            assert_eq!(refused(&|it| it.words = Some(words.to_owned())), ["q"]);
        }
        assert_eq!(refused(&|it| it.tags = vec![String::new()]), ["tags"]);
        assert_eq!(refused(&|it| it.tags = vec!["a".into(); 21]), ["tags"]);
        assert_eq!(refused(&|it| it.licence = Some("\0".into())), ["licence"]);
        assert_eq!(refused(&|it| it.bytes_min = Some(u64::MAX)), ["min_bytes"]);
        let crossed = |it: &mut Search| (it.bytes_min, it.bytes_max) = (Some(2), Some(1));
        assert_eq!(refused(&crossed), ["max_bytes"]);
        let price = |it: &mut Search| it.price_max = Some(Amount::ZERO);
        assert_eq!(refused(&price), ["max_price"]);
        assert_eq!(refused(&|it| it.sort = Sort::Price), ["sort"]);
        assert_eq!(refused(&|it| it.sort = Sort::Relevance), ["sort"]);
    }
}
