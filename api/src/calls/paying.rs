//! What pays for a call: a free one of the day, or a part of an allowance. What is not answered costs nothing.

use alloy_primitives::Address;
use axum::http::StatusCode;
use comptoir_domain::{
    atto::Atto,
    id::{CallId, ReceiptId, WorkerId},
    model::Usage,
};
use comptoir_store::{allowances as stored, usage::UsageEvent};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    allowances::{Payer, Reservation},
    callable::Callable,
};
use crate::{AppState, Problem, auth::Identity};

/// What pays for a call.
#[derive(Debug)]
pub(super) enum Means {
    /// One of the free calls of the day.
    Free {
        /// Which day that is.
        taken_at: OffsetDateTime,
    },
    /// What is reserved for it.
    Paid(Reservation),
}

/// A call that was answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served {
    pub call: CallId,
    pub worker: WorkerId,
    pub worker_owner: Address,
    /// What it came to: at most what was reserved for.
    pub usage: Usage,
    pub started: Instant,
}

/// What a call cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charged {
    pub cost: Atto,
    /// The receipt of the charge that it will be part of; `None`: it is free.
    pub receipt: Option<ReceiptId>,
}

/// A free call where one is left, else what this much costs.
pub(super) async fn means(
    state: &AppState,
    caller: &Identity,
    callable: &Callable,
    most: &Usage,
) -> Result<Means, Problem> {
    let cost = callable.price.tariff.cost(most).ok_or_else(too_dear)?;
    let per_day = callable.price.tariff.free_calls_per_day;
    if per_day > 0 {
        let mut conn = state.db.acquire().await?;
        let (account, model) = (caller.account, callable.model.id);
        let taken_at = state.now();
        if stored::take_free(&mut conn, account, model, per_day, taken_at).await? {
            return Ok(Means::Free { taken_at });
        }
    }
    let payer = Payer {
        account: caller.account,
        key: caller.api_key().map(|it| it.id),
        address: caller.owner()?,
        asset_id: callable.price.asset_id,
    };
    let reserved = state.calls.allowances.reserve(state, payer, cost).await?;
    Ok(Means::Paid(reserved))
}

impl Means {
    /// Commits the call before it is answered.
    ///
    /// # Errors
    /// When it is not taken, or it is not known whether it is. Then it is not answered, and what it reserved stays reserved until its allowance is
    /// closed, which knows.
    pub(super) async fn charge(
        self,
        state: &AppState,
        caller: &Identity,
        callable: &Callable,
        served: Served,
    ) -> Result<Charged, Problem> {
        let Served {
            call,
            worker,
            worker_owner,
            usage,
            started,
        } = served;
        let (allowance, cost) = match &self {
            Self::Free { .. } => (None, Atto::ZERO),
            Self::Paid(reservation) => {
                let cost = callable.price.tariff.cost(&usage).ok_or_else(too_dear)?;
                (Some(reservation.allowance), cost)
            }
        };
        let event = UsageEvent {
            call,
            allowance,
            account: caller.account,
            key: caller.api_key().map(|it| it.id),
            model: callable.model.id,
            version: callable.version.id,
            price: callable.price.number,
            worker,
            worker_owner,
            usage,
            cost,
            at: state.now(),
            duration_us: u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX),
        };
        let recorded = state.calls.recorder.record(state, event).await;
        if let Self::Paid(reservation) = self {
            match &recorded {
                Ok(_) => reservation.settle(cost),
                Err(_) => reservation.give_up(),
            }
        }
        recorded.map(|receipt| Charged { cost, receipt })
    }

    /// The call has no answer: nothing was paid.
    pub(super) async fn take_back(self, state: &AppState, caller: &Identity, callable: &Callable) {
        let taken_at = match self {
            Self::Paid(reservation) => return reservation.settle(Atto::ZERO),
            Self::Free { taken_at } => taken_at,
        };
        let given_back = async {
            let mut conn = state.db.acquire().await?;
            let (account, model) = (caller.account, callable.model.id);
            stored::give_back_free(&mut conn, account, model, taken_at).await
        };
        if let Err(error) = given_back.await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "a free call that failed is not given back");
        }
    }
}

fn too_dear() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "cost_too_high",
        "The call costs more than any amount",
    )
}
