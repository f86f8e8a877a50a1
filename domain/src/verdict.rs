//! Which results of a job agree, and what follows: the rules of each tier.
//!
//! Results are compared bitwise. Only results of inference from different numeric classes may differ, and
//! only as far as two metrics allow: a relative L2 distance sees a cheaper program, the largest single
//! deviation sees one changed element.

use serde::Serialize;

use crate::{
    digest::Sha256,
    job::{JobSpec, Tier},
};

/// Largest relative L2 distance of two fp32 tensors that agree.
pub const REL_L2_MAX: f64 = 1e-5;
/// Largest deviation of one element, relative to the largest element, of two fp32 tensors that agree.
pub const MAX_REF_MAX: f64 = 5e-6;
/// Executions of a verified job at most: for `sampled` one, an audit and a third on mismatch, for `replicated` two and a third,
/// for `quorum` three from the start.
pub const REPLICAS_MAX: usize = 3;

/// How far two results are apart: the worst over their tensors.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Deviation {
    /// Relative L2 distance.
    pub rel_l2: f64,
    /// Largest deviation of one element, relative to the largest element.
    pub max_ref: f64,
}

impl Deviation {
    /// Two results that cannot be told to agree, whatever the tolerance.
    pub const TOTAL: Self = Self {
        rel_l2: f64::INFINITY,
        max_ref: f64::INFINITY,
    };

    /// The deviation of two fp32 tensors of one shape. Elements of equal bits agree, not-a-number too;
    /// an element that is finite in one tensor alone is a total deviation.
    #[must_use]
    pub fn between(
        left: impl IntoIterator<Item = f32>,
        right: impl IntoIterator<Item = f32>,
    ) -> Self {
        let (mut distance, mut squares) = (0.0_f64, [0.0_f64; 2]);
        let (mut deviation, mut largest) = (0.0_f64, 0.0_f64);
        for (left, right) in left.into_iter().zip(right) {
            if left.to_bits() == right.to_bits() && !left.is_finite() {
                continue;
            }
            if !left.is_finite() || !right.is_finite() {
                return Self::TOTAL;
            }
            let (left, right) = (f64::from(left), f64::from(right));
            let apart = (left - right).abs();
            distance += apart * apart;
            squares[0] += left * left;
            squares[1] += right * right;
            deviation = deviation.max(apart);
            largest = largest.max(left.abs()).max(right.abs());
        }
        let relative = |part: f64, whole: f64| if part == 0.0 { 0.0 } else { part / whole };
        Self {
            rel_l2: relative(distance.sqrt(), squares[0].max(squares[1]).sqrt()),
            max_ref: relative(deviation, largest),
        }
    }

    /// The worse of both, metric by metric.
    #[must_use]
    pub const fn worse(self, other: Self) -> Self {
        Self {
            rel_l2: self.rel_l2.max(other.rel_l2),
            max_ref: self.max_ref.max(other.max_ref),
        }
    }

    /// Is it small enough for two numeric classes that both computed honestly?
    #[must_use]
    pub const fn is_tolerable(self) -> bool {
        self.rel_l2 <= REL_L2_MAX && self.max_ref <= MAX_REF_MAX
    }
}

/// A result as verification sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a> {
    /// The digest of its outputs.
    pub result: Sha256,
    /// The numeric class of the worker that computed it.
    pub class: &'a str,
}

/// How two results compare.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Comparison {
    /// Bit by bit the same.
    Bitwise,
    /// Not the same, which one class would have to be.
    Differs,
    /// Not the same, from classes that may deviate: their tensors decide.
    Tensors,
}

/// How two results of one job compare, as far as their digests tell.
#[must_use]
pub fn compare(spec: &JobSpec, left: Shown<'_>, right: Shown<'_>) -> Comparison {
    if left.result == right.result {
        return Comparison::Bitwise;
    }
    match spec {
        JobSpec::Inference(_) if left.class != right.class => Comparison::Tensors,
        JobSpec::Inference(_) | JobSpec::Training(_) => Comparison::Differs,
    }
}

/// Do two results agree?
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Agreement {
    /// Bit by bit.
    Bitwise,
    /// Within the tolerance between two numeric classes.
    Tolerance(Deviation),
    /// No. The deviation, where tensors were compared.
    None(Option<Deviation>),
}

impl Agreement {
    /// The agreement of two results whose tensors deviate this much.
    #[must_use]
    pub const fn of(deviation: Deviation) -> Self {
        if deviation.is_tolerable() {
            Self::Tolerance(deviation)
        } else {
            Self::None(Some(deviation))
        }
    }

