//! `/v1/admin/refunds`: what is given back of a charge. One administrator proposes, another approves.

use axum::{http::StatusCode, response::Response};
use comptoir_domain::{
    asset::Asset,
    audit::{Action, Event},
    id::{AccountId, JobId, JournalEntryId, ReceiptId, RefundId},
    refund::{NotFunded, RefundState},
};
use comptoir_store::{
    assets,
    refunds::{self, Filter, NewRefund, Refund, RefundError},
    wake::Channel,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    check_reason,
    guard::{Admin, FreshAdmin},
};
use crate::{
    AppState, FieldError, Problem,
    etag::Conditions,
    extract::{Json, Path},
    idempotency::{IdempotentJson, Reply},
    money::MoneyBody,
    page::{List, Page, PageQuery},
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_refunds, propose_refund))
        .routes(routes!(find_refund))
        .routes(routes!(approve_refund))
        .routes(routes!(cancel_refund))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRefundBody {
    /// The job whose charge it is.
    #[schema(value_type = String, example = "job_01h455vb4pex5vsknk084sn02q")]
    job_id: JobId,
    /// How much; all that is left of the charge when absent.
    #[serde(default)]
    #[schema(nullable = false)]
    amount: Option<MoneyBody>,
    /// Why.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// Nothing is asked besides.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ApprovalBody {}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum RefundObject {
    Refund,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Refund)]
struct RefundBody {
    #[schema(value_type = String, example = "rfd_01h455vb4pex5vsknk084sn02q")]
    id: RefundId,
    object: RefundObject,
    state: RefundState,
    #[schema(value_type = String)]
    job_id: JobId,
    #[schema(value_type = String)]
    receipt_id: ReceiptId,
    /// Who paid, and gets it.
    #[schema(value_type = String)]
    account_id: AccountId,
    amount: MoneyBody,
    reason: String,
    /// Who proposed it.
    #[schema(value_type = String)]
    proposed_by: AccountId,
    /// Who approved or cancelled it.
    #[schema(value_type = Option<String>, required = true)]
    decided_by: Option<AccountId>,
    /// The journal entry that moved the money.
    #[schema(value_type = Option<String>, required = true)]
    entry_id: Option<JournalEntryId>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Until when it can be approved.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    decided_at: Option<OffsetDateTime>,
}

impl RefundBody {
    fn new(refund: Refund, asset: &Asset) -> Self {
        Self {
            id: refund.id,
            object: RefundObject::Refund,
            state: refund.state,
            job_id: refund.job,
            receipt_id: refund.receipt,
            account_id: refund.account,
            amount: MoneyBody::new(refund.amount, asset),
            reason: refund.reason,
            proposed_by: refund.proposed_by,
            decided_by: refund.decided_by,
            entry_id: refund.entry,
            created_at: refund.created_at,
            expires_at: refund.expires_at,
            decided_at: refund.decided_at,
        }
    }
}

/// Proposes to give back a part of what a job was charged, or all that is left of it. Another administrator must approve
/// within 72 hours. The platform pays, from its fees and then from what its address has: payees keep what they earned.
#[utoipa::path(
    post, path = "/v1/admin/refunds",
    params(("Idempotency-Key" = String, Header)),
    request_body = NewRefundBody,
    responses((status = 201, body = RefundBody, headers(("Location" = String)))),
)]
async fn propose_refund(
    admin: FreshAdmin,
    request: IdempotentJson<NewRefundBody>,
) -> Result<Response, Problem> {
    let body = request.body;
    check_reason(&body.reason)?;
    let event = admin.event(Action::RefundProposed, "");
    let (proposed_by, now, caps) = (
        admin.account(),
        admin.state.now(),
        admin.state.config.refund_caps,
    );
    let work = admin.act_once(request.key, event, move |tx, event| {
        Box::pin(async move {
            let asset = assets::current(tx).await.map_err(no_asset)?;
            let amount = body.amount.map(|it| it.amount_of(&asset, "/amount"));
            let new = NewRefund {
                job: body.job_id,
                amount: amount.transpose()?,
                reason: &body.reason,
                proposed_by,
            };
            let refund = refunds::propose(tx, &new, caps, now)
                .await
                .map_err(refused)?;
            tell(event, &refund);
            event.note("reason", body.reason);
            let reply = Reply::created(
                format!("/v1/admin/refunds/{}", refund.id),
                &RefundBody::new(refund, &asset),
            );
            Ok(reply)
        })
    });
    work.await
}

/// Tells the audit log of a refund.
fn tell(event: &mut Event, refund: &Refund) {
    event.subject = refund.id.to_string();
    event.account = Some(refund.account);
    event.note("job_id", refund.job.to_string());
    event.note("amount_base", refund.amount.to_string());
}

/// Which refunds to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RefundQuery {
    /// Only those in this state.
    state: Option<RefundState>,
    /// Only those of this job.
    #[param(value_type = Option<String>)]
    job_id: Option<JobId>,
}

