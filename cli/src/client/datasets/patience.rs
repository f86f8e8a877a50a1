//! Waiting where the service asks to: a version may have more files than a minute has requests.

use std::time::Duration;

use reqwest::{RequestBuilder, Response};

use super::super::http::{Api, ApiError};

/// Pause before a request that the service asked to wait with.
pub const WAIT: Duration = Duration::from_secs(1);
/// How often it is waited for one file.
pub const WAITS_MAX: u32 = 60;

/// Sends it, and again where the service asks to wait.
pub async fn patiently(api: &Api, request: &RequestBuilder) -> Result<Response, ApiError> {
    let mut waits = 0;
    loop {
        let again = request.try_clone().expect("a request without a body");
        match api.send(again).await {
            Err(ApiError::Problem { status: 429, .. }) if waits < WAITS_MAX => {
                waits += 1;
                tokio::time::sleep(WAIT).await;
            }
            sent => return sent,
        }
    }
}
