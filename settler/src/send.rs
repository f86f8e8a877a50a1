//! Sends by the write-ahead rule: pick the nonce, sign, store the bytes, commit, send; then send the same bytes again
//! until the nonce is used. Whatever a node answers to a transaction, it may still be mined.

use alloy::{
    consensus::{SignableTransaction as _, TxEip1559, TxEnvelope},
    eips::{BlockId, eip2718::Encodable2718 as _},
    network::TxSignerSync as _,
    primitives::{Address, Bytes, TxKind, U256},
    sol_types::SolCall as _,
};
use comptoir_contracts_bindings::Settlement::{SettlementErrors, commitBatchCall};
use comptoir_domain::{amount::Amount, settlement::BatchState};
use comptoir_store::{
    batches::{self, Batch},
    transactions::{self, Attempt, IntentKind, NewIntent, OpenIntent},
};
use time::OffsetDateTime;

use crate::{
    chain::{ChainError, Refusal, Tips, to_contract},
    error::StepError,
    fees::Fees,
    settler::Settler,
};

/// Transactions that may be on their way at once.
const IN_FLIGHT_MAX: usize = 4;
/// Most gas that one transaction may take (EIP-7825).
const GAS_MAX: u64 = 16_777_216;
/// Commits that the contract would refuse for now.
const HELD: &str = "settler_held_commits_total";
/// Transactions handed to the node.
const SENT: &str = "settler_sent_transactions_total";
/// Replacements that the fee ceiling forbade.
const AT_CEILING: &str = "settler_fee_ceiling_total";

/// What is wanted on the chain.
pub(crate) struct Wanted {
    pub kind: IntentKind,
    pub subject: String,
    pub batch: comptoir_domain::id::BatchId,
    pub calldata: Vec<u8>,
    pub gas: u64,
}

impl Settler {
    /// Signs the commit of the batch that was sealed last, unless it is signed or the contract would refuse it.
    pub(crate) async fn sign_commit(
        &self,
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
        if !waits
            || open.len() >= IN_FLIGHT_MAX
            || open.iter().any(|intent| intent.batch == Some(batch.id))
        {
            return Ok(());
        }
        let calldata = commitBatchCall {
            header: to_contract(&batch.header),
        }
        .abi_encode();
        let gas = match self
            .chain
            .preflight(self.signer(), Bytes::from(calldata.clone()))
            .await?
        {
            Ok(gas) => gas,
            Err(refusal) => return self.hold(&batch, &refusal, tips, now).await,
        };
        let tries =
            transactions::count_about(&mut db, IntentKind::Commit, &batch.id.to_string()).await?;
        drop(db);
        let subject = format!("{}/{}", batch.id, tries + 1);
        self.sign(
            Wanted {
                kind: IntentKind::Commit,
                subject,
                batch: batch.id,
                calldata,
                gas,
            },
            tips,
            now,
        )
        .await
    }

    /// What a refusal means: some pass, some mean that ledger and contract contradict each other.
    async fn hold(
        &self,
        batch: &Batch,
        refusal: &Refusal,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        metrics::counter!(HELD).increment(1);
        let number = batch.header.id;
        let halt = match refusal {
            Refusal::Custom(error) => match **error {
                SettlementErrors::WrongParent(_)
                | SettlementErrors::Unbalanced(_)
                | SettlementErrors::Unfunded(_)
                | SettlementErrors::Shrinking(_)
                | SettlementErrors::ZeroRoot(_)
                | SettlementErrors::IsFrozen(_) => {
                    Some(("commit_refused", format!("batch {number}: {refusal:?}")))
                }
                SettlementErrors::OverCap(_) => self
                    .beyond_caps(batch, tips)
                    .await?
                    .map(|detail| ("caps_too_low", detail)),
                // Another look at the chain, the end of a pause, or a veto that becomes final.
                _ => None,
            },
            Refusal::Other(_) => None,
        };
        if let Some((reason, detail)) = halt {
            return self.halt(reason, &detail, now).await;
        }
        tracing::warn!(
            batch = number,
            ?refusal,
            "the commit waits: the contract would refuse it now"
        );
        Ok(())
    }

