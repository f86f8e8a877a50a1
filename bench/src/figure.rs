//! What a benchmark says: its value, the reference beside which it ran, and the goal of their ratio.

use std::fmt;

use serde::Serialize;

/// What the ratio should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At least that.
    AtLeast(f64),
    /// At least that, or ours alone at least so much.
    EitherAtLeast(f64, f64),
    /// At most that.
    AtMost(f64),
}

/// One measured figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    name: &'static str,
    /// Ours over the reference.
    pub ratio: f64,
    goal: String,
    reference: f64,
    value: f64,
}

/// Ours and the reference of each round; they ran one after the other.
#[derive(Debug, Default)]
pub struct Rounds {
    values: Vec<f64>,
    references: Vec<f64>,
    ratios: Vec<f64>,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">={bound}"),
            Self::EitherAtLeast(bound, value) => write!(f, ">={bound} or value>={value}"),
            Self::AtMost(bound) => write!(f, "<={bound}"),
        }
    }
}

impl Rounds {
    /// Notes one round, and tells it.
    pub fn note(&mut self, value: f64, reference: f64) {
        let ratio = value / reference;
        self.values.push(value);
        self.references.push(reference);
        self.ratios.push(ratio);
        println!(
            "round {}: {value:.1} beside {reference:.1}: {ratio:.3}",
            self.ratios.len()
        );
    }

    /// The medians of all rounds.
    #[must_use]
    pub fn figure(mut self, name: &'static str, goal: Goal) -> Figure {
        Figure {
            name,
            ratio: median(&mut self.ratios),
            goal: goal.to_string(),
            reference: median(&mut self.references),
            value: median(&mut self.values),
        }
    }
}

impl Figure {
    /// The line that programs read.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("finite numbers and words have a JSON form")
    }
}

/// The middle one; zero of nothing.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
