//! Every kind of problem that a service of ours answers with; each has a page at `/problems/<code>`.

/// One kind of problem.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// The stable word.
    pub code: &'static str,
    /// The status that it comes with.
    pub status: u16,
    /// What it means, and what to do.
    pub meaning: &'static str,
}

const fn code(code: &'static str, status: u16, meaning: &'static str) -> Code {
    Code {
        code,
        status,
        meaning,
    }
}

/// All of them, by status.
pub const ALL: &[Code] = &[
    code(
        "malformed_request",
        400,
        "The request could not be read: broken JSON, a bad query parameter, a cursor of another list. Correct it; repeating it changes nothing.",
    ),
    code(
        "idempotency_key_missing",
        400,
        "This operation creates something or moves money, so it needs an Idempotency-Key header of 1 to 255 printable ASCII characters.",
    ),
    code(
        "unauthenticated",
        401,
        "No credential, or one that is unknown, expired or revoked. Send `Authorization: Bearer` with an access token or an API key.",
    ),
    code(
        "invalid_grant",
        401,
        "The e-mail and password do not match, or the refresh token is unknown, spent or expired. Sign in again.",
    ),
    code(
        "insufficient_funds",
        402,
        "The available balance does not cover what this would hold. Deposit first, or ask for less.",
    ),
    code(
        "insufficient_scope",
        403,
        "The API key is valid but was not given the scope that this operation needs.",
    ),
    code(
        "not_found",
        404,
        "There is no such object, or it belongs to somebody else.",
    ),
    code(
        "no_such_route",
        404,
        "The service has no such address. The list of operations is at /docs.",
    ),
    code(
        "method_not_allowed",
        405,
        "The address exists, but does not take this method. The Allow header names those that it takes.",
    ),
    code(
        "email_taken",
        409,
        "An account with this e-mail exists already.",
    ),
    code(
        "address_taken",
        409,
        "The address is bound to another account. One address belongs to one account.",
    ),
    code(
        "address_already_bound",
        409,
        "The account has a bound address already.",
    ),
    code(
        "address_not_bound",
        409,
        "The account has no bound address yet, and money belongs to addresses. Bind one first.",
    ),
    code(
        "challenge_spent",
        409,
        "The challenge was used or has expired. Ask for a new one.",
    ),
    code(
        "idempotency_in_progress",
        409,
        "A request with this Idempotency-Key is being worked on. Repeat it after Retry-After seconds.",
    ),
    code(
        "precondition_failed",
        412,
        "The object changed since you read it. Read it again and repeat with its new ETag.",
    ),
    code(
        "payload_too_large",
        413,
        "The body is larger than this operation takes.",
    ),
    code(
        "unsupported_media_type",
        415,
        "The body must be sent once, as application/json in UTF-8 (or as what the operation documents).",
    ),
    code(
        "invalid_request",
        422,
        "The request was read, but a value cannot be accepted. `errors` points at each.",
    ),
    code(
        "idempotency_key_reused",
        422,
        "The Idempotency-Key was used before with another body. Use a new key for a new request.",
    ),
    code(
        "address_refused",
        422,
        "The address cannot be an account's: it is zero, a precompile, one of our contracts, or the platform's.",
    ),
    code(
        "signature_mismatch",
        422,
        "The signature is not one of the challenge's message by the challenge's address.",
    ),
    code(
        "precondition_required",
        428,
        "Send If-Match with the ETag of the object that you read, so that no change is lost.",
    ),
    code(
        "internal",
        500,
        "The service failed. The request id finds the cause in our logs; the request may be repeated with the same Idempotency-Key.",
    ),
    code(
        "unavailable",
        503,
        "The service cannot answer now. Repeat the request after Retry-After seconds.",
    ),
];

/// The kind of this name.
#[must_use]
pub fn find(code: &str) -> Option<&'static Code> {
    ALL.iter().find(|known| known.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_listed_once_in_snake_case() {
        for (index, known) in ALL.iter().enumerate() {
            assert!(
                known
                    .code
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{}",
                known.code
            );
            assert!(
                ALL[index + 1..]
                    .iter()
                    .all(|other| other.code != known.code),
                "{}",
                known.code
            );
        }
    }
}