    /// Why no later day would take the batch either; `None` where tomorrow's bucket does.
    ///
    /// A seal takes what the caps allow, but a veto takes back the batch and not its releases, so that the next batch grows
    /// by those of all that were vetoed; and the guardian may lower the caps after a seal. No wait ends that: ADMIN has to.
    async fn beyond_caps(&self, batch: &Batch, tips: &Tips) -> Result<Option<String>, StepError> {
        let header = &batch.header;
        let at = tips.head.block.hash;
        let parent = self.chain.kept(header.id - 1, at).await?;
        if parent.hash != header.prev_hash {
            return Ok(None);
        }
        let settlement = self.chain.settlement();
        let caps = settlement.caps().block(BlockId::hash(at)).call().await;
        let caps = caps.map_err(ChainError::from)?;
        let growth = header.total_payable.saturating_sub(parent.total_payable);
        if growth <= caps.perBatch.min(caps.perDay) {
            return Ok(None);
        }
        Ok(Some(format!(
            "batch {} releases {growth} base units, the contract's caps allow {} a batch and {} a day, so it can never be \
             committed. ADMIN has to raise both caps to {growth} or more (setCaps, through the timelock); then resume, and \
             lower them again once the batch is committed",
            header.id, caps.perBatch, caps.perDay
        )))
    }

    /// Signs and stores; nothing leaves this process before it is stored.
    pub(crate) async fn sign(
        &self,
        wanted: Wanted,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        self.chain.check_chain().await?;
        let mined = self.chain.nonce(self.signer(), BlockId::latest()).await?;
        let fees = self
            .config
            .fees
            .estimate(tips.head.base_fee_wei, self.chain.recent_tip_wei().await?);
        let mut tx = self.begin().await?;
        let ours = transactions::next_nonce(&mut tx, self.chain.chain_id(), self.signer()).await?;
        let intent = NewIntent {
            kind: wanted.kind,
            subject: wanted.subject,
            batch: wanted.batch,
            chain_id: self.chain.chain_id(),
            signer: self.signer(),
            nonce: ours.unwrap_or_default().max(mined),
            target: self.chain.contract(),
            calldata: wanted.calldata,
        };
        let gas_limit = (wanted.gas + wanted.gas / 5).min(GAS_MAX);
        let attempt = self.attempt(intent.nonce, gas_limit, fees, intent.calldata.clone())?;
        transactions::create(&mut tx, self.asset.id, &intent, &attempt, now).await?;
        if intent.kind == IntentKind::Commit {
            batches::advance(&mut tx, intent.batch, BatchState::Signed, None, now).await?;
        }
        tx.commit().await?;
        tracing::info!(subject = intent.subject, nonce = intent.nonce, tx = %attempt.tx_hash, "transaction signed");
        Ok(())
    }

    fn signer(&self) -> Address {
        self.config.signer.address()
    }

    /// RFC 6979: the same fields make the same bytes.
    fn attempt(
        &self,
        nonce: u64,
        gas_limit: u64,
        fees: Fees,
        calldata: Vec<u8>,
    ) -> Result<Attempt, StepError> {
        let mut transaction = TxEip1559 {
            chain_id: self.chain.chain_id(),
            nonce,
            gas_limit,
            max_fee_per_gas: fees.cap_wei,
            max_priority_fee_per_gas: fees.tip_wei,
            to: TxKind::Call(self.chain.contract()),
            value: U256::ZERO,
            access_list: alloy::eips::eip2930::AccessList::default(),
            input: calldata.into(),
        };
        let signature = self.config.signer.sign_transaction_sync(&mut transaction)?;
        let recovered = signature.recover_address_from_prehash(&transaction.signature_hash());
        if recovered.ok() != Some(self.signer()) {
            return Err(StepError::WrongSignature);
        }
        let envelope = TxEnvelope::Eip1559(transaction.into_signed(signature));
        Ok(Attempt {
            tx_hash: *envelope.tx_hash(),
            raw: envelope.encoded_2718(),
            gas_limit,
            fee_cap_wei: wei(fees.cap_wei),
            tip_wei: wei(fees.tip_wei),
        })
    }

