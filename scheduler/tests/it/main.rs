//! The worker protocol over HTTP, against a real Postgres, with workers that compute nothing.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

mod bad_input;
mod blobs;
mod blocked_datasets;
mod calls;
mod datasets;
mod document;
mod doubts;
mod every_route;
mod faults;
mod groups;
mod harness;
mod holdback;
mod identity;
mod life;
mod matching;
mod replays;
mod replicas;
mod sampled;
mod sealing;
mod sequences;
mod verdicts;
