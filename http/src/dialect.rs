//! Protocols of others, whose clients are told a problem in another form than ours.

use std::sync::Arc;

use axum::{Router, extract::Request, middleware, middleware::Next};
use serde_json::Value;

use crate::Problem;

/// The body of a problem in some protocol. It is JSON; status and headers are those of the problem.
pub type Dialect = fn(&Problem) -> Value;

tokio::task_local! {
    static SPOKEN: Dialect;
}

/// Has a service tell its problems in the dialect of their paths; `None`: as problem documents.
pub fn speak(
    service: Router,
    of: impl Fn(&str) -> Option<Dialect> + Send + Sync + 'static,
) -> Router {
    let of = Arc::new(of);
    service.layer(middleware::from_fn(move |request: Request, next: Next| {
        let spoken = of(request.uri().path());
        async move {
            match spoken {
                Some(dialect) => SPOKEN.scope(dialect, next.run(request)).await,
                None => next.run(request).await,
            }
        }
    }))
}

/// The problem in the dialect of this request, where it has one.
pub(crate) fn tell(problem: &Problem) -> Option<Value> {
    SPOKEN.try_with(|dialect| dialect(problem)).ok()
}
