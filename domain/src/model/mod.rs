//! Models that are called: what a version consists of, what a call costs, and who shares it.

mod manifest;
mod tariff;

use serde::{Deserialize, Serialize};
use time::Duration;
use utoipa::ToSchema;

use crate::job::state::text_enum;

pub use manifest::{
    LABEL_CHARS_MAX, LABELS_MAX, Labels, MISFITS_MAX, Manifest, Parts, Program, Programs,
};
pub use tariff::{PAYEES_MAX, Payee, Shares, Tariff, Usage, WORKER_PPM_MAX, WORKER_PPM_MIN};

/// Callers hear of a higher price this long before it counts.
pub const PRICE_NOTICE: Duration = Duration::days(7);
/// Callers of a version hear this long before that it will not be served any more.
pub const RETIREMENT_NOTICE: Duration = Duration::days(30);

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
