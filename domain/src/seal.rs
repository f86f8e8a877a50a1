//! Commit, then reveal: what a worker commits to before anyone sees its result.

use std::collections::BTreeMap;

use crate::{
    digest::Sha256,
    id::{AttemptId, WorkerId},
    job::JobSpec,
};

/// The output of a training job: a safetensors blob of trained parameters and buffers, by name.
pub const OUTPUT_WEIGHTS: &str = "weights";
/// The output of an inference job: a safetensors blob of the program's output tensors, named
/// `output_0`, `output_1`, … in the program's order.
pub const OUTPUT_TENSORS: &str = "outputs";

/// The output of a replayed piece of training that does not end the run: the checkpoint at its end.
pub const OUTPUT_CHECKPOINT: &str = "checkpoint";

/// The output that every result of a job has.
#[must_use]
pub const fn output_of(spec: &JobSpec) -> &'static str {
    match spec {
        JobSpec::Training(_) => OUTPUT_WEIGHTS,
        JobSpec::Inference(_) => OUTPUT_TENSORS,
    }
}

/// The SHA-256 of the canonical JSON (RFC 8785) of `{output name: blob digest}`.
#[must_use]
pub fn result_sha256(outputs: &BTreeMap<String, Sha256>) -> Sha256 {
    Sha256::of_document(outputs).expect("a map of texts has a JSON form")
}

/// The SHA-256 of the 16 bytes of the worker's UUID, the 16 of the attempt's, 32 random bytes and the
/// result digest. Bound to worker and attempt, so that a copied seal opens for nobody else.
#[must_use]
pub fn seal(worker: WorkerId, attempt: AttemptId, salt: &[u8; 32], result: Sha256) -> Sha256 {
    let bytes = [
        worker.0.as_bytes().as_slice(),
        attempt.0.as_bytes(),
        salt,
        &result.0,
    ]
    .concat();
    Sha256::of(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_the_digest_of_its_canonical_json() {
        let outputs = BTreeMap::from([
            ("b".to_owned(), Sha256([1; 32])),
            ("a".to_owned(), Sha256([2; 32])),
        ]);
        let json = format!(
            "{{\"a\":\"{}\",\"b\":\"{}\"}}",
            "02".repeat(32),
            "01".repeat(32)
        );
        assert_eq!(result_sha256(&outputs), Sha256::of(json.as_bytes()));
    }

    #[test]
    fn a_copied_seal_fits_no_other_worker_or_attempt() {
        let (worker, attempt) = (WorkerId::generate(), AttemptId::generate());
        let (salt, result) = ([5; 32], Sha256([6; 32]));
        let sealed = seal(worker, attempt, &salt, result);
        assert_eq!(sealed, seal(worker, attempt, &salt, result));
        assert_ne!(sealed, seal(WorkerId::generate(), attempt, &salt, result));
        assert_ne!(sealed, seal(worker, AttemptId::generate(), &salt, result));
    }
}
