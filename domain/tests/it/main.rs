//! The readers and the meter on real exports, and on archives made to do harm.

mod archives;
mod fixture;
mod meter;
mod mutations;
mod wicked;
