//! What this process may spend for callers: each call reserves what it costs at most from an allowance, without a statement of its own.
//!
//! An allowance is a hold of one payer and one credential, and grows with use: the next one is twice as large. It is closed, which charges what was
//! called and gives the rest back, when it is used up, old, or idle; and by anybody's step when this process has ended
//! ([`comptoir_store::allowances`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    atto::Atto,
    id::{AccountId, AllowanceId, ApiKeyId},
};
use comptoir_store::allowances::{self, AllowanceError, CloseError, NewAllowance};
use comptoir_store::{holds::HoldError, limits::LimitError, spending::AboveSpendLimit};
use tokio::time::Instant;

use crate::{
    AppState, Problem,
    limiting::limited,
    routes::{above_spend_limit, hold_refused},
};

/// Calls that the first allowance is for.
const FIRST_CALLS: u64 = 16;
/// How much larger the next one is.
const GROWTH: u64 = 2;

/// How long allowances last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// One is closed at this age, so that what was called is charged and receipted.
    pub window: Duration,
    /// One is closed when nothing was called for this long.
    pub idle: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            window: Duration::from_mins(1),
            idle: Duration::from_secs(10),
        }
    }
}

/// Who pays, with which credential, in which token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Payer {
    pub account: AccountId,
    pub key: Option<ApiKeyId>,
    pub address: Address,
    pub asset_id: i32,
}

/// The allowances of a process.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    purses: Mutex<HashMap<Payer, Arc<Purse>>>,
}

/// The allowances of one payer.
#[derive(Debug, Default)]
struct Purse {
    state: Mutex<State>,
    /// Held by whoever opens the next one.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    /// Ended, with calls that are not answered yet.
    ending: HashMap<AllowanceId, u32>,
    granted: Option<Amount>,
}

#[derive(Debug)]
struct Open {
    id: AllowanceId,
    left: Atto,
    /// Calls that reserved something of it.
    calls: u32,
    opened_at: Instant,
    used_at: Instant,
}

/// What a call may cost at most, until it is [`settled`](Allowances::settle).
#[derive(Debug)]
pub(super) struct Reservation {
    pub allowance: AllowanceId,
    amount: Atto,
    payer: Payer,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Allowances {
    fn purse(&self, payer: Payer) -> Arc<Purse> {
        Arc::clone(lock(&self.purses).entry(payer).or_default())
    }

    /// Reserves what a call costs at most.
    ///
    /// # Errors
    /// When the payer cannot pay that.
    pub(super) async fn reserve(
        &self,
        state: &AppState,
        payer: Payer,
        amount: Atto,
    ) -> Result<Reservation, Problem> {
        let purse = self.purse(payer);
        let reserved = |allowance| Reservation {
            allowance,
            amount,
            payer,
        };
        if let Some(allowance) = purse.take(amount) {
            return Ok(reserved(allowance));
        }
        let _opening = purse.opening.lock().await;
        loop {
            // Whoever opened one meanwhile may have left enough.
            if let Some(allowance) = purse.take(amount) {
                return Ok(reserved(allowance));
            }
            close_all(state, purse.retire()).await;
            let opened = open(state, payer, purse.wanted(amount)).await;
            match opened {
                Ok((id, granted)) => purse.put(id, granted),
                // What others of the account hold and do not use is given back first.
                Err(AllowanceError::InsufficientFunds { .. })
                    if self.give_back_idle(state, payer.account).await => {}
                Err(error) => return Err(refused(error)),
            }
        }
    }

    /// A call is over: what it cost, and what it reserved beyond that is free again. Zero where it is not charged.
    pub(super) async fn settle(&self, state: &AppState, it: Reservation, cost: Atto) {
        let ended = self.purse(it.payer).give_back(&it, cost);
        close_all(state, ended).await;
    }

    /// An allowance takes no more, whatever it has left.
    pub(super) async fn give_up(&self, state: &AppState, it: Reservation) {
        let purse = self.purse(it.payer);
        let mut ended = purse.retire_this(it.allowance);
        ended.extend(purse.give_back(&it, it.amount));
        close_all(state, ended).await;
    }

    /// Closes what is old or idle, and forgets payers that have nothing.
    pub(super) async fn close_due(&self, state: &AppState, terms: Terms) {
        let purses: Vec<_> = lock(&self.purses).values().cloned().collect();
        for purse in purses {
            let is_due = |it: &Open| {
                let is_old = it.opened_at.elapsed() >= terms.window;
                is_old || (it.calls == 0 && it.used_at.elapsed() >= terms.idle)
            };
            close_all(state, purse.retire_if(is_due)).await;
        }
        lock(&self.purses).retain(|_, purse| Arc::strong_count(purse) > 1 || !purse.is_empty());
    }

    /// Closes everything that no call uses; the rest is closed by its last call.
    pub(super) async fn close_everything(&self, state: &AppState) {
        let purses: Vec<_> = lock(&self.purses).values().cloned().collect();
        for purse in purses {
            close_all(state, purse.retire()).await;
        }
    }

    /// Was something of the account given back?
    async fn give_back_idle(&self, state: &AppState, account: AccountId) -> bool {
        let purses: Vec<_> = {
            let purses = lock(&self.purses);
            let of_account = purses.iter().filter(|(payer, _)| payer.account == account);
            of_account.map(|(_, purse)| Arc::clone(purse)).collect()
        };
        let idle: Vec<_> = purses
            .iter()
            .flat_map(|purse| purse.retire_if(|it| it.calls == 0))
            .collect();
        let some = !idle.is_empty();
        close_all(state, idle).await;
        some
    }
}

impl Purse {
    fn take(&self, amount: Atto) -> Option<AllowanceId> {
        let mut state = lock(&self.state);
        let open = state.open.as_mut()?;
        open.left = open.left.checked_sub(amount)?;
        open.calls += 1;
        open.used_at = Instant::now();
        Some(open.id)
    }

