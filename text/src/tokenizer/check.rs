//! Checks that several components share.

use super::{InvalidTokenizer, limits::REPLACEMENT_BYTES_MAX};

/// Refuses more of something than there may be.
pub fn count(
    place: &str,
    what: &'static str,
    found: usize,
    max: usize,
) -> Result<(), InvalidTokenizer> {
    if found > max {
        let place = place.to_owned();
        return Err(InvalidTokenizer::TooMany {
            place,
            what,
            found,
            max,
        });
    }
    Ok(())
}

/// Refuses a long text that would be put in place of short ones.
pub fn replacement(place: &str, content: &str) -> Result<(), InvalidTokenizer> {
    count(
        place,
        "bytes of replacement",
        content.len(),
        REPLACEMENT_BYTES_MAX,
    )
}

/// Something contradicts itself or something else.
pub fn contradiction(place: impl Into<String>, detail: impl Into<String>) -> InvalidTokenizer {
    let (place, detail) = (place.into(), detail.into());
    InvalidTokenizer::Contradiction { place, detail }
}

/// Something exists and is not taken.
pub fn unsupported(
    place: &str,
    component: impl Into<String>,
    reason: &'static str,
) -> InvalidTokenizer {
    let (place, component) = (place.to_owned(), component.into());
    InvalidTokenizer::Unsupported {
        place,
        component,
        reason,
    }
}
