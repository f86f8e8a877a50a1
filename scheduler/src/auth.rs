//! Who calls: the worker that a token names, and the lease that a request is about.

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
};
use comptoir_domain::id::{LeaseToken, WorkerId};
use comptoir_http::{Problem, credential, rate_limit};
use comptoir_store::workers::Worker;
use comptoir_wire::LEASE_TOKEN_HEADER;

use crate::{SchedulerState, groups::not_looked_up};

/// The worker that calls; the guard of every route but the public ones.
#[derive(Debug)]
pub struct Caller(pub Worker);

impl FromRequestParts<SchedulerState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &SchedulerState,
    ) -> Result<Self, Problem> {
        let token = credential::bearer(&parts.headers).ok_or_else(Problem::unauthenticated)?;
        let claims = state
            .keys
            .verify(token, state.now())
            .map_err(|_| Problem::unauthenticated())?;
        let worker: WorkerId = claims.sub.parse().map_err(|_| Problem::unauthenticated())?;
        let found = state.groups.workers.find(worker).await;
        let worker = found
            .map_err(not_looked_up)?
            .ok_or_else(Problem::unauthenticated)?;
        rate_limit::accepted();
        if worker.revoked {
            Err(revoked())
        } else {
            Ok(Self(worker))
        }
    }
}

/// The lease token that came along; none if it is none.
#[derive(Debug, Clone, Copy)]
pub struct Lease(pub Option<LeaseToken>);

impl<S: Sync> FromRequestParts<S> for Lease {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let token = parts
            .headers
            .get(LEASE_TOKEN_HEADER)
            .and_then(|token| token.to_str().ok());
        Ok(Self(token.and_then(|token| token.parse().ok())))
    }
}

/// The worker's owner took it out of service.
pub fn revoked() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "worker_revoked",
        "The worker was taken out of service",
    )
}

/// The worker was refuted. It is told when it asks for work and has nothing left to report or to show.
pub fn barred() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "worker_barred",
        "The worker gets no work: two other owners agreed on another result than its own",
    )
    .detail("Whoever runs the service can lift it")
}
