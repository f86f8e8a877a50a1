//! Damage, the same at each run: what a number makes of an input, without any feedback.

use crate::seeds::Seed;

/// What readers stumble over: numbers at their ends, names of fields and types, and pieces of formats.
const TOKENS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1e400",
    b"-0",
    b"9007199254740993",
    b"18446744073709551615",
    b"18446744073709551616",
    b"340282366920938463463374607431768211456",
    b"null",
    b"true",
    b"\"\"",
    b"[]",
    b"{}",
    b"[[",
    b"]]",
    b"{\"a\":",
    b"\\u0000",
    b"\\ud800",
    b"\"as_int\"",
    b"\"as_expr\"",
    b"{\"as_int\":-1}",
    b"Symbol('s77')",
    b"Pow(Integer(9),Integer(9))",
    b"FloorDiv(Integer(1),Integer(0))",
    b"\"__metadata__\":",
    b"\"dtype\":\"BOOL\"",
    b"\"shape\":[0]",
    b"\"data_offsets\":[0,0]",
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
];

/// `SplitMix64`: every number is followed by another, and the same one by the same.
pub struct Numbers(u64);

impl Numbers {
    /// Numbers from this one on.
    #[must_use]
    pub const fn from(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 where there is none.
    fn below(&mut self, end: usize) -> usize {
        let number = self.next() % (end.max(1) as u64);
        usize::try_from(number).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// One of the seeds, damaged in one to eight places.
#[must_use]
pub fn damaged(seeds: &[Seed], numbers: &mut Numbers, bytes_max: usize) -> Vec<u8> {
    let mut input = seeds[numbers.below(seeds.len())].bytes.clone();
    for _ in 0..=numbers.below(8) {
        damage(&mut input, seeds, numbers);
    }
    input.truncate(bytes_max);
    input
}

fn damage(input: &mut Vec<u8>, seeds: &[Seed], numbers: &mut Numbers) {
    let at = numbers.below(input.len());
    match numbers.below(9) {
        0 if !input.is_empty() => input[at] ^= 1 << numbers.below(8),
        1 if !input.is_empty() => input[at] = numbers.byte(),
        2 => input.truncate(at),
        3 => {
            let end = (at + 1 + numbers.below(32)).min(input.len());
            input.drain(at..end);
        }
        // A piece of itself, elsewhere.
        4 => {
            let end = (at + 1 + numbers.below(64)).min(input.len());
            let piece = input[at..end].to_vec();
            let to = numbers.below(input.len());
            input.splice(to..to, piece);
        }
        // The beginning of one and the end of another.
        5 => {
            let other = &seeds[numbers.below(seeds.len())].bytes;
            let from = numbers.below(other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        // A token in place of what stands there, of the same length or not.
        6 => {
            let token = TOKENS[numbers.below(TOKENS.len())];
            let end = (at + token.len()).min(input.len());
            input.splice(at..end, token.iter().copied());
        }
        7 => {
            let token = TOKENS[numbers.below(TOKENS.len())];
            input.splice(at..at, token.iter().copied());
        }
        _ => number(input, at, numbers),
    }
}

/// Another number in place of the first behind a place: what lengths, counts and amounts are.
fn number(input: &mut Vec<u8>, at: usize, numbers: &mut Numbers) {
    let Some(start) = input[at..].iter().position(u8::is_ascii_digit) else {
        return;
    };
    let start = at + start;
    let digits = input[start..].iter().take_while(|it| it.is_ascii_digit());
    let end = start + digits.count();
    let bits = numbers.below(65);
    let number = numbers.next().checked_shr(u32::try_from(bits).unwrap_or(0));
    let text = number.unwrap_or_default().to_string();
    input.splice(start..end, text.into_bytes());
}
