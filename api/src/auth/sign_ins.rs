//! How often somebody may try to sign in: per account and address together, and per address. An account has no counter of its
//! own, so nobody locks its owner out from elsewhere; and whether there is such an account makes no difference.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use comptoir_domain::credential::EMAIL_BYTES_MAX;
use comptoir_http::rate_limit::{self, Key, Limiter, Policy, Shared, Standing};

use crate::Problem;

/// At one account from one address: ten at once, then one every 90 seconds. Every try takes one before its password is looked at,
/// so that nothing is won by racing; a right one gives it back.
const ACCOUNT: Policy = Policy {
    name: "sign-in",
    quota: NonZeroU32::new(10).expect("ten is not zero"),
    window: Duration::from_mins(15),
};
/// From one address, whatever the account.
const ADDRESS: Policy = Policy {
    name: "sign-in-address",
    quota: NonZeroU32::new(100).expect("a hundred is not zero"),
    window: Duration::from_mins(15),
};

/// Counts sign-ins. Clones share it.
#[derive(Debug, Clone)]
pub struct SignIns {
    account: Limiter,
    address: Limiter,
}

impl Default for SignIns {
    fn default() -> Self {
        Self::new(None)
    }
}

impl SignIns {
    /// Counts through `shared` where there is one, else in this process.
    #[must_use]
    pub fn new(shared: Option<&Arc<Shared>>) -> Self {
        Self {
            account: Limiter::new(ACCOUNT, shared.cloned()),
            address: Limiter::new(ADDRESS, shared.cloned()),
        }
    }

    /// Lets a try pass, or says 429: before the password is looked at.
    ///
    /// # Errors
    /// With the problem that is the answer.
    pub async fn attempt(&self, email: &str, client: Option<IpAddr>) -> Result<Attempt, Problem> {
        let address = rate_limit::network_key(client);
        // What is longer is no account's, and one counter is enough for all that begins alike.
        let email = email.get(..EMAIL_BYTES_MAX).unwrap_or(email);
        let email = email.to_ascii_lowercase();
        let account = rate_limit::key(&[b"sign-in", email.as_bytes(), &address]);
        let mut taken = Vec::with_capacity(2);
        for (limiter, key) in [(&self.account, account), (&self.address, address)] {
            let standing = limiter.take(&key).await;
            if let Some(wait) = standing.refused_for {
                return Err(rate_limit::refusal(wait, "Too many sign-ins"));
            }
            taken.push((limiter.clone(), key, standing));
        }
        Ok(Attempt { taken })
    }
}

/// A try that may look at the password.
#[derive(Debug)]
#[must_use = "a try that succeeded does not count"]
pub struct Attempt {
    taken: Vec<(Limiter, Key, Standing)>,
}

impl Attempt {
    /// Is it the last for now? That is worth a line in the audit log.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.taken
            .iter()
            .any(|(_, _, standing)| standing.remaining == 0)
    }

    /// It was right, and does not count.
    pub fn succeeded(self) {
        for (limiter, key, standing) in &self.taken {
            limiter.give_back(key, standing);
        }
    }

    /// It counts, whatever came of it.
    pub fn counts(self) {}
}
