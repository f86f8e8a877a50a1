//! The command line.

pub mod card;
pub mod datasets;
pub mod market;
pub mod models;
pub mod usage;

use std::path::PathBuf;

use alloy::primitives::Address;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use url::Url;

/// Runs Comptoir, and talks to it.
#[derive(Debug, Parser)]
#[command(name = "comptoir", version, after_help = crate::exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// JSON on standard output, also on a terminal.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Which service, as whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "Service")]
pub struct ClientArgs {
    /// The service [default: where you signed in, else `http://127.0.0.1:8080`].
    #[arg(long, global = true, env = "COMPTOIR_URL")]
    pub url: Option<Url>,
    /// An API key, instead of signing in.
    #[arg(long, global = true, env = "COMPTOIR_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Where the session is kept [default: ~/.config/comptoir/profile.json].
    #[arg(long, global = true, env = "COMPTOIR_PROFILE")]
    pub profile: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs everything on this machine: Postgres, Redis, a local chain, api, scheduler, settler.
    Up(UpArgs),
    /// Runs the main job from deposit to claim, checks each step, and leaves nothing running.
    Demo(DemoArgs),
    /// Starts the backing services alone, runs a command with their URLs, and stops them.
    Services(ServicesArgs),
    /// Runs one service.
    #[command(subcommand)]
    Serve(Serve),
    /// Brings the database that `DATABASE_URL` names up to date.
    Migrate,
    /// What operators do.
    #[command(subcommand)]
    Admin(Admin),
    /// Checks what this machine has.
    Doctor,
    /// Reads one file behind walls, for a service that started this.
    #[command(hide = true)]
    CheckFile(Box<comptoir_checker::child::CheckArgs>),
    /// Prints a completion script.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Prints an OpenAPI document.
    Openapi {
        /// Of which service.
        service: Documented,
    },
    /// Creates an account and signs in.
    Signup(Credentials),
    /// Signs in.
    Login(LoginArgs),
    /// Signs out.
    Logout,
    /// Who you are.
    Account,
    /// Makes a private key for deposits and claims.
    Wallet(KeyFile),
    /// Binds your address to your account by signing a challenge.
    Bind(KeyFile),
    /// Takes back what changes the address that you are paid at.
    #[command(subcommand)]
    Address(AddressVerb),
    /// Replaces a password that you forgot.
    #[command(subcommand)]
    Password(PasswordVerb),
    /// Takes tokens and ether for your address from a local chain that `comptoir up` runs.
    Faucet(FaucetArgs),
    /// Sends tokens to the settlement contract for your account.
    Deposit(DepositArgs),
    /// What you have, and what is locked.
    Balance,
    /// Every movement of your money.
    Statement(ListArgs),
    /// Asks for money to be released on-chain at the next batch.
    Withdraw(AmountArgs),
    /// Takes what was released to you out of the contract.
    Claim(ChainArgs),
    /// Uploads or downloads a blob.
    #[command(subcommand)]
    Blob(Blob),
    /// Datasets: publish, sell, buy and pull them.
    #[command(subcommand)]
    Dataset(datasets::Dataset),
    /// Models: publish and price them.
    #[command(subcommand)]
    Model(models::Model),
    /// What your calls of models used and cost.
    Usage(usage::UsageArgs),
    /// What a job costs, term by term.
    Quote(SpecArgs),
    /// Submits and watches jobs.
    #[command(subcommand)]
    Job(Job),
    /// Your workers, and tokens for new ones.
    #[command(subcommand)]
    Worker(Worker),
    /// Being told what happens: endpoints, deliveries, and a receiver on this machine.
    #[command(subcommand)]
    Webhook(crate::client::webhooks::Webhook),
    /// Receipts of what you paid or earned.
    #[command(subcommand)]
    Receipt(Receipt),
    /// Recomputes the charge of a receipt: of a job from the program itself, of all else from its price.
    Bill(BillArgs),
    /// Checks a receipt against the chain; no server needed.
    Verify(VerifyArgs),
    /// Recomputes a batch from its leaf file with a second implementation, and compares it with the chain.
    Audit(crate::audit::AuditArgs),
    /// Recomputes every batch as it is committed, and vetoes a false or hidden one. Needs the guardian's key alone.
    Guardian(crate::guardian::GuardianArgs),
    /// Recomputes every batch as it is committed, and tells of a false or hidden one. Needs no key.
    Watcher(crate::guardian::WatcherArgs),
    /// Leaves by the contract, whether the operator helps or not.
    #[command(subcommand)]
    Exit(crate::exit_chain::ExitVerb),
    /// Stops a contract whose operator is silent, or leaves an exit unanswered.
    Freeze(crate::exit_chain::FreezeArgs),
    /// Takes what is yours, or anybody's for them, out of a frozen contract.
    Escape(crate::exit_chain::EscapeArgs),
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Where everything is kept.
    #[arg(long, default_value = ".comptoir", env = "COMPTOIR_FOLDER")]
    pub folder: PathBuf,
    /// The client API.
    #[arg(long, default_value_t = 8080)]
    pub api_port: u16,
    /// The worker API.
    #[arg(long, default_value_t = 8081)]
    pub scheduler_port: u16,
    /// Metrics of all services, in Prometheus' text format [default: a free port, as 0 is].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub metrics_port: u16,
    /// Throw away what an earlier run kept, and start with a new chain and database.
    #[arg(long)]
    pub reset: bool,
    /// Start no guardian: the contract's guardian is elsewhere, or nobody.
    #[arg(long)]
    pub no_guardian: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The worker binary [default: `comptoir-worker` beside this one, else on the PATH].
    #[arg(long, env = "COMPTOIR_WORKER")]
    pub worker: Option<PathBuf>,
    /// The example's data.
    #[arg(long, default_value = "examples/digits")]
    pub data: PathBuf,
    /// Keep the folder of the run.
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Args)]
pub struct ServicesArgs {
    /// Where their data is kept [default: a temporary folder].
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// What to run.
    #[arg(trailing_var_arg = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Serve {
    /// The client-facing API.
    Api(Box<crate::service::config::ApiArgs>),
    /// The worker-facing API.
    Scheduler(crate::service::config::SchedulerArgs),
    /// The chain-facing service.
    Settler(crate::service::config::SettlerArgs),
}

