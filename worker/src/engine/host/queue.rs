//! Calls that wait in the child: one thread reads them, another takes as many as one run of the program can hold.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use comptoir_wire::calls::{Ask, Malformed, Tensor};
use uuid::Uuid;

/// A call that waits.
#[derive(Debug)]
pub struct Waiting {
    /// Its name.
    pub id: Uuid,
    /// When nobody waits for it any more.
    pub ends_at: Instant,
    /// Whether it waited for the version to be loaded.
    pub was_cold: bool,
    /// Whether nobody waits for it already.
    pub is_cancelled: bool,
    /// What it asks, if that is anything.
    pub ask: Result<Ask, Malformed>,
}

impl Waiting {
    /// Rows that it adds to a batch; a text is in none.
    fn rows(&self) -> u64 {
        match &self.ask {
            Ok(Ask::Infer(inputs)) => inputs.first().and_then(Tensor::rows).unwrap_or(0),
            Ok(Ask::Write(_)) | Err(_) => 0,
        }
    }
}

/// Calls in the order in which they came. The parent limits how many there are.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<State>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct State {
    calls: VecDeque<Waiting>,
    /// Calls that were taken, or are none, and that nobody waits for any more.
    cancelled: Vec<Uuid>,
}

/// What is to be done next.
#[derive(Debug)]
pub struct Taken {
    /// Calls.
    pub calls: Vec<Waiting>,
    /// Calls that were taken before and that nobody waits for any more.
    pub cancelled: Vec<Uuid>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds calls that came together.
    pub fn push(&self, calls: Vec<Waiting>) {
        self.lock().calls.extend(calls);
        self.came.notify_one();
    }

    /// Nobody waits for a call any more.
    pub fn cancel(&self, id: Uuid) {
        let mut state = self.lock();
        match state.calls.iter_mut().find(|call| call.id == id) {
            Some(call) => call.is_cancelled = true,
            None => state.cancelled.push(id),
        }
    }

    /// Takes what is there, as far as it has no more rows than these together; one call alone may have more. Where nothing else is to do, it
    /// waits for the first, and for no other.
    pub fn take(&self, rows_max: u64, is_busy: bool) -> Taken {
        let mut state = self.lock();
        while state.calls.is_empty() && !is_busy {
            state = self
                .came
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let (mut calls, mut rows) = (Vec::new(), 0_u64);
        while let Some(call) = state.calls.front() {
            rows = rows.saturating_add(call.rows());
            if rows > rows_max && !calls.is_empty() {
                break;
            }
            calls.extend(state.calls.pop_front());
        }
        let cancelled = std::mem::take(&mut state.cancelled);
        Taken { calls, cancelled }
    }
}

#[cfg(test)]
mod tests {
    use comptoir_domain::program::graph::ScalarType;

    use super::*;

    fn call(id: u128, rows: u64) -> Waiting {
        let input = Tensor {
            dtype: ScalarType::F32,
            shape: vec![rows, 0],
            bytes: Vec::new(),
        };
        Waiting {
            id: Uuid::from_u128(id),
            ends_at: Instant::now(),
            was_cold: false,
            is_cancelled: false,
            ask: Ok(Ask::Infer(vec![input])),
        }
    }

    #[test]
    fn a_batch_is_what_is_there_and_fits() {
        let queue = Queue::default();
        let calls = [(1, 2), (2, 1), (3, 2), (4, 9), (5, 1)];
        queue.push(calls.map(|(id, rows)| call(id, rows)).into());
        queue.cancel(Uuid::from_u128(3));
        let taken = || -> Vec<(u128, bool)> {
            let taken = queue.take(4, false).calls.into_iter();
            taken.map(|it| (it.id.as_u128(), it.is_cancelled)).collect()
        };
        assert_eq!(taken(), [(1, false), (2, false)]);
        assert_eq!(taken(), [(3, true)]);
        assert_eq!(taken(), [(4, false)], "alone it may have more");
        assert_eq!(taken(), [(5, false)]);
    }

    #[test]
    fn who_is_busy_waits_for_no_call_and_hears_who_left() {
        let queue = Queue::default();
        let taken = queue.take(4, true);
        assert!(taken.calls.is_empty() && taken.cancelled.is_empty());
        queue.cancel(Uuid::from_u128(7));
        assert_eq!(queue.take(4, true).cancelled, [Uuid::from_u128(7)]);
        assert!(queue.take(4, true).cancelled.is_empty(), "once");
    }
}
