//! The rules of the service: money, ledger entries, job states, splits, Merkle leaves, verdicts.
//!
//! Pure: no database, no network, no clock. Whatever happens outside is an argument.

pub mod amount;
pub mod asset;
pub mod digest;
pub mod id;
pub mod job;
pub mod program;
pub mod shuffle;
