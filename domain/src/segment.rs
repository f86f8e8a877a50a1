//! Segments of a training run: where they end, and how many steps each worker ran of them.

use std::collections::BTreeMap;

use crate::job::TrainingSpec;

/// Optimizer steps of a whole training run over `rows` rows.
#[must_use]
pub fn steps_in_all(spec: &TrainingSpec, rows: u64) -> u64 {
    u64::from(spec.epochs).saturating_mul(rows.div_ceil(u64::from(spec.batch_size.max(1))))
}

/// Optimizer steps done at the end of a segment. `None` past the end of the run.
#[must_use]
pub fn step_at_end(spec: &TrainingSpec, rows: u64, segment: u32) -> Option<u64> {
    let step = (u64::from(segment) + 1).checked_mul(u64::from(spec.segment_steps))?;
    (step <= steps_in_all(spec, rows)).then_some(step)
}

/// The steps that each worker ran of a run of `in_all` steps: those of the segments that it was first to finish; the
/// rest is `last`'s. Whoever ran nothing is left out.
#[must_use]
pub fn steps_by_worker<W: Ord>(
    in_all: u64,
    segments: impl IntoIterator<Item = (W, u64)>,
    last: W,
) -> BTreeMap<W, u64> {
    let mut steps = BTreeMap::new();
    let mut rest = in_all;
    for (worker, of_segment) in segments {
        let counted = of_segment.min(rest);
        rest -= counted;
        *steps.entry(worker).or_default() += counted;
    }
    *steps.entry(last).or_default() += rest;
    steps.retain(|_, steps| *steps > 0);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Sha256,
        job::{Loss, Optimizer, Schedule, TensorRef},
    };

    fn spec() -> TrainingSpec {
        let blob = Sha256::of(b"data");
        TrainingSpec {
            program: blob,
            weights: None,
            inputs: BTreeMap::new(),
            target: TensorRef {
                blob,
                dataset_version: None,
                tensor: "y".into(),
            },
            output: 0,
            loss: Loss::Mse,
            optimizer: Optimizer::Sgd {
                learning_rate: 0.1,
                momentum: 0.0,
                weight_decay: 0.0,
                nesterov: false,
            },
            schedule: Schedule::Constant,
            epochs: 3,
            batch_size: 4,
            seed: 0,
            segment_steps: 4,
        }
    }

    #[test]
    fn the_last_step_of_an_epoch_takes_what_is_left() {
        assert_eq!(steps_in_all(&spec(), 12), 9);
        assert_eq!(steps_in_all(&spec(), 13), 12);
    }

    #[test]
    fn no_segment_ends_past_the_run() {
        let ends: Vec<_> = (0..4)
            .map(|segment| step_at_end(&spec(), 13, segment))
            .collect();
        assert_eq!(ends, [Some(4), Some(8), Some(12), None]);
    }

    #[test]
    fn every_step_is_counted_once() {
        assert_eq!(
            steps_by_worker(9, [("a", 4), ("b", 4)], "b"),
            BTreeMap::from([("a", 4), ("b", 5)])
        );
        assert_eq!(
            steps_by_worker(8, [("a", 4), ("a", 4)], "b"),
            BTreeMap::from([("a", 8)])
        );
        assert_eq!(steps_by_worker(9, [], "b"), BTreeMap::from([("b", 9)]));
        assert_eq!(
            steps_by_worker(4, [("a", 4), ("a", 4)], "b"),
            BTreeMap::from([("a", 4)])
        );
    }
}
