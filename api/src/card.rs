//! Cards of datasets and models in requests.

use comptoir_domain::card::Card;
use serde::{Deserialize, Deserializer};

use crate::{FieldError, Problem};

/// Refuses a card with what cannot be accepted, each with its place.
pub(crate) fn check(card: &Card) -> Result<(), Problem> {
    let refusals = card.refusals();
    if refusals.is_empty() {
        return Ok(());
    }
    let fields = refusals
        .into_iter()
        .map(|(pointer, detail)| FieldError::new(pointer, detail));
    Err(Problem::invalid_fields(fields))
}

/// In a merge patch `null` removes; nothing of a card can be removed.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}
