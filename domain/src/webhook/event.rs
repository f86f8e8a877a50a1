//! What an account can be told of.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! event_types {
    ($(#[doc = $doc:literal] $name:ident = $text:literal),+ $(,)?) => {
        /// What happened. A line is never renamed: receivers match on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[schema(as = WebhookEventType)]
        pub enum EventType {
            $(#[doc = $doc] #[serde(rename = $text)] $name,)+
        }

        impl EventType {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name outside.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// What it means, in a line.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $doc.trim_ascii(),)+
                }
            }
        }
    };
}

event_types! {
    /// A job waits for a worker: at creation, and whenever it must run again.
    JobQueued = "job.queued",
    /// A worker took a replica of a job.
    JobLeased = "job.leased",
    /// Every replica of a job has sealed its result.
    JobVerifying = "job.verifying",
    /// A job is verified, charged and receipted.
    JobCompleted = "job.completed",
    /// A job ended without a result.
    JobFailed = "job.failed",
    /// A job was taken back by its owner.
    JobCancelled = "job.cancelled",
    /// A job was not done by its deadline.
    JobExpired = "job.expired",
    /// Something of what a job cost was given back.
    JobRefunded = "job.refunded",
    /// A gated offer was asked for, its price held.
    PurchaseRequested = "purchase.requested",
    /// A buyer has its right; the price is held.
    PurchaseGranted = "purchase.granted",
    /// A sale is final, and charged.
    PurchaseSettled = "purchase.settled",
    /// The whole price of a purchase went back, and the right with it.
    PurchaseRefunded = "purchase.refunded",
    /// A seller refused a request; its price went back.
    PurchaseDenied = "purchase.denied",
    /// A request was not answered in time; its price went back.
    PurchaseLapsed = "purchase.lapsed",
    /// Somebody offered something to a dataset.
    ContributionReceived = "contribution.received",
    /// A contribution was accepted, and its reward paid.
    ContributionAccepted = "contribution.accepted",
    /// A contribution was rejected.
    ContributionRejected = "contribution.rejected",
    /// A contribution was taken back by its contributor.
    ContributionWithdrawn = "contribution.withdrawn",
    /// A contribution was not answered in time.
    ContributionLapsed = "contribution.lapsed",
    /// A higher price of something that the account subscribes to was announced.
    SubscriptionPriceRising = "subscription.price_rising",
    /// The next period of a subscription began.
    SubscriptionRenewed = "subscription.renewed",
    /// The next period of a subscription cannot begin; that is tried again until the one before is over.
    SubscriptionRenewalFailed = "subscription.renewal_failed",
    /// A subscription is over.
    SubscriptionEnded = "subscription.ended",
    /// Somebody wants a dataset to be blocked.
    TakedownFiled = "takedown.filed",
    /// An operator froze a dataset; its seller may contest that.
    TakedownFrozen = "takedown.frozen",
    /// A seller contested a freeze; an operator is to decide.
    TakedownContested = "takedown.contested",
    /// A dataset stays blocked for good; what was held back of its proceeds goes to who paid.
    TakedownUpheld = "takedown.upheld",
    /// A freeze was wrong; what was held back is released.
    TakedownRejected = "takedown.rejected",
    /// An operator saw no reason to freeze a dataset.
    TakedownDismissed = "takedown.dismissed",
    /// A takedown was taken back by who filed it.
    TakedownWithdrawn = "takedown.withdrawn",
    /// A dataset of the account's, or one that it has a right to, was blocked.
    DatasetBlocked = "dataset.blocked",
    /// Such a dataset is back.
    DatasetRestored = "dataset.restored",
    /// Somebody asked to call a gated model.
    AdmissionRequested = "admission.requested",
    /// A creator lets an account call a gated model.
    AdmissionGranted = "admission.granted",
    /// A creator does not.
    AdmissionDenied = "admission.denied",
    /// A creator took back that an account calls a gated model.
    AdmissionRevoked = "admission.revoked",
    /// A batch in which the account pays or is paid is final on the chain.
    BatchAnchored = "batch.anchored",
    /// The contract paid the account's address, and the block is final.
    PayoutPaid = "payout.paid",
    /// A deposit for the account's address is final and credited.
    DepositCredited = "deposit.credited",
    /// The available balance fell below the threshold of PUT /v1/balance/alert.
    BalanceLow = "balance.low",
    /// One of the account's workers was not heard of for a while.
    WorkerOffline = "worker.offline",
    /// Somebody asked for a test of the endpoint.
    WebhookTest = "webhook.test",
}

/// Nothing of this name happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a type of event")]
pub struct UnknownEventType;

impl FromStr for EventType {
    type Err = UnknownEventType;

    fn from_str(text: &str) -> Result<Self, UnknownEventType> {
        let mut all = Self::ALL.iter().copied();
        all.find(|it| it.as_str() == text).ok_or(UnknownEventType)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_type_has_the_same_name_in_text_and_json() {
        for kind in EventType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert!(!kind.meaning().is_empty());
        }
        assert_eq!("job.*".parse::<EventType>(), Err(UnknownEventType));
    }
}
