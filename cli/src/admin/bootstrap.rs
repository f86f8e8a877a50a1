//! How somebody becomes an administrator: a token, printed once by a command that needs the database itself.

use clap::Args;
use comptoir_api::{auth::keys::random, mail::sendable};
use comptoir_domain::{
    audit::{Action, Actor, Event},
    setup_token::{LIFETIME, SetupToken},
};
use comptoir_store::{admins, audit};
use serde_json::json;
use sqlx::Connection as _;
use time::{Duration, format_description::well_known::Rfc3339};

use super::{OperatorArg, connect};
use crate::client::Context;

/// Whose token.
#[derive(Debug, Args)]
pub struct BootstrapArgs {
    /// The e-mail of the administrator to be.
    #[arg(long)]
    pub email: String,
    /// How many minutes the token holds.
    #[arg(long, default_value_t = LIFETIME.whole_minutes(), value_parser = clap::value_parser!(i64).range(1..=1440))]
    pub minutes: i64,
    #[command(flatten)]
    pub operator: OperatorArg,
}

/// Prints a token that makes an account an administrator's, once: by choosing its password with `comptoir login --setup`. A
/// token that was printed before for the same e-mail is worth nothing any more.
///
/// # Errors
/// When the text is no e-mail address, or the database refuses.
pub async fn bootstrap(context: &Context, args: BootstrapArgs) -> anyhow::Result<()> {
    let email = sendable(&args.email)?;
    let token = SetupToken::from_random(random());
    let expires_at = context.now.saturating_add(Duration::minutes(args.minutes));
    let mut connection = connect().await?;
    let mut tx = connection.begin().await?;
    let id =
        admins::issue_setup_token(&mut tx, &email, token.sha256(), context.now, expires_at).await?;
    let event = Event::new(
        Actor::Operator(args.operator.operator),
        Action::SetupTokenCreated,
        id.to_string(),
    );
    audit::append(&mut tx, &event.with("email", email.as_str()), context.now).await?;
    tx.commit().await?;
    let report = json!({
        "email": email.as_str(),
        "token": token.reveal(),
        "expires_at": expires_at.format(&Rfc3339)?,
        "command": format!("comptoir login --email {} --setup {}", email.as_str(), token.reveal()),
    });
    let fields = ["email", "token", "expires_at", "command"];
    context.output.object(&report, &fields);
    Ok(())
}
