//! Fixed numbers of bytes as base64 text.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// `N` bytes; standard base64 with padding outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base64<const N: usize>(pub [u8; N]);

impl<const N: usize> Serialize for Base64<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Base64<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| D::Error::custom(format_args!("expected {N} bytes in base64")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_number_of_bytes_is_taken() {
        let key = Base64([7; 32]);
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<Base64<32>>(&text).unwrap(), key);
        assert!(serde_json::from_str::<Base64<64>>(&text).is_err());
        assert!(serde_json::from_str::<Base64<32>>("\"****\"").is_err());
    }
}
