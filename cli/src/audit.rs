//! `comptoir audit`: recomputes a batch with the second implementation. It needs a leaf file, and a node to compare with.

pub mod source;

use std::path::{Path, PathBuf};

use alloy::primitives::Address;
use anyhow::Context as _;
use clap::Args;
use comptoir_audit::{
    Before, Committed, Deposit, Evidence, LeafFile, Limits, Report, Settled, Verdict, audit,
    bill::Bill,
    chain::{Block, Contract},
    proof::Audited,
    rpc::{Node, RpcError},
};
use serde_json::{Value, json};
use url::Url;

use crate::{
    client::Context,
    exit::{Exit, coded},
    output::{Output, say, tell},
};
use source::LeafSource;

/// A receipt document or bill is a few kilobytes.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// The number of the batch.
    #[arg(long)]
    pub batch: u64,
    /// An Ethereum RPC endpoint that you trust [default: none; then only the file's own parts are compared].
    #[arg(long, env = "ETH_RPC_URL")]
    pub rpc: Option<Url>,
    /// The settlement contract that you know [default: the one that the file names].
    #[arg(long, env = "COMPTOIR_CONTRACT")]
    pub contract: Option<Address>,
    /// The leaf file, or where to find it: a path or a URL, in which `{id}` and `{data_hash}` are filled in
    /// [default: the service's `/v1/batches/{id}/leaves`].
    #[arg(long)]
    pub leaves: Option<LeafSource>,
    /// The leaf file of the batch before, or where to find those of all batches before [default: looked for where `--leaves`
    /// is].
    #[arg(long)]
    pub before: Option<LeafSource>,
    /// A receipt document whose shares are computed again from its bill. May be repeated.
    #[arg(long)]
    pub receipt: Vec<PathBuf>,
    /// The platform's address, where fees and dust go [default: the one account that dust can explain].
    #[arg(long)]
    pub platform: Option<Address>,
    /// The block before the contract's deployment.
    #[arg(long, env = "COMPTOIR_START_BLOCK", default_value_t = 0)]
    pub start_block: u64,
}

/// An address as the second implementation has it.
#[must_use]
pub fn address(address: Address) -> comptoir_audit::Address {
    comptoir_audit::Address(address.into_array())
}

/// Audits a batch and prints every check.
///
/// # Errors
/// With [`Exit::NotVerified`] when the batch is false, and with [`Exit::Undecided`] when something that matters cannot be
/// proven.
pub async fn run(context: &Context, args: &AuditArgs) -> anyhow::Result<()> {
    let audited = recompute(context, args).await?;
    let verdict = audited.report.verdict();
    print(context.output, args.batch, &audited);
    match verdict {
        Verdict::Right => Ok(()),
        Verdict::False => Err(coded(
            Exit::NotVerified,
            format!("batch {} is false: {}", args.batch, audited.report.reason()),
        )),
        Verdict::Undecided => Err(coded(
            Exit::Undecided,
            format!(
                "batch {} is not decided: {}",
                args.batch,
                audited.report.reason()
            ),
        )),
    }
}

fn print(output: Output, batch: u64, audited: &Audited) {
    let Report { findings } = &audited.report;
    let report = json!({
        "batch": batch,
        "verdict": audited.report.verdict(),
        "hash": audited.hash,
        "findings": findings,
    });
    match output {
        Output::Json => say(format_args!("{report:#}")),
        Output::Table => {
            output.list(
                &json!({ "data": findings }),
                &["check", "outcome", "detail"],
            );
            output.object(&report, &["batch", "verdict", "hash"]);
        }
    }
}

/// What the chain says of a batch.
struct OnChain {
    committed: Result<Committed, String>,
    deposits: Result<Vec<Deposit>, String>,
    /// The batches before, oldest first.
    lineage: Result<Vec<Committed>, String>,
}

