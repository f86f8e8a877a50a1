//! Telling accounts what happened, over HTTP as Standard Webhooks has it. Events are written by the database with their cause
//! (`migrations/*_webhooks.sql`); here they are put into words, signed and sent.

pub mod body;
pub mod guard;
pub mod sender;
mod sign;
pub mod upkeep;

use std::time::Duration;

use comptoir_domain::{
    id::WebhookEndpointId,
    webhook::{ATTEMPT_MAX, Secret},
};

pub use self::sign::signature;
use self::{guard::Guard, sender::Client};
use crate::auth::keys::{Keys, NotSealedHere};

/// Deliveries that were tried, by outcome: `delivered`, `retried`, `failed`, or `lost` to another sender.
pub const ATTEMPTS: &str = "api_webhook_attempts_total";
/// Seconds of one attempt.
pub const ATTEMPT_SECONDS: &str = "api_webhook_attempt_duration_seconds";
/// Endpoints that were disabled, by cause.
pub const DISABLED: &str = "api_webhook_endpoints_disabled_total";
/// Deliveries that wait for an attempt.
pub const WAITING: &str = "api_webhook_deliveries_waiting";
/// Seconds since the oldest of them was due.
pub const LATE_SECONDS: &str = "api_webhook_delivery_late_seconds";

/// Tells the recorder what the metrics mean; once, after it is installed.
pub fn describe() {
    metrics::describe_counter!(ATTEMPTS, "Attempts at webhook deliveries, by outcome");
    metrics::describe_histogram!(
        ATTEMPT_SECONDS,
        metrics::Unit::Seconds,
        "Time of one attempt at a webhook delivery"
    );
    metrics::describe_counter!(DISABLED, "Webhook endpoints that were disabled, by cause");
    metrics::describe_gauge!(WAITING, "Webhook deliveries that wait for an attempt");
    metrics::describe_gauge!(
        LATE_SECONDS,
        metrics::Unit::Seconds,
        "Time since the oldest waiting webhook delivery was due"
    );
}

/// Who judges where is called, and calls.
#[derive(Debug, Clone)]
pub struct Webhooks {
    /// Judges URLs.
    pub guard: Guard,
    /// Sends to those that were let through.
    pub client: Client,
    /// How long an attempt may take.
    pub attempt_max: Duration,
}

impl Webhooks {
    /// Calls what the guard lets through.
    ///
    /// # Errors
    /// When no TLS backend can be set up.
    pub fn new(guard: Guard) -> reqwest::Result<Self> {
        let client = Client::new(&guard)?;
        Ok(Self {
            guard,
            client,
            attempt_max: ATTEMPT_MAX.unsigned_abs(),
        })
    }
}

fn sealed_for(endpoint: WebhookEndpointId) -> String {
    format!("webhook secret of {endpoint}")
}

/// A secret as it is stored: readable to nobody but us, for this endpoint.
pub(crate) fn seal(keys: &Keys, endpoint: WebhookEndpointId, secret: &Secret) -> Vec<u8> {
    keys.seal_reply(&sealed_for(endpoint), secret.reveal().as_bytes())
}

/// Opens what [`seal`] sealed.
pub(crate) fn open(
    keys: &Keys,
    endpoint: WebhookEndpointId,
    sealed: &[u8],
) -> Result<Secret, NotSealedHere> {
    let opened = keys.open_reply(&sealed_for(endpoint), sealed)?;
    let text = String::from_utf8(opened).map_err(|_| NotSealedHere)?;
    text.parse().map_err(|_| NotSealedHere)
}
