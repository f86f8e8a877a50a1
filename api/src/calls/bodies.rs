//! Bodies of calls, which may be large: read whole, within what all of them may have in memory.

use axum::{body::Bytes, extract::Request, http::header};
use comptoir_wire::calls::CALL_BYTES_MAX;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{AppState, Problem};

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
    let body = crate::extract::read_body(request, state).await?;
    Ok((body, permit))
}
