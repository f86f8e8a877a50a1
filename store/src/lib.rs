//! Every SQL statement of the service, one module per noun, and the two stores beside the database:
//! the object store (blobs) and Redis (wake-ups).
//!
//! A function that runs one statement takes `&mut PgConnection`. One that must be all-or-nothing
//! takes `&mut PgTransaction<'_>`. The caller commits.

pub mod accounts;
pub mod api_keys;
pub mod assets;
pub mod blobs;
pub mod codec;
pub mod events;
pub mod holds;
pub mod idempotency;
pub mod ledger;
pub mod objects;
pub mod pool;
pub mod prices;
pub mod sessions;
pub mod wake;

/// The schema, in order.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// A transaction on Postgres.
pub type PgTransaction<'a> = sqlx::Transaction<'a, sqlx::Postgres>;

/// Did this statement fail on the named constraint?
pub(crate) fn violates(error: &sqlx::Error, constraint: &str) -> bool {
    matches!(error, sqlx::Error::Database(db) if db.constraint() == Some(constraint))
}
