//! The API over HTTP types, against a real Postgres.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

mod accounts;
mod address;
mod admin;
mod admin_accounts;
mod admin_audit;
mod admin_money;
mod admin_work;
mod auth;
mod bad_input;
mod blobs;
mod calls;
mod catalog;
mod contributions;
mod datasets;
mod edge;
mod events;
mod every_route;
mod harness;
mod idempotency;
mod inference_protocol;
mod jobs;
mod key_limits;
mod keys;
mod market;
mod models;
mod money;
mod openai;
mod passwords;
mod purchases;
mod quotes;
mod requests;
mod service;
mod settlement;
mod siwe;
mod submissions;
mod takedowns;
mod texts;
mod tokens;
mod usage;
mod verdict;
mod waiting;
mod webhooks;
mod workers;
mod writing;
