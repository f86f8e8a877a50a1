//! How the values of a leaf are written in JSON: addresses with their checksum, amounts as decimal strings.
//! Reading is as strict as writing, so that a value has one text only.

/// An address in its EIP-55 form.
pub mod address {
    use std::borrow::Cow;

    use alloy_primitives::Address;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes the address with its checksum.
    pub fn serialize<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(address)
    }

    /// Reads an address whose checksum is right.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Address::parse_checksummed(text.as_ref(), None).map_err(D::Error::custom)
    }
}

/// An unsigned 128-bit integer as a string of decimal digits.
pub mod decimal {
    use std::borrow::Cow;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes the digits.
    pub fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads digits without a sign or a leading zero.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let canonical = text == "0" || !text.starts_with('0');
        if !canonical || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(D::Error::custom("expected a string of decimal digits"));
        }
        text.parse().map_err(D::Error::custom)
    }
}

/// Fixed bytes as `0x` and lower-case hexadecimal digits.
pub mod bytes {
    use std::borrow::Cow;

    use alloy_primitives::{FixedBytes, hex};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes `0x` and the digits.
    pub fn serialize<S: Serializer, const N: usize>(
        value: &FixedBytes<N>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads exactly what [`serialize`] writes.
    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<FixedBytes<N>, D::Error> {
        parse(&Cow::<'de, str>::deserialize(deserializer)?).ok_or_else(|| {
            D::Error::custom(format!(
                "expected 0x and {} lower-case hexadecimal digits",
                2 * N
            ))
        })
    }

    pub(super) fn parse<const N: usize>(text: &str) -> Option<FixedBytes<N>> {
        let digits = text.strip_prefix("0x")?;
        if digits.len() != 2 * N || digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let mut value = FixedBytes::<N>::ZERO;
        hex::decode_to_slice(digits, value.as_mut_slice()).ok()?;
        Some(value)
    }
}

/// A list of hashes, each as [`bytes`] writes one.
pub mod hashes {
    use std::borrow::Cow;

    use alloy_primitives::B256;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes an array of hashes.
    pub fn serialize<S: Serializer>(values: &[B256], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(ToString::to_string))
    }

    /// Reads exactly what [`serialize`] writes.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<B256>, D::Error> {
        Vec::<Cow<'de, str>>::deserialize(deserializer)?
            .iter()
            .map(|text| {
                super::bytes::parse(text)
                    .ok_or_else(|| D::Error::custom("expected hashes of 32 bytes"))
            })
            .collect()
    }
}
