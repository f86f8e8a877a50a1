//! Answering with bytes that never change under one tag: whole, one range of them, or not at all where the client has them.

use std::ops::Range;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::Problem;

/// Bytes that are answered with.
#[derive(Debug, Clone)]
pub(crate) struct Bytes {
    /// What they are called: another tag, other bytes.
    pub tag: String,
    /// How many there are.
    pub count: u64,
    /// Who may keep them, and for how long.
    pub cache: &'static str,
}

/// What a request wants of them.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Nothing: the client has them.
    Nothing(Response),
    /// These.
    Range(Answer),
}

/// An answer whose body is to come.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Which bytes it has; none only where there are none at all.
    pub range: Range<u64>,
    status: StatusCode,
    bytes: Bytes,
}

impl Bytes {
    /// What a request with these headers wants.
    ///
    /// # Errors
    /// 416 where the range begins behind the end.
    pub(crate) fn wanted(self, headers: &HeaderMap) -> Result<Wanted, Problem> {
        if names(headers, &header::IF_NONE_MATCH, &self.tag) {
            let response = (StatusCode::NOT_MODIFIED, self.described()).into_response();
            return Ok(Wanted::Nothing(response));
        }
        let is_same =
            !headers.contains_key(header::IF_RANGE) || names(headers, &header::IF_RANGE, &self.tag);
        let asked = headers
            .get(header::RANGE)
            .filter(|_| is_same)
            .and_then(|it| it.to_str().ok());
        let (status, range) = match asked.map_or(Asked::Whole, |it| Asked::of(it, self.count)) {
            Asked::Whole => (StatusCode::OK, 0..self.count),
            Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
            Asked::Nothing => return Err(unsatisfiable(self.count)),
        };
        Ok(Wanted::Range(Answer {
            range,
            status,
            bytes: self,
        }))
    }

    fn described(&self) -> HeaderMap {
        let fixed = [
            (header::CONTENT_TYPE, "application/octet-stream"),
            (header::CONTENT_DISPOSITION, "attachment"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::ACCEPT_RANGES, "bytes"),
            (header::CACHE_CONTROL, self.cache),
        ];
        let mut headers: HeaderMap = fixed
            .into_iter()
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .collect();
        headers.insert(
            header::ETAG,
            HeaderValue::try_from(&self.tag).expect("a digest is ASCII"),
        );
        headers
    }
}

impl Answer {
    /// With the bytes of the range.
    pub(crate) fn with(self, body: Body) -> Response {
        let mut response = (self.status, self.bytes.described(), body).into_response();
        let headers = response.headers_mut();
        let length = self.range.end.saturating_sub(self.range.start);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        if self.status == StatusCode::PARTIAL_CONTENT {
            let last = self.range.end.saturating_sub(1);
            let span = format!("bytes {}-{last}/{}", self.range.start, self.bytes.count);
            headers.insert(
                header::CONTENT_RANGE,
                HeaderValue::try_from(span).expect("digits are ASCII"),
            );
        }
        response
    }
}

fn names(headers: &HeaderMap, condition: &HeaderName, tag: &str) -> bool {
    let listed = headers
        .get_all(condition)
        .iter()
        .filter_map(|it| it.to_str().ok());
    listed
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|it| it == tag || it == "*")
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Everything: no range, one that is not understood, or several, which RFC 9110 lets a server ignore.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that are not there.
    Nothing,
}

impl Asked {
    fn of(range: &str, bytes: u64) -> Self {
        let Some((first, last)) = range
            .strip_prefix("bytes=")
            .and_then(|it| it.split_once('-'))
        else {
            return Self::Whole;
        };
        // A number alone: `parse` would take a sign too.
        let digits = |text: &str| {
            text.bytes()
                .all(|it| it.is_ascii_digit())
                .then(|| text.parse::<u64>().ok())
                .flatten()
        };
        let (start, end) = match (
            first.is_empty(),
            digits(first),
            last.is_empty(),
            digits(last),
        ) {
            (true, _, false, Some(suffix)) => (bytes.saturating_sub(suffix), bytes),
            (false, Some(first), true, _) => (first, bytes),
            (false, Some(first), false, Some(last)) if first <= last => {
                (first, last.saturating_add(1).min(bytes))
            }
            _ => return Self::Whole,
        };
        if start < end {
            Self::Part(start..end)
        } else {
            Self::Nothing
        }
    }
}

fn unsatisfiable(bytes: u64) -> Problem {
    let size = HeaderValue::try_from(format!("bytes */{bytes}")).expect("digits are ASCII");
    Problem::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "range_not_satisfiable",
        "The range begins behind the end",
    )
    .header(header::CONTENT_RANGE, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood_in_each_of_its_forms() {
        let asked = |range: &str| Asked::of(range, 10);
        assert_eq!(asked("bytes=0-0"), Asked::Part(0..1));
        assert_eq!(asked("bytes=2-4"), Asked::Part(2..5));
        assert_eq!(asked("bytes=2-99"), Asked::Part(2..10));
        assert_eq!(asked("bytes=7-"), Asked::Part(7..10));
        assert_eq!(asked("bytes=-3"), Asked::Part(7..10));
        assert_eq!(asked("bytes=-99"), Asked::Part(0..10));
        for nothing in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert_eq!(asked(nothing), Asked::Nothing, "{nothing}");
        }
        for ignored in [
            "bytes=4-2",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=0-1,3-4",
            "lines=0-1",
            "",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(asked(ignored), Asked::Whole, "{ignored}");
        }
        assert_eq!(Asked::of("bytes=0-", 0), Asked::Nothing);
    }
}
