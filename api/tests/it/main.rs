//! The API over HTTP types, against a real Postgres.

mod harness;
mod requests;
