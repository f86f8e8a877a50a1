//! Confirms by state: a batch stands where the contract holds its hash, whatever became of transactions.

use alloy::primitives::B256;
use comptoir_domain::settlement::state::{BatchState, Seen, Slot};
use comptoir_store::{
    batches::{self, Batch},
    transactions,
};
use time::OffsetDateTime;

use crate::{
    chain::{Kept, Tips},
    error::StepError,
    settler::Settler,
};

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
        self.end_intents(tips, now).await?;
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
        if next == BatchState::Broadcast {
            // The bytes that were mined once are sent again as they are, before they offer more.
            transactions::wait_anew(&mut tx, batch.id, tips.head.block.number).await?;
        }
        self.commit(tx, seen_at(next)).await?;
        tracing::info!(
            batch = number,
            from = batch.state.as_str(),
            to = next.as_str(),
            "batch moved"
        );
        metrics::counter!(BATCHES, "state" => next.as_str()).increment(1);
        Ok(true)
    }
}

/// The crash point after a batch was seen to be there.
const fn seen_at(state: BatchState) -> &'static str {
    match state {
        BatchState::Mined => "settler.receipt_seen",
        BatchState::Safe => "settler.safe_seen",
        BatchState::Anchored | BatchState::Claimable => "settler.finalized_seen",
        BatchState::Cancelled => "settler.veto_seen",
        BatchState::Sealed | BatchState::Signed | BatchState::Broadcast | BatchState::Halted => {
            "settler.reorganisation_seen"
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
