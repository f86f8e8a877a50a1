//! The settler: one step follows the chain, credits what is final, confirms what was sent, sends what is due and seals.

use std::sync::Arc;

use comptoir_domain::{asset::Asset, id::BatchId, settlement::file};
use comptoir_store::{
    PgTransaction,
    leader::{Fence, FenceError, Lease},
    objects::Objects,
    reconciliation,
};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    chain::{Chain, ChainError, Tips},
    config::Config,
    error::StepError,
    health::Health,
};

/// Steps that finished.
const STEPS: &str = "settler_steps_total";
/// Steps that did not.
const FAILED_STEPS: &str = "settler_failed_steps_total";
/// 1 while settling stands still over a contradiction.
pub(crate) const HALTED: &str = "settler_halted";
/// 1 in the process that leads.
const LEADING: &str = "settler_leading";

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Blocks that were read.
    pub blocks: u64,
    /// Deposits that were credited.
    pub credited: u64,
    /// Batches whose state changed.
    pub batches: u64,
    /// Transactions that were handed to the node.
    pub sent: u64,
    /// A batch was sealed.
    pub sealed: bool,
    /// Settling stands still.
    pub halted: bool,
}

/// A settler that leads for its asset.
#[derive(Debug)]
pub struct Settler {
    pub(crate) db: PgPool,
    pub(crate) objects: Objects,
    pub(crate) asset: Asset,
    pub(crate) chain: Chain,
    pub(crate) config: Config,
    lease: Lease,
    /// The contract itself is final.
    deployed: bool,
    /// The final block that was reconciled last.
    pub(crate) reconciled: Option<u64>,
    /// The leaves that exits were answered from last.
    pub(crate) answered_from: Option<(BatchId, Arc<file::Sealed>)>,
}

impl Settler {
    /// Takes the lead for an asset; `None` while another settler has it.
    ///
    /// # Errors
    /// When the node is on another chain or does not answer, or the database refuses.
    pub async fn lead(
        db: PgPool,
        objects: Objects,
        asset: Asset,
        config: Config,
        now: OffsetDateTime,
    ) -> Result<Option<Self>, StepError> {
        let chain = Chain::connect(config.rpc.clone(), &asset)?;
        chain.check_chain().await?;
        let Some(lease) = Lease::take(&db, asset.id, &config.holder, now).await? else {
            return Ok(None);
        };
        Ok(Some(Self {
            db,
            objects,
            asset,
            chain,
            config,
            lease,
            deployed: false,
            reconciled: None,
            answered_from: None,
        }))
    }

    /// Does everything that is due, each part in transactions of its own.
    ///
    /// # Errors
    /// When a part did not finish; what was finished before it stands, and the next step goes on from there.
    pub async fn step(&mut self, now: OffsetDateTime) -> Result<Progress, StepError> {
        self.lease.check().await?;
        let tips = self.chain.tips(self.config.finality).await?;
        let mut progress = Progress {
            blocks: self.follow(&tips, now).await?,
            ..Progress::default()
        };
        if !self.deployed {
            self.deployed = self.chain.is_deployed(tips.final_.block.hash).await?;
        }
        if !self.deployed {
            return Ok(progress);
        }
        progress.credited = self.finalize(&tips, now).await?;
        progress.batches = self.confirm(&tips, now).await?;
        progress.halted = self.is_halted().await?;
        if !progress.halted {
            progress.sealed = self.seal_if_due(&tips, now).await?;
            self.sign_commit(&tips, now).await?;
            self.sign_answers(&tips, now).await?;
            progress.sent = self.send(&tips, now).await?;
        }
        Ok(progress)
    }

    /// Begins a transaction that no deposed settler can commit.
    pub(crate) async fn begin(&self) -> Result<PgTransaction<'static>, FenceError> {
        let mut tx = self.db.begin().await?;
        self.fence().hold(&mut tx).await?;
        Ok(tx)
    }

    pub(crate) const fn fence(&self) -> Fence {
        self.lease.fence()
    }

    /// Stops settling and says so.
    pub(crate) async fn halt(
        &self,
        reason: &str,
        detail: &str,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        tracing::error!(reason, detail, "settling halted: a person has to look");
        let mut tx = self.begin().await?;
        reconciliation::halt(&mut tx, self.asset.id, reason, detail, now).await?;
        tx.commit().await?;
        metrics::gauge!(HALTED).set(1.0);
        Ok(())
    }

    async fn is_halted(&self) -> Result<bool, StepError> {
        let halt = reconciliation::open_halt(&mut *self.db.acquire().await?, self.asset.id).await?;
        metrics::gauge!(HALTED).set(if halt.is_some() { 1.0 } else { 0.0 });
        Ok(halt.is_some())
    }

    async fn open_halt(&self) -> Result<Option<String>, StepError> {
        let halt = reconciliation::open_halt(&mut *self.db.acquire().await?, self.asset.id).await?;
        Ok(halt.map(|halt| format!("{}: {}", halt.reason, halt.detail)))
    }
}

/// Leads when it can and steps until `shutdown`; `clock` is the wall clock.
///
/// # Errors
/// When the node is on another chain: no step could ever be right.
pub async fn run(
    (db, objects, asset): (PgPool, Objects, Asset),
    config: Config,
    clock: fn() -> OffsetDateTime,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> Result<(), StepError> {
    let mut settler: Option<Settler> = None;
    let mut every = tokio::time::interval(config.poll);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let now = clock();
        if settler.is_none() {
            settler = match Settler::lead(db.clone(), objects.clone(), asset, config.clone(), now)
                .await
            {
                Ok(settler) => settler,
                Err(error @ StepError::Chain(ChainError::WrongChain { .. })) => return Err(error),
                Err(error) => {
                    failed(&error, &health, now);
                    None
                }
            };
            if settler.is_some() {
                tracing::info!(holder = config.holder, "leading");
            }
        }
        metrics::gauge!(LEADING).set(if settler.is_some() { 1.0 } else { 0.0 });
        let Some(leader) = settler.as_mut() else {
            health.standing_by(now);
            continue;
        };
        match step(leader, now).await {
            Ok((progress, halt)) => {
                metrics::counter!(STEPS).increment(1);
                health.stepped(now, halt);
                if progress != Progress::default() {
                    tracing::debug!(?progress, "step");
                }
            }
            Err(error) => {
                failed(&error, &health, now);
                // The lock's session is gone, or another settler leads: begin anew.
                if matches!(
                    error,
                    StepError::Fence(FenceError::Deposed) | StepError::Database(_)
                ) {
                    settler = None;
                }
            }
        }
    }
}

async fn step(
    settler: &mut Settler,
    now: OffsetDateTime,
) -> Result<(Progress, Option<String>), StepError> {
    let progress = settler.step(now).await?;
    let halt = if progress.halted {
        settler.open_halt().await?
    } else {
        None
    };
    Ok((progress, halt))
}

fn failed(error: &StepError, health: &Health, now: OffsetDateTime) {
    metrics::counter!(FAILED_STEPS).increment(1);
    let chain = causes(error);
    tracing::warn!(error = chain, "step failed");
    health.failed(now, chain);
}

/// An error with its causes, each told once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Tips {
    /// The chain's idea of now.
    pub(crate) const fn timestamp(&self) -> u64 {
        self.head.timestamp
    }
}
