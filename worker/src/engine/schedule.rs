//! The learning rate of a step.

use comptoir_domain::job::Schedule;

/// Where a step stands in its training, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub step: u64,
    pub steps_total: u64,
    pub epoch: u32,
}

/// The learning rate of the step at a position. `base` is the optimizer's own.
///
/// - step: `base * gamma ^ (epoch / every_epochs)`, rounded down;
/// - cosine: `min + (base - min) * (1 + cos(pi * step / steps_total)) / 2`;
/// - linear warm-up: `base * (step + 1) / steps`, then `base`: the step before the first would be at 0.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "steps are below 2^53: epochs and rows are limited"
)]
pub fn learning_rate(schedule: &Schedule, base: f64, at: Position) -> f64 {
    match *schedule {
        Schedule::Constant => base,
        Schedule::Step {
            every_epochs,
            gamma,
        } => {
            // One product per drop, as PyTorch's StepLR makes them.
            (0..at.epoch / every_epochs).fold(base, |rate, _| rate * gamma)
        }
        Schedule::Cosine { min_learning_rate } => {
            let share = at.step as f64 / at.steps_total as f64;
            min_learning_rate
                + (base - min_learning_rate) * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0
        }
        Schedule::LinearWarmup { steps } => {
            let done = at.step.saturating_add(1);
            if done >= u64::from(steps) {
                base
            } else {
                base * done as f64 / f64::from(steps)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: &Schedule, step: u64) -> f64 {
        let at = Position {
            step,
            steps_total: 100,
            epoch: u32::try_from(step / 10).unwrap(),
        };
        learning_rate(schedule, 0.8, at)
    }

    #[test]
    fn each_schedule_starts_and_ends_where_it_says() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        close(rate(&Schedule::Constant, 99), 0.8);
        let step = Schedule::Step {
            every_epochs: 4,
            gamma: 0.5,
        };
        close(rate(&step, 39), 0.8);
        close(rate(&step, 40), 0.4);
        close(rate(&step, 80), 0.2);
        let cosine = Schedule::Cosine {
            min_learning_rate: 0.2,
        };
        close(rate(&cosine, 0), 0.8);
        close(rate(&cosine, 50), 0.5);
        close(rate(&cosine, 100), 0.2);
        let warmup = Schedule::LinearWarmup { steps: 4 };
        close(rate(&warmup, 0), 0.2);
        close(rate(&warmup, 3), 0.8);
        close(rate(&warmup, 99), 0.8);
    }
}
