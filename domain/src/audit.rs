//! The audit log: what touched somebody's security, in a chain of hashes that no later hand can change unseen.
//!
//! Whoever does such a thing appends an [`Event`] in the transaction of its effect, as the last statement before the commit:
//! `comptoir_store::audit::append(&mut tx, &event, now)`. An event is kept as the canonical JSON (RFC 8785) of what it says,
//! and the chain goes on with `SHA-256(head ‖ number ‖ text)`, the number in 8 bytes, big end first. The head goes into the
//! leaf file of each batch, whose digest is on the chain.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::Digest as _;
use time::OffsetDateTime;

use crate::{
    digest::Sha256,
    id::{AccountId, ApiKeyId, WorkerId},
};

/// Longest name of what an event is about, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 200;
/// Longest name of an operator, in bytes.
pub const OPERATOR_BYTES_MAX: usize = 100;
/// Longest identifier of a request, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Largest detail, in bytes of its canonical form.
pub const DETAIL_BYTES_MAX: usize = 4096;
/// The head of a log without events.
pub const EMPTY: Sha256 = Sha256([0; 32]);

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// What was done. Each task that adds a security-relevant operation adds its line; a line is never renamed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Action {$(
            $(#[$doc])*
            $name,
        )+}

        impl Action {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The noun and the verb, as they are kept.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {$(Self::$name => $text),+}
            }
        }
    };
}

