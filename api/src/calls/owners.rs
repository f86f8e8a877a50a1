//! The addresses of workers' owners, who share what is charged.

use std::num::NonZeroUsize;

use alloy_primitives::Address;
use axum::http::StatusCode;
use comptoir_domain::id::AccountId;
use comptoir_store::accounts;
use time::{Duration, OffsetDateTime};

use crate::{AppState, Problem, facts::Kept};

/// Owners whose addresses are remembered.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("above zero");
/// How long an address is believed: a change that was announced a day before counts this much later.
const BELIEVED_FOR: Duration = Duration::minutes(1);

/// Addresses that were looked up.
pub(super) struct Owners(Kept<AccountId, (OffsetDateTime, Address)>);

impl Default for Owners {
    fn default() -> Self {
        Self(Kept::new(KEPT_MAX))
    }
}

impl Owners {
    /// Where an owner is paid.
    ///
    /// # Errors
    /// When it has no bound address any more, or the database fails.
    pub(super) async fn address(
        &self,
        state: &AppState,
        owner: AccountId,
    ) -> Result<Address, Problem> {
        let now = state.now();
        let kept = self.0.get(&owner);
        if let Some((_, address)) = kept.filter(|(at, _)| (now - *at).abs() < BELIEVED_FOR) {
            return Ok(address);
        }
        let found = accounts::find(&mut *state.db.acquire().await?, owner).await?;
        let address = found.and_then(|it| it.address).ok_or_else(unpaid)?;
        self.0.put(owner, (now, address));
        Ok(address)
    }
}

/// Nobody could be paid for the work, so it is not charged.
fn unpaid() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no_worker",
        "No worker could answer the call",
    )
    .detail("The owner of the worker has no bound address; nothing is charged")
    .retry_after(1)
}
