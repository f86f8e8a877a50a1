//! What libtorch and which devices are here, for `doctor` and for registration.

use comptoir_domain::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::aten::{self, AtenError};

/// The version of libtorch that the worker is made for.
pub const LIBTORCH_EXPECTED: &str = "2.13.0";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Version of libtorch.
    pub libtorch: String,
    /// Digest of how that libtorch was built, in its own words: two builds of one version may compute differently.
    pub libtorch_build: Sha256,
    /// The vector instructions it uses.
    pub cpu_capability: String,
    /// Threads that the machine runs at once.
    pub cpu_threads: usize,
    /// Memory in bytes of each CUDA device.
    pub cuda_memory_bytes: Vec<u64>,
    /// Why there is no CUDA, where there is none.
    pub cuda_missing: Option<String>,
    /// Why children get no namespaces of their own, where they get none.
    pub namespaces_missing: Option<String>,
}

/// Looks around. Loads libtorch's CUDA half where that is possible.
pub fn collect(namespaces_missing: Option<String>) -> Result<Facts, AtenError> {
    let opened = aten::open_cuda();
    let cuda_memory_bytes = if opened.is_ok() {
        aten::cuda_devices()?
    } else {
        Vec::new()
    };
    let cuda_missing = match opened {
        Err(error) => Some(error.to_string()),
        Ok(()) if cuda_memory_bytes.is_empty() => Some("libtorch sees no CUDA device".to_owned()),
        Ok(()) => None,
    };
    Ok(Facts {
        libtorch: aten::headers_version()?,
        libtorch_build: Sha256::of(aten::build_configuration()?.as_bytes()),
        cpu_capability: aten::cpu_capability()?,
        cpu_threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        cuda_memory_bytes,
        cuda_missing,
        namespaces_missing,
    })
}
