//! `/v1/admin/takedowns`: freezing datasets that must not be here, and deciding what becomes of that.

use axum::response::Response;
use comptoir_domain::{
    audit::Action,
    id::TakedownId,
    takedown::{Act, TakedownState},
};
use comptoir_store::takedowns::{self, Side};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ReasonBody,
    guard::{Admin, FreshAdmin},
};
use crate::{
    AppState, Problem,
    etag::Conditions,
    extract::{Json, Path},
    page::{List, Page, PageQuery},
    routes::takedowns::{TakedownBody, refused},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_all_takedowns))
        .routes(routes!(find_any_takedown))
        .routes(routes!(freeze_takedown))
        .routes(routes!(dismiss_takedown))
        .routes(routes!(uphold_takedown))
        .routes(routes!(reject_takedown))
}

/// Which takedowns to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TakedownQuery {
    /// Only those in this state.
    state: Option<TakedownState>,
}

/// Takedowns of all accounts, newest first.
#[utoipa::path(
    get, path = "/v1/admin/takedowns",
    params(PageQuery, TakedownQuery),
    responses((status = 200, body = Page<TakedownBody>)),
)]
async fn list_all_takedowns(
    admin: Admin,
    list: List<TakedownQuery>,
) -> Result<Page<TakedownBody>, Problem> {
    let (state, caller) = (&admin.state, &admin.identity);
    let before: Option<TakedownId> = list.position(state, caller)?;
    let filter = list.filter.state;
    let mut connection = admin.read().await?;
    let rows = takedowns::list(
        &mut connection,
        Side::Operator,
        filter,
        before,
        list.fetch(),
    )
    .await?;
    Ok(list.page(state, caller, rows, |row| row.id, TakedownBody::from))
}

/// One takedown.
#[utoipa::path(
    get, path = "/v1/admin/takedowns/{id}",
    params(("id" = String, Path)),
    responses(
        (status = 200, body = TakedownBody, headers(("ETag" = String))),
        (status = 304),
    ),
)]
async fn find_any_takedown(
    admin: Admin,
    Path(id): Path<TakedownId>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let found = takedowns::find(&mut *admin.read().await?, id).await?;
    let found = found.ok_or_else(Problem::not_found)?;
    Ok(conditions.answer(TakedownBody::from(found)))
}

/// Blocks the dataset: nothing more of it is sold, handed out or computed on. What was under way is ended: time is charged until now, what nobody
/// read is given back, and what is charged is held back. Its seller has 14 days to contest that.
#[utoipa::path(
    post, path = "/v1/admin/takedowns/{id}/freeze",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = TakedownBody)),
)]
async fn freeze_takedown(
    admin: FreshAdmin,
    Path(id): Path<TakedownId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<TakedownBody>, Problem> {
    decide(admin, id, (Act::Freeze, Action::TakedownFrozen), body).await
}

/// Says that there is no reason to freeze the dataset.
#[utoipa::path(
    post, path = "/v1/admin/takedowns/{id}/dismiss",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = TakedownBody)),
)]
async fn dismiss_takedown(
    admin: FreshAdmin,
    Path(id): Path<TakedownId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<TakedownBody>, Problem> {
    decide(admin, id, (Act::Dismiss, Action::TakedownDismissed), body).await
}

/// Says that the freeze is right: the dataset stays blocked for good, and what was held back of its proceeds goes to who paid it.
#[utoipa::path(
    post, path = "/v1/admin/takedowns/{id}/uphold",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = TakedownBody)),
)]
async fn uphold_takedown(
    admin: FreshAdmin,
    Path(id): Path<TakedownId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<TakedownBody>, Problem> {
    decide(admin, id, (Act::Uphold, Action::TakedownUpheld), body).await
}

/// Says that the freeze is wrong: the dataset is back, and what was held back of its proceeds goes to who earned it.
#[utoipa::path(
    post, path = "/v1/admin/takedowns/{id}/reject",
    params(("id" = String, Path)),
    request_body = ReasonBody,
    responses((status = 200, body = TakedownBody)),
)]
async fn reject_takedown(
    admin: FreshAdmin,
    Path(id): Path<TakedownId>,
    Json(body): Json<ReasonBody>,
) -> Result<Json<TakedownBody>, Problem> {
    decide(admin, id, (Act::Reject, Action::TakedownRejected), body).await
}

async fn decide(
    admin: FreshAdmin,
    id: TakedownId,
    (act, action): (Act, Action),
    body: ReasonBody,
) -> Result<Json<TakedownBody>, Problem> {
    let reason = body.checked()?;
    let event = admin.event(action, id).with("reason", reason.clone());
    let (now, by) = (admin.state.now(), admin.account());
    let work = admin.act(event, move |tx, event| {
        Box::pin(async move {
            let decided = takedowns::decide(tx, (by, id), (act, &reason), now).await;
            let decided = decided.map_err(refused)?;
            event.account = Some(decided.seller);
            event.note("dataset_id", decided.dataset.to_string());
            Ok(Json(decided.into()))
        })
    });
    work.await
}
