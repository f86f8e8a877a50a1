//! The daemon against the real scheduler over a real database, jobs on libtorch included. Between the two stands a proxy
//! that loses, holds or spoils what a test tells it to. Calls of models come from a small server of our own.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

mod calling;
mod datasets;
mod faults;
mod harness;
mod hosting;
mod joining;
mod life;
mod proxy;
#[path = "../../../scheduler/tests/it/sealing.rs"]
mod sealing;
mod walls;