actions! {
    /// Somebody signed up.
    AccountCreated = "account.created",
    /// An operator stopped an account from spending.
    AccountFrozen = "account.frozen",
    /// An operator let it spend again.
    AccountUnfrozen = "account.unfrozen",
    /// An operator set an account's limits.
    AccountLimited = "account.limited",
    /// An account became the operator's own.
    PlatformRoleGranted = "account.platform_role_granted",
    /// An account is the operator's own no longer.
    PlatformRoleRevoked = "account.platform_role_revoked",
    /// A token was made that makes an account the operator's own.
    SetupTokenCreated = "setup_token.created",
    /// Somebody signed in.
    SessionStarted = "session.started",
    /// A sign-in failed.
    SessionRefused = "session.refused",
    /// Somebody signed out.
    SessionEnded = "session.ended",
    /// A spent refresh token was shown again, and its sign-in ended.
    SessionReused = "session.reused",
    /// So many sign-ins were tried at an account from one address that more from there must wait.
    SessionThrottled = "session.throttled",
    /// A password was changed.
    PasswordChanged = "password.changed",
    /// Somebody asked for a way to set a new password.
    PasswordResetRequested = "password.reset_requested",
    /// An API key was made.
    ApiKeyCreated = "api_key.created",
    /// An API key was ended.
    ApiKeyRevoked = "api_key.revoked",
    /// An API key was refused where it may not be used from, or beyond what it may spend.
    ApiKeyRefused = "api_key.refused",
    /// An address was bound to an account.
    AddressBound = "address.bound",
    /// An account asked to be paid at another address.
    AddressChangeRequested = "address.change_requested",
    /// It took that back.
    AddressChangeCancelled = "address.change_cancelled",
    /// It is paid at another address from now on.
    AddressChanged = "address.changed",
    /// Money was asked to be released on-chain.
    WithdrawalRequested = "withdrawal.requested",
    /// A join token was made.
    JoinTokenCreated = "join_token.created",
    /// A join token was ended.
    JoinTokenRevoked = "join_token.revoked",
    /// A worker joined.
    WorkerJoined = "worker.joined",
    /// A worker was taken out of service.
    WorkerRevoked = "worker.revoked",
    /// A worker gets no more work.
    WorkerDrained = "worker.drained",
    /// A worker gets no more work, and lost what it had.
    WorkerQuarantined = "worker.quarantined",
    /// A worker gets work again.
    WorkerRestored = "worker.restored",
    /// A worker whose result was refuted gets work again.
    WorkerBarLifted = "worker.bar_lifted",
    /// The keys of access tokens were rotated.
    SigningKeyRotated = "signing_key.rotated",
    /// The root key of datasets was rotated.
    RootKeyRotated = "root_key.rotated",
    /// An operator proposed a refund.
    RefundProposed = "refund.proposed",
    /// A second one approved it.
    RefundApproved = "refund.approved",
    /// It was turned down.
    RefundRejected = "refund.rejected",
    /// Somebody said that a dataset must not be here.
    TakedownFiled = "takedown.filed",
    /// A seller contested the freeze of a dataset.
    TakedownContested = "takedown.contested",
    /// Somebody took back what it had said of a dataset.
    TakedownWithdrawn = "takedown.withdrawn",
    /// An operator blocked a dataset.
    TakedownFrozen = "takedown.frozen",
    /// An operator saw no reason to block a dataset.
    TakedownDismissed = "takedown.dismissed",
    /// A takedown was upheld, by an operator or its clock.
    TakedownUpheld = "takedown.upheld",
    /// A takedown was rejected, by an operator or its clock.
    TakedownRejected = "takedown.rejected",
    /// A price was published.
    PricePublished = "price.published",
    /// An asset was registered with its contract.
    AssetRegistered = "asset.registered",
    /// Settling was let go on after a halt.
    SettlingResumed = "settling.resumed",
    /// An operator ended or moved on a job that was stuck.
    JobUnstuck = "job.unstuck",
    /// An account wants to be told what happens.
    WebhookEndpointCreated = "webhook_endpoint.created",
    /// Where, of what or whether it is told was changed.
    WebhookEndpointUpdated = "webhook_endpoint.updated",
    /// It is told no longer.
    WebhookEndpointDeleted = "webhook_endpoint.deleted",
    /// What it is told is signed with another secret.
    WebhookSecretRotated = "webhook_endpoint.secret_rotated",
    /// Messages that were sent before are sent again.
    OutboxReplayed = "outbox.replayed",
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// Somebody who signed in.
    Account(AccountId),
    /// Somebody with an API key.
    ApiKey(ApiKeyId),
    /// A worker.
    Worker(WorkerId),
    /// A person with the operator's commands, by the name that they gave.
    Operator(String),
    /// A timed step of one of our services.
    Service(&'static str),
    /// Nobody who is known.
    Anonymous,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(id) => id.fmt(f),
            Self::ApiKey(id) => id.fmt(f),
            Self::Worker(id) => id.fmt(f),
            Self::Operator(name) => write!(f, "operator:{name}"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// The request by which it was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its identifier.
    pub request_id: Option<String>,
    /// Where it came from.
    pub ip: Option<IpAddr>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who did it.
    pub actor: Actor,
    /// What.
    pub action: Action,
    /// To what: an identifier, or an e-mail where there is none.
    pub subject: String,
    /// Whose account it concerns; its owner may read the event.
    pub account: Option<AccountId>,
    /// By which request.
    pub origin: Origin,
    /// What else is worth knowing, without secrets. Amounts are strings.
    pub detail: Map<String, Value>,
}

/// Why an event cannot be kept: a mistake of ours, not of a client.
#[derive(Debug, thiserror::Error)]
pub enum InvalidEvent {
    /// A text is too long, or holds what Postgres does not.
    #[error("the {0} of an audit event is empty, too long, or contains U+0000")]
    Text(&'static str),
    /// The detail has too much.
    #[error("the detail of an audit event has {0} bytes, more than {DETAIL_BYTES_MAX}")]
    Detail(usize),
    /// The detail has no canonical form.
    #[error("write an audit event as canonical JSON")]
    Json(#[from] serde_json::Error),
}

impl Event {
    /// An event without an account, an origin or a detail.
    #[must_use]
    pub fn new(actor: Actor, action: Action, subject: impl Into<String>) -> Self {
        Self {
            actor,
            action,
            subject: subject.into(),
            account: None,
            origin: Origin::default(),
            detail: Map::new(),
        }
    }

    /// The event, concerning an account.
    #[must_use]
    pub fn of_account(mut self, account: AccountId) -> Self {
        self.account = Some(account);
        self
    }

    /// The event, done by a request.
    #[must_use]
    pub fn from(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// The event, with one thing more that is worth knowing.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.note(name, value);
        self
    }

    /// Adds one thing more that is worth knowing.
    pub fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.detail.insert(name.to_owned(), value.into());
    }

    /// The text that is kept and hashed.
    ///
    /// # Errors
    /// When a part passes its limit.
    pub fn canonical(&self, at: OffsetDateTime) -> Result<String, InvalidEvent> {
        let actor = self.actor.to_string();
        let actor_fits = actor.len() <= OPERATOR_BYTES_MAX + "operator:".len();
        check("actor", &actor, actor_fits)?;
        check(
            "subject",
            &self.subject,
            self.subject.len() <= SUBJECT_BYTES_MAX,
        )?;
        if let Some(request) = &self.origin.request_id {
            check("request id", request, request.len() <= REQUEST_ID_BYTES_MAX)?;
        }
        let detail = serde_jcs::to_string(&self.detail)?;
        if detail.len() > DETAIL_BYTES_MAX {
            return Err(InvalidEvent::Detail(detail.len()));
        }
        // In JSON text the character can only be an escape.
        check("detail", &detail, !detail.contains(r"\u0000"))?;
        Ok(serde_jcs::to_string(&Record {
            at: at.truncate_to_microsecond(),
            actor,
            action: self.action.as_str().to_owned(),
            subject: self.subject.clone(),
            account: self.account,
            request_id: self.origin.request_id.clone(),
            ip: self.origin.ip,
            detail: self.detail.clone(),
        })?)
    }
}

fn check(part: &'static str, text: &str, fits: bool) -> Result<(), InvalidEvent> {
    if fits && !text.is_empty() && !text.contains('\0') {
        Ok(())
    } else {
        Err(InvalidEvent::Text(part))
    }
}

/// An event as it is read back; its action and actor may be of a version before or after this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who did it.
    pub actor: String,
    /// What.
    pub action: String,
    /// To what.
    pub subject: String,
    /// Whose account it concerns.
    pub account: Option<AccountId>,
    /// The identifier of the request by which it was done.
    pub request_id: Option<String>,
    /// Where that came from.
    pub ip: Option<IpAddr>,
    /// What else is worth knowing.
    pub detail: Map<String, Value>,
}

/// The head of the chain after event `number`, which is `text`.
#[must_use]
pub fn link(head: Sha256, number: u64, text: &str) -> Sha256 {
    let hasher = sha2::Sha256::new()
        .chain_update(head.0)
        .chain_update(number.to_be_bytes())
        .chain_update(text);
    Sha256(hasher.finalize().into())
}

/// Walks a log from its first event and finds where it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Events so far.
    pub length: u64,
    /// The head after the last of them.
    pub head: Sha256,
}

/// An event does not follow from those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An event is missing, or one was put in between.
    #[error("event {expected} is missing: event {found} stands in its place")]
    Gap {
        /// What should come.
        expected: u64,
        /// What comes.
        found: u64,
    },
    /// The text is not what was hashed.
    #[error("event {number} was changed: it does not have the hash that was kept of it")]
    Changed {
        /// Which.
        number: u64,
    },
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            length: 0,
            head: EMPTY,
        }
    }
}

