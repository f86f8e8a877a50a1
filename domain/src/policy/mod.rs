//! When a single result is run a second time, how long its pay is held back, and what a worker's record earns it.
//!
//! Everything here is a function of its arguments, integers alone: whoever has the arguments can repeat a decision.

pub mod audit;
pub mod holdback;
pub mod reputation;

pub use audit::{AuditPolicy, Checked, Draw, Identity, Trust};
pub use reputation::{Reputation, Standing};
