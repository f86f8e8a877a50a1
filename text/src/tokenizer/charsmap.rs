//! The table of a `Precompiled` normaliser, as `SentencePiece` writes it: a double array over bytes, and the texts it points into, each
//! ended by NUL. The library indexes into both unchecked; here, what points outside finds nothing.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use unicode_segmentation::UnicodeSegmentation;

use super::{
    EncodeError, InvalidTokenizer, check, limits::REPLACEMENT_BYTES_MAX, normalizer::Output,
};

/// Graphemes are looked up whole below this many bytes.
const WHOLE_BYTES: usize = 6;

/// A table from characters to what stands for them.
#[derive(Debug, Clone)]
pub struct Charsmap {
    units: Vec<u32>,
    texts: String,
}

impl Charsmap {
    /// Reads a table.
    pub fn read(place: &'static str, base64: &str) -> Result<Self, InvalidTokenizer> {
        let broken =
            |detail: &str| check::contradiction(place, format!("precompiled_charsmap: {detail}"));
        let bytes = STANDARD
            .decode(base64)
            .map_err(|error| broken(&error.to_string()))?;
        let (length, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or_else(|| broken("has no length"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (units, texts) = rest
            .split_at_checked(length - length % 4)
            .ok_or_else(|| broken("is shorter than it says"))?;
        let (units, _) = units.as_chunks::<4>();
        let texts =
            String::from_utf8(texts.to_vec()).map_err(|_| broken("its texts are not UTF-8"))?;
        if let Some(text) = texts
            .split('\0')
            .find(|it| it.len() > REPLACEMENT_BYTES_MAX)
        {
            check::replacement(place, text)?;
        }
        let units = units.iter().map(|it| u32::from_le_bytes(*it)).collect();
        Ok(Self { units, texts })
    }

    /// A text by this table: graphemes where they are short and listed, else their characters.
    pub fn apply(&self, text: &str, to: &mut Output) -> Result<(), EncodeError> {
        for grapheme in text.graphemes(true) {
            if grapheme.len() < WHOLE_BYTES
                && let Some(replacement) = self.find(grapheme)
            {
                to.push_text(replacement)?;
                continue;
            }
            for letter in grapheme.chars() {
                let letter = letter.encode_utf8(&mut [0; 4]).to_owned();
                to.push_text(self.find(&letter).unwrap_or(&letter))?;
            }
        }
        Ok(())
    }

    /// What stands for the shortest beginning of this that is listed.
    fn find(&self, key: &str) -> Option<&str> {
        let unit = |at: usize| self.units.get(at).copied();
        let mut at = offset(unit(0)?);
        for byte in key.bytes().take_while(|byte| *byte != 0) {
            at ^= usize::from(byte);
            let here = unit(at)?;
            if here & (1 << 31 | 0xff) != u32::from(byte) {
                return None;
            }
            at ^= offset(here);
            if here >> 8 & 1 == 1 {
                let start = (unit(at)? & !(1 << 31)) as usize;
                return self.texts.get(start..)?.split('\0').next();
            }
        }
        None
    }
}

const fn offset(unit: u32) -> usize {
    // Shifts by 8 or by nothing, in more bits than the unit has.
    (unit as usize >> 10) << ((unit & (1 << 9)) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `A` becomes `ab`, and nothing else changes.
    fn table() -> Vec<u8> {
        let mut units = vec![0_u32; 0x80];
        units[0] = 1 << 10;
        // The root's offset is 1: the unit of `A` stands at 1 ^ 0x41, has a leaf, and its own offset leads to the value.
        units[0x40] = 0x41 | 1 << 8 | 2 << 10;
        units[0x40 ^ 2] = 3;
        let units: Vec<u8> = units.into_iter().flat_map(u32::to_le_bytes).collect();
        let length = u32::try_from(units.len()).unwrap().to_le_bytes();
        [length.as_slice(), &units, b"xx\0ab\0"].concat()
    }

    #[test]
    fn what_is_listed_is_replaced() {
        let charsmap = Charsmap::read("", &STANDARD.encode(table())).unwrap();
        assert_eq!(charsmap.find("A"), Some("ab"));
        assert_eq!(charsmap.find("B"), None);
        assert_eq!(charsmap.find("\u{1f642}"), None);
    }

    #[test]
    fn a_table_that_points_outside_finds_nothing() {
        let mut bytes = table();
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let charsmap = Charsmap::read("", &STANDARD.encode(&bytes)).unwrap();
        assert_eq!(charsmap.find("A"), None);
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Charsmap::read("", &STANDARD.encode(&bytes)).is_err());
        let long = [&[0; 4], "é".repeat(40).as_bytes()].concat();
        assert!(Charsmap::read("", &STANDARD.encode(long)).is_err());
    }
}
