//! The settler: one step follows the chain, credits what is final, confirms what was sent, sends what is due and seals.

use std::sync::Arc;

use alloy::primitives::B256;
use comptoir_domain::{asset::Asset, id::BatchId, settlement::file};
use comptoir_store::{
    PgTransaction, batches,
    leader::{Fence, FenceError, Lease},
    objects::Objects,
    reconciliation,
};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};

use crate::{
    alert::Alert,
    chain::{Chain, Tip, Tips},
    config::{Config, Finality},
    crash,
    error::StepError,
    follow::approximate,
    health::Health,
    hold::Hold,
};

/// 1 while settling stands still over a contradiction.
const HALTED: &str = "settler_halted";
/// Seconds between the newest block and now.
const HEAD_AGE: &str = "settler_head_age_seconds";

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
    pub(crate) health: Arc<Health>,
    lease: Lease,
    /// The contract itself is final.
    deployed: bool,
    /// What the database knows was compared with the chain since this process leads.
    compared: bool,
    /// Commits that the contract would refuse are not tried before this ends.
    pub(crate) held: Hold,
    /// The newest block, and since when it is.
    head: Option<(B256, OffsetDateTime)>,
    /// What this step found too expensive.
    pub(crate) at_ceiling: Option<String>,
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
        (db, objects, asset): (PgPool, Objects, Asset),
        config: Config,
        health: Arc<Health>,
        now: OffsetDateTime,
    ) -> Result<Option<Self>, StepError> {
        let chain = Chain::connect(&config.rpcs, config.rpc_timeout, &asset)?;
        chain.check_chain().await?;
        let Some(lease) = Lease::take(&db, asset.id, &config.holder, now).await? else {
            return Ok(None);
        };
        crash::point("settler.lead_taken");
        Ok(Some(Self {
            db,
            objects,
            asset,
            chain,
            config,
            health,
            lease,
            deployed: false,
            compared: false,
            held: Hold::default(),
            head: None,
            at_ceiling: None,
            reconciled: None,
            answered_from: None,
        }))
    }

    /// Does everything that is due, each part in transactions of its own.
    ///
    /// # Errors
    /// When a part did not finish; what was finished before it stands, and the next step goes on from there.
    pub async fn step(&mut self, now: OffsetDateTime) -> Result<Progress, StepError> {
        let outcome = self.work(now).await;
        self.watch_endpoints();
        outcome
    }

    async fn work(&mut self, now: OffsetDateTime) -> Result<Progress, StepError> {
        self.lease.check().await?;
        let tips = self.chain.tips(self.config.finality).await?;
        self.watch_finality(&tips);
        self.watch_head(&tips, now);
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
        // Before ledger and contract are compared: a restored backup would differ there too, and for this reason.
        if !self.compared && !self.is_halted().await? {
            self.compared = !self.is_behind(&tips, now).await?;
        }
        progress.credited = self.finalize(&tips, now).await?;
        progress.batches = self.confirm(&tips, now).await?;
        progress.halted = self.is_halted().await?;
        if progress.halted {
            return Ok(progress);
        }
        let Some(used) = self.watch_nonces(&tips, now).await? else {
            progress.halted = true;
            return Ok(progress);
        };
        progress.sealed = self.seal_if_due(&tips, now).await?;
        self.sign_commit(&tips, now).await?;
        self.sign_answers(&tips, now).await?;
        progress.sent = self.send(used, &tips, now).await?;
        match self.at_ceiling.take() {
            Some(detail) => self.health.alerts.raise(Alert::FeeCeiling, &detail),
            None => self.health.alerts.clear(Alert::FeeCeiling),
        }
        Ok(progress)
    }

    /// Has the contract batches that the database does not know? A restored backup is older than the chain, and would settle
    /// again what is settled.
    async fn is_behind(&self, tips: &Tips, now: OffsetDateTime) -> Result<bool, StepError> {
        let last = batches::standing(&mut *self.db.acquire().await?, self.asset.id).await?;
        let last = last.map_or(0, |batch| batch.header.id);
        let on_chain = self.chain.last_batch(tips.head.block.hash).await?;
        if on_chain > last {
            self.halt_behind(on_chain, last, now).await?;
        }
        Ok(on_chain > last)
    }

    /// Stops settling because the contract has batches that the database does not.
    pub(crate) async fn halt_behind(
        &self,
        on_chain: u64,
        last: u64,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let detail = format!(
            "the contract has batch {on_chain}, the database ends at {last}: it was restored from a backup. Nothing is sealed, \
             or jobs would be settled twice. Stop the settler, run `comptoir admin import-batches`, then \
             `comptoir admin resume-settling`"
        );
        self.halt("database_behind_chain", &detail, now).await
    }

    /// Tells when nothing becomes final although blocks are added. Settling goes on: it waits for finality by itself.
    fn watch_finality(&self, tips: &Tips) {
        let behind = tips.head.timestamp.saturating_sub(tips.final_.timestamp);
        let stalled =
            self.config.finality == Finality::Tags && behind > self.config.finality_stall.as_secs();
        if stalled {
            let detail = format!(
                "block {} is final, which is {behind} s older than block {}",
                tips.final_.block.number, tips.head.block.number
            );
            self.health.alerts.raise(Alert::FinalityStalled, &detail);
        } else {
            self.health.alerts.clear(Alert::FinalityStalled);
        }
    }

    /// Tells when the chain stands still, or the nodes show an old one.
    fn watch_head(&mut self, tips: &Tips, now: OffsetDateTime) {
        let Tip {
            block, timestamp, ..
        } = tips.head;
        if self.head.is_none_or(|(hash, _)| hash != block.hash) {
            self.head = Some((block.hash, now));
        }
        let clock = u64::try_from(now.unix_timestamp()).unwrap_or_default();
        let age = clock.saturating_sub(timestamp);
        metrics::gauge!(HEAD_AGE).set(approximate(age));
        let unmoved = self.head.map_or(Duration::ZERO, |(_, since)| now - since);
        let patience = self.config.head_stale;
        let number = block.number;
        let alerts = &self.health.alerts;
        if unmoved > patience {
            let seconds = unmoved.whole_seconds();
            let detail = format!("block {number} has been the newest for {seconds} s");
            alerts.raise(Alert::HeadStale, &detail);
        } else if age > patience.as_secs() {
            let detail = format!("block {number}, the newest, is {age} s old");
            alerts.raise(Alert::HeadStale, &detail);
        } else {
            alerts.clear(Alert::HeadStale);
        }
    }

    /// Tells which endpoints the others do not agree with, or who do not answer.
    fn watch_endpoints(&self) {
        let odd = self.chain.odd_endpoints();
        for (alert, contradicts) in [
            (Alert::EndpointOutvoted, true),
            (Alert::EndpointFailing, false),
        ] {
            let told: Vec<_> = odd
                .iter()
                .filter(|it| it.contradicts == contradicts)
                .map(|it| format!("{}: {}", it.endpoint, it.detail))
                .collect();
            if told.is_empty() {
                self.health.alerts.clear(alert);
            } else {
                self.health.alerts.raise(alert, &told.join("; "));
            }
        }
    }

    /// Begins a transaction that no deposed settler can commit.
    pub(crate) async fn begin(&self) -> Result<PgTransaction<'static>, FenceError> {
        let mut tx = self.db.begin().await?;
        self.fence().hold(&mut tx).await?;
        Ok(tx)
    }

    /// Commits, and passes the crash point of this write.
    pub(crate) async fn commit(
        &self,
        tx: PgTransaction<'static>,
        point: &'static str,
    ) -> sqlx::Result<()> {
        tx.commit().await?;
        crash::point(point);
        Ok(())
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
        let mut tx = self.begin().await?;
        reconciliation::halt(&mut tx, self.asset.id, reason, detail, now).await?;
        self.commit(tx, "settler.halted").await?;
        self.is_halted().await?;
        Ok(())
    }

    async fn is_halted(&self) -> Result<bool, StepError> {
        let halt = reconciliation::open_halt(&mut *self.db.acquire().await?, self.asset.id).await?;
        metrics::gauge!(HALTED).set(if halt.is_some() { 1.0 } else { 0.0 });
        let alerts = &self.health.alerts;
        match &halt {
            Some(halt) => {
                let detail = format!("{}: {}", halt.reason, halt.detail);
                alerts.raise(Alert::SettlingHalted, &detail);
            }
            None => alerts.clear(Alert::SettlingHalted),
        }
        Ok(halt.is_some())
    }
}

impl Tips {
    /// The chain's idea of now.
    pub(crate) const fn timestamp(&self) -> u64 {
        self.head.timestamp
    }
}
