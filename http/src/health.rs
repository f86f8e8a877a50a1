//! How a service is: alive, ready, which version. Every service answers the same three questions.

use std::{fmt, sync::Arc};

use axum::{
    extract::{FromRef, State},
    http::StatusCode,
};
use futures::future::BoxFuture;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::extract::Json;

/// What a service says of itself; part of its state.
#[derive(Clone)]
pub struct Probe {
    service: &'static str,
    check: Arc<dyn Fn() -> BoxFuture<'static, Components> + Send + Sync>,
}

/// How a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComponentStatus {
    /// It answers.
    Up,
    /// It does not.
    Down,
    /// The deployment does without it.
    NotConfigured,
}

/// What a service is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Components {
    /// The database.
    pub postgres: ComponentStatus,
    /// Where blobs are.
    pub object_store: ComponentStatus,
    /// Without Redis everything works, only later: it decides nothing here.
    pub redis: ComponentStatus,
    /// What reads files of datasets before they are published, in the service that does. It is down on a machine without the walls around such a
    /// reader: versions wait there, and everything else works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checker: Option<ComponentStatus>,
}

#[derive(Serialize, ToSchema)]
struct HealthBody {
    status: ComponentStatus,
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

impl Probe {
    /// Of the service with this name, whose components `check` looks at; it must come to an end by itself.
    pub fn new<F>(service: &'static str, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Components> + Send + 'static,
    {
        Self {
            service,
            check: Arc::new(move || Box::pin(check())),
        }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Probe").field(&self.service).finish()
    }
}

impl Components {
    /// Which of them answer; a deployment may do without Redis.
    #[must_use]
    pub fn new(postgres: bool, object_store: bool, redis: Option<bool>) -> Self {
        Self {
            postgres: postgres.into(),
            object_store: object_store.into(),
            redis: redis.map_or(ComponentStatus::NotConfigured, Into::into),
            checker: None,
        }
    }

    /// And whether files of datasets can be checked.
    #[must_use]
    pub fn with_checker(self, is_up: bool) -> Self {
        Self {
            checker: Some(is_up.into()),
            ..self
        }
    }
}

impl From<bool> for ComponentStatus {
    fn from(up: bool) -> Self {
        if up { Self::Up } else { Self::Down }
    }
}

/// `/healthz`, `/readyz` and `/version`.
pub fn router<S>() -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
    Probe: FromRef<S>,
{
    OpenApiRouter::new()
        .routes(routes!(check_health))
        .routes(routes!(check_readiness))
        .routes(routes!(find_version))
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
async fn check_readiness(State(probe): State<Probe>) -> (StatusCode, Json<ReadinessBody>) {
    let components = (probe.check)().await;
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
            status: ready.into(),
            components,
        }),
    )
}

/// Which version answers.
#[utoipa::path(get, path = "/version", tag = "service", security(()), responses((status = 200, body = VersionBody)))]
async fn find_version(State(probe): State<Probe>) -> Json<VersionBody> {
    Json(VersionBody {
        name: probe.service,
        version: env!("CARGO_PKG_VERSION"),
    })
}