impl Chain {
    /// Goes on with the next event, of which `kept` is the hash that was kept.
    ///
    /// # Errors
    /// When it does not follow.
    pub fn push(&mut self, number: u64, text: &str, kept: Sha256) -> Result<(), Broken> {
        let expected = self.length + 1;
        if number != expected {
            return Err(Broken::Gap {
                expected,
                found: number,
            });
        }
        let head = link(self.head, number, text);
        if head != kept {
            return Err(Broken::Changed { number });
        }
        *self = Self {
            length: number,
            head,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-22 09:00 UTC);

    fn event() -> Event {
        Event::new(
            Actor::Operator("ann".to_owned()),
            Action::AccountFrozen,
            "acct_1",
        )
        .from(Origin {
            request_id: Some("r-1".to_owned()),
            ip: Some([192, 0, 2, 7].into()),
        })
        .with("reason", "asked for by its owner")
    }

    #[test]
    fn an_event_has_one_text() {
        assert_eq!(
            event().canonical(NOW).unwrap(),
            r#"{"account":null,"action":"account.frozen","actor":"operator:ann","at":"2026-11-22T09:00:00Z","detail":{"reason":"asked for by its owner"},"ip":"192.0.2.7","request_id":"r-1","subject":"acct_1"}"#
        );
        let record: Record = serde_json::from_str(&event().canonical(NOW).unwrap()).unwrap();
        assert_eq!((record.at, record.actor.as_str()), (NOW, "operator:ann"));
    }

    #[test]
    fn an_event_beyond_its_limits_is_refused() {
        let with_subject = |subject: &str| Event {
            subject: subject.to_owned(),
            ..event()
        };
        for subject in ["", "a\0b", &"x".repeat(SUBJECT_BYTES_MAX + 1)] {
            assert!(with_subject(subject).canonical(NOW).is_err(), "{subject:?}");
        }
        let name = "x".repeat(OPERATOR_BYTES_MAX + 1);
        let long = Event::new(Actor::Operator(name), Action::AccountFrozen, "acct_1");
        assert!(long.canonical(NOW).is_err());
        for detail in ["a\0b".to_owned(), "x".repeat(DETAIL_BYTES_MAX)] {
            assert!(event().with("note", detail).canonical(NOW).is_err());
        }
    }

    #[test]
    fn an_action_is_a_noun_and_a_verb_and_written_once() {
        for (place, action) in Action::ALL.iter().enumerate() {
            let (noun, verb) = action.as_str().split_once('.').unwrap();
            let plain = |word: &str| {
                !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            };
            assert!(plain(noun) && plain(verb), "{action:?}");
            let again = Action::ALL[place + 1..].iter();
            assert!(
                again.clone().all(|it| it.as_str() != action.as_str()),
                "{action:?}"
            );
        }
    }

    #[test]
    fn a_chain_notices_what_is_changed_left_out_or_moved() {
        let texts = ["{\"a\":1}", "{\"a\":2}", "{\"a\":3}"];
        let mut head = EMPTY;
        let kept: Vec<_> = (1..)
            .zip(texts)
            .map(|(number, text)| {
                head = link(head, number, text);
                (number, text, head)
            })
            .collect();
        let walk = |events: &[(u64, &str, Sha256)]| {
            let mut chain = Chain::default();
            events
                .iter()
                .try_for_each(|(number, text, hash)| chain.push(*number, text, *hash))
                .map(|()| chain.head)
        };
        assert_eq!(walk(&kept), Ok(head));
        let mut changed = kept.clone();
        changed[1].1 = "{\"a\":9}";
        assert_eq!(walk(&changed), Err(Broken::Changed { number: 2 }));
        let without = [kept[0], kept[2]];
        let gap = Broken::Gap {
            expected: 2,
            found: 3,
        };
        assert_eq!(walk(&without), Err(gap));
        // Rehashing what follows is no help: the head is another then.
        let rehashed = link(link(kept[0].2, 2, "{\"a\":9}"), 3, texts[2]);
        assert_ne!(rehashed, head);
    }
}
