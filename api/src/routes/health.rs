//! How the service is: alive, ready, which version.

use axum::extract::FromRef;
use comptoir_http::health::{Components, Probe};
use comptoir_store::health;

use crate::AppState;

impl FromRef<AppState> for Probe {
    fn from_ref(state: &AppState) -> Self {
        let state = state.clone();
        Self::new("comptoir-api", move || check(state.clone()))
    }
}

async fn check(state: AppState) -> Components {
    let parts = health::check(&state.db, &state.objects, &state.wake).await;
    let components = Components::new(parts.postgres, parts.object_store, parts.redis);
    components.with_checker(state.checker.ready().is_ok())
}
