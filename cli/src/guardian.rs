//! `comptoir guardian`: watches every batch at the head of the chain, recomputes it with the second implementation, and
//! vetoes a false or hidden one while its window lasts. It needs a node and the published leaf files; never our database.
//! `comptoir watcher` does the same without a key: it only tells.

pub mod act;
pub mod decide;
mod files;
mod history;
pub mod judge;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use alloy::primitives::Address;
use anyhow::{Context as _, ensure};
use clap::Args;
use comptoir_audit::{
    Limits,
    chain::{Block, Contract, RING, State},
    rpc::Node,
};
use comptoir_settler::fees::FeePolicy;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    audit::{address, source::LeafSource},
    client::{Context, wallet::Wallet},
    service,
};
use act::{Hand, Outcome, Refusal};
use decide::{Action, Held, Judgement, Policy, View, WhenUndecided};
use files::Files;
use judge::Judge;

/// The newest block that was looked at.
const HEAD: &str = "guardian_head_block";
/// When the last look was finished, in seconds since 1970.
const LOOKED_AT: &str = "guardian_looked_at_seconds";
/// Looks that failed.
const FAILED: &str = "guardian_failed_looks_total";
/// Batches by what was thought of them.
const JUDGED: &str = "guardian_judged_batches_total";
/// Vetoes and pauses that were sent.
const ACTED: &str = "guardian_actions_total";
/// 1 while something is wrong that no action of the guardian ends.
const ALARM: &str = "guardian_alarm";
/// The key's ether, in wei.
const BALANCE: &str = "guardian_balance_wei";
/// Less ether than this is told: about a hundred vetoes at a high fee.
const BALANCE_LOW_WEI: u128 = 500_000_000_000_000_000;

