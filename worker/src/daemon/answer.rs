//! Answers of the server: limited in size, and never trusted to make sense.

use std::io;

use reqwest::{RequestBuilder, Response, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

/// Largest reply that is read whole, blobs aside.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// Largest problem document.
const PROBLEM_BYTES_MAX: usize = 1 << 16;
/// Longest text of a server that is shown to people, in characters.
const TEXT_CHARS_MAX: usize = 300;

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer.
    #[error("no answer from the server: {}", chain(.0))]
    Network(#[from] reqwest::Error),
    /// No answer for too long.
    #[error("the server fell silent")]
    Silent,
    /// An address that no HTTP server has.
    #[error("{0} is not the address of a service: it starts with https:// or http://")]
    Address(Url),
    /// A refusal.
    #[error("the server refused with {status}: {problem}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        problem: Problem,
    },
    /// An answer that is not one.
    #[error("the server's answer is not one: {0}")]
    Nonsense(String),
    /// What was to be sent cannot be read.
    #[error("read what is to be sent: {0}")]
    Disk(#[from] io::Error),
}

impl CallError {
    /// Can the same call succeed later?
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Network(_) | Self::Nonsense(_) | Self::Silent => true,
            Self::Refused { status, problem } => {
                let may_pass = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                let of_time = ["clock_skewed", "token_request_replayed"];
                status.is_server_error()
                    || may_pass.contains(status)
                    || of_time.contains(&problem.code.as_str())
                    // With a token that was just issued: a server that is being replaced.
                    || self.code() == Some("unauthenticated")
            }
            Self::Disk(_) | Self::Address(_) => false,
        }
    }

    /// The word for a refusal.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { problem, .. } => Some(&problem.code),
            Self::Network(_)
            | Self::Silent
            | Self::Address(_)
            | Self::Nonsense(_)
            | Self::Disk(_) => None,
        }
    }

    /// Does the server no longer know this worker?
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.code(), Some("worker_revoked" | "signature_refused"))
    }

    /// Does the server give this worker no work, until an operator lifts it?
    #[must_use]
    pub fn is_barred(&self) -> bool {
        self.code() == Some("worker_barred")
    }

    /// Is the attempt somebody else's, or nobody's?
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.code() == Some("stale_lease")
    }

    /// Was it refused with this status?
    #[must_use]
    pub fn has_status(&self, expected: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == expected)
    }
}

fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What a server says about a refusal.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The kind in one word.
    pub code: String,
    /// The kind in a sentence.
    pub title: String,
    /// What is particular.
    pub detail: Option<String>,
    errors: Vec<FieldError>,
}

#[derive(Debug, Clone, Deserialize)]
struct FieldError {
    pointer: String,
    detail: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = if self.code.is_empty() {
            "no reason given".to_owned()
        } else {
            self.title.clone()
        };
        if let Some(detail) = &self.detail {
            text = format!("{text}. {detail}");
        }
        if let Some(field) = self.errors.first() {
            text = format!("{text} ({}: {})", field.pointer, field.detail);
        }
        f.write_str(&printable(&text))
    }
}

/// Text of a server, for a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(TEXT_CHARS_MAX)
        .collect()
}

/// Sends a request; a refusal is an error.
pub async fn send(call: RequestBuilder) -> Result<Response, CallError> {
    let response = call.send().await?;
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    // A refusal counts even when its reasons get lost.
    let problem = match read_limited(response, PROBLEM_BYTES_MAX).await {
        Ok(body) => serde_json::from_slice(&body).unwrap_or_default(),
        Err(_) => Problem::default(),
    };
    Err(CallError::Refused { status, problem })
}

/// Reads a JSON body.
pub async fn read<T: DeserializeOwned>(response: Response) -> Result<T, CallError> {
    let body = read_limited(response, REPLY_BYTES_MAX).await?;
    serde_json::from_slice(&body)
        .map_err(|error| CallError::Nonsense(printable(&error.to_string())))
}

async fn read_limited(mut response: Response, limit: usize) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await? {
        if body.len() + part.len() > limit {
            return Err(CallError::Nonsense(format!("more than {limit} bytes")));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: StatusCode, code: &str) -> CallError {
        CallError::Refused {
            status,
            problem: Problem {
                code: code.to_owned(),
                ..Problem::default()
            },
        }
    }

    #[test]
    fn only_what_can_pass_is_tried_again() {
        assert!(refused(StatusCode::SERVICE_UNAVAILABLE, "unavailable").is_retryable());
        assert!(refused(StatusCode::BAD_GATEWAY, "").is_retryable());
        assert!(refused(StatusCode::UNPROCESSABLE_ENTITY, "clock_skewed").is_retryable());
        assert!(!refused(StatusCode::CONFLICT, "stale_lease").is_retryable());
        assert!(!refused(StatusCode::FORBIDDEN, "worker_revoked").is_retryable());
        assert!(refused(StatusCode::FORBIDDEN, "worker_revoked").is_final());
    }

    #[test]
    fn what_a_server_says_cannot_command_a_terminal() {
        let problem = Problem {
            code: "x".to_owned(),
            title: format!("a\u{1b}[2J{}", "b".repeat(999)),
            ..Problem::default()
        };
        let text = problem.to_string();
        assert!(
            text.starts_with("a[2Jb") && text.len() == TEXT_CHARS_MAX,
            "{text}"
        );
    }
}
