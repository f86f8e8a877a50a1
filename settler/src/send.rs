//! Sends what is stored: the same bytes again until their nonce is used. Whatever a node answers to a transaction, it may
//! still be mined.

use alloy::primitives::Bytes;
use comptoir_domain::settlement::BatchState;
use comptoir_store::{
    batches,
    transactions::{self, IntentKind, OpenIntent},
};
use time::OffsetDateTime;

use crate::{
    chain::Tips,
    crash,
    error::{StepError, causes},
    fees::Fees,
    settler::Settler,
    sign::IN_FLIGHT_MAX,
};

/// Transactions handed to the node.
const SENT: &str = "settler_sent_transactions_total";

impl Settler {
    /// Hands the stored bytes of every unused nonce to the node, lowest first; returns how many. `used` nonces are used at
    /// the head.
    pub(crate) async fn send(
        &mut self,
        used: u64,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<u64, StepError> {
        let open = transactions::open(&mut *self.db.acquire().await?, self.asset.id).await?;
        let waiting: Vec<_> = open
            .into_iter()
            .filter(|intent| intent.signer == self.signer() && intent.nonce >= used)
            .collect();
        let Some(lowest) = waiting.first() else {
            return Ok(0);
        };
        if lowest.nonce > used {
            for nonce in (used..lowest.nonce).take(IN_FLIGHT_MAX) {
                self.sign_filler(nonce, tips, now).await?;
            }
            return Ok(0);
        }
        let head = tips.head.block.number;
        let mut sent = 0;
        for (place, mut intent) in waiting.into_iter().enumerate() {
            let wanted = self.is_wanted(&intent, tips, now).await?;
            if place == 0 {
                self.replace_if_due(&mut intent, wanted, tips, now).await?;
            }
            let known = intent.last_sent_block.is_some_and(|block| block >= head);
            if known || !(wanted == Wish::Wanted || intent.attempt.fills) {
                continue;
            }
            self.broadcast(&intent, head, now).await?;
            sent += 1;
        }
        Ok(sent)
    }

    async fn broadcast(
        &self,
        intent: &OpenIntent,
        head: u64,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let answer = self.chain.send(&intent.attempt.raw).await;
        crash::point("settler.broadcast");
        // The node's own words are the cause.
        let error = answer.as_ref().err().map(causes);
        if let Some(error) = &error {
            tracing::debug!(tx = %intent.attempt.tx_hash, error, "the node did not take the transaction");
        }
        self.note_sent(intent, head, error.as_deref(), now).await?;
        metrics::counter!(SENT).increment(1);
        Ok(())
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
        self.commit(tx, "settler.broadcast_seen").await?;
        Ok(())
    }

    /// The lowest unused nonce alone can be stuck: the others wait for it. A call that can change nothing any more makes
    /// room, one that was not mined for some blocks offers more.
    async fn replace_if_due(
        &mut self,
        intent: &mut OpenIntent,
        wish: Wish,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let fees = Fees {
            cap_wei: intent.attempt.fee_cap_wei.base(),
            tip_wei: intent.attempt.tip_wei.base(),
        };
        // An alert, no more: the bytes are signed, and another node may take what this one refuses.
        self.has_ether(fees.most_wei(intent.attempt.gas_limit))
            .await?;
        if wish == Wish::Moot && !intent.attempt.fills {
            return self.fill_instead(intent, tips, now).await;
        }
        let waits = intent
            .first_sent_block
            .map(|block| tips.head.block.number.saturating_sub(block));
        let patience = self.config.fees.bump_after_blocks;
        if wish == Wish::Held || waits.is_none_or(|blocks| blocks < patience) {
            return Ok(());
        }
        self.bump(intent, tips, now).await
    }

    /// Is the call still wanted, and would the contract take it now?
    async fn is_wanted(
        &mut self,
        intent: &OpenIntent,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<Wish, StepError> {
        let (batch, leaving) = match (intent.kind, intent.batch) {
            (IntentKind::Fill, _) => return Ok(Wish::Wanted),
            (IntentKind::Commit, None) => return Ok(Wish::Moot),
            (IntentKind::Commit, Some(id)) => {
                let batch = batches::find(&mut *self.db.acquire().await?, id).await?;
                (batch, true)
            }
            (IntentKind::AnswerExit, _) => (None, self.still_leaving(intent).await?),
        };
        let settled =
            batch.is_some_and(|it| it.state.is_anchored() || it.state == BatchState::Cancelled);
        if !leaving || settled {
            return Ok(Wish::Moot);
        }
        if self.held.stands(tips.head.block.number) && batch.is_some() {
            return Ok(Wish::Held);
        }
        let calldata = Bytes::from(intent.calldata.clone());
        let at = tips.head.block.hash;
        let preflight = self.chain.preflight(self.signer(), &calldata, at).await?;
        match (preflight, batch) {
            (Ok(()), batch) => {
                if batch.is_some() {
                    self.commit_passes();
                }
                Ok(Wish::Wanted)
            }
            (Err(refusal), Some(batch)) => {
                self.refused(&batch, &refusal, tips, now).await?;
                Ok(Wish::Held)
            }
            // The next answer is made from a newer batch.
            (Err(_), None) => Ok(Wish::Moot),
        }
    }
}

/// What becomes of a call that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// It is sent.
    Wanted,
    /// The contract would refuse it now.
    Held,
    /// It can change nothing any more.
    Moot,
}
