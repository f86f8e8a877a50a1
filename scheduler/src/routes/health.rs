//! How the service is: alive, ready, which version.

use axum::extract::FromRef;
use comptoir_http::health::{Components, Probe};
use comptoir_store::health;

use crate::SchedulerState;

impl FromRef<SchedulerState> for Probe {
    fn from_ref(state: &SchedulerState) -> Self {
        let state = state.clone();
        Self::new("comptoir-scheduler", move || check(state.clone()))
    }
}

async fn check(state: SchedulerState) -> Components {
    let parts = health::check(&state.db, &state.objects, &state.wake).await;
    Components::new(parts.postgres, parts.object_store, parts.redis)
}
