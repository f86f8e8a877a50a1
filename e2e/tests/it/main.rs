//! The system as its users meet it: real binaries, Postgres, Redis, a chain, and workers on libtorch.
#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

mod command_line;
mod demo;
mod harness;
mod redis;
mod up;
