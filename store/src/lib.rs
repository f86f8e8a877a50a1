//! Every SQL statement of the service, one module per noun, and the two stores beside the database:
//! the object store (blobs) and Redis (wake-ups).
//!
//! A function that runs one statement takes `&mut PgConnection`. One that must be all-or-nothing
//! takes `&mut PgTransaction<'_>`. The caller commits.

pub mod accounts;
pub mod address_changes;
pub mod admin_accounts;
pub mod admin_jobs;
pub mod admin_outbox;
pub mod admin_workers;
pub mod admins;
pub mod admissions;
pub mod allowances;
pub mod api_keys;
pub mod assets;
pub mod attempts;
pub mod audit;
pub mod batches;
pub mod blobs;
pub mod catalog;
pub mod chain;
pub mod charges;
pub mod clock;
pub mod codec;
pub mod contributions;
pub mod data_keys;
pub mod dataset_checks;
pub mod dataset_files;
pub mod dataset_inputs;
pub mod dataset_links;
pub mod dataset_servings;
pub mod dataset_versions;
pub mod datasets;
pub mod deposits;
pub mod draws;
pub mod entitlements;
pub mod events;
pub mod exits;
pub mod faults;
pub mod group;
pub mod health;
pub mod holdback;
pub mod holds;
pub mod idempotency;
pub mod jobs;
pub mod join_tokens;
pub mod leader;
pub mod ledger;
pub mod limits;
pub mod listed_workers;
pub mod model_prices;
pub mod model_versions;
pub mod models;
pub mod notices;
pub mod objects;
pub mod offers;
pub mod password_resets;
mod payees;
pub mod pool;
pub mod prices;
pub mod purchases;
pub mod queue;
pub mod quotes;
pub mod recalls;
pub mod receipts;
pub mod reconciliation;
#[cfg(test)]
mod redis_server;
pub mod refunds;
pub mod relay;
pub mod releases;
pub mod sales;
pub mod segments;
pub mod sessions;
pub mod siwe_nonces;
pub mod spending;
pub mod splits;
pub mod statement;
pub mod subscriptions;
pub mod takedowns;
pub mod tenant;
pub mod tenant_keys;
pub mod transactions;
pub mod unstable;
pub mod uploads;
pub mod usage;
pub mod verdicts;
pub mod wake;
pub mod webhooks;
pub mod withheld_results;
pub mod work;
pub mod worker_records;
pub mod workers;

/// The schema, in order.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// A transaction on Postgres.
pub type PgTransaction<'a> = sqlx::Transaction<'a, sqlx::Postgres>;

/// Did this statement fail on the named constraint?
pub(crate) fn violates(error: &sqlx::Error, constraint: &str) -> bool {
    matches!(error, sqlx::Error::Database(db) if db.constraint() == Some(constraint))
}
