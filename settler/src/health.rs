//! What the settler says of itself: alive, ready, and why not.

use std::sync::{Mutex, PoisonError};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde::Serialize;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

use crate::alert::Alerts;

/// A settler that has finished no step for so long is not ready.
const STALE_AFTER: Duration = Duration::seconds(120);

/// The newest news of a settler.
#[derive(Debug, Default)]
pub struct Health {
    news: Mutex<News>,
    /// What a person should know of.
    pub alerts: Alerts,
}

#[derive(Debug, Default, Clone)]
struct News {
    leading: bool,
    stepped_at: Option<OffsetDateTime>,
    halted: Option<String>,
    failed: Option<String>,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Does everything that is due get done?
    pub ready: bool,
    /// `leading` or `standing_by`.
    pub role: &'static str,
    /// Why settling stands still, if it does.
    pub halted: Option<String>,
    /// Why the last step failed, if it did.
    pub failed: Option<String>,
    /// The alerts that stand, by name.
    pub alerts: Vec<&'static str>,
}

impl Health {
    pub(crate) fn standing_by(&self, now: OffsetDateTime) {
        self.tell(News {
            leading: false,
            stepped_at: Some(now),
            ..News::default()
        });
    }

    pub(crate) fn stepped(&self, now: OffsetDateTime, halted: Option<String>) {
        self.tell(News {
            leading: true,
            stepped_at: Some(now),
            halted,
            failed: None,
        });
    }

    pub(crate) fn failed(&self, now: OffsetDateTime, error: String) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.stepped_at.get_or_insert(now);
        news.failed = Some(error);
    }

    /// Is everything that is due getting done?
    #[must_use]
    pub fn readiness(&self, now: OffsetDateTime) -> Readiness {
        let news = self
            .news
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let fresh = news.stepped_at.is_some_and(|at| now - at < STALE_AFTER);
        Readiness {
            ready: fresh && news.halted.is_none() && news.failed.is_none(),
            role: if news.leading {
                "leading"
            } else {
                "standing_by"
            },
            halted: news.halted,
            failed: news.failed,
            alerts: self
                .alerts
                .standing()
                .iter()
                .map(|(alert, _)| alert.name())
                .collect(),
        }
    }

    fn tell(&self, news: News) {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = news;
    }
}

/// `/healthz` and `/readyz`.
pub fn router(health: Arc<Health>, clock: fn() -> OffsetDateTime) -> Router {
    let ready = async move |State(health): State<Arc<Health>>| {
        let readiness = health.readiness(clock());
        let status = if readiness.ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (status, Json(readiness))
    };
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(health)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_a_failure_and_silence_each_make_it_unready() {
        let health = Health::default();
        let now = OffsetDateTime::UNIX_EPOCH;
        assert!(!health.readiness(now).ready);
        health.stepped(now, None);
        assert!(health.readiness(now).ready);
        assert!(!health.readiness(now + STALE_AFTER).ready);
        health.failed(now, "node down".to_owned());
        assert!(!health.readiness(now).ready);
        health.stepped(now, Some("ledger_differs".to_owned()));
        assert_eq!(
            health.readiness(now).halted.as_deref(),
            Some("ledger_differs")
        );
        assert!(!health.readiness(now).ready);
    }
}
