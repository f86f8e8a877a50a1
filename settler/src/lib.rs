//! The chain-facing service: follows the contract, credits what is final, seals batches and sends them. The only holder
//! of the settler's key; one leader at a time.

pub mod chain;
pub mod config;
mod confirm;
mod decode;
pub mod deploy;
pub mod error;
mod exit;
pub mod fees;
mod follow;
pub mod health;
mod seal;
mod send;
mod settler;
pub mod verify;

pub use config::{BatchPolicy, Config, Finality};
pub use error::StepError;
pub use settler::{Progress, Settler, run};
