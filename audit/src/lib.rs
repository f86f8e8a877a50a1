//! The second implementation of what a batch commits to: it reads the published leaf file with a parser of its own, makes
//! every leaf, root, sum and share again, compares them with the chain and with the batch before, and says of each check
//! whether it passed, failed, or cannot be proven, and why. It depends on none of our crates, so that a mistake of theirs
//! is not repeated here.

pub mod bill;
mod books;
mod calls;
#[cfg(feature = "rpc")]
pub mod chain;
pub mod file;
pub mod hash;
pub mod header;
pub mod leaf;
pub mod proof;
pub mod report;
#[cfg(feature = "rpc")]
pub mod rpc;
mod sale;
pub mod settled;
pub mod tree;
pub mod value;
#[cfg(feature = "rpc")]
mod words;

pub use file::{FileError, LeafFile, Limits};
pub use header::{Committed, Header, Recomputed};
pub use proof::{Before, Evidence, audit};
pub use report::{Check, Finding, Outcome, Report, Verdict};
pub use settled::Settled;
pub use value::{Account, Address, Deposit, Hash, Receipt, ReceiptId, Share};
