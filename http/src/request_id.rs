//! The identifier of a request, from the client's header through log lines and problems and back.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// Where the identifier travels, in both directions.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// W3C trace context, accepted so that log lines can be joined with the caller's trace.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longer identifiers of clients are replaced by ours.
const LENGTH_MAX: usize = 128;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// The identifier of one request.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The client's identifier when it is short and plain, else a fresh one.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let plain = |value: &&HeaderValue| {
            (1..=LENGTH_MAX).contains(&value.len())
                && value
                    .as_bytes()
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
        };
        Self(
            headers
                .get(HEADER)
                .filter(plain)
                .cloned()
                .unwrap_or_else(|| {
                    HeaderValue::from_str(&Uuid::now_v7().to_string())
                        .expect("a UUID is printable ASCII")
                }),
        )
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// As the value of a header.
    #[must_use]
    pub fn to_header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Runs `request` so that [`current`] knows this identifier.
    pub(crate) async fn scope<F: Future>(self, request: F) -> F::Output {
        CURRENT.scope(self, request).await
    }
}

/// The identifier of the request that this task answers.
#[must_use]
pub fn current() -> Option<String> {
    CURRENT.try_with(|id| id.as_str().to_owned()).ok()
}

/// The trace id of a `traceparent` header: 32 lower-case hexadecimal digits, not all zero.
#[must_use]
pub fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let mut parts = headers.get(TRACEPARENT)?.to_str().ok()?.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length| {
        text.len() == length
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let valid = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && trace.bytes().any(|byte| byte != b'0')
        && hex(parent, 16)
        && hex(flags, 2);
    valid.then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_bytes(value.as_bytes()).unwrap())])
    }

    #[test]
    fn a_plain_identifier_of_the_client_is_kept() {
        assert_eq!(
            RequestId::of(&headers(HEADER, "job-7_a.b")).as_str(),
            "job-7_a.b"
        );
    }

    #[test]
    fn an_identifier_that_could_forge_a_log_line_is_replaced() {
        for hostile in ["", "a b", "x\u{e9}", "a\"b", &"a".repeat(129)] {
            let id = RequestId::of(&headers(HEADER, hostile));
            assert!(
                id.as_str().parse::<Uuid>().is_ok(),
                "{hostile:?} became {id:?}"
            );
        }
    }

    #[test]
    fn a_trace_id_is_read_from_a_valid_traceparent_only() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let valid = headers(TRACEPARENT, &format!("00-{trace}-00f067aa0ba902b7-01"));
        assert_eq!(trace_id(&valid), Some(trace));
        for bad in ["", "00-1-2-01", &format!("ff-{trace}-00f067aa0ba902b7-01")] {
            assert_eq!(trace_id(&headers(TRACEPARENT, bad)), None, "{bad}");
        }
    }
}
