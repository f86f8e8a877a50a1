//! How a request authenticates itself: one reading, for whoever checks a credential and for whoever counts it.

use axum::http::{HeaderMap, header};

/// The cookie of a browser's session. The prefix makes browsers demand that only this host set it.
pub const SESSION_COOKIE: &str = "__Host-comptoir";

/// The token of the only `Authorization` header, where that is a bearer's.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

/// The value of the only session cookie.
#[must_use]
pub fn session_cookie(headers: &HeaderMap) -> Option<&str> {
    let mut ours = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(SESSION_COOKIE)?.strip_prefix('='));
    let value = ours.next()?;
    ours.next().is_none().then_some(value)
}
