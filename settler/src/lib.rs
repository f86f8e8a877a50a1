//! The chain-facing service: follows the contract, credits what is final, seals batches and sends them. The only holder
//! of the settler's key; one leader at a time.

pub mod alert;
pub mod audit_log;
pub mod chain;
mod commit;
pub mod config;
mod confirm;
mod crash;
mod decode;
pub mod deploy;
pub mod error;
mod exit;
pub mod fees;
mod finalize;
mod follow;
pub mod health;
mod hold;
pub mod import;
mod nonces;
mod run;
mod seal;
mod send;
mod settler;
mod sign;
pub mod verify;

pub use config::{BatchPolicy, Config, Finality, Signer};
pub use error::StepError;
pub use run::run;
pub use settler::{Progress, Settler};
