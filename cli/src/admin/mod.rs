//! What operators do by command. What needs the database itself is for whoever has `DATABASE_URL`; the rest goes through the API
//! and is for administrators who signed in.

pub mod accounts;
mod bootstrap;
mod deploy;
mod join_tokens;
pub mod prices;
pub mod refunds;
mod settling;
pub mod takedowns;
pub mod work;

use anyhow::Context as _;
use clap::Args;
use sqlx::{Connection as _, PgConnection};

pub use bootstrap::{BootstrapArgs, bootstrap};
pub use deploy::{DeployArgs, deploy_contracts, register};
pub use join_tokens::{JoinTokenArgs, join_token};
pub use prices::{PriceArgs, publish_price};
pub use settling::resume_settling;

use crate::{args::Admin, audit_log, client::Context, keys};

/// Who gives the command.
#[derive(Debug, Clone, Args)]
pub struct OperatorArg {
    /// Who does this, for the audit log.
    #[arg(long, env = "COMPTOIR_OPERATOR", default_value = "operator")]
    pub operator: String,
}

/// Runs a verb.
///
/// # Errors
/// When the database, the chain or the service refuses.
pub async fn run(context: &Context, verb: Admin) -> anyhow::Result<()> {
    match verb {
        Admin::Bootstrap(args) => bootstrap(context, args).await,
        Admin::JoinToken(args) => join_token(context, args).await,
        Admin::DeployContracts(args) => deploy_contracts(context, args).await,
        Admin::ImportBatches(args) => crate::import::import_batches(context, args).await,
        Admin::ResumeSettling(operator) => resume_settling(context, operator).await,
        Admin::RotateKeys(args) => keys::rotate(context, &args).await,
        Admin::RotateDataKey(args) => keys::rotate_data_key(context, &args).await,
        Admin::PublishPrice(args) => publish_price(context, args).await,
        Admin::AuditLog(verb) => audit_log::run(context, verb).await,
        Admin::Accounts(verb) => accounts::run(context, &verb).await,
        Admin::Admins(verb) => accounts::run_admins(context, &verb).await,
        Admin::Refunds(verb) => refunds::run(context, &verb).await,
        Admin::Prices(verb) => prices::run(context, &verb).await,
        Admin::Jobs(verb) => work::run_jobs(context, &verb).await,
        Admin::Workers(verb) => work::run_workers(context, &verb).await,
        Admin::Takedowns(verb) => takedowns::run(context, &verb).await,
        Admin::Outbox(verb) => work::run_outbox(context, &verb).await,
        Admin::Events(args) => accounts::list_events(context, &args).await,
    }
}

/// The database, with the rights of whoever `DATABASE_URL` names.
pub(crate) async fn connect() -> anyhow::Result<PgConnection> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    PgConnection::connect(&url)
        .await
        .context("connect to the database")
}
