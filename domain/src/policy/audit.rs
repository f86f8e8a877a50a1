//! Which results of the tier `sampled` are audited: a rate that falls with each audit passed, never below a floor, and
//! a draw from a committed seed that anyone can repeat once the seed is shown.
#![deny(clippy::float_arithmetic)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use crate::id::AttemptId;

/// A rate of one: everything is audited.
pub const CERTAIN_PPM: u32 = 1_000_000;
/// Trust is lost by a worker that finished nothing for longer.
pub const IDLE_MAX: Duration = Duration::days(7);
/// What the seed of draws is hashed with for its commitment.
const COMMITMENT_TAG: &[u8] = b"comptoir audit seed v1";

/// When results are audited, and for how long pay is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditPolicy {
    /// Trusted results before which every result is audited.
    pub certain_until: u32,
    /// How the rate falls after that.
    pub decay: Decay,
    /// The rate never falls below, in millionths.
    pub floor_ppm: u32,
    /// Which results earn trust.
    pub earning: Earning,
    /// Later results of the worker before the pay of one is released.
    pub holdback: u64,
}

/// How a rate falls with trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// At once, to the floor.
    Floor,
    /// As one divided by `offset` and the trusted results since the certain start together.
    Inverse {
        /// Added to the trusted results.
        offset: u32,
    },
}

/// Which results earn trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earning {
    /// Those that another owner's run confirmed.
    Confirmed,
    /// Those that nobody refuted, looked at or not.
    Unrefuted,
}

/// What a look at a result found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// Nobody looked.
    Unaudited,
    /// Another owner's run gave the same.
    Confirmed,
    /// Two other owners agree on something else.
    Refuted,
}

/// The policy of the service: the first twenty results are all audited, then the rate falls with each audit passed, 1/2,
/// 1/3 …, to a floor of 5 %. It starts to fall after the certain start and not in it, so that a cheat who is honest for a
/// hundred results still meets a high rate.
pub const POLICY: AuditPolicy = AuditPolicy {
    certain_until: 20,
    decay: Decay::Inverse { offset: 1 },
    floor_ppm: 50_000,
    earning: Earning::Confirmed,
    holdback: 50,
};

impl AuditPolicy {
    /// The rate at which a worker with so many trusted results is audited, in millionths.
    #[must_use]
    pub const fn rate_ppm(&self, trusted: u32) -> u32 {
        if trusted < self.certain_until {
            return CERTAIN_PPM;
        }
        let falling = match self.decay {
            Decay::Floor => 0,
            Decay::Inverse { offset } => {
                match CERTAIN_PPM.checked_div(offset.saturating_add(trusted - self.certain_until)) {
                    Some(rate) => rate,
                    None => CERTAIN_PPM,
                }
            }
        };
        if falling > self.floor_ppm {
            falling
        } else {
            self.floor_ppm
        }
    }

    /// The trusted results after one more.
    #[must_use]
    pub const fn after(&self, trusted: u32, checked: Checked) -> u32 {
        match (checked, self.earning) {
            (Checked::Refuted, _) => 0,
            (Checked::Confirmed, _) | (Checked::Unaudited, Earning::Unrefuted) => {
                trusted.saturating_add(1)
            }
            (Checked::Unaudited, Earning::Confirmed) => trusted,
        }
    }
}

/// Whose trust it is: with another key, another numeric class or out of another network it starts anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The worker's Ed25519 key.
    pub public_key: [u8; 32],
    /// The numeric class that it measured.
    pub numeric_class: String,
    /// Where its last token was asked for from, as [`block_of`] says; `None` where nobody saw.
    pub network: Option<String>,
}

impl Identity {
    /// Is this still the worker that earned the trust? A network that nobody saw changes nothing.
    #[must_use]
    pub fn is_still(&self, earlier: &Self) -> bool {
        let moved =
            matches!((&self.network, &earlier.network), (Some(now), Some(then)) if now != then);
        self.public_key == earlier.public_key
            && self.numeric_class == earlier.numeric_class
            && !moved
    }
}

