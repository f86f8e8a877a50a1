//! Request and response bodies of the worker protocol, what is signed and hashed in it, and its limits.
//!
//! A worker joins once ([`join`]), then trades a signature for a one-hour token ([`token`]) and repeats
//! one exchange ([`work`]): it reports what ended since last time and asks for leases. Heartbeats
//! ([`heartbeat`]) keep its leases; metrics, checkpoints and blobs of an attempt have routes of their
//! own ([`attempt`]), and so have files of datasets ([`dataset`]), fenced by the header [`LEASE_TOKEN_HEADER`]. How results are committed and shown
//! is in [`seal`]. Calls of models come on a stream of their own ([`calls`]).
//!
//! Requests refuse unknown fields. Whoever reads a reply must ignore the fields that it does not know.

pub mod attempt;
pub mod calls;
pub mod dataset;
pub mod encoded;
pub mod heartbeat;
pub mod join;
pub mod limits;
pub mod seal;
pub mod token;
pub mod work;

pub use comptoir_domain::{
    lease::{LEASE_MS, REVEAL_MS},
    seal::{OUTPUT_CHECKPOINT, OUTPUT_TENSORS, OUTPUT_WEIGHTS},
};

/// The header that carries the lease token of an attempt's own routes.
pub const LEASE_TOKEN_HEADER: &str = "comptoir-lease-token";

/// How often a worker sends heartbeats, in milliseconds.
pub const HEARTBEAT_EVERY_MS: u32 = 10_000;
/// A worker without an answered heartbeat for this long stops the attempt by itself, in milliseconds.
pub const SELF_CANCEL_AFTER_MS: u32 = 20_000;
/// Longest hold of `POST /v1/work`, in milliseconds.
pub const WAIT_MS_MAX: u32 = 30_000;

/// Most leases of one exchange.
pub const LEASES_MAX: usize = 256;
/// Most seals, reveals, failures and held attempts of one exchange, each; and most leases of one heartbeat.
pub const REPORTS_MAX: usize = 512;
/// Most events of one request.
pub const EVENTS_MAX: usize = 64;
/// Events of one attempt at most.
pub const EVENT_SEQ_MAX: u64 = 20_000;
/// Most values of one metrics event.
pub const METRICS_MAX: usize = 32;
/// Most outputs of one result.
pub const OUTPUTS_MAX: usize = 16;
/// Longest name of a worker, an output or a metric, in characters.
pub const NAME_CHARS_MAX: usize = 100;
/// Longest text of a worker's fact, in characters.
pub const FACT_CHARS_MAX: usize = 100;
/// Longest failure code, in characters: `snake_case`.
pub const CODE_CHARS_MAX: usize = 64;
/// Longest failure detail, in characters.
pub const DETAIL_CHARS_MAX: usize = 2_000;
