//! What is made of a model's numbers, declared as data: one vector of many rows, a length of 1, probabilities, the best classes.
//! Every sum is of 64-bit floats in the order of the numbers, and every result is rounded once, so that whoever computes it again
//! gets the same bits.

use std::num::NonZeroU32;

use comptoir_domain::model::{Labels, Outcome, Pooling};
use serde::Serialize;

/// Lengths below this count as this one, as in PyTorch.
const LENGTH_LEAST: f64 = 1e-12;

/// Why nothing can be made of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRows {
    /// The numbers do not make rows of this width, or the mask has another number of rows.
    #[error("{numbers} numbers and a mask of {mask} do not make rows of {width}")]
    Shape {
        /// How many numbers there are.
        numbers: usize,
        /// How many rows the mask has.
        mask: usize,
        /// How many numbers a row has.
        width: usize,
    },
    /// There are several rows, and nothing says how they become one.
    #[error("there are {0} rows, and no pooling")]
    NoPooling(usize),
    /// The mask has no row.
    #[error("the mask has no row")]
    EmptyMask,
    /// A number is infinite or none.
    #[error("number {0} is not finite")]
    NotFinite(usize),
}

/// The rows of a text: row-major numbers, and which rows are tokens of it.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    numbers: &'a [f32],
    mask: &'a [u8],
    width: usize,
}

/// A class and its number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ranked {
    /// Its place among the classes.
    pub index: u32,
    /// Its number.
    pub score: f32,
}

impl Ranked {
    /// What the class is called.
    #[must_use]
    pub fn label<'a>(&self, labels: &'a Labels) -> Option<&'a str> {
        let name = labels.names.get(usize::try_from(self.index).ok()?);
        name.map(String::as_str)
    }
}

/// What was made of an output.
#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// All numbers in their order.
    Vector(Vec<f32>),
    /// The largest first.
    Ranked(Vec<Ranked>),
}

/// Makes of rows what is declared.
///
/// # Errors
/// For rows that cannot become one, and numbers that are not finite.
pub fn apply(outcome: &Outcome, rows: Rows<'_>) -> Result<Applied, InvalidRows> {
    let mut vector = match outcome.pooling {
        Some(pooling) => rows.pooled(pooling)?,
        None if rows.mask.len() == 1 => rows.numbers.to_vec(),
        None => return Err(InvalidRows::NoPooling(rows.mask.len())),
    };
    finite(&vector)?;
    if outcome.normalise {
        vector = normalise(&vector)?;
    }
    if outcome.softmax {
        vector = softmax(&vector)?;
    }
    match outcome.top_k.map(NonZeroU32::get) {
        Some(k) => Ok(Applied::Ranked(top_k(&vector, k)?)),
        None => Ok(Applied::Vector(vector)),
    }
}

impl<'a> Rows<'a> {
    /// Rows of a width, one for each of the mask, which has 1 for those that count.
    ///
    /// # Errors
    /// Where they do not fit together.
    pub fn new(numbers: &'a [f32], mask: &'a [u8], width: usize) -> Result<Self, InvalidRows> {
        let fits =
            width > 0 && !mask.is_empty() && mask.len().checked_mul(width) == Some(numbers.len());
        if !fits {
            let (numbers, mask) = (numbers.len(), mask.len());
            return Err(InvalidRows::Shape {
                numbers,
                mask,
                width,
            });
        }
        Ok(Self {
            numbers,
            mask,
            width,
        })
    }

    /// One row of all.
    ///
    /// # Errors
    /// Where the mask has none.
    pub fn pooled(&self, pooling: Pooling) -> Result<Vec<f32>, InvalidRows> {
        let row = |at: usize| &self.numbers[at * self.width..][..self.width];
        let counted = || (0..self.mask.len()).filter(|at| self.mask[*at] != 0);
        let last = counted().next_back().ok_or(InvalidRows::EmptyMask)?;
        match pooling {
            Pooling::Cls => Ok(row(0).to_vec()),
            Pooling::Last => Ok(row(last).to_vec()),
            Pooling::Mean => {
                let mut sums = vec![0.0_f64; self.width];
                for at in counted() {
                    for (sum, number) in sums.iter_mut().zip(row(at)) {
                        *sum += f64::from(*number);
                    }
                }
                let count = to_f64(counted().count());
                Ok(sums.into_iter().map(|sum| rounded(sum / count)).collect())
            }
        }
    }
}

/// A vector scaled to a length of 1. One that is shorter than 1e-12 is divided by that.
///
/// # Errors
/// For numbers that are not finite.
pub fn normalise(vector: &[f32]) -> Result<Vec<f32>, InvalidRows> {
    finite(vector)?;
    let squares = vector.iter().map(|it| f64::from(*it) * f64::from(*it));
    let length = squares.sum::<f64>().sqrt().max(LENGTH_LEAST);
    Ok(vector
        .iter()
        .map(|it| rounded(f64::from(*it) / length))
        .collect())
}

/// Probabilities: each number's exponential, by the sum of all.
///
/// # Errors
/// For numbers that are not finite.
pub fn softmax(vector: &[f32]) -> Result<Vec<f32>, InvalidRows> {
    finite(vector)?;
    let largest = vector.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let power = |it: &f32| libm::exp(f64::from(*it) - f64::from(largest));
    let sum: f64 = vector.iter().map(power).sum();
    Ok(vector.iter().map(|it| rounded(power(it) / sum)).collect())
}

