//! `POST /v1/join`: a join token becomes a worker identity bound to an Ed25519 key made on the worker.

use comptoir_domain::{amount::Amount, id::WorkerId, job::Device};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{encoded::Base64, seal::document_signature_bytes};

/// What the signed bytes of a join request start with.
pub const JOIN_CONTEXT: &[u8] = b"comptoir-worker-join/1\0";
/// Most memory that a worker may name: what JSON numbers hold exactly, in bytes.
pub const MEMORY_BYTES_MAX: u64 = (1 << 53) - 1;
/// Most threads per job that a worker may name.
pub const THREADS_MAX: u32 = 1024;

/// Asks for a worker identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The join token, `cwj_….….…`, as it was shown once.
    pub token: String,
    /// The worker's Ed25519 public key: 32 bytes in base64.
    #[schema(value_type = String, format = Byte)]
    pub public_key: Base64<32>,
    /// What its owner calls it: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
    /// What it can run.
    pub facts: WorkerFacts,
    /// Ed25519 over `"comptoir-worker-join/1"`, a zero byte, and the SHA-256 of the canonical JSON
    /// (RFC 8785) of this body without `signature`: 64 bytes in base64.
    #[schema(value_type = String, format = Byte)]
    pub signature: Base64<64>,
}

/// What a worker can run; jobs are matched against it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerFacts {
    /// The kind of device that runs its jobs.
    pub device: Device,
    /// The device's own name: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    pub device_name: String,
    /// Memory for one job, in bytes.
    #[schema(minimum = 1)]
    pub memory_bytes: u64,
    /// Threads per job; part of the numeric class.
    #[schema(minimum = 1, maximum = 1024)]
    pub threads: u32,
    /// The class whose members compute bitwise equal results, measured by the canary suite: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    pub numeric_class: String,
    /// The version of libtorch: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    pub libtorch: String,
    /// The version of the worker: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    pub version: String,
    /// The lowest rate it works for: nano base units per 10^9 multiply-adds, a decimal string.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]{0,36})$")]
    pub price_floor_nano: Amount,
    /// Its jobs run without the walls that keep them from its host, because its owner allowed it. Left out by all others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsandboxed: bool,
}

/// The new identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinReply {
    /// The worker's id, for every later token request and for its seals.
    #[schema(value_type = String, example = "wrk_01h455vb4pex5vsknk084sn02q")]
    pub worker_id: WorkerId,
}

impl JoinRequest {
    /// The bytes that `signature` signs; `signature` itself does not enter them.
    ///
    /// # Errors
    /// Never for a request that JSON can hold.
    pub fn signing_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut document = serde_json::to_value(self)?;
        if let Some(fields) = document.as_object_mut() {
            fields.remove("signature");
        }
        document_signature_bytes(JOIN_CONTEXT, &document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> JoinRequest {
        JoinRequest {
            token: "cwj_a.b.c".into(),
            public_key: Base64([1; 32]),
            name: "bench".into(),
            facts: WorkerFacts {
                device: Device::Cpu,
                device_name: "x".into(),
                memory_bytes: 1 << 33,
                threads: 1,
                numeric_class: "c".into(),
                libtorch: "2.13.0".into(),
                version: "0.1.0".into(),
                price_floor_nano: Amount::ZERO,
                unsandboxed: false,
            },
            signature: Base64([0; 64]),
        }
    }

    #[test]
    fn the_signature_covers_everything_but_itself() {
        let signed = request().signing_bytes().unwrap();
        let resigned = JoinRequest {
            signature: Base64([9; 64]),
            ..request()
        };
        assert_eq!(resigned.signing_bytes().unwrap(), signed);
        let mut greedier = request();
        greedier.facts.price_floor_nano = Amount::MAX;
        assert_ne!(greedier.signing_bytes().unwrap(), signed);
        let mut open = request();
        open.facts.unsandboxed = true;
        assert_ne!(open.signing_bytes().unwrap(), signed);
        let renamed = JoinRequest {
            name: "other".into(),
            ..request()
        };
        assert_ne!(renamed.signing_bytes().unwrap(), signed);
    }
}
