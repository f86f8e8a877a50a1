//! The engine end to end: real programs, real child processes, real libtorch.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod canary;
mod children;
mod harness;
mod hosting;
mod inference;
mod minilm;
mod refusals;
mod training;
mod writing;
