//! Rows that many requests ask for at once, found by one statement. Nothing is remembered: each answer was read after it was
//! asked for.

use std::{fmt, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};

use super::{Group, GroupError};

/// Looks rows up in groups. Clones share the queue.
pub struct Lookups<K, V> {
    group: Group<K, Found<V>>,
}

/// What was found; the error of a group is told to all of it.
type Found<V> = Result<Option<V>, Arc<sqlx::Error>>;

/// Why nothing was looked up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    /// The group gave no answer.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The statement failed.
    #[error("look rows up")]
    Database(#[from] Arc<sqlx::Error>),
}

impl<K: Send + 'static, V: Send + 'static> Lookups<K, V> {
    /// Starts what looks up: `find` answers each key in its place.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(
        find: impl Fn(Vec<K>) -> BoxFuture<'static, sqlx::Result<Vec<Option<V>>>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let group = Group::start(move |keys: Vec<K>| {
            let asked = keys.len();
            find(keys).map(move |found| to_each(found, asked)).boxed()
        });
        Self { group }
    }

    /// The row of a key.
    ///
    /// # Errors
    /// When too many wait, or the statement fails.
    pub async fn find(&self, key: K) -> Result<Option<V>, LookupError> {
        Ok(self.group.ask(key).await??)
    }
}

fn to_each<V>(found: sqlx::Result<Vec<Option<V>>>, asked: usize) -> Vec<Found<V>> {
    match found {
        Ok(found) => found.into_iter().map(Ok).collect(),
        Err(error) => {
            let error = Arc::new(error);
            (0..asked).map(|_| Err(Arc::clone(&error))).collect()
        }
    }
}

impl<K, V> Clone for Lookups<K, V> {
    fn clone(&self) -> Self {
        Self {
            group: self.group.clone(),
        }
    }
}

impl<K, V> fmt::Debug for Lookups<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").finish_non_exhaustive()
    }
}
