//! The system as its users meet it: real binaries, Postgres, Redis, a chain, and workers on libtorch.

mod command_line;
mod demo;
mod harness;
mod redis;