async fn recompute(context: &Context, args: &AuditArgs) -> anyhow::Result<Audited> {
    let limits = Limits::default();
    let leaves = match &args.leaves {
        Some(leaves) => leaves.clone(),
        None => LeafSource::service(context.connection.anonymous()?.base()),
    };
    let known = args.contract.map(address);
    // Without a contract's name, the file says which one it is of: the reader is told.
    let (contract, bytes) = if let Some(known) = known {
        (known, None)
    } else {
        let bytes = leaves.read(args.batch, None, limits.bytes).await;
        let bytes = bytes.map_err(|error| coded(Exit::NotFound, format!("{error:#}")))?;
        let named = LeafFile::parse(&bytes, &limits).map(|file| file.heading.contract);
        let named = named.map_err(|error| coded(Exit::NotVerified, error.to_string()))?;
        tell(format_args!(
            "make sure that {named} is the contract you deal with, or name yours with --contract"
        ));
        (named, Some(bytes))
    };
    let chain = look(args, contract).await?;
    let data_hash = chain.committed.as_ref().ok().map(|it| it.header.data_hash);
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => leaves
            .read(args.batch, data_hash, limits.bytes)
            .await
            .map_err(|error| coded(Exit::NotFound, format!("{error:#}")))?,
    };
    let before = before(args, &leaves, &limits).await;
    let earlier = earlier(args, &leaves, &limits, &chain.lineage).await;
    let bills = args
        .receipt
        .iter()
        .map(|path| bill(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let platform = args.platform.map(address);
    let first = args.batch == 1;
    tokio::task::spawn_blocking(move || {
        audit(&Evidence {
            file: &bytes,
            limits,
            committed: chain.committed.as_ref().map_err(String::as_str),
            before: match &before {
                _ if first => Before::Nothing,
                Ok(file) => Before::File(file),
                Err(why) => Before::Missing(why),
            },
            earlier: earlier.as_ref().map_err(String::as_str),
            deposits: chain.deposits.as_deref().map_err(String::as_str),
            platform,
            bills: &bills,
        })
    })
    .await
    .context("the audit was cut short")
}

async fn look(args: &AuditArgs, contract: comptoir_audit::Address) -> anyhow::Result<OnChain> {
    let Some(rpc) = &args.rpc else {
        let why = "no node was asked: name one with --rpc";
        return Ok(OnChain {
            committed: Err(why.to_owned()),
            deposits: Err(why.to_owned()),
            lineage: Err(why.to_owned()),
        });
    };
    let unavailable = |error: RpcError| {
        let message = format!(
            "the chain does not answer as it should: {:#}",
            anyhow::Error::from(error)
        );
        coded(Exit::Unavailable, message)
    };
    let node = Node::new(rpc.clone()).map_err(unavailable)?;
    let contract = Contract::open(node, contract, args.start_block)
        .await
        .map_err(unavailable)?;
    let head = contract.head().await.map_err(unavailable)?;
    let committed = contract
        .committed(args.batch, &head)
        .await
        .map_err(unavailable)?;
    let before = args.batch.saturating_sub(1);
    let lineage = if before == 0 {
        Some(Vec::new())
    } else {
        let lineage = contract.lineage(1, before, &head);
        lineage.await.map_err(unavailable)?
    };
    Ok(OnChain {
        lineage: lineage.ok_or_else(|| format!("the contract holds no batch {before}")),
        committed: committed.ok_or_else(|| format!("the contract holds no batch {}", args.batch)),
        deposits: deposits(&contract, &head)
            .await
            .map_err(unavailable)
            .map(Ok)?,
    })
}

async fn deposits(contract: &Contract, head: &Block) -> Result<Vec<Deposit>, RpcError> {
    contract.deposits(0, head.number).await
}

/// The batch before, where it is at hand.
async fn before(
    args: &AuditArgs,
    leaves: &LeafSource,
    limits: &Limits,
) -> Result<LeafFile, String> {
    let id = args.batch.saturating_sub(1);
    let source = match &args.before {
        Some(before) => before,
        None if leaves.is_single() => {
            return Err(format!(
                "the leaf file of batch {id} was not given: name it with --before"
            ));
        }
        None => leaves,
    };
    let bytes = source.read(id, None, limits.bytes).await;
    let bytes = bytes.map_err(|error| format!("{error:#}"))?;
    LeafFile::parse(&bytes, limits).map_err(|error| format!("the file of batch {id}: {error}"))
}

/// The receipts of all batches before, where their files are at hand.
async fn earlier(
    args: &AuditArgs,
    leaves: &LeafSource,
    limits: &Limits,
    lineage: &Result<Vec<Committed>, String>,
) -> Result<Settled, String> {
    let mut settled = Settled::default();
    for batch in lineage.as_ref().map_err(Clone::clone)? {
        let id = batch.header.id;
        let newest = id.checked_add(1) == Some(args.batch);
        let source = match &args.before {
            Some(before) if newest || !before.is_single() => before,
            _ if leaves.is_single() => {
                return Err(format!(
                    "the leaf file of batch {id} was not given: name a place with {{id}} or {{data_hash}} for --before"
                ));
            }
            _ => leaves,
        };
        let bytes = source
            .read(id, Some(batch.header.data_hash), limits.bytes)
            .await;
        let bytes = bytes.map_err(|error| format!("{error:#}"))?;
        let file = LeafFile::parse(&bytes, limits)
            .map_err(|error| format!("the file of batch {id}: {error}"))?;
        settled
            .add(batch, &file)
            .map_err(|error| error.to_string())?;
    }
    Ok(settled)
}

fn bill(path: &Path) -> anyhow::Result<Bill> {
    let name = path.display();
    let length = std::fs::metadata(path)
        .with_context(|| format!("read {name}"))?
        .len();
    anyhow::ensure!(
        length <= DOCUMENT_BYTES_MAX,
        "{name} is too long for a receipt"
    );
    let document: Value = serde_json::from_slice(&std::fs::read(path)?)
        .map_err(|_| coded(Exit::NotVerified, format!("{name} is not JSON")))?;
    Bill::read(&document).map_err(|error| coded(Exit::NotVerified, format!("{name}: {error}")))
}
