//! The API over HTTP types, against a real Postgres.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

mod accounts;
mod auth;
mod every_route;
mod harness;
mod idempotency;
mod keys;
mod money;
mod requests;
mod service;
