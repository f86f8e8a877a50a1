//! What was used of models: one record for each call that was answered, the file of them, and its sums.
#![deny(clippy::float_arithmetic, clippy::arithmetic_side_effects)]

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use time::{
    OffsetDateTime, PrimitiveDateTime, UtcOffset, format_description::BorrowedFormatItem,
    macros::format_description,
};
use utoipa::ToSchema;

use crate::{
    atto::Atto,
    digest::Sha256,
    id::{ApiKeyId, CallId, ModelId, ModelVersionId, ReceiptId, UsageWindowId, WorkerId},
    model::Usage,
};

/// The first line of a usage file, without its end.
pub const HEADER: &str = "call,at,window,key,model,version,price,worker,rows,input_tokens,output_tokens,madds,cost_atto,duration_us";
/// Bytes of a line at most: every column at its longest, and room.
pub const LINE_BYTES_MAX: usize = 512;
/// Rows of a call at most, and tokens: so the sums of a window stay below 2^53, which any JSON reader keeps.
pub const COUNT_MAX: u64 = u32::MAX as u64;
/// Multiply-adds of a call at most.
pub const MADDS_MAX: u128 = 1 << 80;

const AT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

impl UsageWindowId {
    /// The receipt of its charge: known before there is one, so that each call can name it.
    #[must_use]
    pub const fn receipt(self) -> ReceiptId {
        ReceiptId(self.0)
    }
}

/// A call that was answered, as the account that made it sees it: a line of its usage file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRecord {
    /// The call.
    pub call: CallId,
    /// When it was answered, to the microsecond.
    pub at: OffsetDateTime,
    /// What it is charged with; `None`: it was free.
    pub window: Option<UsageWindowId>,
    /// The API key that made it.
    pub key: Option<ApiKeyId>,
    /// The model.
    pub model: ModelId,
    /// Its version.
    pub version: ModelVersionId,
    /// Which of the model's prices.
    pub price: u32,
    /// The worker that ran it.
    pub worker: WorkerId,
    /// What was counted.
    pub usage: Usage,
    /// What it costs, exactly.
    pub cost: Atto,
    /// How long it took, in microseconds: shown, never charged.
    pub duration_us: u32,
}

/// What was counted of several calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// How many calls.
    pub calls: u64,
    /// Their rows of input.
    pub rows: u64,
    /// Tokens that were read.
    pub input_tokens: u64,
    /// Tokens that were written.
    pub output_tokens: u64,
    /// Multiply-adds.
    #[serde(with = "digits")]
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$")]
    pub madds: u128,
}

impl Counted {
    /// With one call more; `None` above what can be counted.
    #[must_use]
    pub fn with(self, usage: &Usage) -> Option<Self> {
        Some(Self {
            calls: self.calls.checked_add(1)?,
            rows: self.rows.checked_add(usage.rows)?,
            input_tokens: self.input_tokens.checked_add(usage.input_tokens)?,
            output_tokens: self.output_tokens.checked_add(usage.output_tokens)?,
            madds: self.madds.checked_add(usage.madds)?,
        })
    }

    /// The sums, as one usage.
    #[must_use]
    pub const fn usage(&self) -> Usage {
        Usage {
            rows: self.rows,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            madds: self.madds,
        }
    }
}

/// Is this within what a call may count?
#[must_use]
pub fn is_bounded(usage: &Usage) -> bool {
    let counts = [usage.rows, usage.input_tokens, usage.output_tokens];
    counts.into_iter().all(|it| it <= COUNT_MAX) && usage.madds <= MADDS_MAX
}

impl fmt::Display for UsageRecord {
    /// The line, without its end. No column can hold a comma or a quote.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.to_offset(UtcOffset::UTC).format(AT);
        let at = at.map_err(|_| fmt::Error)?;
        let window = self.window.map(|it| it.to_string()).unwrap_or_default();
        let key = self.key.map(|it| it.to_string()).unwrap_or_default();
        let Usage {
            rows,
            input_tokens,
            output_tokens,
            madds,
        } = self.usage;
        let (call, model, version, price) = (self.call, self.model, self.version, self.price);
        let (worker, cost, duration_us) = (self.worker, self.cost, self.duration_us);
        write!(
            f,
            "{call},{at},{window},{key},{model},{version},{price},{worker},{rows},{input_tokens},{output_tokens},{madds},{cost},{duration_us}"
        )
    }
}

/// A line that is none of a usage file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a line of a usage file")]
pub struct InvalidLine;

impl FromStr for UsageRecord {
    type Err = InvalidLine;

