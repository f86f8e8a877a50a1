//! The readers and the meter on real exports, and on archives made to do harm; the audit policy simulated.

mod archives;
mod fixture;
mod meter;
mod mutations;
mod policy_table;
mod wicked;
