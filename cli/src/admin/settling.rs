//! Settling that stands still.

use comptoir_domain::audit::{Action, Actor, Event};
use comptoir_store::{assets, audit, reconciliation};
use serde_json::json;
use sqlx::Connection as _;

use super::{OperatorArg, connect};
use crate::{
    client::Context,
    exit::{Exit, coded},
};

/// Lets settling go on. Prints why it stood still.
///
/// # Errors
/// With [`Exit::Refused`] when it does not stand still.
pub async fn resume_settling(context: &Context, operator: OperatorArg) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let mut tx = connection.begin().await?;
    let asset = assets::current(&mut tx).await?;
    let halt = reconciliation::open_halt(&mut tx, asset.id).await?;
    let halt = halt.ok_or_else(|| coded(Exit::Refused, "settling does not stand still"))?;
    reconciliation::clear_halt(&mut tx, asset.id, context.now).await?;
    let event = Event::new(
        Actor::Operator(operator.operator),
        Action::SettlingResumed,
        halt.id.to_string(),
    );
    let event = event.with("reason", halt.reason.clone());
    audit::append(&mut tx, &event, context.now).await?;
    tx.commit().await?;
    let report = json!({ "resumed": true, "reason": halt.reason, "detail": halt.detail });
    context
        .output
        .object(&report, &["resumed", "reason", "detail"]);
    Ok(())
}
