//! Models that are called: what a version consists of, what a call costs, and who shares it.

mod manifest;
mod tariff;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use crate::job::state::text_enum;

pub use manifest::{
    CHAT_SPECIALS_MAX, Chat, ENDS_MAX, Generator, Given, LABEL_CHARS_MAX, LABELS_MAX, Labels,
    MISFITS_MAX, Manifest, Outcome, Parts, Pooling, Program, Programs, TEXT_TOKENS_MAX, TOP_K_MAX,
    TextInput, Vocabulary, ZEROS_MAX,
};
pub use tariff::{PAYEES_MAX, Payee, Shares, Tariff, Usage, WORKER_PPM_MAX, WORKER_PPM_MIN};

/// Callers hear of a higher price this long before it counts.
const PRICE_NOTICE: Duration = Duration::days(7);
/// Callers of a version hear this long before that it will not be served any more.
const RETIREMENT_NOTICE: Duration = Duration::days(30);

/// When a new price counts: at once, unless it is dearer than what counts now and others could call the model before, whether they can now or not.
#[must_use]
pub fn price_counts_at(
    (new, paid): (&Tariff, Option<&Tariff>),
    was_shown: bool,
    now: OffsetDateTime,
) -> OffsetDateTime {
    let is_rise = paid.is_some_and(|paid| new.is_dearer_than(paid));
    if is_rise && was_shown {
        now.saturating_add(PRICE_NOTICE)
    } else {
        now
    }
}

/// When calls of a version may end at the earliest: at once, unless others could call the model before.
#[must_use]
pub fn retires_at_earliest(was_shown: bool, now: OffsetDateTime) -> OffsetDateTime {
    if was_shown {
        now.saturating_add(RETIREMENT_NOTICE)
    } else {
        now
    }
}

text_enum! {
    /// Who may find a model and call it.
    Visibility {
        /// Its creator.
        Private = "private",
        /// Who knows its identifier.
        Unlisted = "unlisted",
        /// Everybody who signed in; it is in the catalogue.
        Public = "public",
    }
}
