//! Addresses, hashes and the lines of a leaf file, as values that have one text only.

use std::fmt;

use crate::hash::keccak;

/// An account on the chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address(pub [u8; 20]);

/// 32 bytes that name something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

/// The UUID of a receipt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReceiptId(pub [u8; 16]);

impl Address {
    /// Reads an address whose EIP-55 checksum is right.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = unhex(&text.strip_prefix("0x")?.to_ascii_lowercase())?;
        let address = Self(bytes);
        (address.to_string() == text).then_some(address)
    }

    /// Reads an address, whatever the case of its digits.
    #[must_use]
    pub fn parse_any_case(text: &str) -> Option<Self> {
        unhex(&text.strip_prefix("0x")?.to_ascii_lowercase()).map(Self)
    }
}

impl fmt::Display for Address {
    /// With its EIP-55 checksum: a letter is a capital where the hash of the lower-case digits has a nibble of 8 or more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = hex(&self.0);
        let hash = keccak(&[digits.as_bytes()]);
        f.write_str("0x")?;
        for (place, digit) in digits.chars().enumerate() {
            let byte = hash.0[place / 2];
            let nibble = if place % 2 == 0 { byte >> 4 } else { byte & 15 };
            let digit = if nibble >= 8 {
                digit.to_ascii_uppercase()
            } else {
                digit
            };
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

impl Hash {
    /// Nothing is hashed to this.
    pub const ZERO: Self = Self([0; 32]);

    /// Reads `0x` and 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text.strip_prefix("0x")?).map(Self)
    }

    /// The digits alone, as objects in the store are named.
    #[must_use]
    pub fn digits(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex(&self.0))
    }
}

impl fmt::Display for ReceiptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex(&self.0))
    }
}

macro_rules! debug_as_displayed {
    ($($kind:ty),*) => {$(
        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}
debug_as_displayed!(Address, Hash, ReceiptId);

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// Exactly `N` bytes from lower-case hexadecimal digits.
#[must_use]
pub fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let digits = digits.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (value(pair[0])? << 4) | value(pair[1])?;
    }
    Some(bytes)
}

/// One account of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Who is paid.
    pub account: Address,
    /// All that was ever released to it.
    pub payable: u128,
    /// What it still holds in the service.
    pub available: u128,
    /// Its deposits that were credited.
    pub deposits_seen: u128,
}

/// One share of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Who was credited.
    pub payee: Address,
    /// With how many base units.
    pub amount: u128,
}

/// One charge of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receipt {
    /// The batch that it says it is in.
    pub batch_id: u64,
    /// Its place among the receipts.
    pub index: u64,
    /// Its UUID.
    pub receipt_id: ReceiptId,
    /// What was charged for.
    pub kind: u8,
    /// Who paid.
    pub payer: Address,
    /// How many base units.
    pub gross: u128,
    /// Who was credited with it.
    pub shares: Vec<Share>,
    /// What was computed on, salted.
    pub input_hash: Hash,
    /// What came out, salted.
    pub result_hash: Hash,
    /// The bill.
    pub meter_hash: Hash,
    /// The verdict.
    pub verdict_hash: Hash,
}

/// One deposit, as the contract's event tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deposit {
    /// Its number, from 1 without gaps.
    pub seq: u64,
    /// Whose it is.
    pub account: Address,
    /// What arrived.
    pub amount: u128,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_checksum_of_eip_55() {
        // The examples of the standard itself.
        for text in [
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
            "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
            "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
            assert_eq!(Address::parse(&text.to_ascii_lowercase()), None);
            assert_eq!(
                Address::parse_any_case(&text.to_ascii_lowercase()),
                Address::parse(text)
            );
        }
    }

    #[test]
    fn a_hash_has_one_text_only() {
        let text = format!("0x{}", "a1".repeat(32));
        assert_eq!(Hash::parse(&text).unwrap().to_string(), text);
        for other in [&text[2..], &text[..65], &text.replace('a', "A")] {
            assert_eq!(Hash::parse(other), None);
        }
    }
}
