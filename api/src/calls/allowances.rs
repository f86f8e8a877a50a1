//! What this process may spend for callers: each call reserves what it costs at most from an allowance, without a statement of its own.
//!
//! An allowance is a hold of one payer and one credential, and grows with use: the next one is twice as large, up to a part of what the payer has. It is closed, which charges what was
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
use comptoir_store::{
    allowances::{self, AllowanceError, CloseError, NewAllowance},
    holds::HoldError,
    limits::LimitError,
    spending::AboveSpendLimit,
};
use tokio::time::Instant;

use crate::{
    AppState, Problem,
    limiting::limited,
    routes::{above_spend_limit, hold_refused},
};

/// Calls that the first allowance is for: each that is used up is charges and receipts, which are written within calls.
const FIRST_CALLS: u64 = 1_024;
/// How much larger the next one is.
const GROWTH: u64 = 2;
/// When closing one that could not be closed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How long a process that ends waits for calls that were not over,
const LAST_CALLS: Duration = Duration::from_secs(2);
/// and how often it looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

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
    /// Nothing more is reserved of these: closed once their last call is over.
    ending: HashMap<AllowanceId, Ending>,
    granted: Option<Amount>,
}

#[derive(Debug)]
struct Ending {
    /// Calls that are not over yet.
    calls: u32,
    /// It is not closed before: it could not be.
    not_before: Instant,
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

/// What a call may cost at most. Given back when it is dropped, but for what the call cost: all of it, unless somebody says less.
#[derive(Debug)]
pub(super) struct Reservation {
    pub allowance: AllowanceId,
    purse: Arc<Purse>,
    unused: Atto,
    amount: Atto,
}

impl Reservation {
    /// The call is over, and cost so much. Zero where it is not charged.
    pub(super) fn settle(mut self, cost: Atto) {
        self.unused = self.amount.checked_sub(cost).unwrap_or(Atto::ZERO);
    }

    /// What the call cost is not known: its allowance takes no more, whatever it has left.
    pub(super) fn give_up(self) {
        self.purse.retire_if(|it| it.id == self.allowance);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.purse.give_back(self.allowance, self.unused);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Allowances {
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
        let purse = Arc::clone(lock(&self.purses).entry(payer).or_default());
        let reserved = |allowance| Reservation {
            allowance,
            purse: Arc::clone(&purse),
            unused: Atto::ZERO,
            amount,
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
            purse.retire_if(|_| true);
            let opened = open(state, payer, purse.wanted(amount)).await;
            match opened {
                Ok((id, granted)) => purse.put(id, granted),
                // What others of the account hold and do not use is given back first.
                Err(AllowanceError::InsufficientFunds { .. } | AllowanceError::KeyLimit { .. })
                    if self.close_idle(state, payer.account).await => {}
                Err(error) => return Err(refused(error)),
            }
        }
    }

    /// Closes what is old or idle and what has ended, and forgets payers that have nothing.
    pub(super) async fn close_due(&self, state: &AppState, terms: Terms) {
        for purse in self.of(|_| true) {
            purse.retire_if(|it| {
                let is_old = it.opened_at.elapsed() >= terms.window;
                is_old || (it.calls == 0 && it.used_at.elapsed() >= terms.idle)
            });
            purse.close_ended(state).await;
        }
        lock(&self.purses).retain(|_, purse| Arc::strong_count(purse) > 1 || !purse.is_empty());
    }

    /// Closes everything, and waits for the last calls a little. What is left is closed by another process, once this one is silent.
    pub(super) async fn close_everything(&self, state: &AppState) {
        let until = Instant::now() + LAST_CALLS;
        loop {
            let purses = self.of(|_| true);
            for purse in &purses {
                purse.retire_if(|_| true);
                purse.close_ended(state).await;
            }
            if purses.iter().all(|it| it.is_empty()) || Instant::now() >= until {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Closes what no call of an account uses; was there something?
    async fn close_idle(&self, state: &AppState, account: AccountId) -> bool {
        let mut some = false;
        for purse in self.of(|payer| payer.account == account) {
            purse.retire_if(|it| it.calls == 0);
            some |= purse.close_ended(state).await;
        }
        some
    }

    fn of(&self, is_so: impl Fn(&Payer) -> bool) -> Vec<Arc<Purse>> {
        let purses = lock(&self.purses);
        let wanted = purses.iter().filter(|(payer, _)| is_so(payer));
        wanted.map(|(_, purse)| Arc::clone(purse)).collect()
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

    /// Nothing more is reserved of the open one, if it is so.
    fn retire_if(&self, is_so: impl FnOnce(&Open) -> bool) {
        let mut state = lock(&self.state);
        if let Some(Open { id, calls, .. }) = state.open.take_if(|it| is_so(it)) {
            let not_before = Instant::now();
            state.ending.insert(id, Ending { calls, not_before });
        }
    }

    /// A call of an allowance is over, and did not use so much of what it reserved.
    fn give_back(&self, id: AllowanceId, unused: Atto) {
        let mut state = lock(&self.state);
        if let Some(open) = state.open.as_mut().filter(|it| it.id == id) {
            open.left = open.left.checked_add(unused).unwrap_or(open.left);
            open.calls = open.calls.saturating_sub(1);
        } else if let Some(ending) = state.ending.get_mut(&id) {
            ending.calls = ending.calls.saturating_sub(1);
        }
    }

    /// Allowances that ended, and whose last call is over.
    fn ended(&self) -> Vec<AllowanceId> {
        let now = Instant::now();
        let state = lock(&self.state);
        let ended = state.ending.iter();
        let ended = ended.filter(|(_, it)| it.calls == 0 && it.not_before <= now);
        ended.map(|(id, _)| *id).collect()
    }

    /// Closes what has ended; was there something? What cannot be closed is tried again.
    async fn close_ended(&self, state: &AppState) -> bool {
        let mut some = false;
        for id in self.ended() {
            let closed = close(state, id).await;
            let mut purse = lock(&self.state);
            match closed {
                Ok(()) => {
                    some = true;
                    purse.ending.remove(&id);
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, allowance = %id, "an allowance is not closed; it is tried again");
                    if let Some(ending) = purse.ending.get_mut(&id) {
                        ending.not_before = Instant::now() + AGAIN_AFTER;
                    }
                }
            }
        }
        some
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

async fn close(state: &AppState, id: AllowanceId) -> Result<(), CloseError> {
    let mut tx = state.db.begin().await?;
    allowances::close(&mut tx, id, state.now()).await?;
    Ok(tx.commit().await?)
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