#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Prints a token, once, that makes somebody an administrator: `comptoir login --setup` redeems it.
    Bootstrap(crate::admin::BootstrapArgs),
    /// Makes a join token for an account, as `comptoir worker token` does for its owner.
    JoinToken(crate::admin::JoinTokenArgs),
    /// Deploys token, timelock and settlement contract, and registers the asset.
    DeployContracts(crate::admin::DeployArgs),
    /// After a backup was restored: takes in the batches that the contract has and the database does not.
    ImportBatches(crate::import::ImportArgs),
    /// Lets settling go on after a halt, once a person has found out why.
    ResumeSettling(crate::admin::OperatorArg),
    /// Puts the next signing key of the services in use; tokens signed by the one before hold until they end.
    RotateKeys(crate::keys::RotateArgs),
    /// Puts a new root key for datasets in use: keys of sellers are wrapped anew, and files stay as they are. Makes the first one where there is none.
    RotateDataKey(crate::keys::RotateDataKeyArgs),
    /// Publishes a price; jobs quoted before keep theirs.
    PublishPrice(crate::admin::PriceArgs),
    /// The log of what touched somebody's security.
    #[command(subcommand)]
    AuditLog(crate::audit_log::AuditLog),
    /// Accounts: what they have and may do; holding one, and letting it go.
    #[command(subcommand)]
    Accounts(crate::admin::accounts::Accounts),
    /// The administrators.
    #[command(subcommand)]
    Admins(crate::admin::accounts::Admins),
    /// What is given back of charges: one administrator proposes, another approves.
    #[command(subcommand)]
    Refunds(crate::admin::refunds::Refunds),
    /// Published prices, those to come too.
    #[command(subcommand)]
    Prices(crate::admin::prices::Prices),
    /// Jobs that wait or loop beyond bounds.
    #[command(subcommand)]
    Jobs(crate::admin::work::Jobs),
    /// Workers of all accounts.
    #[command(subcommand)]
    Workers(crate::admin::work::Workers),
    /// Datasets that somebody says must not be here.
    #[command(subcommand)]
    Takedowns(crate::admin::takedowns::Takedowns),
    /// What waits to go out.
    #[command(subcommand)]
    Outbox(crate::admin::work::Outbox),
    /// The audit log, through the API.
    Events(crate::admin::accounts::EventsArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Documented {
    Api,
    Scheduler,
}

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// The account's e-mail.
    #[arg(long, env = "COMPTOIR_EMAIL", required_unless_present = "wallet")]
    pub email: Option<String>,
    /// Read the password from the first line of standard input instead of `COMPTOIR_PASSWORD`.
    #[arg(long)]
    pub password_stdin: bool,
    /// Sign in with the key of a wallet, instead of e-mail and password. Its address gets an account when it has none.
    #[arg(long, conflicts_with_all = ["password_stdin", "setup"])]
    pub wallet: bool,
    #[command(flatten)]
    pub key: KeyFile,
    /// What `comptoir admin bootstrap` printed: the password is chosen with it, and the account is an administrator's.
    #[arg(long, env = "COMPTOIR_SETUP_TOKEN", hide_env_values = true)]
    pub setup: Option<String>,
}