#[derive(Debug, Clone, Args)]
pub struct WatcherArgs {
    /// The settlement contract.
    #[arg(long, env = "COMPTOIR_CONTRACT")]
    pub contract: Address,
    /// An Ethereum RPC endpoint of your own: not the one that the settler uses.
    #[arg(long, env = "ETH_RPC_URL", hide_env_values = true)]
    pub rpc: Url,
    /// Where leaf files are published: a path or a URL, in which `{id}` and `{data_hash}` are filled in. May be repeated
    /// [default: the service's `/v1/batches/{id}/leaves`].
    #[arg(long)]
    pub leaves: Vec<LeafSource>,
    /// Keep a copy of every leaf file in this folder: what `comptoir escape` needs, should the operator go.
    #[arg(long, env = "COMPTOIR_LEAVES_FOLDER")]
    pub keep: Option<PathBuf>,
    /// The platform's address, where fees and dust go [default: the one account that dust can explain].
    #[arg(long)]
    pub platform: Option<Address>,
    /// The block before the contract's deployment.
    #[arg(long, env = "COMPTOIR_START_BLOCK", default_value_t = 0)]
    pub start_block: u64,
    /// Milliseconds between two looks at the chain.
    #[arg(long, env = "COMPTOIR_POLL_MS", default_value_t = 4_000)]
    pub poll_ms: u64,
    /// Seconds after its commit until a batch without a leaf file is vetoed [default: half of the window].
    #[arg(long)]
    pub unavailable_after_s: Option<u64>,
    /// Seconds before the end of its window in which a batch that cannot be judged is acted upon [default: a quarter of the
    /// window].
    #[arg(long)]
    pub margin_s: Option<u64>,
    /// What is done about a batch that cannot be judged in time.
    #[arg(long, value_enum, default_value = "pause")]
    pub when_undecided: WhenUndecided,
    /// Pause commits after so many vetoes within one window; 0 never does.
    #[arg(long, default_value_t = 3)]
    pub pause_after_vetoes: u32,
    /// Do not pause claims when a false batch is found after its window.
    #[arg(long)]
    pub no_pause_when_late: bool,
    /// Prometheus metrics, on a listener of their own [default: none].
    #[arg(long, env = "COMPTOIR_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, Args)]
pub struct GuardianArgs {
    #[command(flatten)]
    pub watcher: WatcherArgs,
    /// The file with the key that holds the contract's GUARDIAN role.
    #[arg(long, env = "COMPTOIR_GUARDIAN_KEY_FILE")]
    pub key_file: PathBuf,
    /// Most that is offered for a unit of gas, in gwei.
    #[arg(long, default_value_t = 1_000)]
    pub fee_ceiling_gwei: u32,
}

/// Watches and vetoes until a signal.
///
/// # Errors
/// When the node has no such contract, or the key is not the guardian's.
pub async fn guard(context: &Context, args: GuardianArgs) -> anyhow::Result<()> {
    let signer = Wallet::read(&args.key_file)?.signer();
    let policy = FeePolicy {
        ceiling_wei: u128::from(args.fee_ceiling_gwei) * 1_000_000_000,
        ..FeePolicy::default()
    };
    watch_with(context, args.watcher, Some(Hand::new(signer, policy))).await
}

/// Watches and tells until a signal.
///
/// # Errors
/// When the node has no such contract.
pub async fn watch(context: &Context, args: WatcherArgs) -> anyhow::Result<()> {
    watch_with(context, args, None).await
}

async fn watch_with(
    context: &Context,
    mut args: WatcherArgs,
    hand: Option<Hand>,
) -> anyhow::Result<()> {
    let stop = service::until_signal()?;
    service::parts::serve_metrics(args.metrics_listen, &stop).await?;
    if args.leaves.is_empty() {
        args.leaves = vec![LeafSource::service(context.connection.anonymous()?.base())];
    }
    let poll = Duration::from_millis(args.poll_ms);
    let mut guardian = Guardian::open(args, hand).await?;
    guardian.run(poll, &stop).await;
    Ok(())
}

/// Sees, judges and acts.
pub struct Guardian {
    contract: Contract,
    judge: Judge,
    policy: Policy,
    hand: Option<Hand>,
    /// When vetoes were seen to stand, by the chain's time.
    vetoes: Vec<u64>,
    /// The generation that the last look saw.
    generation: Option<u64>,
    /// The contract refused a pause in this block or a later one.
    may_pause: bool,
    /// What was told last, so that it is told once.
    told: Option<String>,
}

impl Guardian {
    /// Checks that the contract is there, and that the key is its guardian's.
    ///
    /// # Errors
    /// When either is not so.
    pub async fn open(args: WatcherArgs, hand: Option<Hand>) -> anyhow::Result<Self> {
        if let Some(folder) = &args.keep {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("create {}", folder.display()))?;
        }
        let contract = Contract::open(
            Node::new(args.rpc)?,
            address(args.contract),
            args.start_block,
        )
        .await?;
        if let Some(hand) = &hand {
            let holder = address(hand.address());
            let at = contract.head().await?;
            ensure!(
                contract.has_role("GUARDIAN", holder, at.hash).await?,
                "{holder} does not hold the contract's GUARDIAN role"
            );
        }
        tracing::info!(
            contract = %contract.address(),
            guardian = hand.as_ref().map(|hand| hand.address().to_string()),
            "watching every batch"
        );
        let files = Files {
            sources: args.leaves,
            keep: args.keep,
            limits: Limits::default(),
        };
        Ok(Self {
            contract,
            judge: Judge::new(files, args.platform.map(address)),
            policy: Policy {
                unavailable_after_s: args.unavailable_after_s,
                margin_s: args.margin_s,
                when_undecided: args.when_undecided,
                pause_after_vetoes: args.pause_after_vetoes,
                pause_when_late: !args.no_pause_when_late,
            },
            hand,
            vetoes: Vec::new(),
            generation: None,
            may_pause: true,
            told: None,
        })
    }

