//! The `comptoir` binary as a library: the services, the embedded default, the demo, and the client verbs.

pub mod admin;
pub mod args;
pub mod audit;
pub mod audit_log;
pub mod client;
pub mod demo;
pub mod doctor;
pub mod embedded;
pub mod exit;
pub mod exit_chain;
pub mod guardian;
pub mod import;
pub mod keys;
pub mod output;
pub mod secret;
pub mod service;
pub mod services;
pub mod up;

use std::process::ExitCode;

use args::{Cli, Command, Documented, Serve};
use clap::CommandFactory as _;
use client::{
    Context, account, blobs, datasets, jobs, models, money, receipts, security, usage, webhooks,
    workers,
};

/// Runs a command line.
///
/// # Errors
/// When the command fails; [`exit::code_of`] gives the process's exit code.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let context = Context::new(cli.client, cli.json, service::now());
    match cli.command {
        Command::Up(args) => Box::pin(up::run(args)).await?,
        Command::Demo(args) => Box::pin(demo::run(args, cli.json)).await?,
        Command::Services(args) => return services::run(args).await,
        Command::Serve(Serve::Api(args)) => service::api::run(*args).await?,
        Command::Serve(Serve::Scheduler(args)) => service::scheduler::run(args).await?,
        Command::Serve(Serve::Settler(args)) => service::settler::run(args).await?,
        Command::Migrate => service::migrate().await?,
        Command::Admin(verb) => admin::run(&context, verb).await?,
        Command::Doctor => doctor::run(context.output)?,
        Command::CheckFile(args) => return Ok(comptoir_checker::child::run(&args)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "comptoir", &mut script);
            output::say(String::from_utf8_lossy(&script).trim_end());
        }
        Command::Openapi {
            service: Documented::Api,
        } => output::say(comptoir_api::openapi::committed()),
        Command::Openapi {
            service: Documented::Scheduler,
        } => output::say(comptoir_scheduler::openapi::committed()),
        verb => run_client(&context, verb).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_client(context: &Context, verb: Command) -> anyhow::Result<()> {
    match verb {
        Command::Signup(credentials) => account::sign_up(context, &credentials).await,
        Command::Login(args) => account::sign_in(context, &args).await,
        Command::Logout => account::sign_out(context).await,
        Command::Account => account::show(context).await,
        Command::Wallet(key) => account::create_wallet(context, &key.key_file),
        Command::Bind(key) => account::bind_address(context, &key.key_file).await,
        Command::Address(verb) => security::address(context, &verb).await,
        Command::Password(verb) => security::password(context, &verb).await,
        Command::Faucet(args) => money::faucet(context, &args).await,
        Command::Deposit(args) => money::deposit(context, &args).await,
        Command::Balance => money::balance(context).await,
        Command::Statement(page) => money::statement(context, &page).await,
        Command::Withdraw(args) => money::withdraw(context, &args.tokens).await,
        Command::Claim(args) => money::claim(context, &args).await,
        Command::Dataset(verb) => datasets::run(context, &verb).await,
        Command::Model(verb) => models::run(context, &verb).await,
        Command::Blob(verb) => blobs::run(context, &verb).await,
        Command::Usage(args) => usage::run(context, &args).await,
        Command::Quote(args) => jobs::quote(context, &args).await,
        Command::Job(verb) => jobs::run(context, &verb).await,
        Command::Worker(verb) => workers::run(context, &verb).await,
        Command::Webhook(verb) => webhooks::run(context, verb).await,
        Command::Receipt(verb) => receipts::run(context, &verb).await,
        Command::Bill(args) => receipts::recompute(context, &args),
        Command::Verify(args) => receipts::verify(context, &args).await,
        Command::Audit(args) => audit::run(context, &args).await,
        Command::Guardian(args) => guardian::guard(context, args).await,
        Command::Watcher(args) => guardian::watch(context, args).await,
        Command::Exit(verb) => exit_chain::run(context, &verb).await,
        Command::Freeze(args) => exit_chain::freeze(context, &args).await,
        Command::Escape(args) => exit_chain::escape(context, &args).await,
        Command::Up(_)
        | Command::Demo(_)
        | Command::Services(_)
        | Command::Serve(_)
        | Command::Migrate
        | Command::Admin(_)
        | Command::Doctor
        | Command::CheckFile(_)
        | Command::Completions { .. }
        | Command::Openapi { .. } => unreachable!("`run` took the verbs that are not a client's"),
    }
}
