//! Seals: what is queued is released, one snapshot of the ledger becomes leaves, the leaf file is published, and only
//! then the batch is stored. Cut short anywhere, the next step begins anew: what was released stays released and is
//! part of the next snapshot.

use bytes::Bytes;
use comptoir_domain::{
    amount::Amount,
    id::BatchId,
    settlement::{BatchState, file},
};
use comptoir_store::{
    batches::{self, Batch, Demand, NewBatch, Snapshot},
    exits, ledger, releases,
};
use time::OffsetDateTime;

use crate::{
    alert::Alert,
    chain::{Room, Tips},
    crash,
    error::StepError,
    settler::Settler,
};

/// Batches that the contract keeps.
const RING: u64 = 64;
/// An idle service commits this often in the time after which it could be frozen.
const COMMITS_PER_ESCAPE: u64 = 4;
/// Receipts in sealed batches.
const SEALED_RECEIPTS: &str = "settler_sealed_receipts_total";

impl Settler {
    /// Seals a batch if one is due and the contract would take it.
    pub(crate) async fn seal_if_due(
        &self,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<bool, StepError> {
        let mut db = self.db.acquire().await?;
        let last = batches::standing(&mut db, self.asset.id).await?;
        let on_its_way = |batch: &Batch| {
            matches!(
                batch.state,
                BatchState::Sealed | BatchState::Signed | BatchState::Broadcast
            )
        };
        if last.as_ref().is_some_and(on_its_way) {
            return Ok(false);
        }
        let room = self.chain.room(tips.head.block.hash).await?;
        let number = last.map_or(0, |batch| batch.header.id);
        if room.last_batch > number {
            self.halt_behind(room.last_batch, number, now).await?;
            return Ok(false);
        }
        if room.frozen {
            self.halt(
                "frozen",
                "the contract is frozen: only claims and escapes are left",
                now,
            )
            .await?;
            return Ok(false);
        }
        let alerts = &self.health.alerts;
        if room.paused {
            alerts.raise(Alert::CommitsPaused, "the guardian has paused commits");
        } else {
            alerts.clear(Alert::CommitsPaused);
        }
        // A veto at the head that is not final yet, a pause, or a window that holds the ring back.
        let generation = last.map_or(room.generation, |batch| batch.header.generation);
        if room.last_batch < number
            || room.generation < generation
            || room.paused
            || !self.has_slot(number + 1, tips).await?
        {
            return Ok(false);
        }
        let demand = batches::demand(&mut db, self.asset.id).await?;
        drop(db);
        if !self.is_due(&demand, last.as_ref(), &room, tips, now) {
            return Ok(false);
        }
        self.seal(last.as_ref(), &room, now).await?;
        Ok(true)
    }

    /// The batch that the new one pushes out of the ring's window must have become claimable.
    async fn has_slot(&self, number: u64, tips: &Tips) -> Result<bool, StepError> {
        if number < RING {
            return Ok(true);
        }
        let oldest = self
            .chain
            .kept(number - RING + 1, tips.head.block.hash)
            .await?;
        Ok(oldest.active_at != 0 && tips.timestamp() >= oldest.active_at)
    }

    fn is_due(
        &self,
        demand: &Demand,
        last: Option<&Batch>,
        room: &Room,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> bool {
        let policy = self.config.batches;
        if demand.receipts >= policy.receipts || demand.value.base() >= policy.value_base {
            return true;
        }
        let chain_now = tips
            .timestamp()
            .max(now.unix_timestamp().try_into().unwrap_or_default());
        if chain_now.saturating_sub(room.last_commit_at) >= room.escape_after / COMMITS_PER_ESCAPE {
            return true;
        }
        let waited = last.is_none_or(|batch| now - batch.sealed_at >= policy.interval);
        let may_release = (demand.releases || demand.exits) && room.releasable > 0;
        waited && (demand.receipts > 0 || may_release)
    }

    async fn seal(
        &self,
        last: Option<&Batch>,
        room: &Room,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let id = BatchId::generate();
        self.release(id, last, room, now).await?;
        let snapshot = self.snapshot().await?;
        crash::point("settler.items_selected");
        let items = snapshot.receipt_ids();
        let accounts = snapshot.accounts.len() as u64;
        let opening = file::Opening {
            chain_id: self.asset.chain_id,
            contract: self.asset.contract,
            id: last.map_or(0, |batch| batch.header.id) + 1,
            generation: room.generation,
            deposit_seq_seen: snapshot.deposit_seq_seen,
            prev_hash: last.map(|batch| batch.hash).unwrap_or_default(),
            audit_head: snapshot.audit_head,
        };
        let computed = tokio::task::spawn_blocking(move || {
            let domain =
                comptoir_domain::settlement::Domain::new(opening.chain_id, opening.contract);
            let (sealed, bytes) = file::seal(&opening, snapshot.receipts, snapshot.accounts)?;
            let leaves: Vec<_> = sealed
                .receipts
                .iter()
                .map(|receipt| receipt.leaf(&domain))
                .collect();
            Ok::<_, file::InvalidBatch>((sealed, leaves, bytes))
        });
        let (sealed, leaves, bytes) = computed.await??;
        let data_bytes = bytes.len() as u64;
        self.objects.put(Bytes::from(bytes)).await?;
        crash::point("settler.leaves_published");
        let items: Vec<_> = items.into_iter().zip(leaves).collect();
        let batch = NewBatch {
            id,
            header: sealed.header,
            hash: sealed.hash,
            data_bytes,
            account_count: accounts,
            items: &items,
        };
        let mut tx = self.begin().await?;
        batches::insert(&mut tx, self.asset.id, &batch, now).await?;
        self.commit(tx, "settler.batch_stored").await?;
        metrics::counter!(SEALED_RECEIPTS).increment(items.len() as u64);
        tracing::info!(
            batch = sealed.header.id,
            receipts = items.len(),
            accounts,
            bytes = data_bytes,
            "batch sealed"
        );
        Ok(())
    }

    /// Moves money to `payable`, no more than the contract lets this batch grow by. What an earlier seal released without
    /// coming to its batch counts too.
    async fn release(
        &self,
        batch: BatchId,
        last: Option<&Batch>,
        room: &Room,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let before = last.map_or(0, |batch| batch.header.total_payable);
        let mut tx = self.begin().await?;
        let released: u128 = ledger::all_owner_balances(&mut tx, self.asset.id)
            .await?
            .values()
            .map(|it| it.payable.base())
            .sum();
        let left = room
            .releasable
            .saturating_sub(released.saturating_sub(before));
        let left = Amount::from_base(left).unwrap_or(Amount::MAX);
        let leaving =
            exits::release(&mut tx, self.asset.id, &format!("{batch}/exits"), left, now).await?;
        self.commit(tx, "settler.exits_released").await?;
        let left = left.checked_sub(leaving).unwrap_or_default();
        let mut tx = self.begin().await?;
        releases::release_queued(&mut tx, self.asset.id, &batch.to_string(), left, now).await?;
        self.commit(tx, "settler.released").await?;
        Ok(())
    }

    async fn snapshot(&self) -> Result<Snapshot, StepError> {
        let mut tx = self
            .db
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await?;
        let snapshot = batches::snapshot(&mut tx, self.asset.id).await?;
        tx.commit().await?;
        Ok(snapshot)
    }
}
