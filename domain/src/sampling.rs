//! Which token comes next. The same numbers, the same settings and the same place give the same token on every machine: all
//! arithmetic is IEEE 754 in a fixed order, the exponential is computed by our own code and not by the machine's library, and chance
//! is `ChaCha20` at a place that is known without what was drawn before, so that an audit can draw a single token again.

use std::cmp::Ordering;

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde::{Deserialize, Serialize};

/// The highest temperature: at this one, tokens are nearly equal.
pub const TEMPERATURE_MAX: f64 = 2.0;
/// Words of 32 bits that a draw takes from the generator.
const WORDS_PER_DRAW: u128 = 2;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest, without chance. From 0 to [`TEMPERATURE_MAX`].
    #[serde(default = "one")]
    pub temperature: f64,
    /// Only the most probable tokens are drawn from that together have this probability: the fewest of them. Above 0, up to 1.
    #[serde(default = "one")]
    pub top_p: f64,
    /// Where chance begins.
    #[serde(default)]
    pub seed: u64,
}

const fn one() -> f64 {
    1.0
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// Why settings are not taken.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum InvalidSampling {
    /// The temperature is out of range.
    #[error("temperature is {0}, and may be 0 to {TEMPERATURE_MAX}")]
    Temperature(f64),
    /// The probability is out of range.
    #[error("top_p is {0}, and may be above 0, up to 1")]
    TopP(f64),
}

/// Why no token can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLogits {
    /// There are none, or more than tokens have numbers.
    #[error("there are {0} logits")]
    Count(usize),
    /// One is infinite or no number.
    #[error("logit {0} is not a finite number")]
    NotFinite(usize),
}

/// Draws tokens.
#[derive(Debug, Clone, Copy)]
pub struct Sampler(Sampling);

impl Sampler {
    /// Draws by these settings.
    ///
    /// # Errors
    /// For settings that are out of range or no numbers.
    pub fn new(sampling: Sampling) -> Result<Self, InvalidSampling> {
        let Sampling {
            temperature, top_p, ..
        } = sampling;
        if !(0.0..=TEMPERATURE_MAX).contains(&temperature) {
            return Err(InvalidSampling::Temperature(temperature));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(InvalidSampling::TopP(top_p));
        }
        Ok(Self(sampling))
    }

    /// The token at a place, counted from 0 at the first that is generated. Of equal logits the token with the lower number comes
    /// first: it is the largest, and it stays where the least probable are left out.
    ///
    /// # Errors
    /// For logits that are no finite numbers, and where there are none.
    pub fn draw(&self, logits: &[f32], place: u64) -> Result<u32, InvalidLogits> {
        if logits.is_empty() || u32::try_from(logits.len()).is_err() {
            return Err(InvalidLogits::Count(logits.len()));
        }
        if let Some(at) = logits.iter().position(|it| !it.is_finite()) {
            return Err(InvalidLogits::NotFinite(at));
        }
        let mut largest = 0;
        for (at, logit) in logits.iter().enumerate() {
            if *logit > logits[largest] {
                largest = at;
            }
        }
        if self.0.temperature == 0.0 {
            return Ok(number(largest));
        }
        let largest = f64::from(logits[largest]);
        let weight = |at: usize| libm::exp((f64::from(logits[at]) - largest) / self.0.temperature);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        if self.0.top_p < 1.0 {
            order.sort_unstable_by(|one, other| by_logit(logits, *one, *other));
        }
        let mut weights: Vec<f64> = order.iter().map(|at| weight(*at)).collect();
        if self.0.top_p < 1.0 {
            let kept = nucleus(&weights, self.0.top_p);
            weights.truncate(kept);
        }
        Ok(number(order[chosen(&weights, uniform(self.0.seed, place))]))
    }
}

/// The larger logit first, then the lower number. Zero has no sign here.
fn by_logit(logits: &[f32], one: usize, other: usize) -> Ordering {
    let order = logits[other].partial_cmp(&logits[one]);
    order.expect("they are finite").then(one.cmp(&other))
}

/// How many of these weights, the first ones, have a share of them all.
fn nucleus(weights: &[f64], share: f64) -> usize {
    let enough = share * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    for (at, weight) in weights.iter().enumerate() {
        sum += weight;
        if sum >= enough {
            return at + 1;
        }
    }
    weights.len()
}

/// Where a number from 0 to 1 falls among weights.
fn chosen(weights: &[f64], at: f64) -> usize {
    let target = at * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    for (at, weight) in weights.iter().enumerate() {
        sum += weight;
        if sum > target {
            return at;
        }
    }
    // Rounding alone can lead here: the last that can be drawn at all.
    weights
        .iter()
        .rposition(|weight| *weight > 0.0)
        .unwrap_or(0)
}