    fn from_str(line: &str) -> Result<Self, InvalidLine> {
        fn read<T: FromStr>(text: &str) -> Result<T, InvalidLine> {
            text.parse().map_err(|_| InvalidLine)
        }
        fn optional<T: FromStr>(text: &str) -> Result<Option<T>, InvalidLine> {
            (!text.is_empty()).then(|| read(text)).transpose()
        }
        let columns: Vec<_> = line.split(',').collect();
        let [
            call,
            at,
            window,
            key,
            model,
            version,
            price,
            worker,
            rows,
            input,
            output,
            madds,
            cost,
            duration,
        ] = columns[..]
        else {
            return Err(InvalidLine);
        };
        let at = PrimitiveDateTime::parse(at, AT).map_err(|_| InvalidLine)?;
        let record = Self {
            call: read(call)?,
            at: at.assume_utc(),
            window: optional(window)?,
            key: optional(key)?,
            model: read(model)?,
            version: read(version)?,
            price: read(price)?,
            worker: read(worker)?,
            usage: Usage {
                rows: read(rows)?,
                input_tokens: read(input)?,
                output_tokens: read(output)?,
                madds: read(madds)?,
            },
            cost: read(cost)?,
            duration_us: read(duration)?,
        };
        // One record has one line: `+1` and `007` are none.
        (record.to_string() == line)
            .then_some(record)
            .ok_or(InvalidLine)
    }
}

/// The digest of a usage file, line by line: the header, then the calls in the order of their identifiers, each line with a line feed.
#[derive(Debug, Clone)]
pub struct UsageDigest(sha2::Sha256);

impl Default for UsageDigest {
    fn default() -> Self {
        let mut digest = sha2::Sha256::new();
        digest.update(HEADER);
        digest.update("\n");
        Self(digest)
    }
}

impl UsageDigest {
    /// The next line.
    pub fn add(&mut self, record: &UsageRecord) {
        self.0.update(record.to_string());
        self.0.update("\n");
    }

    /// The digest of the file that has these lines.
    #[must_use]
    pub fn finish(self) -> Sha256 {
        Sha256(self.0.finalize().into())
    }
}

/// Large counts are decimal strings in JSON.
mod digits {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(it: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = String::deserialize(from)?;
        let count: u128 = text.parse().map_err(D::Error::custom)?;
        if count.to_string() == text {
            Ok(count)
        } else {
            Err(D::Error::custom("expected decimal digits"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn record() -> UsageRecord {
        UsageRecord {
            call: CallId::generate(),
            at: datetime!(2026-11-23 18:05:46.1 UTC),
            window: Some(UsageWindowId::generate()),
            key: None,
            model: ModelId::generate(),
            version: ModelVersionId::generate(),
            price: 3,
            worker: WorkerId::generate(),
            usage: Usage {
                rows: 1,
                input_tokens: 2,
                output_tokens: 3,
                madds: u128::from(u64::MAX) + 1,
            },
            cost: "7000000000000000001".parse().unwrap(),
            duration_us: 830,
        }
    }

    #[test]
    fn a_record_has_one_line_and_no_other_text_is_one() {
        let record = record();
        let line = record.to_string();
        assert!(line.contains(",2026-11-23T18:05:46.100000Z,uwn_"), "{line}");
        assert_eq!(line.split(',').count(), HEADER.split(',').count());
        assert_eq!(line.parse(), Ok(record));
        for wrong in [
            line.replace(",830", ",0830"),
            line.replace(",3,", ",+3,"),
            format!("{line},"),
            format!("{line} "),
            line.replace("uwn_", "mdl_"),
            HEADER.to_owned(),
        ] {
            assert_eq!(wrong.parse::<UsageRecord>(), Err(InvalidLine), "{wrong}");
        }
    }

    #[test]
    fn no_line_is_longer_than_a_line_may_be() {
        let long = UsageRecord {
            key: Some(ApiKeyId::generate()),
            price: u32::MAX,
            usage: Usage {
                rows: u64::MAX,
                input_tokens: u64::MAX,
                output_tokens: u64::MAX,
                madds: u128::MAX,
            },
            cost: Atto::from_base(crate::amount::Amount::MAX),
            duration_us: u32::MAX,
            ..record()
        };
        assert!(long.to_string().len() < LINE_BYTES_MAX);
    }

    #[test]
    fn the_digest_of_a_file_is_that_of_its_bytes() {
        let (first, second) = (record(), record());
        let mut digest = UsageDigest::default();
        digest.add(&first);
        digest.add(&second);
        let file = format!("{HEADER}\n{first}\n{second}\n");
        assert_eq!(digest.finish(), Sha256::of(file.as_bytes()));
    }

    #[test]
    fn counts_in_json_are_read_as_they_were_written() {
        let counted = Counted::default().with(&record().usage).unwrap();
        let json = serde_json::to_value(counted).unwrap();
        assert_eq!(json["madds"], "18446744073709551616");
        assert_eq!(serde_json::from_value::<Counted>(json).unwrap(), counted);
        let most = Usage {
            rows: u64::MAX,
            ..Usage::default()
        };
        assert_eq!(counted.with(&most), None);
    }
}
