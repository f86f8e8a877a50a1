//! What tests start: the local chain, a new one for each test that wants one, and the programs of this workspace; and what they wait for.

mod anvil;
mod built;
mod locks;
mod program;

pub use anvil::Anvil;
pub use built::built;
pub use locks::wait_for_a_lock;
pub use program::{find, find_program};
