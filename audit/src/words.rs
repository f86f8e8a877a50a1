//! Words of 32 bytes, decoded by hand.

use serde_json::Value;

use crate::{
    header::Header,
    rpc::RpcError,
    value::{Address, Hash},
};

/// What a call returned or an event carries: words of 32 bytes.
pub(crate) struct Words(Vec<[u8; 32]>);

impl Words {
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, RpcError> {
        let digits = text.and_then(|text| text.strip_prefix("0x"));
        let digits = digits.filter(|digits| digits.len() % 64 == 0 && digits.is_ascii());
        let digits = digits.ok_or(RpcError::Malformed("no words"))?;
        let words = (0..digits.len()).step_by(64).map(|at| {
            let word = digits[at..at + 64].to_ascii_lowercase();
            crate::value::unhex(&word).ok_or(RpcError::Malformed("no words"))
        });
        words.collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn of_log(log: &Value) -> Result<Self, RpcError> {
        Self::parse(log["data"].as_str())
    }

    pub(crate) fn of_topic(log: &Value, place: usize) -> Result<Self, RpcError> {
        Self::parse(log["topics"][place].as_str())
    }

    pub(crate) fn at(&self, place: usize) -> Result<&[u8; 32], RpcError> {
        self.0
            .get(place)
            .ok_or(RpcError::Malformed("too few words"))
    }

    pub(crate) fn hash(&self, place: usize) -> Result<Hash, RpcError> {
        self.at(place).map(|word| Hash(*word))
    }

    pub(crate) fn number(&self, place: usize) -> Result<u128, RpcError> {
        let (high, low) = self.at(place)?.split_at(16);
        let low = low.try_into().map(u128::from_be_bytes);
        match (high.iter().all(|byte| *byte == 0), low) {
            (true, Ok(number)) => Ok(number),
            _ => Err(RpcError::Malformed("a number of more than 128 bits")),
        }
    }

    pub(crate) fn count(&self, place: usize) -> Result<u64, RpcError> {
        u64::try_from(self.number(place)?).map_err(|_| RpcError::Malformed("no count"))
    }

    pub(crate) fn address(&self, place: usize) -> Result<Address, RpcError> {
        let (high, low) = self.at(place)?.split_at(12);
        match (high.iter().all(|byte| *byte == 0), low.try_into()) {
            (true, Ok(address)) => Ok(Address(address)),
            _ => Err(RpcError::Malformed("no address")),
        }
    }

    pub(crate) fn header(&self, first: usize) -> Result<Header, RpcError> {
        Ok(Header {
            id: self.count(first)?,
            generation: self.count(first + 1)?,
            receipt_count: self.count(first + 2)?,
            deposit_seq_seen: self.count(first + 3)?,
            total_payable: self.number(first + 4)?,
            total_available: self.number(first + 5)?,
            deposits_seen: self.number(first + 6)?,
            prev_hash: self.hash(first + 7)?,
            receipts_root: self.hash(first + 8)?,
            accounts_root: self.hash(first + 9)?,
            data_hash: self.hash(first + 10)?,
        })
    }
}
