//! Commits batches: asks the contract first, and knows what its refusals mean.

use alloy::{primitives::Bytes, sol_types::SolCall as _};
use comptoir_contracts_bindings::Settlement::{SettlementErrors, commitBatchCall};
use comptoir_domain::settlement::{BatchState, Header};
use comptoir_store::{
    batches::{self, Batch},
    transactions::{self, IntentKind},
};
use time::OffsetDateTime;

use crate::{
    alert::Alert,
    chain::{Refusal, Tips, to_contract},
    error::StepError,
    settler::Settler,
    sign::{IN_FLIGHT_MAX, Wanted},
};

/// Commits that the contract would refuse for now.
const HELD: &str = "settler_held_commits_total";

/// What the contract is called with to commit to a header.
pub(crate) fn calldata(header: &Header) -> Vec<u8> {
    commitBatchCall {
        header: to_contract(header),
    }
    .abi_encode()
}

impl Settler {
    /// Signs the commit of the batch that was sealed last, unless it is signed or the contract would refuse it.
    pub(crate) async fn sign_commit(
        &mut self,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let mut db = self.db.acquire().await?;
        let open = transactions::open(&mut db, self.asset.id).await?;
        let Some(batch) = batches::standing(&mut db, self.asset.id).await? else {
            return Ok(());
        };
        let waits = matches!(
            batch.state,
            BatchState::Sealed | BatchState::Signed | BatchState::Broadcast
        );
        if !waits {
            self.commit_passes();
        }
        if !waits
            || open.len() >= IN_FLIGHT_MAX
            || open.iter().any(|intent| intent.batch == Some(batch.id))
            || self.held.stands(tips.head.block.number)
        {
            return Ok(());
        }
        let calldata = calldata(&batch.header);
        let call = Bytes::from(calldata.clone());
        let at = tips.head.block.hash;
        let estimate = self.chain.estimate_gas(self.signer(), &call, at);
        let gas = match estimate.await? {
            Ok(gas) => gas,
            Err(refusal) => return self.refused(&batch, &refusal, tips, now).await,
        };
        let tries =
            transactions::count_about(&mut db, IntentKind::Commit, &batch.id.to_string()).await?;
        drop(db);
        self.commit_passes();
        let wanted = Wanted {
            kind: IntentKind::Commit,
            subject: format!("{}/{}", batch.id, tries + 1),
            batch: Some(batch.id),
            calldata,
            gas,
        };
        self.sign(wanted, tips, now).await
    }

    /// Nothing stands against the next commit any more.
    pub(crate) fn commit_passes(&mut self) {
        self.held = crate::hold::Hold::default();
        self.health.alerts.clear(Alert::CommitHeld);
    }

    /// What a refusal means: some pass with the next block, some want a pause or a role to change, and some mean that ledger
    /// and contract contradict each other.
    pub(crate) async fn refused(
        &mut self,
        batch: &Batch,
        refusal: &Refusal,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        metrics::counter!(HELD).increment(1);
        let number = batch.header.id;
        if let Refusal::Custom(error) = refusal {
            match **error {
                // Another commit came first, a veto is not final, or the ring is full: the chain is looked at again.
                SettlementErrors::OutOfOrder(_)
                | SettlementErrors::WrongGeneration(_)
                | SettlementErrors::RingFull(_) => {
                    tracing::debug!(batch = number, ?refusal, "the commit waits");
                    return Ok(());
                }
                SettlementErrors::WrongParent(_)
                | SettlementErrors::Unbalanced(_)
                | SettlementErrors::Unfunded(_)
                | SettlementErrors::Shrinking(_)
                | SettlementErrors::ZeroRoot(_)
                | SettlementErrors::IsFrozen(_) => {
                    let detail = format!("batch {number}: {refusal:?}");
                    return self.halt("commit_refused", &detail, now).await;
                }
                SettlementErrors::OverCap(_) => {
                    if let Some(detail) = self.beyond_caps(batch, tips).await? {
                        return self.halt("caps_too_low", &detail, now).await;
                    }
                }
                _ => {}
            }
        }
        self.held.lengthen(tips.head.block.number);
        let detail = format!("the contract would refuse batch {number} now: {refusal:?}");
        self.health.alerts.raise(Alert::CommitHeld, &detail);
        Ok(())
    }

    /// Why no later day would take the batch either; `None` where tomorrow's bucket does. A seal takes what the caps allow,
    /// but the guardian may lower them afterwards. No wait ends that: ADMIN has to.
    async fn beyond_caps(&self, batch: &Batch, tips: &Tips) -> Result<Option<String>, StepError> {
        let header = &batch.header;
        let at = tips.head.block.hash;
        let parent = self.chain.kept(header.id - 1, at).await?;
        if parent.hash != header.prev_hash {
            return Ok(None);
        }
        let caps = self.chain.caps(at).await?;
        let growth = header.total_payable.saturating_sub(parent.total_payable);
        if growth <= caps.per_batch.min(caps.per_day) {
            return Ok(None);
        }
        Ok(Some(format!(
            "batch {} releases {growth} base units, the contract's caps allow {} a batch and {} a day, so it can never be \
             committed. ADMIN has to raise both caps to {growth} or more (setCaps, through the timelock); then resume, and \
             lower them again once the batch is committed",
            header.id, caps.per_batch, caps.per_day
        )))
    }
}
