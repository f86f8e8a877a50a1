//! Bodies of calls, which may be large: read whole, within what all of them may have in memory.

use axum::{body::Bytes, extract::Request, http::header};
use comptoir_wire::calls::CALL_BYTES_MAX;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::texts::apart;
use crate::{AppState, Problem, extract};

/// Bytes of bodies of calls that are read at once, in all.
const BODIES_BYTES_MAX: usize = 512 << 20;

static BODIES: Semaphore = Semaphore::const_new(BODIES_BYTES_MAX);

/// Reads a body whole, within what all bodies of calls may have in memory.
pub(crate) async fn read_body(
    request: Request,
    state: &AppState,
) -> Result<(Bytes, SemaphorePermit<'static>), Problem> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|it| it.to_str().ok()?.parse().ok());
    let bytes = length.unwrap_or(CALL_BYTES_MAX).min(CALL_BYTES_MAX);
    let permits = u32::try_from(bytes).expect("16 MiB are below 2^32");
    let permit = BODIES.try_acquire_many(permits).map_err(|_| {
        Problem::unavailable("Too many large calls are read at once").retry_after(1)
    })?;
    let body = extract::read_body(request, state).await?;
    Ok((body, permit))
}

/// Reads a JSON body whole; what is large is parsed apart, so that nobody else waits for it.
pub(crate) async fn read_json<T>(request: Request, state: &AppState) -> Result<T, Problem>
where
    T: DeserializeOwned + Send + 'static,
{
    let headers = request.headers().clone();
    extract::require_json(&headers)?;
    let (body, permit) = read_body(request, state).await?;
    let bytes = body.len();
    let parsed = apart(bytes, move || extract::parse_json(&headers, &body)).await?;
    drop(permit);
    parsed
}
