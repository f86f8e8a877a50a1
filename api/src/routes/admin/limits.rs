//! `/v1/admin/accounts/{id}/limits`: what one account may have and do.

use axum::response::Response;
use comptoir_domain::{
    audit::Action,
    id::AccountId,
    limits::{Limits, OwnLimits},
};
use comptoir_store::admin_accounts;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    accounts::refused,
    guard::{Admin, FreshAdmin},
};
use crate::{
    AppState, FieldError, Problem,
    etag::Conditions,
    extract::{Json, Path},
};

/// Counts up to here stay exact as JSON numbers.
const LIMIT_MAX: u64 = (1 << 53) - 1;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(find_limits, update_limits))
}

/// What an account may have and do.
#[derive(Serialize, ToSchema)]
#[schema(as = AccountLimits)]
pub(super) struct LimitsBody {
    /// Jobs that have not ended.
    open_jobs: LimitBody,
    /// Jobs submitted on one day (UTC).
    jobs_per_day: LimitBody,
    /// Bytes of the blobs that it may read.
    storage_bytes: LimitBody,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AccountLimit)]
struct LimitBody {
    /// `null`: none.
    #[schema(required = true)]
    limit: Option<u64>,
    /// Did an operator decide it for this account? Else it is the deployment's.
    own: bool,
}

impl LimitsBody {
    pub(super) fn new(own: OwnLimits, deployment: Limits) -> Self {
        let limits = deployment.with(own);
        let limit = |limit, own: Option<u64>| LimitBody {
            limit: (limit <= LIMIT_MAX).then_some(limit),
            own: own.is_some(),
        };
        Self {
            open_jobs: limit(limits.open_jobs, own.open_jobs),
            jobs_per_day: limit(limits.jobs_per_day, own.jobs_per_day),
            storage_bytes: limit(limits.storage_bytes, own.storage_bytes),
        }
    }
}

/// What one account may have and do.
#[utoipa::path(
    get, path = "/v1/admin/accounts/{id}/limits",
    params(("id" = String, Path)),
    responses(
        (status = 200, body = LimitsBody, headers(("ETag" = String))),
        (status = 304),
    ),
)]
async fn find_limits(
    admin: Admin,
    Path(id): Path<AccountId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = admin.read().await?;
    let account = admin_accounts::find(&mut connection, id).await?;
    let account = account.ok_or_else(Problem::not_found)?;
    let limits = LimitsBody::new(account.limits, admin.state.config.limits);
    Ok(conditions.answer(limits))
}

/// A number decides; `null` goes back to the deployment's limit; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AccountLimitsPatch)]
struct LimitsPatch {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<u64>, maximum = 9_007_199_254_740_991_u64)]
    open_jobs: Patched,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<u64>, maximum = 9_007_199_254_740_991_u64)]
    jobs_per_day: Patched,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<u64>, maximum = 9_007_199_254_740_991_u64)]
    storage_bytes: Patched,
}

/// What a merge patch says of one limit: `null` removes it, which is not the same as saying nothing.
#[derive(Clone, Copy, Default)]
enum Patched {
    #[default]
    Stays,
    Removed,
    Is(u64),
}

impl Patched {
    const fn applied_to(self, own: Option<u64>) -> Option<u64> {
        match self {
            Self::Stays => own,
            Self::Removed => None,
            Self::Is(limit) => Some(limit),
        }
    }
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Patched, D::Error> {
    let said = Option::deserialize(deserializer)?;
    Ok(said.map_or(Patched::Removed, Patched::Is))
}

impl LimitsPatch {
    fn check(&self) -> Result<(), Problem> {
        let named = [
            ("/open_jobs", self.open_jobs),
            ("/jobs_per_day", self.jobs_per_day),
            ("/storage_bytes", self.storage_bytes),
        ];
        let errors: Vec<_> = named
            .into_iter()
            .filter(|(_, limit)| matches!(limit, Patched::Is(it) if *it > LIMIT_MAX))
            .map(|(pointer, _)| FieldError::new(pointer, format!("expected 0 to {LIMIT_MAX}")))
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid_fields(errors))
        }
    }

    const fn applied_to(&self, own: OwnLimits) -> OwnLimits {
        OwnLimits {
            open_jobs: self.open_jobs.applied_to(own.open_jobs),
            jobs_per_day: self.jobs_per_day.applied_to(own.jobs_per_day),
            storage_bytes: self.storage_bytes.applied_to(own.storage_bytes),
        }
    }
}

/// Gives one account limits of its own. What it has already stays, even above them.
#[utoipa::path(
    patch, path = "/v1/admin/accounts/{id}/limits",
    params(
        ("id" = String, Path),
        ("If-Match" = String, Header, description = "The `ETag` that the limits were read with"),
    ),
    request_body(content = LimitsPatch, content_type = "application/merge-patch+json"),
    responses((status = 200, body = LimitsBody, headers(("ETag" = String)))),
)]
async fn update_limits(
    admin: FreshAdmin,
    Path(id): Path<AccountId>,
    conditions: Conditions,
    Json(patch): Json<LimitsPatch>,
) -> Result<Response, Problem> {
    patch.check()?;
    let event = admin.event(Action::AccountLimited, id).of_account(id);
    let (now, deployment) = (admin.state.now(), admin.state.config.limits);
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            admin_accounts::lock(tx, id).await.map_err(refused)?;
            let seen = admin_accounts::find(tx, id)
                .await?
                .ok_or_else(Problem::not_found)?;
            conditions.require_match(&LimitsBody::new(seen.limits, deployment))?;
            let own = patch.applied_to(seen.limits);
            admin_accounts::set_limits(tx, id, own, now)
                .await
                .map_err(refused)?;
            event.note("open_jobs", own.open_jobs);
            event.note("jobs_per_day", own.jobs_per_day);
            event.note("storage_bytes", own.storage_bytes);
            Ok(conditions.answer(LimitsBody::new(own, deployment)))
        })
    });
    work.await
}
