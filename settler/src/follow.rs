//! Follows the chain by parent hash. Bad news count at the head, good news when they are final.

use comptoir_store::chain::{self, Cursor, FollowError};
use time::OffsetDateTime;

use crate::{chain::Tips, error::StepError, settler::Settler};

/// Blocks that one step reads one by one.
const BLOCKS_MAX: u64 = 256;
/// Final blocks whose events are read with one question.
const RANGE_MAX: u64 = 2_000;
/// The last block read, for the watcher of the service.
const HEAD: &str = "settler_head_block";
/// Blocks that left the chain after they were read.
const REORGANISED: &str = "settler_reorganised_blocks_total";

impl Settler {
    /// Reads the blocks that are new; returns how many.
    pub(crate) async fn follow(&self, tips: &Tips, now: OffsetDateTime) -> Result<u64, StepError> {
        let mut cursor = self.go_back(now).await?;
        let mut read = 0;
        while cursor.head_number < tips.head.block.number && read < BLOCKS_MAX {
            let far = tips.final_.block.number.saturating_sub(cursor.head_number);
            let followed = if far > 1 {
                self.read_range(&cursor, far.min(RANGE_MAX), now).await
            } else {
                self.read_block(&cursor, now).await
            };
            match followed {
                Ok(true) => {}
                // The chain changed under our hands; the next step walks back.
                Ok(false) => break,
                Err(StepError::Follow(gap @ FollowError::Gap { .. })) => {
                    self.read_again(&cursor, now).await?;
                    return Err(gap.into());
                }
                Err(error) => return Err(error),
            }
            read += 1;
            cursor = self.cursor(now).await?;
        }
        metrics::gauge!(HEAD).set(approximate(cursor.head_number));
        Ok(read)
    }

    /// Walks back to the newest block that is still on the chain.
    async fn go_back(&self, now: OffsetDateTime) -> Result<Cursor, StepError> {
        let cursor = self.cursor(now).await?;
        let kept = chain::kept(&mut *self.db.acquire().await?, self.asset.id).await?;
        for (number, hash) in kept {
            let block = self.chain.find(number).await?;
            if block.is_some_and(|it| it.block.hash == hash) {
                if number == cursor.head_number {
                    return Ok(cursor);
                }
                let depth = cursor.head_number - number;
                tracing::warn!(depth, number, "the chain was reorganised");
                metrics::counter!(REORGANISED).increment(depth);
                self.give_back(number, now).await?;
                return self.cursor(now).await;
            }
        }
        let detail = format!(
            "no block of the last {} is on the chain any more",
            chain::BLOCKS_KEPT
        );
        self.halt("chain_replaced", &detail, now).await?;
        Err(FollowError::FinalReorganised {
            number: cursor.final_number,
        }
        .into())
    }

    async fn give_back(&self, number: u64, now: OffsetDateTime) -> Result<(), StepError> {
        let mut tx = self.begin().await?;
        match chain::give_back(&mut tx, self.asset.id, number, now).await {
            Ok(()) => Ok(self.commit(tx, "settler.blocks_given_back").await?),
            Err(error @ FollowError::FinalReorganised { .. }) => {
                tx.rollback().await?;
                self.halt("final_reorganised", &error.to_string(), now)
                    .await?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The node left out an event: everything after the last final block is read anew.
    pub(crate) async fn read_again(
        &self,
        cursor: &Cursor,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        tracing::warn!(
            from = cursor.final_number,
            "events are missing, reading again"
        );
        self.give_back(cursor.final_number, now).await
    }

    async fn read_block(&self, cursor: &Cursor, now: OffsetDateTime) -> Result<bool, StepError> {
        let Some(next) = self.chain.find(cursor.head_number + 1).await? else {
            return Ok(false);
        };
        if next.block.parent_hash != cursor.head_hash {
            return Ok(false);
        }
        let events = self.chain.events_of(next.block.hash).await?;
        let mut tx = self.begin().await?;
        chain::append(&mut tx, self.asset.id, &next.block, &events, now).await?;
        self.commit(tx, "settler.block_stored").await?;
        Ok(true)
    }

    /// Final blocks are read many at a time: they cannot change between two questions.
    async fn read_range(
        &self,
        cursor: &Cursor,
        blocks: u64,
        now: OffsetDateTime,
    ) -> Result<bool, StepError> {
        let (from, to) = (cursor.head_number + 1, cursor.head_number + blocks);
        let last = self.chain.tip(to).await?;
        let events = self.chain.events_between(from, to).await?;
        let mut tx = self.begin().await?;
        chain::append(&mut tx, self.asset.id, &last.block, &events, now).await?;
        self.commit(tx, "settler.range_stored").await?;
        Ok(true)
    }

    pub(crate) async fn cursor(&self, now: OffsetDateTime) -> Result<Cursor, StepError> {
        if let Some(cursor) = chain::cursor(&mut *self.db.acquire().await?, self.asset.id).await? {
            return Ok(cursor);
        }
        let start = self.chain.tip(self.config.start_block).await?;
        let mut tx = self.begin().await?;
        chain::begin(&mut tx, self.asset.id, &start.block, now).await?;
        self.commit(tx, "settler.following_begun").await?;
        chain::cursor(&mut *self.db.acquire().await?, self.asset.id)
            .await?
            .ok_or(StepError::Database(sqlx::Error::RowNotFound))
    }
}

/// A block number as a gauge takes it.
#[expect(
    clippy::cast_precision_loss,
    reason = "block numbers are far below 2^53"
)]
pub(crate) const fn approximate(number: u64) -> f64 {
    number as f64
}
