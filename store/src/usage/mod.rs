//! What was used of models: one event for each call that was answered, counted in windows that are charged together.

mod reads;
mod record;
mod windows;

use alloy_primitives::Address;
use comptoir_domain::{
    atto::Atto,
    id::{AccountId, AllowanceId, ApiKeyId, CallId, ModelId, ModelVersionId, WorkerId},
    model::Usage,
};
use time::OffsetDateTime;

pub use reads::{
    GroupBy, SumPlace, UsageFilter, UsageSum, UsageWindow, events, events_of, sums, window, windows,
};
pub use record::{Recorded, record};
pub(crate) use windows::{OpenWindow, file_digest, windows_of};

/// A call that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageEvent {
    /// The call.
    pub call: CallId,
    /// What pays for it; `None`: it is free.
    pub allowance: Option<AllowanceId>,
    /// Who called.
    pub account: AccountId,
    /// The key that it was called with.
    pub key: Option<ApiKeyId>,
    /// The model.
    pub model: ModelId,
    /// Its version.
    pub version: ModelVersionId,
    /// Which of the model's prices.
    pub price: i32,
    /// The worker that ran it.
    pub worker: WorkerId,
    /// The address of the worker's owner, who shares the charge.
    pub worker_owner: Address,
    /// What was counted.
    pub usage: Usage,
    /// What it costs: the price times that.
    pub cost: Atto,
    /// When it was answered.
    pub at: OffsetDateTime,
    /// How long it took, in microseconds.
    pub duration_us: u32,
}