    /// Do they agree at all?
    #[must_use]
    pub const fn holds(self) -> bool {
        match self {
            Self::Bitwise | Self::Tolerance(_) => true,
            Self::None(_) => false,
        }
    }
}

/// What kind of verdict a receipt carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// Nobody compared anything: tier `none`.
    Unverified,
    /// Nobody compared anything, by a draw: tier `sampled`.
    Sampled,
    /// Accepted results are the same bit by bit.
    Bitwise,
    /// Accepted results agree within the tolerance between numeric classes.
    Tolerance,
    /// No two results agree.
    Unstable,
}

impl VerdictKind {
    /// The text form, in JSON and in Postgres.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unverified => "unverified",
            Self::Sampled => "sampled",
            Self::Bitwise => "bitwise",
            Self::Tolerance => "tolerance",
            Self::Unstable => "unstable",
        }
    }
}

/// What follows from the results so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// The job has a result.
    Accept {
        /// How it was verified.
        kind: VerdictKind,
        /// The result that the client gets, by its place in the list.
        reference: usize,
        /// Per result: is it accepted?
        accepted: Vec<bool>,
    },
    /// One more execution, by another owner, decides.
    Another,
    /// No two of the executions agree: nobody is to blame, nobody is paid.
    Unstable,
}

/// Rules on `results` shown results. `audited` says whether the one result of a sampled job was drawn to be run again;
/// `agreement` compares two results, the lower place first.
#[must_use]
pub fn rule(
    tier: Tier,
    audited: bool,
    results: usize,
    agreement: impl Fn(usize, usize) -> Agreement,
) -> Ruling {
    let unseen = |kind| Ruling::Accept {
        kind,
        reference: 0,
        accepted: vec![true; results],
    };
    match tier {
        Tier::None => unseen(VerdictKind::Unverified),
        Tier::Sampled if results == 1 && !audited => unseen(VerdictKind::Sampled),
        Tier::Sampled | Tier::Replicated | Tier::Quorum => majority(results, agreement),
    }
}

