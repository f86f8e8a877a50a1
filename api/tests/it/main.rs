//! The API over HTTP types, against a real Postgres.

mod accounts;
mod auth;
mod every_route;
mod harness;
mod idempotency;
mod keys;
mod requests;
mod service;
