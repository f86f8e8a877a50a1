//! Calls that wait in the child: one thread reads them, another takes as many as one run of the program can hold.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use comptoir_wire::calls::{Malformed, Tensor};
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
    /// Its inputs, if it has any.
    pub inputs: Result<Vec<Tensor>, Malformed>,
}

impl Waiting {
    /// Rows that it adds to a batch.
    fn rows(&self) -> u64 {
        let first = self.inputs.as_ref().ok().and_then(|inputs| inputs.first());
        first.and_then(Tensor::rows).unwrap_or(0)
    }
}

/// Calls in the order in which they came. The parent limits how many there are.
#[derive(Debug, Default)]
pub struct Queue {
    calls: Mutex<VecDeque<Waiting>>,
    came: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds calls that came together.
    pub fn push(&self, calls: Vec<Waiting>) {
        self.lock().extend(calls);
        self.came.notify_one();
    }

    /// Nobody waits for a call any more.
    pub fn cancel(&self, id: Uuid) {
        for call in self.lock().iter_mut().filter(|call| call.id == id) {
            call.is_cancelled = true;
        }
    }

    /// Takes what is there, as far as it has no more rows than these together; one call alone may have more. Waits for the first, and for
    /// no other.
    pub fn take(&self, rows_max: u64) -> Vec<Waiting> {
        let mut calls = self.lock();
        while calls.is_empty() {
            calls = self
                .came
                .wait(calls)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let (mut taken, mut rows) = (Vec::new(), 0_u64);
        while let Some(call) = calls.front() {
            rows = rows.saturating_add(call.rows());
            if rows > rows_max && !taken.is_empty() {
                break;
            }
            taken.extend(calls.pop_front());
        }
        taken
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
            inputs: Ok(vec![input]),
        }
    }

    #[test]
    fn a_batch_is_what_is_there_and_fits() {
        let queue = Queue::default();
        let calls = [(1, 2), (2, 1), (3, 2), (4, 9), (5, 1)];
        queue.push(calls.map(|(id, rows)| call(id, rows)).into());
        queue.cancel(Uuid::from_u128(3));
        let taken = || -> Vec<(u128, bool)> {
            let taken = queue.take(4).into_iter();
            taken.map(|it| (it.id.as_u128(), it.is_cancelled)).collect()
        };
        assert_eq!(taken(), [(1, false), (2, false)]);
        assert_eq!(taken(), [(3, true)]);
        assert_eq!(taken(), [(4, false)], "alone it may have more");
        assert_eq!(taken(), [(5, false)]);
    }
}