    fn put(&self, id: AllowanceId, granted: Amount) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.granted = Some(granted);
        state.open = Some(Open {
            id,
            left: Atto::from_base(granted),
            calls: 0,
            opened_at: now,
            used_at: now,
        });
    }

    /// What the next one is to have: at least what this call costs.
    fn wanted(&self, amount: Atto) -> (Amount, Amount) {
        let least = amount.ceil();
        let first = least.times(FIRST_CALLS).unwrap_or(least);
        let grown = lock(&self.state).granted.and_then(|it| it.times(GROWTH));
        (least, grown.unwrap_or(first).max(first))
    }

    fn retire(&self) -> Vec<AllowanceId> {
        self.retire_if(|_| true)
    }

    fn retire_this(&self, id: AllowanceId) -> Vec<AllowanceId> {
        self.retire_if(|it| it.id == id)
    }

    /// Nothing more is reserved of the open one, if it is so; it, where no call uses it.
    fn retire_if(&self, is_so: impl FnOnce(&Open) -> bool) -> Vec<AllowanceId> {
        let mut state = lock(&self.state);
        let Some(open) = state.open.take_if(|it| is_so(it)) else {
            return Vec::new();
        };
        if open.calls == 0 {
            return vec![open.id];
        }
        state.ending.insert(open.id, open.calls);
        Vec::new()
    }

    /// Gives back what a call did not use; its allowance, where that has ended and this was its last call.
    fn give_back(&self, it: &Reservation, cost: Atto) -> Vec<AllowanceId> {
        let mut state = lock(&self.state);
        if let Some(open) = state.open.as_mut().filter(|open| open.id == it.allowance) {
            let unused = it.amount.checked_sub(cost).unwrap_or(Atto::ZERO);
            open.left = open.left.checked_add(unused).unwrap_or(open.left);
            open.calls = open.calls.saturating_sub(1);
            return Vec::new();
        }
        let Some(calls) = state.ending.get_mut(&it.allowance) else {
            return Vec::new();
        };
        *calls = calls.saturating_sub(1);
        if *calls > 0 {
            return Vec::new();
        }
        state.ending.remove(&it.allowance);
        vec![it.allowance]
    }

    fn is_empty(&self) -> bool {
        let state = lock(&self.state);
        state.open.is_none() && state.ending.is_empty()
    }
}

async fn open(
    state: &AppState,
    payer: Payer,
    (least, wanted): (Amount, Amount),
) -> Result<(AllowanceId, Amount), AllowanceError> {
    let new = NewAllowance {
        id: AllowanceId::generate(),
        account: payer.account,
        key: payer.key,
        payer: payer.address,
        asset_id: payer.asset_id,
        process: state.calls.process,
        least,
        wanted,
    };
    let mut tx = state.db.begin().await?;
    let granted = allowances::open(&mut tx, &new, state.now()).await?;
    tx.commit().await?;
    Ok((new.id, granted))
}

/// Closes allowances. One that cannot be closed now is closed later, by the step that closes those of processes that ended.
async fn close_all(state: &AppState, ended: Vec<AllowanceId>) {
    for id in ended {
        let closed = async {
            let mut tx = state.db.begin().await?;
            allowances::close(&mut tx, id, state.now()).await?;
            tx.commit().await?;
            Ok::<_, CloseError>(())
        };
        if let Err(error) = closed.await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, allowance = %id, "an allowance is not closed yet");
        }
    }
}

fn refused(error: AllowanceError) -> Problem {
    match error {
        AllowanceError::Frozen => limited(LimitError::Frozen),
        AllowanceError::Leaving => hold_refused(HoldError::Leaving),
        AllowanceError::InsufficientFunds { available } => {
            hold_refused(HoldError::InsufficientFunds { available })
        }
        AllowanceError::KeyLimit { left } => above_spend_limit(AboveSpendLimit { left }),
        AllowanceError::Hold(error) => hold_refused(error),
        AllowanceError::Database(error) => error.into(),
    }
}
