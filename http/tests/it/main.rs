//! The server over real sockets, and what it tells of itself.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

mod limits;
mod observe;
mod server;
