//! What every HTTP service of ours shares: the server, problem documents, extractors, request ids,
//! metrics and tokens.
//!
//! A service builds its routes, passes them through [`finish`] and gives the result to [`server::serve`].

pub mod client_ip;
pub mod codes;
pub mod credential;
pub mod dialect;
pub mod extract;
pub mod health;
pub mod jwt;
pub mod key_ring;
pub mod metrics;
pub mod moment;
mod observe;
pub mod openapi;
pub mod parameters;
pub mod problem;
pub mod rate_limit;
pub mod request_id;
pub mod server;

pub use observe::{Edge, finish, finish_with};
pub use problem::{FieldError, Problem};
