//! The system as its users meet it: real binaries, Postgres, Redis, a chain, and workers on libtorch.
#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

mod admin;
mod books;
mod calls;
mod clients;
mod command_line;
mod demo;
mod documents;
mod escape;
mod guardian;
mod guardian_audit;
mod guardian_hand;
mod guardian_policy;
mod guardian_world;
mod harness;
mod market;
mod models;
mod node;
mod openai;
mod redis;
mod terminal;
mod triton;
mod up;
