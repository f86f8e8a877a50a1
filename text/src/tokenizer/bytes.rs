//! Bytes as characters that can be seen, as GPT-2 writes them.

/// Each byte of a text as the character that GPT-2 writes for it.
pub fn byte_chars(text: &str) -> impl Iterator<Item = char> {
    text.bytes().map(byte_char)
}

/// The character that GPT-2 writes for a byte: itself where it can be seen, else one behind Latin-1.
pub fn byte_char(byte: u8) -> char {
    let behind = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
        0..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        0xad => 0x43,
    };
    char::from_u32(0x100 + behind).expect("these are letters of Latin")
}

/// The bytes of a token whose characters all stand for bytes, and else the token's own.
pub fn token_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(char_byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that GPT-2 writes as this character.
fn char_byte(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => code,
    };
    u8::try_from(byte)
        .ok()
        .filter(|byte| byte_char(*byte) == letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        for byte in 0..=u8::MAX {
            assert_eq!(char_byte(byte_char(byte)), Some(byte));
        }
        for letter in ['\u{7f}', '\u{ad}', ' ', '\u{144}', '\u{2581}'] {
            assert_eq!(char_byte(letter), None, "{letter:?}");
        }
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
    }
}
