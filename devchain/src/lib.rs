//! The local chain: where anvil is installed, and a chain of its own for each test that wants one.

mod anvil;
mod program;

pub use anvil::Anvil;
pub use program::{find, find_program};
