//! Protocols of others, whose clients are told a problem in another form than ours.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{Method, StatusCode},
    middleware,
    middleware::Next,
};
use serde_json::Value;

use crate::Problem;

/// How problems are told in some protocol. Headers are those of the problem.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// What its clients read: a JSON object.
    pub body: fn(&Problem) -> Value,
    /// The status that they know for one of ours.
    pub status: fn(StatusCode) -> StatusCode,
    /// Has the route clients of ours, too? Then they are told a problem document, with the members of the body beside its own, for which RFC 9457
    /// leaves room; and the status stays.
    pub is_beside: bool,
}

impl Dialect {
    /// The problem document with what others read beside it.
    pub(crate) fn beside(&self, problem: &Problem) -> Value {
        let mut document =
            serde_json::to_value(problem).expect("texts and numbers have a JSON form");
        if let (Value::Object(members), Value::Object(others)) =
            (&mut document, (self.body)(problem))
        {
            members.extend(others);
        }
        document
    }
}

tokio::task_local! {
    static SPOKEN: Dialect;
}

/// Has a service tell its problems in the dialect of their routes; `None`: as problem documents.
pub fn speak(
    service: Router,
    of: impl Fn(&Method, &str) -> Option<Dialect> + Send + Sync + 'static,
) -> Router {
    let of = Arc::new(of);
    service.layer(middleware::from_fn(move |request: Request, next: Next| {
        let spoken = of(request.method(), request.uri().path());
        async move {
            match spoken {
                Some(dialect) => SPOKEN.scope(dialect, next.run(request)).await,
                None => next.run(request).await,
            }
        }
    }))
}

/// The dialect of this request, where it has one.
pub(crate) fn spoken() -> Option<Dialect> {
    SPOKEN.try_with(|dialect| *dialect).ok()
}
