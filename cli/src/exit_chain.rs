//! Leaving without the operator: an exit is requested, a contract whose operator is gone is frozen, and every account takes
//! what the last active batch says is its own. Nothing is needed but a node, the published leaf file and a key that pays
//! for gas; whoever sends the transactions, only the accounts are paid.

use std::collections::{BTreeMap, BTreeSet};

use alloy::{
    contract::SolCallBuilder,
    primitives::{Address, B256},
    providers::DynProvider,
    sol_types::SolCall,
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use comptoir_audit::{
    Account, LeafFile, Limits, Recomputed,
    chain::{Block, Contract, Depositor, State},
    rpc::{Node, RpcError},
};
use comptoir_contracts_bindings::Settlement::{self, SettlementErrors, SettlementInstance};
use serde_json::{Value, json};
use url::Url;

use crate::{
    audit::{address, source::LeafSource},
    client::{
        Context,
        wallet::{Sent, Wallet, mined},
    },
    exit::{Exit as Code, coded},
    service,
};

/// A contract, and the node that it is seen through.
#[derive(Debug, Args)]
pub struct ContractArgs {
    /// An Ethereum RPC endpoint that you trust.
    #[arg(long, env = "ETH_RPC_URL")]
    pub rpc: Url,
    /// The settlement contract.
    #[arg(long, env = "COMPTOIR_CONTRACT")]
    pub contract: Address,
    /// The block before the contract's deployment.
    #[arg(long, env = "COMPTOIR_START_BLOCK", default_value_t = 0)]
    pub start_block: u64,
}

/// The key that sends, and pays for gas.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// A private key in hexadecimal; it never leaves this machine.
    #[arg(long, default_value = "wallet.key", env = "COMPTOIR_KEY_FILE")]
    pub key_file: std::path::PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum ExitVerb {
    /// Asks the operator, through the contract, to release all that your key's account holds.
    Request {
        #[command(flatten)]
        contract: ContractArgs,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// What the contract knows of an account, and when anyone may freeze.
    Status {
        #[command(flatten)]
        contract: ContractArgs,
        /// The account.
        #[arg(long)]
        account: Address,
    },
}

#[derive(Debug, Args)]
pub struct FreezeArgs {
    #[command(flatten)]
    pub contract: ContractArgs,
    #[command(flatten)]
    pub key: KeyArgs,
    /// The account whose exit is overdue [default: whichever is, unless the operator is silent].
    #[arg(long)]
    pub unanswered: Option<Address>,
}

#[derive(Debug, Args)]
pub struct EscapeArgs {
    #[command(flatten)]
    pub contract: ContractArgs,
    #[command(flatten)]
    pub key: KeyArgs,
    /// The leaf file of the frozen batch, or where to find it: a path or a URL, in which `{id}` and `{data_hash}` are filled
    /// in [default: the service's `/v1/batches/{id}/leaves`].
    #[arg(long)]
    pub leaves: Option<LeafSource>,
    /// An account that is paid. May be repeated [default: that of your key].
    #[arg(long, conflicts_with = "all")]
    pub account: Vec<Address>,
    /// Every account that the contract owes something.
    #[arg(long)]
    pub all: bool,
}

/// The contract, read and written.
struct Place {
    contract: Contract,
    head: Block,
    state: State,
    rpc: Url,
}

impl Place {
    async fn open(args: &ContractArgs) -> anyhow::Result<Self> {
        let node = Node::new(args.rpc.clone()).map_err(unavailable)?;
        let contract = Contract::open(node, address(args.contract), args.start_block);
        let contract = contract.await.map_err(unavailable)?;
        let head = contract.head().await.map_err(unavailable)?;
        let state = contract.state(head.hash).await.map_err(unavailable)?;
        Ok(Self {
            contract,
            head,
            state,
            rpc: args.rpc.clone(),
        })
    }

    fn writer(&self, wallet: &Wallet) -> SettlementInstance<DynProvider> {
        let address = Address::new(self.contract.address().0);
        Settlement::new(address, wallet.connect(&self.rpc))
    }

    async fn depositor(&self, account: Address) -> anyhow::Result<Depositor> {
        let depositor = self.contract.depositor(address(account), self.head.hash);
        depositor.await.map_err(unavailable)
    }

    /// The chain's time, or the clock's where no block has come for a while.
    fn now(&self) -> u64 {
        let clock = u64::try_from(service::now().unix_timestamp()).unwrap_or_default();
        self.head.timestamp.max(clock)
    }

    /// When silence alone lets anyone freeze.
    const fn silent_at(&self) -> u64 {
        self.state.last_commit_at + self.state.escape_after
    }
}

fn unavailable(error: RpcError) -> anyhow::Error {
    let message = format!(
        "the chain does not answer as it should: {:#}",
        anyhow::Error::from(error)
    );
    coded(Code::Unavailable, message)
}

/// What a call did, or why the contract refused it.
async fn send<C: SolCall + Unpin>(
    what: &'static str,
    call: SolCallBuilder<&DynProvider, C>,
) -> anyhow::Result<Sent> {
    match call.send().await {
        Ok(pending) => mined(pending).await,
        Err(error) => Err(
            match error.as_decoded_interface_error::<SettlementErrors>() {
                Some(refusal) => coded(
                    Code::Refused,
                    format!("the contract refuses to {what}: {refusal:?}"),
                ),
                None => anyhow::Error::from(error).context(what),
            },
        ),
    }
}

/// The exit verbs.
///
/// # Errors
/// When the chain refuses.
pub async fn run(context: &Context, verb: &ExitVerb) -> anyhow::Result<()> {
    match verb {
        ExitVerb::Request { contract, key } => {
            let place = Place::open(contract).await?;
            let wallet = Wallet::read(&key.key_file)?;
            let sent = send("request an exit", place.writer(&wallet).requestExit()).await?;
            let place = Place::open(contract).await?;
            status(context, &place, wallet.address(), Some(sent)).await
        }
        ExitVerb::Status { contract, account } => {
            let place = Place::open(contract).await?;
            status(context, &place, *account, None).await
        }
    }
}

async fn status(
    context: &Context,
    place: &Place,
    account: Address,
    sent: Option<Sent>,
) -> anyhow::Result<()> {
    let known = place.depositor(account).await?;
    let overdue = known.exit_due_at != 0 && place.now() > known.exit_due_at;
    let exit = match known.exit_requested_at {
        0 => "none open",
        _ if overdue => "overdue",
        _ => "open",
    };
    let silent = place.now() > place.silent_at();
    let report = json!({
        "account": account.to_string(),
        "exit": exit,
        "requested_at": time_of(known.exit_requested_at),
        "due_at": time_of(known.exit_due_at),
        "deposited": known.deposited.to_string(),
        "paid": known.claimed.to_string(),
        "last_commit_at": time_of(place.state.last_commit_at),
        "silent_at": time_of(place.silent_at()),
        "may_freeze": !place.state.frozen && (silent || overdue),
        "frozen": place.state.frozen,
        "frozen_batch": place.state.frozen.then_some(place.state.frozen_batch),
        "transaction": sent.map(|sent| sent.hash),
    });
    let fields = [
        "account",
        "exit",
        "requested_at",
        "due_at",
        "deposited",
        "paid",
        "last_commit_at",
        "silent_at",
        "may_freeze",
        "frozen",
        "frozen_batch",
    ];
    context.output.object(&report, &fields);
    Ok(())
}

/// A time of the chain as people read it; nothing for zero.
fn time_of(seconds: u64) -> Value {
    let time = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    let time = time.and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = time.and_then(|time| {
        time.format(&time::format_description::well_known::Rfc3339)
            .ok()
    });
    text.map_or(Value::Null, Value::from)
}

/// Stops deposits and commits for good and opens escapes, where the operator is silent or an exit overdue.
///
/// # Errors
/// With [`Code::Refused`] when neither is so.
pub async fn freeze(context: &Context, args: &FreezeArgs) -> anyhow::Result<()> {
    let place = Place::open(&args.contract).await?;
    if place.state.frozen {
        return Err(coded(
            Code::Refused,
            "the contract is frozen already: `comptoir escape` pays",
        ));
    }
    let unanswered = match args.unanswered {
        Some(account) => account,
        None if place.now() > place.silent_at() => Address::ZERO,
        None => overdue(&place).await?,
    };
    let wallet = Wallet::read(&args.key.key_file)?;
    let sent = send("freeze", place.writer(&wallet).freeze(unanswered)).await?;
    let place = Place::open(&args.contract).await?;
    let report = json!({
        "frozen": place.state.frozen,
        "frozen_batch": place.state.frozen_batch,
        "unanswered": (unanswered != Address::ZERO).then(|| unanswered.to_string()),
        "transaction": sent.hash,
        "gas": sent.gas,
    });
    context.output.object(
        &report,
        &["frozen", "frozen_batch", "unanswered", "transaction", "gas"],
    );
    Ok(())
}

/// An account whose exit is overdue.
async fn overdue(place: &Place) -> anyhow::Result<Address> {
    let leaving = place
        .contract
        .exits(place.head.number)
        .await
        .map_err(unavailable)?;
    for account in leaving {
        let account = Address::new(account.0);
        let due_at = place.depositor(account).await?.exit_due_at;
        if due_at != 0 && place.now() > due_at {
            return Ok(account);
        }
    }
    let silent_at = time_of(place.silent_at());
    let message = format!("no exit is overdue, and silence counts from {silent_at} on");
    Err(coded(Code::Refused, message))
}

/// What an account takes, and how.
struct Due {
    account: Address,
    amount: u128,
    /// Its leaf; an account that the frozen batch had never seen has none, and needs none.
    leaf: Option<Account>,
}

/// Pays accounts all that the frozen batch says is their own and what they deposited since.
///
/// # Errors
/// With [`Code::Refused`] when the contract is not frozen, and with [`Code::NotVerified`] when the leaf file is not that of
/// the frozen batch.
pub async fn escape(context: &Context, args: &EscapeArgs) -> anyhow::Result<()> {
    let place = Place::open(&args.contract).await?;
    if !place.state.frozen {
        let message =
            "the contract is not frozen: see `comptoir exit status`, then `comptoir freeze`";
        return Err(coded(Code::Refused, message));
    }
    let wallet = Wallet::read(&args.key.key_file)?;
    let leaves = match &args.leaves {
        Some(leaves) => leaves.clone(),
        None => LeafSource::service(context.connection.anonymous()?.base()),
    };
    let book = Book::open(&place, &leaves).await?;
    let wanted: BTreeSet<Address> = if args.all {
        book.everybody(&place).await?
    } else if args.account.is_empty() {
        BTreeSet::from([wallet.address()])
    } else {
        args.account.iter().copied().collect()
    };
    let writer = place.writer(&wallet);
    let mut rows = Vec::new();
    let mut total: u128 = 0;
    for account in wanted {
        let due = book.due(&place, account).await?;
        if due.amount == 0 {
            continue;
        }
        let sent = book.pay(&writer, &due).await?;
        total = total
            .checked_add(due.amount)
            .context("the sum passes 2^128")?;
        rows.push(json!({
            "account": account.to_string(),
            "amount": due.amount.to_string(),
            "by": if due.leaf.is_some() { "leaf" } else { "deposits" },
            "transaction": sent.hash,
        }));
    }
    if rows.is_empty() {
        return Err(coded(
            Code::Refused,
            "the contract owes these accounts nothing more",
        ));
    }
    let head = place.contract.head().await.map_err(unavailable)?;
    let left = place
        .contract
        .balance(head.hash)
        .await
        .map_err(unavailable)?;
    report(context, &rows, total, left);
    Ok(())
}

fn report(context: &Context, rows: &[Value], total: u128, left: u128) {
    let report =
        json!({ "data": rows, "total": total.to_string(), "left_in_contract": left.to_string() });
    match context.output {
        crate::output::Output::Json => crate::output::say(format_args!("{report:#}")),
        table @ crate::output::Output::Table => {
            table.list(&report, &["account", "amount", "by", "transaction"]);
            table.object(&report, &["total", "left_in_contract"]);
        }
    }
}

/// The frozen batch: its leaves, and what it had seen. Before any batch was active there is none.
struct Book {
    batch: Option<Recomputed>,
    leaves: BTreeMap<Address, Account>,
    deposit_seq_seen: u64,
}

impl Book {
    /// Reads the frozen batch's leaf file, and believes it only when its accounts make the root that the contract holds.
    async fn open(place: &Place, leaves: &LeafSource) -> anyhow::Result<Self> {
        let id = place.state.frozen_batch;
        if id == 0 {
            return Ok(Self {
                batch: None,
                leaves: BTreeMap::new(),
                deposit_seq_seen: 0,
            });
        }
        let slot = place
            .contract
            .slot(id, place.head.hash)
            .await
            .map_err(unavailable)?;
        let committed = place
            .contract
            .committed(id, &place.head)
            .await
            .map_err(unavailable)?;
        let data_hash = committed.map(|it| it.header.data_hash);
        let limits = Limits::default();
        let bytes = leaves.read(id, data_hash, limits.bytes).await;
        let bytes = bytes.map_err(|error| coded(Code::NotFound, format!("{error:#}")))?;
        let batch = tokio::task::spawn_blocking(move || {
            let file = LeafFile::parse(&bytes, &limits)?;
            let recomputed = Recomputed::of(&file);
            Ok::<_, comptoir_audit::FileError>((file, recomputed))
        });
        let batch = batch.await.context("the file was not read to its end")?;
        let (file, batch) = batch.map_err(|error| coded(Code::NotVerified, error.to_string()))?;
        let root = batch.accounts.root();
        if root != slot.accounts_root {
            let message = format!(
                "it is not the leaf file of batch {id}: its accounts make {root}, the contract holds {}",
                slot.accounts_root
            );
            return Err(coded(Code::NotVerified, message));
        }
        let leaves = file.accounts.into_iter();
        Ok(Self {
            batch: Some(batch),
            leaves: leaves.map(|it| (Address::new(it.account.0), it)).collect(),
            deposit_seq_seen: slot.deposit_seq_seen,
        })
    }

    /// Everybody with a leaf or a deposit.
    async fn everybody(&self, place: &Place) -> anyhow::Result<BTreeSet<Address>> {
        let deposits = place.contract.deposits(0, place.head.number);
        let deposits = deposits.await.map_err(unavailable)?;
        let deposits = deposits.into_iter().map(|it| Address::new(it.account.0));
        Ok(deposits.chain(self.leaves.keys().copied()).collect())
    }

    /// What the contract owes an account.
    async fn due(&self, place: &Place, account: Address) -> anyhow::Result<Due> {
        let known = place.depositor(account).await?;
        let leaf = self.leaves.get(&account).copied();
        let owed = match leaf {
            Some(leaf) => leaf
                .payable
                .checked_add(leaf.available)
                .and_then(|own| own.checked_add(known.deposited.checked_sub(leaf.deposits_seen)?)),
            // An account that the batch had seen deposits of has a leaf; without one only later deposits are its own.
            None if known.first_deposit_seq > self.deposit_seq_seen => Some(known.deposited),
            None => Some(0),
        };
        let owed =
            owed.with_context(|| format!("the leaf of {account} is not of this contract"))?;
        Ok(Due {
            account,
            amount: owed.saturating_sub(known.claimed),
            leaf,
        })
    }

    async fn pay(
        &self,
        writer: &SettlementInstance<DynProvider>,
        due: &Due,
    ) -> anyhow::Result<Sent> {
        let (Some(leaf), Some(recomputed)) = (due.leaf, &self.batch) else {
            return send("escape", writer.escapeUnseen(due.account)).await;
        };
        let proof = recomputed
            .account_proof(&leaf)
            .context("the file has no such leaf")?;
        let proof = proof.into_iter().map(|hash| B256::new(hash.0)).collect();
        let leaf = Settlement::Account {
            account: due.account,
            payable_: leaf.payable,
            available: leaf.available,
            depositsSeen: leaf.deposits_seen,
        };
        send("escape", writer.escape(leaf, proof)).await
    }
}
