//! One type per kind of identifier, so that a `JobId` cannot stand where a `WorkerId` belongs.
//!
//! In the database an identifier is a `uuid`; on the wire it is a TypeID: a prefix that names the
//! kind, `_`, and the UUID in 26 characters of Crockford base32.

use std::{fmt, str::FromStr};

use mti::prelude::{MagicTypeId, TypeIdPrefix, TypeIdSuffix};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an identifier that starts with `{expected}_`")]
pub struct InvalidId {
    /// The prefix that was expected.
    pub expected: &'static str,
}

fn to_text(prefix: &'static str, id: Uuid) -> String {
    let prefix = TypeIdPrefix::from_str(prefix).expect("prefixes are lower-case letters");
    MagicTypeId::new(prefix, TypeIdSuffix::from(id)).to_string()
}

fn from_text(prefix: &'static str, text: &str) -> Result<Uuid, InvalidId> {
    let invalid = InvalidId { expected: prefix };
    let id: MagicTypeId = text.parse().map_err(|_| invalid.clone())?;
    if id.prefix().as_str() == prefix {
        Ok(id.suffix().to_uuid())
    } else {
        Err(invalid)
    }
}

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            /// What the text form starts with.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh, time-ordered identifier.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_text(Self::PREFIX, self.0))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                from_text(Self::PREFIX, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

typed_ids! {
    /// A person or organisation that signed up.
    AccountId = "acct",
    /// A single-use challenge for binding an address.
    ChallengeId = "chal",
    /// Somebody who signed in, until it ends.
    SessionId = "ses",
    /// A change of a payout address that waits for its time.
    AddressChangeId = "adc",
    /// Where an account wants to be told what happens.
    WebhookEndpointId = "we",
    /// Something that happened to an account.
    WebhookEventId = "evt",
    /// One event on its way to one endpoint.
    WebhookDeliveryId = "whd",
    /// A message to the owner of an account.
    NoticeId = "ntc",
    /// A refresh token's row; the token itself is never stored.
    RefreshTokenId = "rft",
    /// An API key's row; the key itself is never stored.
    ApiKeyId = "key",
    /// A journal entry: one balanced movement of money.
    JournalEntryId = "je",
    /// A ledger account: one owner's balance under one code.
    LedgerAccountId = "la",
    /// A lock on a part of an owner's balance.
    HoldId = "hold",
    /// What is given back of a charge.
    RefundId = "rfd",
    /// A setup token's row; the secret itself is never stored.
    SetupTokenId = "sut",
    /// Money on its way from `available` to `payable`.
    ReleaseId = "rel",
    /// A dataset.
    DatasetId = "ds",
    /// One version of a dataset.
    DatasetVersionId = "dsv",
    /// One file of a version.
    DatasetFileId = "dsf",
    /// Terms on which a dataset can be had.
    OfferId = "off",
    /// What a buyer took of an offer.
    PurchaseId = "pur",
    /// A purchase that renews itself.
    SubscriptionId = "sub",
    /// What somebody offers to add to the dataset of another.
    ContributionId = "con",
    /// That somebody wants a dataset to be blocked.
    TakedownId = "tkd",
    /// What a buyer may do with a dataset, and until when.
    EntitlementId = "ent",
    /// One request that bytes of a dataset were handed out for.
    DatasetServingId = "dss",
    /// A short-lived link to one file of a dataset; its secret is never stored.
    DatasetLinkId = "dsl",
    /// A model that can be called.
    ModelId = "mdl",
    /// That an account may call a gated model, or asked for it.
    AdmissionId = "adm",
    /// One version of a model.
    ModelVersionId = "mdv",
    /// A call of a model.
    CallId = "call",
    /// A part of a payer's balance that an API process spends on calls.
    AllowanceId = "alw",
    /// The calls of one allowance that are charged together.
    UsageWindowId = "uwn",
    /// A binding price for one job.
    QuoteId = "quo",
    /// A job.
    JobId = "job",
    /// One of the executions that a job's tier asks for.
    ReplicaId = "rep",
    /// One try of one worker at a replica.
    AttemptId = "att",
    /// The bearer secret of a lease; fences out whoever lost it.
    LeaseToken = "lse",
    /// A worker.
    WorkerId = "wrk",
    /// A seed that audits are drawn from.
    DrawSeedId = "seed",
    /// A join token's row; the secret itself is never stored.
    JoinTokenId = "jtk",
    /// A receipt of one charge.
    ReceiptId = "rcpt",
    /// A split version: the parties of a charge and their weights.
    SplitVersionId = "spl",
    /// A deposit that was seen on the chain.
    DepositId = "dep",
    /// A settlement batch.
    BatchId = "bat",
    /// A transaction that is wanted on the chain.
    IntentId = "int",
    /// A contradiction that stopped settling.
    HaltId = "halt",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_survives_its_text_form() {
        let id = JobId::generate();
        let text = id.to_string();
        assert!(text.starts_with("job_") && text.len() == 30, "{text}");
        assert_eq!(text.parse(), Ok(id));
    }

    #[test]
    fn an_identifier_of_another_kind_is_refused() {
        let worker = WorkerId::generate().to_string();
        assert_eq!(worker.parse::<JobId>(), Err(InvalidId { expected: "job" }));
    }

    #[test]
    fn the_text_form_is_a_type_id() {
        // Vector of the TypeID specification 0.3.
        let id: Uuid = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert_eq!(to_text("prefix", id), "prefix_01h455vb4pex5vsknk084sn02q");
    }
}
