//! Whatever an administrator changes is in the audit log.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode, header};
use comptoir_domain::asset::Asset;
use serde_json::json;
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;

use crate::{
    admin::{act, admin, redeem, setup_token},
    admin_money::{approve, money, paid_job, propose},
    harness::{Reply, Session, TestApp},
    jobs::RICH,
    market::{self, MINIMUM, RATE_NANO, client, join, worker},
    takedowns,
};

/// What of the API changes something for administrators.
fn operations(app: &TestApp) -> BTreeSet<(String, Method)> {
    let document = serde_json::to_value(&app.openapi).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .filter(|(path, _)| path.starts_with("/v1/admin/"))
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|it| (path.clone(), it.to_uppercase().parse().unwrap()))
        })
        .filter(|(_, method)| *method != Method::GET)
        .collect()
}

/// The number of the last line of the log.
async fn last_line(app: &TestApp) -> i64 {
    sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM audit_events")
        .fetch_one(&app.owner)
        .await
        .unwrap()
}

/// Who did what since that line.
async fn since(app: &TestApp, line: i64) -> Vec<String> {
    sqlx::query_scalar("SELECT body FROM audit_events WHERE seq > $1")
        .bind(line)
        .fetch_all(&app.owner)
        .await
        .unwrap()
}

struct Scene<'a> {
    app: &'a TestApp,
    asset: Asset,
    by: Session,
    second: Session,
}

impl Scene<'_> {
    /// Something that the operation can be done to, and how it is done then.
    async fn arrange(&self, path: &str) -> String {
        let app = self.app;
        let id = match path.split('/').nth(3).unwrap() {
            "accounts" => app.session().await.account.to_string(),
            "admins" => admin(app).await.account.to_string(),
            "jobs" => {
                let (session, _) = client(app, &self.asset, RICH).await;
                let job = market::job(app, &session, "none").await;
                job.text("/id").to_owned()
            }
            "refunds" if path.contains("{id}") => self.propose().await.text("/id").to_owned(),
            "takedowns" => {
                let session = app.session().await;
                let waits = path.ends_with("/freeze") || path.ends_with("/dismiss");
                let made = if waits {
                    takedowns::make(app, &session).await
                } else {
                    takedowns::make_frozen(app, &session).await
                };
                made.concat()
            }
            "workers" => {
                let (session, _) = app.bound_session().await;
                join(app, &session, &worker("a")).await.to_string()
            }
            _ => String::new(),
        };
        path.replace("{id}", &id)
    }

    async fn propose(&self) -> Reply {
        let (session, _) = client(self.app, &self.asset, RICH).await;
        let (_, worker) = client(self.app, &self.asset, 0).await;
        let job = paid_job(self.app, &session, worker).await;
        let body = json!({ "job_id": job, "amount": money(&self.asset, 1), "reason": "because" });
        propose(self.app, &self.by, &body).await
    }

    async fn perform(&self, path: &str, method: &Method) -> Reply {
        let app = self.app;
        match path {
            "/v1/admin/refunds" => self.propose().await,
            "/v1/admin/prices" => {
                let body = json!({
                    "device": "cpu", "rate_nano": RATE_NANO.to_string(), "minimum": money(&self.asset, MINIMUM), "platform_ppm": 100_000,
                    "effective_at": app.now().format(&Rfc3339).unwrap(),
                });
                app.post(path, &body).by(&self.by).send().await
            }
            "/v1/admin/setup" => {
                let token = setup_token(app, "third@example.org", 9).await;
                redeem(app, &token, "a long enough password").await
            }
            _ if path.ends_with("/limits") => {
                let call = app.request(method.clone(), path).by(&self.by);
                let call = call.header(header::IF_MATCH, "*");
                call.json(&json!({ "open_jobs": 7 })).send().await
            }
            _ if path.ends_with("/approve") => {
                let id = path.split('/').nth(4).unwrap();
                approve(app, &self.second, id).await
            }
            _ if path.ends_with("/cancel") || path.ends_with("/remove") => {
                app.post(path, &json!({})).by(&self.by).send().await
            }
            _ => act(app, &self.by, path).await,
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whatever_administrators_change_is_in_the_audit_log_and_what_they_fail_to_is_not(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let scene = Scene {
        by: admin(&app).await,
        second: admin(&app).await,
        app: &app,
        asset,
    };
    let operations = operations(&app);
    assert!(operations.len() >= 18, "{operations:?}");
    for (template, method) in operations {
        let path = scene.arrange(&template).await;
        let line = last_line(&app).await;
        let done = scene.perform(&path, &method).await;
        assert!(done.status.is_success(), "{method} {template}: {done:?}");
        let lines = since(&app, line).await;
        let actors = [&scene.by, &scene.second].map(|it| it.account.to_string());
        let told = lines.iter().any(|line| {
            template.ends_with("/setup") || actors.iter().any(|actor| line.contains(actor))
        });
        assert!(told, "{method} {template} left no line: {lines:?}");
        if template.contains("{id}") {
            let line = last_line(&app).await;
            let nobodys = template.replace("{id}", "nobodys");
            let refused = scene.perform(&nobodys, &method).await;
            assert_eq!(refused.status, StatusCode::NOT_FOUND, "{method} {template}");
            assert_eq!(since(&app, line).await, Vec::<String>::new(), "{template}");
        }
    }
}
