//! `/v1/balance/alert`: below which available balance an account is told.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use comptoir_domain::{amount::Amount, asset::Asset};
use comptoir_store::{assets, ledger, webhooks::alerts};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::accounts::in_task;
use crate::{
    AppState, Problem,
    auth::{Caller, Identity, needs},
    etag::Conditions,
    extract::Json,
    money::MoneyBody,
    quoting::no_asset,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(find_balance_alert, set_balance_alert))
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AlertObject {
    BalanceAlert,
}

#[derive(Serialize, ToSchema)]
#[schema(as = BalanceAlert)]
struct AlertBody {
    object: AlertObject,
    /// `balance.low` is sent each time that the available balance falls below it; `null`: never.
    #[schema(required = true)]
    threshold: Option<MoneyBody>,
    /// Is the available balance below it now?
    is_low: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAlert {
    /// `null`: not to be told.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required = true)]
    threshold: Option<MoneyBody>,
}

async fn read(
    connection: &mut PgConnection,
    caller: &Identity,
    asset: &Asset,
) -> Result<AlertBody, Problem> {
    let threshold = alerts::find(connection, caller.account, asset.id).await?;
    let available = match caller.address {
        Some(owner) => {
            ledger::balances(connection, owner, asset.id)
                .await?
                .available
        }
        None => Amount::ZERO,
    };
    Ok(AlertBody {
        object: AlertObject::BalanceAlert,
        threshold: threshold.map(|it| MoneyBody::new(it, asset)),
        is_low: threshold.is_some_and(|threshold| available < threshold),
    })
}

/// Below which available balance the account is told, by the webhook event `balance.low`.
#[utoipa::path(
    get, path = "/v1/balance/alert", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:read"])),
    responses(
        (status = 200, body = AlertBody, headers(("ETag" = String))),
        (status = 304),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn find_balance_alert(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksRead>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let mut connection = caller.read(&state).await?;
    let asset = assets::current(&mut connection).await.map_err(no_asset)?;
    Ok(conditions.answer(read(&mut connection, &caller, &asset).await?))
}

/// Says below which available balance the account is told. Nothing is said of a balance that is below it already: the answer tells.
#[utoipa::path(
    put, path = "/v1/balance/alert", tag = "webhooks", security(("session" = []), ("api_key" = ["webhooks:write"])),
    request_body = NewAlert,
    responses(
        (status = 200, body = AlertBody),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
    ),
)]
async fn set_balance_alert(
    State(state): State<AppState>,
    caller: Caller<needs::WebhooksWrite>,
    Json(body): Json<NewAlert>,
) -> Result<Response, Problem> {
    let (now, identity) = (state.now(), Identity::clone(&caller));
    in_task(async move {
        let mut tx = identity.begin(&state).await?;
        let asset = assets::current(&mut tx).await.map_err(no_asset)?;
        let threshold = match &body.threshold {
            Some(money) => Some(money.amount_of(&asset, "/threshold")?),
            None => None,
        };
        if threshold.is_some_and(Amount::is_zero) {
            let detail = "expected more than nothing; null for no alert";
            return Err(Problem::invalid("/threshold/amount", detail));
        }
        alerts::set(&mut tx, identity.account, asset.id, threshold, now).await?;
        let set = read(&mut tx, &identity, &asset).await?;
        tx.commit().await?;
        Ok(Json(set).into_response())
    })
    .await
}
