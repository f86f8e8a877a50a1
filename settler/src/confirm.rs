//! Confirms by state: a batch stands where the contract holds its hash, whatever became of transactions.

use alloy::{eips::BlockId, primitives::B256};
use comptoir_domain::settlement::state::{BatchState, Seen, Slot};
use comptoir_store::{
    batches::{self, Batch},
    exits,
    transactions::{self, Ended, IntentKind, OpenIntent},
};
use time::OffsetDateTime;

use crate::{
    chain::{Kept, Tips},
    error::StepError,
    settler::Settler,
};

/// Exits that are looked at when an answer is confirmed.
const EXITS_MAX: i64 = 100_000;
/// Batches that reached a state.
const BATCHES: &str = "settler_batches_total";

impl Settler {
    /// Moves batches and transactions to where the contract says they are; returns how many batches moved.
    pub(crate) async fn confirm(&self, tips: &Tips, now: OffsetDateTime) -> Result<u64, StepError> {
        let unfinished = batches::unfinished(&mut *self.db.acquire().await?, self.asset.id).await?;
        let mut moved = 0;
        if !unfinished.is_empty() {
            let generation = self.chain.generation(tips.final_.block.hash).await?;
            for batch in &unfinished {
                moved += u64::from(self.observe(batch, generation, tips, now).await?);
            }
        }
        self.end_intents(tips).await?;
        Ok(moved)
    }

    async fn observe(
        &self,
        batch: &Batch,
        generation: u32,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<bool, StepError> {
        let number = batch.header.id;
        let head = self.chain.kept(number, tips.head.block.hash).await?;
        let safe = self.chain.kept(number, tips.safe.block.hash).await?;
        let final_ = self.chain.kept(number, tips.final_.block.hash).await?;
        let seen = Seen {
            head: slot(&head, batch.hash),
            safe: slot(&safe, batch.hash),
            final_: slot(&final_, batch.hash),
            active: final_.active_at != 0 && tips.final_.timestamp >= final_.active_at,
            cancelled: generation > batch.header.generation,
        };
        let next = batch.state.observe(&seen);
        let active_at = (seen.head == Slot::Own).then_some(head.active_at);
        let active_at =
            active_at.and_then(|at| OffsetDateTime::from_unix_timestamp(at.cast_signed()).ok());
        if next == batch.state {
            return Ok(false);
        }
        if next == BatchState::Halted {
            let detail = format!(
                "batch {number} is {} here, and the contract holds {}",
                batch.hash, final_.hash
            );
            self.halt("batch_contradicted", &detail, now).await?;
        }
        let mut tx = self.begin().await?;
        batches::advance(&mut tx, batch.id, next, active_at, now).await?;
        tx.commit().await?;
        tracing::info!(
            batch = number,
            from = batch.state.as_str(),
            to = next.as_str(),
            "batch moved"
        );
        metrics::counter!(BATCHES, "state" => next.as_str()).increment(1);
        Ok(true)
    }

    /// An intent ends when its nonce is used and that is final: well, where its effect is there.
    async fn end_intents(&self, tips: &Tips) -> Result<(), StepError> {
        let open = transactions::open(&mut *self.db.acquire().await?, self.asset.id).await?;
        let Some(signer) = open.first().map(|intent| intent.signer) else {
            return Ok(());
        };
        let used = self
            .chain
            .nonce(signer, BlockId::hash(tips.final_.block.hash))
            .await?;
        for intent in open.iter().filter(|intent| intent.nonce < used) {
            let ended = if self.has_effect(intent).await? {
                Ended::Done
            } else {
                Ended::Failed
            };
            if ended == Ended::Failed {
                tracing::warn!(intent = %intent.id, nonce = intent.nonce, "the transaction had no effect");
            }
            let mut tx = self.begin().await?;
            transactions::end(&mut tx, intent.id, ended).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    async fn has_effect(&self, intent: &OpenIntent) -> Result<bool, StepError> {
        let mut db = self.db.acquire().await?;
        match (intent.kind, intent.batch) {
            (IntentKind::Commit, Some(batch)) => Ok(batches::find(&mut db, batch)
                .await?
                .is_some_and(|batch| batch.state.is_anchored())),
            (IntentKind::Commit, None) => Ok(false),
            (IntentKind::AnswerExit, _) => {
                let open = exits::open(&mut db, self.asset.id, EXITS_MAX).await?;
                Ok(!open
                    .iter()
                    .any(|exit| intent.subject.starts_with(&crate::exit::subject(exit))))
            }
        }
    }
}

fn slot(kept: &Kept, hash: B256) -> Slot {
    if kept.hash.is_zero() {
        Slot::Empty
    } else if kept.hash == hash {
        Slot::Own
    } else {
        Slot::Other
    }
}
