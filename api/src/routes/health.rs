//! How the service is: alive, ready, which version.

use std::time::Duration;

use axum::{extract::State, http::StatusCode};
use comptoir_store::pool;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{AppState, extract::Json};

/// How long a component may take to answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(check_health))
        .routes(routes!(check_readiness))
        .routes(routes!(find_version))
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ComponentStatus {
    Up,
    Down,
    /// The deployment does without it.
    NotConfigured,
}

#[derive(Serialize, ToSchema)]
struct HealthBody {
    status: ComponentStatus,
}

#[derive(Serialize, ToSchema)]
struct Components {
    postgres: ComponentStatus,
    object_store: ComponentStatus,
    /// Without Redis everything works, only later: it decides nothing here.
    redis: ComponentStatus,
}

#[derive(Serialize, ToSchema)]
struct ReadinessBody {
    status: ComponentStatus,
    components: Components,
}

#[derive(Serialize, ToSchema)]
struct VersionBody {
    name: &'static str,
    version: &'static str,
}

/// Is the process alive?
#[utoipa::path(get, path = "/healthz", tag = "service", security(()), responses((status = 200, body = HealthBody)))]
async fn check_health() -> Json<HealthBody> {
    Json(HealthBody {
        status: ComponentStatus::Up,
    })
}

/// Can it answer requests, and which of its components can?
#[utoipa::path(
    get, path = "/readyz", tag = "service", security(()),
    responses((status = 200, body = ReadinessBody), (status = 503, body = ReadinessBody)),
)]
async fn check_readiness(State(state): State<AppState>) -> (StatusCode, Json<ReadinessBody>) {
    let postgres = async { pool::check(&mut *state.db.acquire().await?).await };
    let (postgres, object_store) = tokio::join!(
        timeout(CHECK_TIMEOUT, postgres),
        timeout(CHECK_TIMEOUT, state.objects.check())
    );
    let status = |up: bool| {
        if up {
            ComponentStatus::Up
        } else {
            ComponentStatus::Down
        }
    };
    let components = Components {
        postgres: status(matches!(postgres, Ok(Ok(())))),
        object_store: status(matches!(object_store, Ok(Ok(())))),
        redis: state
            .wake
            .is_connected()
            .map_or(ComponentStatus::NotConfigured, status),
    };
    let ready = components.postgres == ComponentStatus::Up
        && components.object_store == ComponentStatus::Up;
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        code,
        Json(ReadinessBody {
            status: status(ready),
            components,
        }),
    )
}

/// Which version answers.
#[utoipa::path(get, path = "/version", tag = "service", security(()), responses((status = 200, body = VersionBody)))]
async fn find_version() -> Json<VersionBody> {
    Json(VersionBody {
        name: "comptoir-api",
        version: env!("CARGO_PKG_VERSION"),
    })
}
