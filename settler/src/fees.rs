//! What a transaction offers: an estimate, and a rise for one that is stuck.

/// What transactions may cost, in wei for a unit of gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeePolicy {
    /// Least that is offered to the proposer.
    pub tip_floor_wei: u128,
    /// Most that is ever offered in all. At the ceiling the same bytes are sent again and again.
    pub ceiling_wei: u128,
    /// Blocks after which a transaction that was not mined offers more.
    pub bump_after_blocks: u64,
}

impl Default for FeePolicy {
    fn default() -> Self {
        Self {
            tip_floor_wei: 1_000_000_000,
            ceiling_wei: 500_000_000_000,
            bump_after_blocks: 4,
        }
    }
}

/// What a transaction offers, in wei for a unit of gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fees {
    /// Most that is paid in all.
    pub cap_wei: u128,
    /// What the proposer gets of it.
    pub tip_wei: u128,
}

impl FeePolicy {
    /// Twice the base fee and the tip: enough for six full blocks in a row. Within the ceiling.
    #[must_use]
    pub fn estimate(&self, base_fee_wei: u128, tip_wei: u128) -> Fees {
        let tip_wei = tip_wei.max(self.tip_floor_wei).min(self.ceiling_wei);
        let cap_wei = base_fee_wei
            .saturating_mul(2)
            .saturating_add(tip_wei)
            .min(self.ceiling_wei);
        Fees { cap_wei, tip_wei }
    }

    /// What replaces an offer that was not taken: both parts rise by an eighth at least, or nodes refuse the replacement.
    /// `None` when the ceiling does not allow that.
    #[must_use]
    pub fn bump(&self, old: Fees, estimate: Fees) -> Option<Fees> {
        let rise = |wei: u128| wei.saturating_add(wei.div_ceil(8)).saturating_add(1);
        let bumped = Fees {
            cap_wei: rise(old.cap_wei).max(estimate.cap_wei),
            tip_wei: rise(old.tip_wei).max(estimate.tip_wei),
        };
        (bumped.cap_wei <= self.ceiling_wei).then_some(bumped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: FeePolicy = FeePolicy {
        tip_floor_wei: 10,
        ceiling_wei: 1_000,
        bump_after_blocks: 4,
    };

    #[test]
    fn an_estimate_has_a_floor_and_a_ceiling() {
        assert_eq!(
            POLICY.estimate(100, 3),
            Fees {
                cap_wei: 210,
                tip_wei: 10
            }
        );
        assert_eq!(
            POLICY.estimate(600, 50),
            Fees {
                cap_wei: 1_000,
                tip_wei: 50
            }
        );
        assert_eq!(
            POLICY.estimate(u128::MAX, 5_000),
            Fees {
                cap_wei: 1_000,
                tip_wei: 1_000
            }
        );
    }

    #[test]
    fn a_replacement_offers_an_eighth_more_and_one_wei() {
        let low = Fees {
            cap_wei: 0,
            tip_wei: 0,
        };
        // 12.5 % of 80 is 10, of 81 it is 10.125.
        let bumped = POLICY
            .bump(
                Fees {
                    cap_wei: 80,
                    tip_wei: 81,
                },
                low,
            )
            .unwrap();
        assert_eq!(
            bumped,
            Fees {
                cap_wei: 91,
                tip_wei: 93
            }
        );
        assert!(bumped.cap_wei * 1_000 > 80 * 1_125 && bumped.tip_wei * 1_000 > 81 * 1_125);
        let high = Fees {
            cap_wei: 500,
            tip_wei: 20,
        };
        assert_eq!(
            POLICY.bump(
                Fees {
                    cap_wei: 80,
                    tip_wei: 80
                },
                high
            ),
            Some(Fees {
                cap_wei: 500,
                tip_wei: 91
            })
        );
    }

    #[test]
    fn the_ceiling_holds_against_a_stuck_transaction() {
        let near = Fees {
            cap_wei: 900,
            tip_wei: 20,
        };
        assert_eq!(POLICY.bump(near, near), None);
        assert_eq!(
            POLICY
                .bump(
                    Fees {
                        cap_wei: 887,
                        tip_wei: 1
                    },
                    near
                )
                .unwrap()
                .cap_wei,
            999
        );
    }
}
