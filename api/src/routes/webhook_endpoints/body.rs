//! Webhook endpoints as they are written and shown.

use comptoir_domain::{
    id::WebhookEndpointId,
    webhook::{DESCRIPTION_CHARS_MAX, EventType},
};
use comptoir_store::webhooks::{Cause, Endpoint};
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::{FieldError, Problem};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewWebhookEndpoint {
    /// Where events are sent: https, at port 443, 4443 or 8443 of a host on the public internet.
    #[schema(
        format = "uri",
        max_length = 2000,
        example = "https://example.org/hooks/comptoir"
    )]
    pub url: String,
    /// What you call it.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 200)]
    pub description: Option<String>,
    /// What it is told of; of everything, and of what is new in later versions, when absent or `null`.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 100)]
    pub event_types: Option<Vec<EventType>>,
    /// Is it told anything yet?
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookEndpointPatch {
    /// Where events are sent from now on.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false, format = "uri", max_length = 2000)]
    pub url: Option<String>,
    /// What you call it; `null`: nothing.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    pub description: Change<String>,
    /// What it is told of; `null`: of everything.
    #[serde(default)]
    #[schema(value_type = Option<Vec<EventType>>, min_items = 1, max_items = 100)]
    pub event_types: Change<Vec<EventType>>,
    /// Is it told anything?
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    pub enabled: Option<bool>,
}

/// What a merge patch says of a field that may be `null`.
#[derive(Default)]
pub(super) enum Change<T> {
    /// It does not name it.
    #[default]
    Kept,
    /// It does; nothing: `null`.
    Set(Option<T>),
}

impl<T> Change<T> {
    pub(super) const fn named(&self) -> Option<&T> {
        match self {
            Self::Kept => None,
            Self::Set(value) => value.as_ref(),
        }
    }

    pub(super) fn over(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Kept => before,
            Self::Set(value) => value,
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::Set)
    }
}

/// In a merge patch `null` removes; this cannot be removed.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    /// For how many seconds the secret that is replaced signs too; 24 hours when absent.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 604_800, default = 86_400)]
    pub previous_valid_s: Option<u32>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EndpointTest {}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EndpointObject {
    WebhookEndpoint,
}

/// Why an endpoint is told nothing.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DisabledReason {
    /// You said so.
    Owner,
    /// It answered 410.
    Gone,
    /// It failed for three days.
    Failing,
}

#[derive(Serialize, ToSchema)]
#[schema(as = WebhookEndpoint)]
pub(super) struct EndpointBody {
    #[schema(value_type = String, example = "we_01h455vb4pex5vsknk084sn02q")]
    id: WebhookEndpointId,
    object: EndpointObject,
    /// As the service understands it.
    #[schema(format = "uri")]
    url: String,
    #[schema(required = true)]
    description: Option<String>,
    /// What it is told of; `null`: of everything.
    #[schema(required = true)]
    event_types: Option<Vec<EventType>>,
    enabled: bool,
    #[schema(required = true)]
    disabled_reason: Option<DisabledReason>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    disabled_at: Option<OffsetDateTime>,
    /// The first failure after the last success.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    failing_since: Option<OffsetDateTime>,
    /// Until when the secret before this one signs too.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    previous_secret_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<Endpoint> for EndpointBody {
    fn from(endpoint: Endpoint) -> Self {
        let reason = endpoint.disabled.map(|(cause, _)| match cause {
            Cause::Owner => DisabledReason::Owner,
            Cause::Gone => DisabledReason::Gone,
            Cause::Failing => DisabledReason::Failing,
        });
        Self {
            id: endpoint.id,
            object: EndpointObject::WebhookEndpoint,
            url: endpoint.url,
            description: endpoint.description,
            event_types: endpoint.event_types,
            enabled: endpoint.disabled.is_none(),
            disabled_reason: reason,
            disabled_at: endpoint.disabled.map(|(_, at)| at),
            failing_since: endpoint.failing_since,
            previous_secret_until: endpoint.previous_secret_until,
            created_at: endpoint.created_at,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = WebhookEndpointWithSecret)]
pub(super) struct EndpointWithSecret {
    #[serde(flatten)]
    pub shown: EndpointBody,
    /// What messages are signed with. It is shown in this reply alone.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub secret: String,
}

pub(super) fn refuse_bad(
    description: Option<&str>,
    event_types: Option<&[EventType]>,
) -> Result<(), Problem> {
    let mut errors = Vec::new();
    let is_long = |text: &str| !(1..=DESCRIPTION_CHARS_MAX).contains(&text.chars().count());
    if description.is_some_and(is_long) {
        let detail = format!("expected 1 to {DESCRIPTION_CHARS_MAX} characters");
        errors.push(FieldError::new("/description", detail));
    }
    // One type twice is a mistake; so a list is never longer than all of them.
    let is_bad = |types: &[EventType]| {
        let mut sorted = types.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        types.is_empty() || sorted.len() < types.len()
    };
    if event_types.is_some_and(is_bad) {
        let detail = "expected types of events, each once; null for all of them";
        errors.push(FieldError::new("/event_types", detail));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid_fields(errors))
    }
}
