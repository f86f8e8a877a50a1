//! The API over HTTP types, against a real Postgres.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

mod accounts;
mod auth;
mod blobs;
mod events;
mod every_route;
mod harness;
mod idempotency;
mod jobs;
mod keys;
mod market;
mod money;
mod quotes;
mod requests;
mod service;
mod settlement;
mod tokens;
mod waiting;
mod workers;
