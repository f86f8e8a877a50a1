//! A transaction for a whole group.

use std::{error::Error, sync::Arc};

use futures::future::BoxFuture;
use sqlx::PgPool;

use crate::PgTransaction;

/// What is done in the transaction.
type Work<C, T, R, E> =
    for<'a> fn(&'a mut PgTransaction<'static>, &'a C, &'a [T]) -> BoxFuture<'a, Result<Vec<R>, E>>;

/// Does items in one transaction, with one answer for each in their order. Where that fails and may be the fault of one of them,
/// each gets a transaction of its own, so that the one that is to blame fails alone; an answer that one transaction gives is
/// true once it has committed. `context` is handed to the work, which may run several times.
pub async fn commit<C, T, R, E>(
    db: &PgPool,
    context: &C,
    items: &[T],
    work: Work<C, T, R, E>,
) -> Vec<Result<R, Arc<E>>>
where
    E: Error + From<sqlx::Error> + 'static,
{
    let error = match commit_all(db, context, items, work).await {
        Ok(done) => return done.into_iter().map(Ok).collect(),
        Err(error) => error,
    };
    if items.len() == 1 || !is_of_an_item(&error) {
        let error = Arc::new(error);
        return items.iter().map(|_| Err(Arc::clone(&error))).collect();
    }
    tracing::warn!(
        error = &error as &dyn Error,
        items = items.len(),
        "a group failed; its items are committed one by one"
    );
    let mut done = Vec::with_capacity(items.len());
    for item in items {
        let alone = commit_all(db, context, std::slice::from_ref(item), work).await;
        let alone =
            alone.and_then(|done| Ok(done.into_iter().next().ok_or(sqlx::Error::RowNotFound)?));
        done.push(alone.map_err(Arc::new));
    }
    done
}

async fn commit_all<C, T, R, E: From<sqlx::Error>>(
    db: &PgPool,
    context: &C,
    items: &[T],
    work: Work<C, T, R, E>,
) -> Result<Vec<R>, E> {
    let mut tx = db.begin().await?;
    match work(&mut tx, context, items).await {
        Ok(done) => {
            tx.commit().await?;
            Ok(done)
        }
        Err(error) => {
            // Waited for: a transaction that is dropped ends some time later, and until then it has locks that its items are
            // tried again with.
            tx.rollback().await?;
            Err(error)
        }
    }
}

/// May the group have failed because of one of its items? Not when the database is away.
fn is_of_an_item(error: &(dyn Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return matches!(
                error,
                sqlx::Error::Database(_) | sqlx::Error::ColumnDecode { .. }
            );
        }
        source = error.source();
    }
    true
}