/// Refunds, newest first.
#[utoipa::path(
    get, path = "/v1/admin/refunds",
    params(PageQuery, RefundQuery),
    responses((status = 200, body = Page<RefundBody>)),
)]
async fn list_refunds(admin: Admin, list: List<RefundQuery>) -> Result<Page<RefundBody>, Problem> {
    let (state, caller) = (&admin.state, &admin.identity);
    let before: Option<RefundId> = list.position(state, caller)?;
    let filter = Filter {
        state: list.filter.state,
        job: list.filter.job_id,
    };
    let mut connection = admin.read().await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    let rows = refunds::list(&mut connection, filter, before, list.fetch(), state.now()).await?;
    Ok(list.page(
        state,
        caller,
        rows,
        |row| row.id,
        |row| RefundBody::new(row, &asset),
    ))
}

/// One refund.
#[utoipa::path(
    get, path = "/v1/admin/refunds/{id}",
    params(("id" = String, Path)),
    responses(
        (status = 200, body = RefundBody, headers(("ETag" = String))),
        (status = 304),
    ),
)]
async fn find_refund(
    admin: Admin,
    Path(id): Path<RefundId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = admin.read().await?;
    let refund = refunds::find(&mut connection, id, admin.state.now())
        .await?
        .ok_or_else(Problem::not_found)?;
    let asset = assets::find(&mut connection, refund.asset_id)
        .await
        .map_err(no_asset)?;
    Ok(conditions.answer(RefundBody::new(refund, &asset)))
}

/// Approves what another administrator proposed: the money is given back at once.
#[utoipa::path(
    post, path = "/v1/admin/refunds/{id}/approve",
    params(("id" = String, Path), ("Idempotency-Key" = String, Header)),
    request_body = ApprovalBody,
    responses((status = 200, body = RefundBody)),
)]
async fn approve_refund(
    admin: FreshAdmin,
    Path(id): Path<RefundId>,
    request: IdempotentJson<ApprovalBody>,
) -> Result<Response, Problem> {
    let ApprovalBody {} = request.body;
    let event = admin.event(Action::RefundApproved, "");
    let (approver, now, caps) = (
        admin.account(),
        admin.state.now(),
        admin.state.config.refund_caps,
    );
    let (told_job, job_told) = tokio::sync::oneshot::channel();
    let work = admin.act_once(request.key, event, move |tx, event| {
        Box::pin(async move {
            let refund = refunds::approve(tx, id, approver, caps, now)
                .await
                .map_err(refused)?;
            let asset = assets::find(tx, refund.asset_id).await.map_err(no_asset)?;
            tell(event, &refund);
            event.note("proposed_by", refund.proposed_by.to_string());
            // Nobody waits for it where the client has hung up: those who follow the job poll.
            told_job.send(refund.job).ok();
            Ok(Reply::ok(&RefundBody::new(refund, &asset)))
        })
    });
    let response = work.await?;
    if let Ok(job) = job_told.await {
        admin.state.wake.publish(Channel::Job(job));
    }
    Ok(response)
}

/// Takes a proposal off; its proposer may, and every other administrator. Doing it again changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/refunds/{id}/cancel",
    params(("id" = String, Path)),
    responses((status = 200, body = RefundBody)),
)]
async fn cancel_refund(
    admin: FreshAdmin,
    Path(id): Path<RefundId>,
) -> Result<Json<RefundBody>, Problem> {
    let event = admin.event(Action::RefundRejected, "");
    let (by, now) = (admin.account(), admin.state.now());
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            let refund = refunds::cancel(tx, id, by, now).await.map_err(refused)?;
            let asset = assets::find(tx, refund.asset_id).await.map_err(no_asset)?;
            tell(event, &refund);
            Ok(Json(RefundBody::new(refund, &asset)))
        })
    });
    work.await
}

fn refused(error: RefundError) -> Problem {
    use RefundError as E;
    let detail = error.to_string();
    let conflict = |code, title| Problem::new(StatusCode::CONFLICT, code, title);
    match error {
        E::NotFound => Problem::not_found(),
        E::NotCharged => {
            conflict("job_not_charged", "The job was not charged").errors([FieldError::new(
                "/job_id",
                "no such job, or nothing was charged",
            )])
        }
        E::Waits(_) => {
            conflict("refund_waits", "Another refund of the charge waits").detail(detail)
        }
        E::AboveCharge { .. } => Problem::invalid("/amount/amount", detail),
        E::AboveCap { .. } => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "refund_above_cap",
            "The refund is above the cap of one refund",
        )
        .detail(detail),
        E::AboveDayCap { .. } => {
            conflict("refund_day_cap", "The refunds of a day reach their cap").detail(detail)
        }
        E::OwnAccount | E::SamePerson => Problem::new(
            StatusCode::FORBIDDEN,
            "second_person_required",
            "Another administrator must do this",
        )
        .detail(detail),
        E::ToPlatform => conflict("refund_not_funded", "The platform paid the charge itself"),
        E::ProposerGone => conflict("refund_proposer_gone", "The proposer lost the role"),
        E::Decided(_) => conflict("refund_decided", "The refund is decided").detail(detail),
        E::NotFunded(NotFunded::Short(has)) => {
            conflict("refund_not_funded", "The platform has less than this").detail(format!(
                "{has} base units are in fees and at the platform's address"
            ))
        }
        E::Asset(error) => no_asset(error),
        E::Database(error) => error.into(),
        E::NotFunded(NotFunded::Invalid(_)) | E::Post(_) => Problem::internal(&error),
    }
}
