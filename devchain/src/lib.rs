//! What tests start: the local chain, a new one for each test that wants one, and the programs of this workspace.

mod anvil;
mod built;
mod program;

pub use anvil::Anvil;
pub use built::built;
pub use program::{find, find_program};
