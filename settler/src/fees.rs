//! What a transaction offers: an estimate, and a rise for one that is stuck.

/// Most gas that one transaction may take (EIP-7825).
pub const GAS_MAX: u64 = 1 << 24;
/// Gas of a transfer that calls nothing.
pub const TRANSFER_GAS: u64 = 21_000;

/// What transactions may cost, in wei.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeePolicy {
    /// Least that is offered to the proposer, for a unit of gas.
    pub tip_floor_wei: u128,
    /// Most that is ever offered in all, for a unit of gas. At the ceiling the same bytes are sent again and again.
    pub ceiling_wei: u128,
    /// Most that may be spent in 24 hours, what is under way counted at the most it can cost.
    pub spend_per_day_wei: u128,
    /// Blocks after which a transaction that was not mined offers more.
    pub bump_after_blocks: u64,
}

impl Default for FeePolicy {
    fn default() -> Self {
        Self {
            tip_floor_wei: 1_000_000_000,
            ceiling_wei: 500_000_000_000,
            spend_per_day_wei: 1_000_000_000_000_000_000,
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

/// The gas that a transaction may use: a fifth more than was estimated. `None` for one that no block takes.
#[must_use]
pub fn gas_limit(estimate: u64) -> Option<u64> {
    (estimate <= GAS_MAX).then(|| estimate.saturating_add(estimate.div_ceil(5)).min(GAS_MAX))
}

impl Fees {
    /// The most that a transaction of so much gas can cost.
    #[must_use]
    pub fn most_wei(self, gas_limit: u64) -> u128 {
        self.cap_wei.saturating_mul(u128::from(gas_limit))
    }
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
        spend_per_day_wei: 1_000_000,
        bump_after_blocks: 4,
    };

    #[test]
    fn a_gas_limit_is_a_fifth_above_the_estimate_and_within_what_a_block_takes() {
        assert_eq!(gas_limit(100_000), Some(120_000));
        assert_eq!(gas_limit(100_001), Some(120_002));
        assert_eq!(gas_limit(GAS_MAX - 1), Some(GAS_MAX));
        assert_eq!(gas_limit(GAS_MAX), Some(16_777_216));
        assert_eq!(gas_limit(GAS_MAX + 1), None);
    }

    #[test]
    fn a_bump_is_the_least_that_nodes_take_for_a_replacement() {
        // Nodes want 12.5 % more of both legs: more than old * 1.125, so one wei above its ceiling is enough whatever they
        // round to.
        let cheap = Fees {
            cap_wei: 0,
            tip_wei: 0,
        };
        let policy = FeePolicy {
            ceiling_wei: u128::MAX,
            ..POLICY
        };
        for wei in (0..10_000).chain([u128::from(u64::MAX), 1_000_000_007, 999_999_999_999]) {
            let old = Fees {
                cap_wei: wei,
                tip_wei: wei,
            };
            let bumped = policy.bump(old, cheap).unwrap();
            let wanted = (wei * 1_125).div_ceil(1_000) + 1;
            assert_eq!((bumped.cap_wei, bumped.tip_wei), (wanted, wanted), "{wei}");
        }
    }

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
