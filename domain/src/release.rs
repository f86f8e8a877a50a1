//! Money on its way to be claimable: where it comes from, and where it stands.

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{job::state::text_enum, ledger::AccountKey};

text_enum! {
    /// Where released money comes from.
    ReleaseKind {
        /// A payee's part of a charge; as much of it as it has not spent.
        Earning = "earning",
        /// The platform's part of a charge.
        Fees = "fees",
        /// What an owner asked for; it is held until then.
        Withdrawal = "withdrawal",
    }
}

text_enum! {
    /// Where a release stands.
    ReleaseState {
        /// It waits for a seal, perhaps for its second part.
        Queued = "queued",
        /// It is claimable on-chain with the batch that follows.
        Released = "released",
        /// It was taken back, or its money was spent before a seal came.
        Cancelled = "cancelled",
    }
}

impl ReleaseKind {
    /// The account that it comes from.
    #[must_use]
    pub const fn from(self, owner: Address) -> AccountKey {
        match self {
            Self::Earning => AccountKey::Available(owner),
            Self::Fees => AccountKey::Fees,
            Self::Withdrawal => AccountKey::Held(owner),
        }
    }
}