fn majority(results: usize, agreement: impl Fn(usize, usize) -> Agreement) -> Ruling {
    let between = |a: usize, b: usize| {
        if a == b {
            Agreement::Bitwise
        } else {
            agreement(a.min(b), a.max(b))
        }
    };
    let peers = |of: usize| {
        (0..results)
            .filter(|other| between(of, *other).holds())
            .count()
    };
    // The result that most agree with; of equals the first.
    let reference = (0..results).max_by_key(|place| (peers(*place), results - place));
    match reference {
        Some(reference) if peers(reference) >= 2 => {
            let accepted: Vec<bool> = (0..results)
                .map(|place| between(reference, place).holds())
                .collect();
            let bitwise = (0..results)
                .filter(|place| accepted[*place])
                .all(|place| between(reference, place) == Agreement::Bitwise);
            let kind = if bitwise {
                VerdictKind::Bitwise
            } else {
                VerdictKind::Tolerance
            };
            Ruling::Accept {
                kind,
                reference,
                accepted,
            }
        }
        Some(_) | None if results < REPLICAS_MAX => Ruling::Another,
        Some(_) | None => Ruling::Unstable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: Agreement = Agreement::None(None);

    fn near() -> Agreement {
        Agreement::of(Deviation {
            rel_l2: 3e-7,
            max_ref: 5e-7,
        })
    }

    #[test]
    fn the_measured_cheats_fail_and_honest_classes_pass() {
        // VERIFICATION.md §4.1: honest ISA difference, one element + 1e-3, fp16 weights.
        for (rel_l2, max_ref, tolerable) in [
            (4.8e-7, 5.8e-7, true),
            (2.0e-6, 7.2e-5, false),
            (3.6e-4, 1e-6, false),
        ] {
            assert_eq!(
                Deviation { rel_l2, max_ref }.is_tolerable(),
                tolerable,
                "{rel_l2} {max_ref}"
            );
        }
    }

    #[test]
    fn one_changed_element_among_many_is_seen() {
        let honest: Vec<f32> = (0..50_000_u16)
            .map(|place| f32::from(place).sin())
            .collect();
        let mut tampered = honest.clone();
        tampered[77] += 1e-3;
        let deviation = Deviation::between(honest.iter().copied(), tampered);
        assert!(
            deviation.rel_l2 <= REL_L2_MAX && deviation.max_ref > MAX_REF_MAX,
            "{deviation:?}"
        );
        assert!(!deviation.is_tolerable());
    }

    #[test]
    fn what_is_not_a_number_agrees_with_itself_alone() {
        let nan = f32::NAN;
        assert_eq!(
            Deviation::between([nan, 1.0], [nan, 1.0]),
            Deviation::default()
        );
        for other in [0.0, f32::INFINITY] {
            assert!(!Deviation::between([nan, 1.0], [other, 1.0]).is_tolerable());
        }
        assert_eq!(
            Deviation::between([0.0, -0.0], [-0.0, 0.0]),
            Deviation::default()
        );
        assert!(!Deviation::between([0.0], [f32::MIN_POSITIVE]).is_tolerable());
    }

    #[test]
    fn tier_none_takes_the_one_result() {
        let ruling = rule(Tier::None, false, 1, |_, _| NO);
        let kind = VerdictKind::Unverified;
        assert_eq!(
            ruling,
            Ruling::Accept {
                kind,
                reference: 0,
                accepted: vec![true]
            }
        );
    }

    #[test]
    fn a_sampled_result_is_taken_as_it_is_unless_it_was_drawn() {
        let taken = Ruling::Accept {
            kind: VerdictKind::Sampled,
            reference: 0,
            accepted: vec![true],
        };
        assert_eq!(rule(Tier::Sampled, false, 1, |_, _| NO), taken);
        assert_eq!(rule(Tier::Sampled, true, 1, |_, _| NO), Ruling::Another);
        assert_eq!(rule(Tier::Sampled, true, 2, |_, _| NO), Ruling::Another);
        assert_eq!(rule(Tier::Sampled, true, 3, |_, _| NO), Ruling::Unstable);
        let confirmed = Ruling::Accept {
            kind: VerdictKind::Bitwise,
            reference: 0,
            accepted: vec![true, true],
        };
        assert_eq!(
            rule(Tier::Sampled, true, 2, |_, _| Agreement::Bitwise),
            confirmed
        );
    }

    #[test]
    fn a_quorum_is_two_of_three() {
        let agree = |a, b| {
            if (a, b) == (1, 2) {
                Agreement::Bitwise
            } else {
                NO
            }
        };
        let accept = Ruling::Accept {
            kind: VerdictKind::Bitwise,
            reference: 1,
            accepted: vec![false, true, true],
        };
        assert_eq!(rule(Tier::Quorum, false, 3, agree), accept);
        assert_eq!(rule(Tier::Quorum, false, 3, |_, _| NO), Ruling::Unstable);
    }

    #[test]
    fn two_that_agree_are_accepted_and_two_that_differ_ask_for_a_third() {
        let accept = |kind| Ruling::Accept {
            kind,
            reference: 0,
            accepted: vec![true, true],
        };
        assert_eq!(
            rule(Tier::Replicated, false, 2, |_, _| Agreement::Bitwise),
            accept(VerdictKind::Bitwise)
        );
        assert_eq!(
            rule(Tier::Replicated, false, 2, |_, _| near()),
            accept(VerdictKind::Tolerance)
        );
        assert_eq!(rule(Tier::Replicated, false, 2, |_, _| NO), Ruling::Another);
        assert_eq!(rule(Tier::Replicated, false, 1, |_, _| NO), Ruling::Another);
    }

    #[test]
    fn the_majority_of_three_is_accepted_and_the_rest_rejected() {
        for odd in 0..3 {
            let agree = |a, b| {
                if a == odd || b == odd {
                    NO
                } else {
                    Agreement::Bitwise
                }
            };
            let accepted = (0..3).map(|place| place != odd).collect();
            let reference = usize::from(odd == 0);
            let kind = VerdictKind::Bitwise;
            assert_eq!(
                rule(Tier::Replicated, false, 3, agree),
                Ruling::Accept {
                    kind,
                    reference,
                    accepted
                }
            );
        }
    }

    #[test]
    fn three_that_all_differ_are_unstable() {
        assert_eq!(
            rule(Tier::Replicated, false, 3, |_, _| NO),
            Ruling::Unstable
        );
    }

    #[test]
    fn of_a_chain_of_tolerances_the_middle_is_the_reference() {
        let agree = |a, b| if (a, b) == (0, 2) { NO } else { near() };
        let accepted = vec![true; 3];
        let kind = VerdictKind::Tolerance;
        assert_eq!(
            rule(Tier::Replicated, false, 3, agree),
            Ruling::Accept {
                kind,
                reference: 1,
                accepted
            }
        );
    }
}