    /// Hands the stored bytes of every unused nonce to the node, lowest first; returns how many.
    pub(crate) async fn send(&self, tips: &Tips, now: OffsetDateTime) -> Result<u64, StepError> {
        let open = transactions::open(&mut *self.db.acquire().await?, self.asset.id).await?;
        if open.is_empty() {
            return Ok(0);
        }
        let used = self.chain.nonce(self.signer(), BlockId::latest()).await?;
        let head = tips.head.block.number;
        let mut sent = 0;
        let waiting = open
            .into_iter()
            .filter(|intent| intent.signer == self.signer() && intent.nonce >= used);
        for (place, mut intent) in waiting.enumerate() {
            if place == 0 {
                self.bump_if_stuck(&mut intent, tips, now).await?;
            }
            if intent.last_sent_block.is_some_and(|block| block >= head) {
                continue;
            }
            let answer = self.chain.send(&intent.attempt.raw).await;
            let error = answer.as_ref().err().map(ToString::to_string);
            if let Some(error) = &error {
                tracing::debug!(tx = %intent.attempt.tx_hash, error, "the node did not take the transaction");
            }
            self.note_sent(&intent, head, error.as_deref(), now).await?;
            metrics::counter!(SENT).increment(1);
            sent += 1;
        }
        Ok(sent)
    }

    async fn note_sent(
        &self,
        intent: &OpenIntent,
        head: u64,
        error: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let mut tx = self.begin().await?;
        transactions::sent(&mut tx, intent.attempt.tx_hash, head, error).await?;
        if let (IntentKind::Commit, Some(id)) = (intent.kind, intent.batch) {
            let batch = batches::find(&mut tx, id).await?;
            if batch.is_some_and(|batch| batch.state == BatchState::Signed) {
                batches::advance(&mut tx, id, BatchState::Broadcast, None, now).await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    /// Only the lowest unused nonce can be stuck: the others wait for it.
    async fn bump_if_stuck(
        &self,
        intent: &mut OpenIntent,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let policy = self.config.fees;
        let waits = intent
            .first_sent_block
            .map(|block| tips.head.block.number.saturating_sub(block));
        if waits.is_none_or(|blocks| blocks < policy.bump_after_blocks) {
            return Ok(());
        }
        self.chain.check_chain().await?;
        let old = Fees {
            cap_wei: intent.attempt.fee_cap_wei.base(),
            tip_wei: intent.attempt.tip_wei.base(),
        };
        let estimate = policy.estimate(tips.head.base_fee_wei, self.chain.recent_tip_wei().await?);
        let Some(fees) = policy.bump(old, estimate) else {
            metrics::counter!(AT_CEILING).increment(1);
            tracing::warn!(
                nonce = intent.nonce,
                "the transaction is stuck and the fee ceiling is reached"
            );
            return Ok(());
        };
        let attempt = self.attempt(
            intent.nonce,
            intent.attempt.gas_limit,
            fees,
            intent.calldata.clone(),
        )?;
        let mut tx = self.begin().await?;
        transactions::add_attempt(&mut tx, intent.id, &attempt, now).await?;
        tx.commit().await?;
        intent.attempt = attempt;
        intent.last_sent_block = None;
        Ok(())
    }
}

/// Fees are far below what an amount holds.
fn wei(wei: u128) -> Amount {
    Amount::from_base(wei).unwrap_or(Amount::MAX)
}