/// The largest numbers, largest first, with their places. Of equal ones the first comes first; there may be fewer than asked for.
///
/// # Errors
/// For numbers that are not finite.
pub fn top_k(vector: &[f32], k: u32) -> Result<Vec<Ranked>, InvalidRows> {
    finite(vector)?;
    let numbered = (0_u32..).zip(vector);
    let mut ranked: Vec<Ranked> = numbered
        .map(|(index, score)| Ranked {
            index,
            score: *score,
        })
        .collect();
    ranked.sort_by(|one, other| {
        other
            .score
            .partial_cmp(&one.score)
            .expect("they are finite")
    });
    ranked.truncate(usize::try_from(k).unwrap_or(usize::MAX));
    Ok(ranked)
}

fn finite(vector: &[f32]) -> Result<(), InvalidRows> {
    match vector.iter().position(|it| !it.is_finite()) {
        Some(at) => Err(InvalidRows::NotFinite(at)),
        None => Ok(()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "this is the one rounding")]
const fn rounded(number: f64) -> f32 {
    number as f32
}

#[expect(clippy::cast_precision_loss, reason = "there are fewer rows than 2^53")]
const fn to_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Made by `fixtures/make.py` with `NumPy`.
    #[derive(Deserialize)]
    struct Reference {
        width: usize,
        hidden: Vec<f32>,
        mask: Vec<u8>,
        mean: Vec<f32>,
        cls: Vec<f32>,
        last: Vec<f32>,
        vector: Vec<f32>,
        normalised: Vec<f32>,
        logits: Vec<f32>,
        softmax: Vec<f32>,
        top_3: Vec<u32>,
    }

    /// The rows as they are.
    fn plain() -> Outcome {
        Outcome {
            output: "output".to_owned(),
            pooling: None,
            normalise: false,
            softmax: false,
            top_k: None,
        }
    }

    fn reference() -> Reference {
        serde_json::from_str(include_str!("../fixtures/arithmetic.json")).unwrap()
    }

    /// Within the last bit or two: `NumPy` sums in another order.
    fn assert_near(ours: &[f32], theirs: &[f32]) {
        assert_eq!(ours.len(), theirs.len());
        for (our, their) in ours.iter().zip(theirs) {
            assert!(
                (our - their).abs() <= their.abs() * 2.0 * f32::EPSILON,
                "{our} {their}"
            );
        }
    }

    #[test]
    fn pooling_is_what_numpy_computes() {
        let it = reference();
        let rows = Rows::new(&it.hidden, &it.mask, it.width).unwrap();
        assert_near(&rows.pooled(Pooling::Mean).unwrap(), &it.mean);
        assert_eq!(rows.pooled(Pooling::Cls).unwrap(), it.cls);
        assert_eq!(rows.pooled(Pooling::Last).unwrap(), it.last);
    }

    #[test]
    fn lengths_and_probabilities_are_what_numpy_computes() {
        let it = reference();
        assert_near(&normalise(&it.vector).unwrap(), &it.normalised);
        assert_near(&softmax(&it.logits).unwrap(), &it.softmax);
        let ranked = top_k(&it.logits, 3).unwrap();
        assert_eq!(
            ranked.iter().map(|it| it.index).collect::<Vec<_>>(),
            it.top_3
        );
    }

    #[test]
    fn what_is_not_finite_is_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let numbers = [0.0, bad];
            assert_eq!(softmax(&numbers), Err(InvalidRows::NotFinite(1)));
            assert_eq!(normalise(&numbers), Err(InvalidRows::NotFinite(1)));
            assert_eq!(top_k(&numbers, 1), Err(InvalidRows::NotFinite(1)));
            let rows = Rows::new(&numbers, &[1], 2).unwrap();
            assert_eq!(apply(&plain(), rows), Err(InvalidRows::NotFinite(1)));
        }
    }

    #[test]
    fn zeros_stay_zeros_and_large_numbers_do_not_overflow() {
        assert_eq!(normalise(&[0.0, 0.0]).unwrap(), [0.0, 0.0]);
        assert_eq!(normalise(&[f32::MAX, 0.0]).unwrap(), [1.0, 0.0]);
        assert_eq!(softmax(&[f32::MAX, f32::MIN]).unwrap(), [1.0, 0.0]);
        let rows = Rows::new(&[f32::MAX, f32::MAX], &[1, 1], 1).unwrap();
        assert_eq!(rows.pooled(Pooling::Mean).unwrap(), [f32::MAX]);
    }

    #[test]
    fn rows_must_fit_their_mask() {
        assert!(Rows::new(&[0.0; 6], &[1, 1], 3).is_ok());
        for (mask, width) in [
            (vec![1, 1], 2),
            (vec![], 0),
            (vec![1], 0),
            (vec![1, 1, 1], 3),
        ] {
            assert!(matches!(
                Rows::new(&[0.0; 6], &mask, width),
                Err(InvalidRows::Shape { .. })
            ));
        }
        let rows = Rows::new(&[0.0; 6], &[0, 0], 3).unwrap();
        assert_eq!(rows.pooled(Pooling::Mean), Err(InvalidRows::EmptyMask));
        assert_eq!(apply(&plain(), rows), Err(InvalidRows::NoPooling(2)));
    }
}