/// The block that an address is in: 256 addresses of IPv4, and what one site gets of IPv6.
#[must_use]
pub fn block_of(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{}/24", Ipv4Addr::new(a, b, c, 0))
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            format!("{}/48", Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
        }
    }
}

/// What a worker has earned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Whose it is.
    pub of: Identity,
    /// Results that count, since it was last lost.
    pub trusted: u32,
    /// When the last result was judged.
    pub worked_at: OffsetDateTime,
}

impl Trust {
    /// What is left of it now: all, or nothing after a change of key, class or network, or a week without a result.
    #[must_use]
    pub fn left(&self, worker: &Identity, now: OffsetDateTime) -> u32 {
        let idle = now - self.worked_at;
        if worker.is_still(&self.of) && idle <= IDLE_MAX {
            self.trusted
        } else {
            0
        }
    }
}

/// One decision whether to audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Draw {
    /// Trusted results of the worker at that moment.
    pub trusted: u32,
    /// The rate that follows from them, in millionths.
    pub rate_ppm: u32,
    /// The number that was drawn: below the rate, the result is audited.
    pub drawn_ppm: u32,
}

impl Draw {
    /// Draws for a result: `drawn_ppm` is the first 8 bytes, little-endian, of SHA-256(seed ‖ attempt UUID ‖ seal),
    /// times 10^6 and divided by 2^64. The worker cannot know the seed, nor the service the seal, in time to choose.
    #[must_use]
    pub fn of(
        policy: &AuditPolicy,
        trusted: u32,
        seed: &[u8; 32],
        (attempt, seal): (AttemptId, &[u8; 32]),
    ) -> Self {
        let digest = digest(seed, attempt, seal);
        let (head, _) = digest.split_first_chunk().expect("32 bytes hold 8");
        let scaled = (u128::from(u64::from_le_bytes(*head)) * u128::from(CERTAIN_PPM)) >> 64;
        Self {
            trusted,
            rate_ppm: policy.rate_ppm(trusted),
            drawn_ppm: u32::try_from(scaled).expect("it is below a million"),
        }
    }

    /// Is the result audited?
    #[must_use]
    pub const fn is_audited(&self) -> bool {
        self.drawn_ppm < self.rate_ppm
    }
}

/// Which of so many pieces of a training run an audit begins with, of the same digest as the draw: its second 8 bytes.
#[must_use]
pub fn piece(seed: &[u8; 32], (attempt, seal): (AttemptId, &[u8; 32]), pieces: u32) -> u32 {
    let digest: [u8; 32] = digest(seed, attempt, seal);
    let second = digest[8..16].try_into().expect("32 bytes hold 16");
    let scaled = (u128::from(u64::from_le_bytes(second)) * u128::from(pieces)) >> 64;
    u32::try_from(scaled).expect("it is below the number of pieces")
}

fn digest(seed: &[u8; 32], attempt: AttemptId, seal: &[u8; 32]) -> [u8; 32] {
    Sha256::new()
        .chain_update(seed)
        .chain_update(attempt.0.as_bytes())
        .chain_update(seal)
        .finalize()
        .into()
}

