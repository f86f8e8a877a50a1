//! The order in which an epoch reads its rows: part of a training result, so anyone must be able to repeat it.
//!
//! The generator is SplitMix64. Its state for epoch `e` (from 0) of a job with seed `s` is the first 8 bytes,
//! little-endian, of SHA-256(`s` ‖ `e`), both as little-endian u64. The rows `0..n` are permuted by Fisher-Yates: for `i`
//! from `n - 1` down to 1, row `i` changes places with row `j`, drawn evenly from `0..=i`: numbers below `2^64 mod (i + 1)`
//! are drawn again, the rest is taken modulo `i + 1`.

use sha2::{Digest as _, Sha256};

/// The rows of an epoch in the order in which they are read.
#[must_use]
pub fn shuffled(rows: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut generator = SplitMix64::of_epoch(seed, epoch);
    let mut order: Vec<usize> = (0..rows).collect();
    for last in (1..rows).rev() {
        let bound = u64::try_from(last).expect("a row number fits 64 bits") + 1;
        let other = usize::try_from(generator.below(bound)).expect("it is below a row number");
        order.swap(last, other);
    }
    order
}

/// Steele, Lea and Flood's generator: tiny, fast, and the same in every language.
struct SplitMix64(u64);

impl SplitMix64 {
    fn of_epoch(seed: u64, epoch: u64) -> Self {
        let digest = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(epoch.to_le_bytes())
            .finalize();
        let head = digest[..8].try_into().expect("a digest has 32 bytes");
        Self(u64::from_le_bytes(head))
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An even draw from `0..bound`.
    const fn below(&mut self, bound: u64) -> u64 {
        // 2^64 mod bound, in 64 bits.
        let rejected = bound.wrapping_neg() % bound;
        loop {
            let value = self.next();
            if value >= rejected {
                return value % bound;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_order_is_that_of_the_python_reference() {
        let vectors = include_str!("../../examples/digits/vectors/vectors.json");
        let vectors: Value = serde_json::from_str(vectors).unwrap();
        let shuffles = vectors["shuffles"].as_array().unwrap();
        assert_eq!(shuffles.len(), 4);
        for vector in shuffles {
            let number = |name: &str| vector[name].as_u64().unwrap();
            let rows = usize::try_from(number("rows")).unwrap();
            let order = shuffled(rows, number("seed"), number("epoch"));
            assert_eq!(serde_json::to_value(order).unwrap(), vector["order"]);
        }
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // The first numbers of the published generator from state 1234567.
        let mut generator = SplitMix64(1_234_567);
        let numbers = [generator.next(), generator.next(), generator.next()];
        assert_eq!(
            numbers,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn a_draw_is_even_because_the_uneven_part_is_drawn_again() {
        // Of 2^64 numbers, the lowest 2^63 - 1 would favour small draws below this bound: about half are drawn again.
        let bound = (1 << 63) + 1;
        let (mut generator, mut raw) = (SplitMix64(7), SplitMix64(7));
        for _ in 0..100 {
            let kept = std::iter::repeat_with(|| raw.next()).find(|value| *value >= (1 << 63) - 1);
            assert_eq!(
                Some(generator.below(bound)),
                kept.map(|value| value % bound)
            );
        }
    }

    proptest! {
        #[test]
        fn every_row_is_read_once(rows in 0_usize..500, seed: u64, epoch: u64) {
            let mut order = shuffled(rows, seed, epoch);
            order.sort_unstable();
            prop_assert_eq!(order, (0..rows).collect::<Vec<_>>());
        }
    }
}