/// A number from 0 to below 1, of 53 bits, by seed and place alone.
#[expect(clippy::cast_precision_loss, reason = "53 bits are held exactly")]
fn uniform(seed: u64, place: u64) -> f64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut chance = ChaCha20Rng::from_seed(key);
    chance.set_word_pos(WORDS_PER_DRAW * u128::from(place));
    (chance.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn number(at: usize) -> u32 {
    u32::try_from(at).expect("there are fewer logits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_p: f64, seed: u64) -> Sampler {
        Sampler::new(Sampling {
            temperature,
            top_p,
            seed,
        })
        .unwrap()
    }

    #[test]
    fn greedy_takes_the_largest_and_of_equals_the_first() {
        let greedy = sampler(0.0, 1.0, 7);
        assert_eq!(greedy.draw(&[1.0, 3.0, 2.0, 3.0], 0), Ok(1));
        assert_eq!(greedy.draw(&[-0.0, 0.0], 5), Ok(0));
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for temperature in [0.0, 1.0] {
                let drawn = sampler(temperature, 0.5, 0).draw(&[0.0, bad], 0);
                assert_eq!(drawn, Err(InvalidLogits::NotFinite(1)));
            }
        }
        assert_eq!(
            sampler(1.0, 1.0, 0).draw(&[], 0),
            Err(InvalidLogits::Count(0))
        );
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for temperature in [-0.1, 2.1, f64::NAN, f64::INFINITY] {
            assert!(
                Sampler::new(Sampling {
                    temperature,
                    ..Sampling::default()
                })
                .is_err()
            );
        }
        for top_p in [0.0, -1.0, 1.1, f64::NAN] {
            assert!(
                Sampler::new(Sampling {
                    top_p,
                    ..Sampling::default()
                })
                .is_err()
            );
        }
    }

    #[test]
    fn chance_is_the_published_stream_of_chacha20() {
        // RFC 8439's first test vector of the block function with a key of zeros begins 76 b8 e0 ad a0 f1 3d 90.
        let first = u64::from_le_bytes([0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
        #[expect(clippy::cast_precision_loss, reason = "53 bits are held exactly")]
        let expected = (first >> 11) as f64 / (1_u64 << 53) as f64;
        assert_eq!(uniform(0, 0).to_bits(), expected.to_bits());
    }

    #[test]
    fn the_same_seed_and_place_draw_the_same_and_others_others() {
        let logits: Vec<f32> = (0_u8..100).map(|it| f32::from(it % 7)).collect();
        let draw = |seed, place| sampler(1.0, 0.9, seed).draw(&logits, place).unwrap();
        let drawn: Vec<u32> = (0..8).map(|place| draw(42, place)).collect();
        assert_eq!(
            drawn,
            (0..8).map(|place| draw(42, place)).collect::<Vec<_>>()
        );
        assert_ne!(
            drawn,
            (0..8).map(|place| draw(43, place)).collect::<Vec<_>>()
        );
        assert_ne!(
            drawn,
            (8..16).map(|place| draw(42, place)).collect::<Vec<_>>()
        );
    }

    /// Made by `fixtures/make.py` with `NumPy` and a `ChaCha20` of its own.
    #[derive(Deserialize)]
    struct Case {
        temperature: f64,
        top_p: f64,
        seed: u64,
        logits: Vec<f32>,
        drawn: Vec<(u64, u32)>,
    }

    #[test]
    fn another_implementation_draws_the_same_tokens() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../fixtures/draws.json")).unwrap();
        for it in cases {
            for (place, token) in it.drawn {
                let drawn = sampler(it.temperature, it.top_p, it.seed).draw(&it.logits, place);
                assert_eq!(
                    drawn,
                    Ok(token),
                    "{} {} at {place}",
                    it.temperature,
                    it.top_p
                );
            }
        }
    }

    #[test]
    fn a_small_share_leaves_the_most_probable_alone() {
        let logits = [0.0, 5.0, 5.0, 1.0];
        for place in 0..200 {
            assert_eq!(sampler(1.0, 0.3, 1).draw(&logits, place), Ok(1));
            assert_eq!(sampler(1e-300, 0.3, 1).draw(&logits, place), Ok(1));
            let either = sampler(1.0, 0.9, 1).draw(&logits, place).unwrap();
            assert!(either == 1 || either == 2);
        }
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_probable() {
        let logits = [0.0, f32::ln(3.0)];
        let draws = 4_000;
        let ones = (0..draws)
            .filter(|place| sampler(1.0, 1.0, 9).draw(&logits, *place) == Ok(1))
            .count();
        assert!((2_850..3_150).contains(&ones), "{ones}");
    }
}
