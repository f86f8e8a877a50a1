//! The worker: joins a service, runs its jobs on libtorch in child processes, and reports what came out.

pub mod aten;
pub mod canary;
pub mod daemon;
pub mod engine;
pub mod facts;

pub use comptoir_sandbox as sandbox;
