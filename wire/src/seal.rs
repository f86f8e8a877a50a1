//! What is hashed: the result of an attempt, the seal that commits to it, and signed documents.

use comptoir_domain::digest::Sha256;
use serde::Serialize;

pub use comptoir_domain::seal::{output_of, result_sha256, seal};

/// A context, and the digest of a document's canonical form.
pub(crate) fn document_signature_bytes(
    context: &[u8],
    document: &impl Serialize,
) -> Result<Vec<u8>, serde_json::Error> {
    Ok([context, Sha256::of_document(document)?.0.as_slice()].concat())
}
