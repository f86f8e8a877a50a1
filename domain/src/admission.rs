//! Admissions: who may call a gated model.

use serde::{Deserialize, Serialize};
use time::Duration;
use utoipa::ToSchema;

use crate::job::state::text_enum;

/// Longest words to a creator, in bytes.
pub const NOTE_BYTES_MAX: usize = 4_096;
/// Longest reason, in characters.
pub const REASON_CHARS_MAX: usize = 1_000;
/// How long whoever was denied or sent away waits before asking again.
pub const ASK_AGAIN_AFTER: Duration = Duration::days(1);

text_enum! {
    /// Where an admission stands. The last two are final.
    AdmissionState {
        /// The creator has not answered.
        Requested = "requested",
        /// The account calls the model.
        Granted = "granted",
        /// The creator said no.
        Denied = "denied",
        /// It was granted, and the creator took that back.
        Revoked = "revoked",
    }
}
