//! What a batch commits to: leaves, trees, header, the published leaf file, and the documents that prove a part of it.
//!
//! Everything here must agree to the byte with the `Settlement` contract; `contracts/test/vectors` holds both to it.

pub mod document;
pub mod event;
pub mod file;
pub mod header;
pub mod intent;
pub mod leaf;
pub mod merkle;
pub mod state;
pub mod text;

pub use document::{AccountDocument, Mismatch, ReceiptDocument, Verified};
pub use header::Header;
pub use intent::IntentKind;
pub use leaf::{Account, Domain, Receipt, Split, salted};
pub use merkle::Tree;
pub use state::BatchState;