#[derive(Debug, Args)]
pub struct Credentials {
    /// The account's e-mail.
    #[arg(long, env = "COMPTOIR_EMAIL")]
    pub email: String,
    /// Read the password from the first line of standard input instead of `COMPTOIR_PASSWORD`.
    #[arg(long)]
    pub password_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub enum AddressVerb {
    /// Takes back a change that waits: you are paid where you were.
    Cancel,
}

#[derive(Debug, Subcommand)]
pub enum PasswordVerb {
    /// Asks for a mail with a token.
    Forgot {
        /// The account's e-mail.
        #[arg(long, env = "COMPTOIR_EMAIL")]
        email: String,
    },
    /// Sets a new password with the token of the mail, which `COMPTOIR_RESET_TOKEN` holds.
    Reset {
        /// Read the password from the first line of standard input instead of `COMPTOIR_PASSWORD`.
        #[arg(long)]
        password_stdin: bool,
    },
}

#[derive(Debug, Args)]
pub struct KeyFile {
    /// A private key in hexadecimal; it never leaves this machine.
    #[arg(long, default_value = "wallet.key", env = "COMPTOIR_KEY_FILE")]
    pub key_file: PathBuf,
}

#[derive(Debug, Args)]
pub struct ChainArgs {
    #[command(flatten)]
    pub key: KeyFile,
    /// An Ethereum RPC endpoint that you trust.
    #[arg(long, env = "ETH_RPC_URL")]
    pub rpc: Url,
    /// The settlement contract that you know, such as the one you deposited to: a receipt of any other is refused.
    #[arg(long, env = "COMPTOIR_CONTRACT")]
    pub contract: Option<Address>,
}

#[derive(Debug, Args)]
pub struct FaucetArgs {
    #[command(flatten)]
    pub chain: ChainArgs,
    /// How many tokens.
    #[arg(long, default_value = "1000")]
    pub tokens: String,
    /// The folder of `comptoir up`, whose deployer holds the first supply.
    #[arg(long, default_value = ".comptoir", env = "COMPTOIR_FOLDER")]
    pub folder: PathBuf,
}

#[derive(Debug, Args)]
pub struct DepositArgs {
    /// How many tokens, such as 12.5.
    pub tokens: String,
    #[command(flatten)]
    pub chain: ChainArgs,
}

#[derive(Debug, Args)]
pub struct AmountArgs {
    /// How many tokens, such as 12.5.
    pub tokens: String,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Rows of a page.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub limit: u8,
    /// Where the last page ended.
    #[arg(long)]
    pub cursor: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Blob {
    /// Uploads a file and prints its digest.
    Put {
        /// The file.
        file: PathBuf,
    },
    /// Downloads a blob.
    Get {
        /// Its SHA-256 digest.
        digest: String,
        /// The file to write.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct SpecArgs {
    /// A job file; `@path` in place of a digest uploads that file.
    pub spec: PathBuf,
    /// A dataset: the tensors that the job file names without a `blob` are read from a file of it.
    #[arg(long, requires = "path")]
    pub dataset: Option<String>,
    /// With --dataset: which file of it, by its path.
    #[arg(long, requires = "dataset")]
    pub path: Option<String>,
    /// With --dataset: which version, by its number [default: the newest].
    #[arg(long, requires = "dataset")]
    pub number: Option<u32>,
    /// How the result is verified: none, sampled, replicated or quorum.
    #[arg(long, default_value = "sampled")]
    pub tier: String,
    /// What it runs on.
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

#[derive(Debug, Subcommand)]
pub enum Job {
    /// Submits a job file.
    Submit {
        #[command(flatten)]
        spec: SpecArgs,
        /// Pay no more than this many tokens [default: the quote].
        #[arg(long)]
        max_cost: Option<String>,
        /// A name of your own.
        #[arg(long)]
        name: Option<String>,
        /// Makes a repeated submission one job [default: random].
        #[arg(long)]
        idempotency_key: Option<String>,
        /// Watch it until it ends.
        #[arg(long)]
        wait: bool,
    },
    /// One job.
    Get {
        /// Its id.
        id: String,
    },
    /// Your jobs, newest first.
    List(ListArgs),
    /// Takes a job back.
    Cancel {
        /// Its id.
        id: String,
    },
    /// What happens to a job, as it happens.
    Events {
        /// Its id.
        id: String,
        /// Only what comes after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
    /// Downloads a job's outputs.
    Result {
        /// Its id.
        id: String,
        /// The folder to write to.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Why a job waits.
    Explain {
        /// Its id.
        id: String,
    },
    /// What a job's result was verified by.
    Verdict {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Worker {
    /// Your workers.
    List(ListArgs),
    /// Ends a worker's access.
    Revoke {
        /// Its id.
        id: String,
    },
    /// Makes a token that joins a worker, and prints the command to run.
    Token {
        /// A name for it.
        #[arg(long, default_value = "worker")]
        name: String,
        /// How many workers may join with it.
        #[arg(long, default_value_t = 1)]
        max_uses: u32,
    },
}

#[derive(Debug, Subcommand)]
pub enum Receipt {
    /// Receipts, newest first.
    List(ListArgs),
    /// One receipt with its proof, as `comptoir verify` takes it.
    Get {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct BillArgs {
    /// A receipt document.
    pub receipt: PathBuf,
    /// The `.pt2` archive that ran; of anything but a job, none did.
    #[arg(long)]
    pub program: Option<PathBuf>,
    /// How many rows your data has [default: what the receipt says].
    #[arg(long, requires = "program")]
    pub rows: Option<u64>,
    /// The usage file of the receipt's window, where it is of calls: `comptoir usage --of uwn_… --csv FILE`.
    #[arg(long, conflicts_with = "program")]
    pub usage: Option<PathBuf>,
    /// Required: nothing else is offered than recomputing.
    #[arg(long, required = true)]
    pub recompute: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A receipt document.
    pub receipt: PathBuf,
    /// An Ethereum RPC endpoint that you trust.
    #[arg(long, env = "ETH_RPC_URL")]
    pub rpc: Url,
    /// The settlement contract that you know, such as the one you deposited to: a receipt of any other is refused.
    #[arg(long, env = "COMPTOIR_CONTRACT")]
    pub contract: Option<Address>,
}
