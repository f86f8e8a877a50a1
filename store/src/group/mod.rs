//! What waits is done together: a bounded queue without a timer. What arrived while the last group was worked on is
//! the next group, so groups grow with the load and a quiet service waits for nobody.

mod commit;
mod lookups;

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use tokio::sync::{Mutex, mpsc, oneshot};

pub use commit::commit;
pub use lookups::{LookupError, Lookups};

/// Most items of one group.
pub const GROUP_MAX: usize = 512;
/// Most items that wait.
pub const QUEUE_MAX: usize = 8_192;
/// Groups that are worked on at once: while one waits for the disk, the next is put together.
pub const AT_ONCE: u32 = 2;

/// Items on their way to be done together, and the answers on their way back. Clones share the queue; what works on it
/// ends with the last clone.
pub struct Group<T, R> {
    queue: mpsc::Sender<Waiting<T, R>>,
}

/// Does a group: one answer per item, in their order.
type Work<T, R> = dyn Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync;

struct Waiting<T, R> {
    item: T,
    answer: oneshot::Sender<R>,
}

type Queue<T, R> = Arc<Mutex<mpsc::Receiver<Waiting<T, R>>>>;

/// Why an item has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Too many items wait. Nothing was done.
    #[error("too many requests wait")]
    Full,
    /// The work ended without an answer: what was done is not known.
    #[error("the work ended without an answer")]
    Lost,
}

impl GroupError {
    /// Was nothing done, because too many items wait?
    #[must_use]
    pub const fn is_full(self) -> bool {
        match self {
            Self::Full => true,
            Self::Lost => false,
        }
    }
}

impl<T: Send + 'static, R: Send + 'static> Group<T, R> {
    /// Starts what works on the queue.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(
        work: impl Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync + 'static,
    ) -> Self {
        let work: Arc<Work<T, R>> = Arc::new(work);
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..AT_ONCE {
            tokio::spawn(serve(Arc::clone(&waiting), Arc::clone(&work)));
        }
        Self { queue }
    }

    /// Has the item done. Whoever stops waiting for the answer does not undo it.
    ///
    /// # Errors
    /// When the queue is full, or the work broke off.
    pub async fn ask(&self, item: T) -> Result<R, GroupError> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { item, answer };
        self.queue.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => GroupError::Full,
            mpsc::error::TrySendError::Closed(_) => GroupError::Lost,
        })?;
        answered.await.map_err(|_| GroupError::Lost)
    }
}

async fn serve<T: Send + 'static, R: Send + 'static>(queue: Queue<T, R>, work: Arc<Work<T, R>>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    loop {
        let taken = queue.lock().await.recv_many(&mut group, GROUP_MAX).await;
        if taken == 0 {
            return;
        }
        let waiting = group.drain(..).map(|it| (it.item, it.answer));
        let (items, answers): (Vec<_>, Vec<_>) = waiting.unzip();
        // A task of its own, so that a panic ends this group and not the queue.
        match tokio::spawn(work(items)).await {
            Ok(done) => {
                for (answer, done) in answers.into_iter().zip(done) {
                    // Whoever asked may have gone.
                    answer.send(done).ok();
                }
            }
            Err(error) => tracing::error!(%error, items = taken, "a group broke off"),
        }
    }
}

impl<T, R> Clone for Group<T, R> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
        }
    }
}

impl<T, R> fmt::Debug for Group<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("waiting", &(QUEUE_MAX - self.queue.capacity()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
