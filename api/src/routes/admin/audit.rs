//! `/v1/admin/audit-events`: the audit log of all accounts.

use std::net::IpAddr;

use comptoir_domain::id::AccountId;
use comptoir_store::audit::{self, Entry};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::guard::Admin;
use crate::{
    AppState, Problem,
    page::{List, Page, PageQuery},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_all_audit_events))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AdminAuditObject {
    AuditEvent,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AdminAuditEvent)]
struct AdminAuditBody {
    /// Its place in the log, from 1.
    id: u64,
    object: AdminAuditObject,
    /// Who did it: an account, an API key, a worker, `operator:…`, `service:…`, `anonymous`.
    actor: String,
    /// What, such as `account.frozen`.
    action: String,
    /// To what.
    subject: String,
    /// Whose account it concerns.
    #[schema(value_type = Option<String>, required = true)]
    account_id: Option<AccountId>,
    /// The request by which it was done.
    #[schema(required = true)]
    request_id: Option<String>,
    /// Where that came from.
    #[schema(value_type = Option<String>, required = true)]
    ip: Option<IpAddr>,
    /// What else is worth knowing.
    #[schema(value_type = Object)]
    detail: Map<String, Value>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<Entry> for AdminAuditBody {
    fn from(entry: Entry) -> Self {
        let record = entry.record;
        Self {
            id: entry.number,
            object: AdminAuditObject::AuditEvent,
            actor: record.actor,
            action: record.action,
            subject: record.subject,
            account_id: record.account,
            request_id: record.request_id,
            ip: record.ip,
            detail: record.detail,
            created_at: record.at,
        }
    }
}

/// Which events to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Only those that concern this account.
    #[param(value_type = Option<String>)]
    account_id: Option<AccountId>,
}

/// The audit log, newest first. It is a chain of hashes whose head is in every batch: `comptoir admin audit-log verify`.
#[utoipa::path(
    get, path = "/v1/admin/audit-events",
    params(PageQuery, AuditQuery),
    responses((status = 200, body = Page<AdminAuditBody>)),
)]
async fn list_all_audit_events(
    admin: Admin,
    list: List<AuditQuery>,
) -> Result<Page<AdminAuditBody>, Problem> {
    let before: Option<u64> = list.position(&admin.state, &admin.identity)?;
    let mut connection = admin.read().await?;
    let account = list.filter.account_id;
    let entries = audit::list(&mut connection, account, before, list.fetch()).await?;
    let number = |entry: &Entry| entry.number;
    let (state, caller) = (&admin.state, &admin.identity);
    Ok(list.page(state, caller, entries, number, AdminAuditBody::from))
}