    /// Looks at every interval until `stop`. A look that fails is made again.
    pub async fn run(&mut self, poll: Duration, stop: &CancellationToken) {
        let mut every = tokio::time::interval(poll);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = stop.cancelled() => return,
            }
            let now = u64::try_from(service::now().unix_timestamp()).unwrap_or_default();
            match self.look(now).await {
                Ok(()) => metrics::gauge!(LOOKED_AT).set(approximate(now.into())),
                Err(error) => {
                    metrics::counter!(FAILED).increment(1);
                    tracing::warn!(error = format!("{error:#}"), "the look at the chain failed");
                }
            }
        }
    }

    /// Looks once: judges what is new, and does what is due. `clock` is the wall clock, in seconds since 1970.
    ///
    /// # Errors
    /// When the node does not answer as it should.
    pub async fn look(&mut self, clock: u64) -> anyhow::Result<()> {
        let head = self.contract.head().await?;
        metrics::gauge!(HEAD).set(approximate(head.number.into()));
        let state = self.contract.state(head.hash).await?;
        let now = head.timestamp.max(clock);
        self.count_vetoes(&state, now);
        if state.frozen {
            self.tell("the contract is frozen: only claims and escapes are left");
            return Ok(());
        }
        let batches = self.held(&state, &head, now).await?;
        let view = View {
            now,
            window: state.window,
            held: batches,
            paused: state.paused,
            may_pause: self.may_pause,
            vetoes: u32::try_from(self.vetoes.len()).unwrap_or(u32::MAX),
        };
        let action = self.policy.decide(&view);
        metrics::gauge!(ALARM).set(if matches!(action, Action::Wait) {
            0.0
        } else {
            1.0
        });
        match action {
            Action::Wait => {
                self.told = None;
                Ok(())
            }
            Action::Alert(why) => {
                self.tell(&why);
                Ok(())
            }
            Action::Cancel { id, because } => {
                let what = format!("veto batch {id}: {because}");
                self.act(&what, act::cancel(id), &head).await
            }
            Action::Pause { bits, because } => {
                let what = format!("pause ({bits}): {because}");
                self.act(&what, act::pause(bits), &head).await
            }
        }
    }

    /// The batches that can still be vetoed, and the newest that cannot, each with its judgement.
    async fn held(&mut self, state: &State, head: &Block, now: u64) -> anyhow::Result<Vec<Held>> {
        let mut slots = Vec::new();
        let oldest = state.last_batch.saturating_sub(RING - 1).max(1);
        for id in (oldest..=state.last_batch).rev() {
            let slot = self.contract.slot(id, head.hash).await?;
            slots.push((id, slot));
            if now >= slot.active_at {
                break;
            }
        }
        let mut batches = Vec::new();
        for (id, slot) in slots.into_iter().rev() {
            let known = self.judge.knows(slot.hash);
            let judged = self
                .judge
                .judge(&self.contract, (id, slot.hash), head)
                .await;
            let judgement = judged.unwrap_or_else(|error| {
                Judgement::Undecided(format!("{:#}", anyhow::Error::from(error)))
            });
            if !known && self.judge.knows(slot.hash) {
                report(id, &judgement);
            }
            batches.push(Held {
                id,
                hash: slot.hash,
                committed_at: slot.committed_at,
                active_at: slot.active_at,
                judgement,
            });
        }
        Ok(batches)
    }

    /// Each generation is one veto, whoever made it.
    fn count_vetoes(&mut self, state: &State, now: u64) {
        let before = self.generation.replace(state.generation);
        let new = state
            .generation
            .saturating_sub(before.unwrap_or(state.generation));
        for _ in 0..new {
            tracing::info!(generation = state.generation, "a veto stands");
            self.vetoes.push(now);
        }
        self.vetoes
            .retain(|at| now.saturating_sub(*at) < state.window);
        if new > 0 || self.vetoes.is_empty() {
            self.may_pause = true;
        }
    }

    async fn act(
        &mut self,
        what: &str,
        calldata: alloy::primitives::Bytes,
        head: &Block,
    ) -> anyhow::Result<()> {
        self.tell(what);
        let Some(hand) = &mut self.hand else {
            return Ok(());
        };
        match hand.act(&self.contract, calldata, head).await? {
            Outcome::Sent(tx) => {
                metrics::counter!(ACTED).increment(1);
                tracing::warn!(what, %tx, "sent");
                let key = address(hand.address());
                self.watch_balance(key).await
            }
            Outcome::Waiting => Ok(()),
            Outcome::Refused(Refusal::PauseTooSoon) => {
                self.may_pause = false;
                tracing::error!(what, "the contract does not take another pause yet");
                Ok(())
            }
            Outcome::Refused(Refusal::Other(why)) => {
                tracing::error!(what, why, "the contract would refuse it");
                Ok(())
            }
            Outcome::AtCeiling => {
                tracing::error!(what, "it is stuck, and the fee ceiling is reached");
                Ok(())
            }
        }
    }

    async fn watch_balance(&self, key: comptoir_audit::Address) -> anyhow::Result<()> {
        let asked = serde_json::json!([key.to_string(), "latest"]);
        let wei = self
            .contract
            .node()
            .quantity("eth_getBalance", asked)
            .await?;
        metrics::gauge!(BALANCE).set(approximate(wei));
        if wei < BALANCE_LOW_WEI {
            tracing::warn!(%key, wei, "the guardian's key runs out of ether");
        }
        Ok(())
    }

    /// Tells people, once for each thing.
    fn tell(&mut self, what: &str) {
        if self.told.as_deref() != Some(what) {
            tracing::error!("{what}");
            self.told = Some(what.to_owned());
        }
    }
}

fn report(id: u64, judgement: &Judgement) {
    if let Judgement::False(why) = judgement {
        metrics::counter!(JUDGED, "verdict" => "false").increment(1);
        tracing::error!(batch = id, why, "the batch is false");
    } else {
        metrics::counter!(JUDGED, "verdict" => "right").increment(1);
        tracing::info!(batch = id, "the batch is right");
    }
}

/// A number as a gauge takes it.
#[expect(clippy::cast_precision_loss, reason = "a gauge shows a magnitude")]
const fn approximate(number: u128) -> f64 {
    number as f64
}