/// What is published of a seed before anything is drawn from it.
#[must_use]
pub fn commitment(seed: &[u8; 32]) -> crate::digest::Sha256 {
    let digest = Sha256::new()
        .chain_update(COMMITMENT_TAG)
        .chain_update(seed);
    crate::digest::Sha256(digest.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn the_first_twenty_results_are_all_audited_and_never_less_than_one_in_twenty() {
        let rates = [0, 19, 20, 21, 39, 1_000].map(|trusted| POLICY.rate_ppm(trusted));
        assert_eq!(
            rates,
            [1_000_000, 1_000_000, 1_000_000, 500_000, 50_000, 50_000]
        );
    }

    #[test]
    fn without_a_certain_start_the_rate_falls_as_the_audits_are_passed() {
        let policy = AuditPolicy {
            certain_until: 0,
            ..POLICY
        };
        let rates = [0, 1, 3, 18, 19].map(|trusted| policy.rate_ppm(trusted));
        assert_eq!(rates, [1_000_000, 500_000, 250_000, 52_631, 50_000]);
    }

    #[test]
    fn only_an_audit_earns_trust_and_a_refuted_result_takes_it_all() {
        let after = |checked| POLICY.after(7, checked);
        let all = [Checked::Unaudited, Checked::Confirmed, Checked::Refuted].map(after);
        assert_eq!(all, [7, 8, 0]);
        let lenient = AuditPolicy {
            earning: Earning::Unrefuted,
            ..POLICY
        };
        assert_eq!(lenient.after(7, Checked::Unaudited), 8);
    }

    #[test]
    fn trust_is_lost_with_the_key_the_class_or_the_network_and_after_a_week() {
        let worked_at = datetime!(2026-11-22 12:00 UTC);
        let of = Identity {
            public_key: [1; 32],
            numeric_class: "cpu-1t-a".into(),
            network: Some(block_of("192.0.2.7".parse().unwrap())),
        };
        let trust = Trust {
            of: of.clone(),
            trusted: 30,
            worked_at,
        };
        assert_eq!(trust.left(&of, worked_at + IDLE_MAX), 30);
        assert_eq!(trust.left(&of, worked_at + IDLE_MAX + Duration::SECOND), 0);
        let other_key = Identity {
            public_key: [2; 32],
            ..of.clone()
        };
        let other_class = Identity {
            numeric_class: "cpu-2t-a".into(),
            ..of.clone()
        };
        assert_eq!(trust.left(&other_key, worked_at), 0);
        assert_eq!(trust.left(&other_class, worked_at), 0);
        let seen_at = |address: &str| Identity {
            network: Some(block_of(address.parse().unwrap())),
            ..of.clone()
        };
        for (address, left) in [
            ("192.0.2.200", 30),
            ("::ffff:192.0.2.9", 30),
            ("192.0.3.7", 0),
            ("2001:db8::1", 0),
        ] {
            assert_eq!(trust.left(&seen_at(address), worked_at), left, "{address}");
        }
        let unseen = Identity {
            network: None,
            ..of
        };
        assert_eq!(trust.left(&unseen, worked_at), 30);
    }

    #[test]
    fn a_site_of_ipv6_is_one_block() {
        let block = |address: &str| block_of(address.parse().unwrap());
        assert_eq!(block("2001:db8:7:1::1"), "2001:db8:7::/48");
        assert_eq!(block("2001:db8:7:ffff::1"), block("2001:db8:7:1::1"));
        assert_ne!(block("2001:db8:8::1"), block("2001:db8:7::1"));
    }

    #[test]
    fn a_draw_follows_from_seed_attempt_and_seal() {
        let attempt = AttemptId("01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap());
        let draw = |seed: u8, seal: u8| Draw::of(&POLICY, 20, &[seed; 32], (attempt, &[seal; 32]));
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2).drawn_ppm, draw(3, 2).drawn_ppm);
        assert_ne!(draw(1, 2).drawn_ppm, draw(1, 3).drawn_ppm);
        assert_ne!(commitment(&[1; 32]), commitment(&[2; 32]));
    }

    #[test]
    fn every_piece_of_a_training_may_be_drawn_and_no_other() {
        let attempt = AttemptId::generate();
        let drawn: std::collections::BTreeSet<u32> = (0..200)
            .map(|round| piece(&[round; 32], (attempt, &[0; 32]), 7))
            .collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn draws_are_even() {
        let attempt = AttemptId::generate();
        let audited = (0..20_000_u32)
            .filter(|round| {
                let mut seal = [0; 32];
                seal[..4].copy_from_slice(&round.to_le_bytes());
                Draw::of(&POLICY, 40, &[7; 32], (attempt, &seal)).is_audited()
            })
            .count();
        // 1,000 expected; the standard deviation is 31.
        assert!((850..1_150).contains(&audited), "{audited}");
    }
}
