//! Webhooks, as Standard Webhooks has them: what can happen, what is signed, when it is tried again.

pub mod address;
mod event;
mod schedule;
mod secret;

pub use event::{EventType, UnknownEventType};
pub use schedule::{
    DISABLED_AFTER, JITTER_MAX_PERMILLE, PAUSED_AFTER, SCHEDULE, pause_after, retry_after,
};
pub use secret::{InvalidSecret, SECRET_BYTES, SECRET_PREFIX, Secret, signed_content};

use time::Duration;

/// Endpoints of an account.
pub const ENDPOINTS_MAX: i64 = 20;
/// Longest URL of an endpoint, in bytes.
pub const URL_BYTES_MAX: usize = 2_000;
/// Longest description of an endpoint, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 200;
/// Largest body that is sent, in bytes.
pub const BODY_BYTES_MAX: usize = 20_000;
/// What is kept of an answer, in bytes.
pub const ANSWER_BYTES_KEPT: usize = 1_024;
/// What is read of an answer, in bytes; then the connection is dropped.
pub const ANSWER_BYTES_READ_MAX: usize = 16 * 1_024;
/// How long an attempt may take, from looking the host up to the answer.
pub const ATTEMPT_MAX: Duration = Duration::seconds(20);
/// How long a secret that was replaced still signs.
pub const ROTATION: Duration = Duration::hours(24);
/// How long events and what came of them are kept.
pub const KEPT_FOR: Duration = Duration::days(30);
