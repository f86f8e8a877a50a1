//! Join tokens that an operator makes for an account.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use comptoir_api::auth::keys::{Keys, random};
use comptoir_domain::{
    audit::{Action, Actor, Event},
    credential::Email,
    id::JoinTokenId,
    join_token::JoinToken,
};
use comptoir_store::{
    accounts, audit,
    join_tokens::{self, NewJoinToken},
};
use serde_json::json;
use sqlx::Connection as _;
use url::Url;

use super::{OperatorArg, connect};
use crate::{
    client::Context,
    exit::{Exit, coded},
    keys::ServiceKeys,
    service::parts,
};

/// How long a join token holds.
const TOKEN_LIFETIME: time::Duration = time::Duration::DAY;

/// Whose worker joins.
#[derive(Debug, Args)]
pub struct JoinTokenArgs {
    /// The account's e-mail.
    #[arg(long)]
    pub email: String,
    /// What the token is called.
    #[arg(long, default_value = "worker")]
    pub name: String,
    /// How many workers may join with it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_uses: u16,
    /// The folder with the services' `jwt.pem` and `pepper`.
    #[arg(long, env = "COMPTOIR_KEYS")]
    pub keys: PathBuf,
    /// How clients reach the API.
    #[arg(long, env = "COMPTOIR_PUBLIC_URL")]
    pub public_url: Url,
    #[command(flatten)]
    pub operator: OperatorArg,
}

/// Makes a join token for an account.
///
/// # Errors
/// With [`Exit::NotFound`] when no account has that e-mail; with [`Exit::Refused`] when it has no address to be paid at.
pub async fn join_token(context: &Context, args: JoinTokenArgs) -> anyhow::Result<()> {
    let email: Email = args.email.parse()?;
    let keys = ServiceKeys::read(&args.keys)?;
    let keys = Keys::new(keys.secrets()?, &parts::origin(&args.public_url))?;
    let server = keys.jwks().fingerprint();
    let mut connection = connect().await?;
    let found = accounts::find_password(&mut connection, &email).await?;
    let (account, _) = found.ok_or_else(|| {
        coded(
            Exit::NotFound,
            format!("no account has the e-mail {}", args.email),
        )
    })?;
    let account = accounts::find(&mut connection, account)
        .await?
        .context("the account is gone")?;
    if account.address.is_none() {
        return Err(coded(
            Exit::Refused,
            format!(
                "{} has no address to be paid at: it must bind one first",
                args.email
            ),
        ));
    }
    let token = JoinToken::new(server, JoinTokenId::generate(), random());
    let new = NewJoinToken {
        id: token.id,
        account: account.id,
        name: &args.name,
        secret: token.secret_sha256(),
        max_uses: args.max_uses,
        expires_at: context.now.saturating_add(TOKEN_LIFETIME),
    };
    let mut tx = connection.begin().await?;
    join_tokens::create(&mut tx, &new, context.now).await?;
    let actor = Actor::Operator(args.operator.operator);
    let event = Event::new(actor, Action::JoinTokenCreated, token.id.to_string())
        .of_account(account.id)
        .with("max_uses", args.max_uses);
    audit::append(&mut tx, &event, context.now).await?;
    tx.commit().await?;
    context.output.object(
        &json!({ "id": token.id, "token": token.reveal() }),
        &["id", "token"],
    );
    Ok(())
}
