//! Cards of datasets and models in requests.

use comptoir_domain::card::Card;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::Problem;

/// The card of a dataset or a model.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCard {
    /// Names it among your datasets, or models, for good: a-z, 0-9 and hyphens.
    #[schema(min_length = 1, max_length = 64, example = "digits-8x8")]
    name: String,
    /// One line.
    #[schema(min_length = 1, max_length = 200)]
    title: String,
    /// Markdown, of 64 KiB at most.
    #[serde(default)]
    #[schema(max_length = 65536)]
    description: String,
    /// An SPDX licence expression.
    #[schema(min_length = 1, max_length = 200, example = "CC-BY-4.0")]
    licence: String,
    /// Where the data comes from, or what a model was trained on and by whom.
    #[serde(default)]
    #[schema(max_length = 16384)]
    provenance: String,
    /// Words to find it by: a-z, 0-9 and hyphens.
    #[serde(default)]
    #[schema(max_items = 20)]
    tags: Vec<String>,
}

impl NewCard {
    /// The card, unless something of it cannot be accepted.
    pub(crate) fn accept(self) -> Result<Card, Problem> {
        let card = Card {
            name: self.name,
            title: self.title,
            description: self.description,
            licence: self.licence,
            provenance: self.provenance,
            tags: self.tags,
        };
        Problem::refuse(card.refusals())?;
        Ok(card)
    }
}

/// What is left out stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CardPatch {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, min_length = 1, max_length = 200)]
    title: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, max_length = 65536)]
    description: Option<String>,
    /// Versions that are published already keep theirs.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, min_length = 1, max_length = 200)]
    licence: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, max_length = 16384)]
    provenance: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, max_items = 20)]
    tags: Option<Vec<String>>,
}

impl CardPatch {
    /// Changes a card, unless it could not be accepted then.
    pub(crate) fn apply(self, card: &mut Card) -> Result<(), Problem> {
        for (field, new) in [
            (&mut card.title, self.title),
            (&mut card.description, self.description),
            (&mut card.licence, self.licence),
            (&mut card.provenance, self.provenance),
        ] {
            if let Some(new) = new {
                *field = new;
            }
        }
        if let Some(tags) = self.tags {
            card.tags = tags;
        }
        Problem::refuse(card.refusals())
    }
}

/// In a merge patch `null` removes; nothing of a card can be removed.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}
