//! Do the parts that a service keeps its things in answer?

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::timeout;

use crate::{objects::Objects, pool, wake::Wake};

/// How long a part may take to answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Which parts answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// The database, with our tables in it.
    pub postgres: bool,
    /// The object store.
    pub object_store: bool,
    /// Redis; `None` in a deployment that does without it.
    pub redis: Option<bool>,
}

/// Asks each part, for a second at most.
pub async fn check(db: &PgPool, objects: &Objects, wake: &Wake) -> Parts {
    let postgres = async { pool::check(&mut *db.acquire().await?).await };
    let (postgres, object_store) = tokio::join!(
        timeout(CHECK_TIMEOUT, postgres),
        timeout(CHECK_TIMEOUT, objects.check())
    );
    Parts {
        postgres: matches!(postgres, Ok(Ok(()))),
        object_store: matches!(object_store, Ok(Ok(()))),
        redis: wake.is_connected(),
    }
}
