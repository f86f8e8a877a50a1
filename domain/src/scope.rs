//! What an API key may be used for.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! scopes {
    ($($(#[$doc:meta])* $name:ident = $text:tt),+ $(,)?) => {
        /// One thing that a credential may do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        pub enum Scope {
            $($(#[$doc])* #[serde(rename = $text)] $name,)+
        }

        impl Scope {
            /// Every scope.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name outside.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

scopes! {
    /// See the account.
    AccountRead = "account:read",
    /// Change the account and bind its address.
    AccountWrite = "account:write",
    /// List the account's API keys.
    KeysRead = "keys:read",
    /// Create and revoke API keys.
    KeysWrite = "keys:write",
    /// See balances, statements, deposits and withdrawals.
    BalanceRead = "balance:read",
    /// Move money from the balance to what can be claimed on-chain.
    PayoutsWrite = "payouts:write",
    /// See receipts and their proofs.
    ReceiptsRead = "receipts:read",
    /// See jobs, their events and results, and prices.
    JobsRead = "jobs:read",
    /// Submit and cancel jobs.
    JobsWrite = "jobs:write",
    /// Download blobs.
    BlobsRead = "blobs:read",
    /// Upload blobs.
    BlobsWrite = "blobs:write",
    /// See and download datasets.
    DatasetsRead = "datasets:read",
    /// Publish, change and shred datasets.
    DatasetsWrite = "datasets:write",
    /// See models, their versions and prices.
    ModelsRead = "models:read",
    /// Publish, price, change and deprecate models.
    ModelsWrite = "models:write",
    /// Call models, and pay for it.
    ModelsCall = "models:call",
    /// See what calls of models used and cost.
    UsageRead = "usage:read",
    /// See purchases, subscriptions and sales.
    PurchasesRead = "purchases:read",
    /// Buy, rent and subscribe, and end what was bought; answer requests; accept contributions, and pay for them.
    PurchasesWrite = "purchases:write",
    /// See the account's workers and join tokens.
    WorkersRead = "workers:read",
    /// Create join tokens, and revoke workers.
    WorkersWrite = "workers:write",
    /// See webhook endpoints, what happened, and what came of telling it.
    WebhooksRead = "webhooks:read",
    /// Create, change and delete webhook endpoints, and have events sent again.
    WebhooksWrite = "webhooks:write",
}

/// No scope has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a scope")]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL
            .iter()
            .copied()
            .find(|scope| scope.as_str() == text)
            .ok_or(UnknownScope)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a credential may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Everything: what a person who signed in may do.
    #[must_use]
    pub fn all() -> Self {
        Self(Scope::ALL.iter().copied().collect())
    }

    /// May it do this?
    #[must_use]
    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }

    /// May it do everything that `other` may do?
    #[must_use]
    pub fn cover(&self, other: &Self) -> bool {
        self.0.is_superset(&other.0)
    }

    /// May it do nothing?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each scope, in order.
    pub fn iter(&self) -> impl Iterator<Item = Scope> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_has_the_same_name_in_text_and_json() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(*scope));
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
        }
        assert_eq!("jobs:*".parse::<Scope>(), Err(UnknownScope));
    }

    #[test]
    fn scopes_cover_their_subsets_only() {
        let read: Scopes = [Scope::JobsRead].into_iter().collect();
        let both: Scopes = [Scope::JobsRead, Scope::JobsWrite].into_iter().collect();
        assert!(both.cover(&read) && !read.cover(&both) && Scopes::all().cover(&both));
    }
}
