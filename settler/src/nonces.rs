//! The stream of nonces is the database's: a nonce that others use means that somebody else has the key.

use comptoir_store::{
    batches, reconciliation,
    transactions::{self, Ended, IntentKind, OpenIntent},
};
use time::OffsetDateTime;

use crate::{alert::Alert, chain::Tips, error::StepError, settler::Settler, sign::wei};

/// Why settling stands still when the key was used by others.
const USED_OUTSIDE: &str = "nonce_used_outside";

impl Settler {
    /// How many nonces of the key are used at the head; `None` after a halt, because one of them was used by others.
    pub(crate) async fn watch_nonces(
        &self,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<Option<u64>, StepError> {
        let signer = self.signer();
        let used = self.chain.nonce(signer, tips.head.block.hash).await?;
        let mut db = self.db.acquire().await?;
        let next = transactions::next_nonce(&mut db, self.asset.chain_id, signer).await?;
        drop(db);
        match next {
            // What the key did before it was ours.
            None => {
                let mut tx = self.begin().await?;
                transactions::raise_floor(&mut tx, self.asset.chain_id, signer, used).await?;
                self.commit(tx, "settler.floor_raised").await?;
                Ok(Some(used))
            }
            Some(next) if used > next => {
                let detail = format!(
                    "{signer} has sent {used} transactions, and only {next} are this settler's: somebody else has its key. \
                     If nobody should, give the SETTLER role to another key; if that was you, resume"
                );
                self.used_outside(&detail, used, now).await?;
                Ok(None)
            }
            Some(_) => Ok(Some(used)),
        }
    }

    /// Halts once for what happened: whoever resumes accepts it.
    async fn used_outside(
        &self,
        detail: &str,
        used: u64,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let mut tx = self.begin().await?;
        reconciliation::halt(&mut tx, self.asset.id, USED_OUTSIDE, detail, now).await?;
        transactions::raise_floor(&mut tx, self.asset.chain_id, self.signer(), used).await?;
        self.commit(tx, "settler.halted").await?;
        let detail = format!("{USED_OUTSIDE}: {detail}");
        self.health.alerts.raise(Alert::SettlingHalted, &detail);
        Ok(())
    }

    /// An intent ends when its nonce is used and that is final: well, where its effect is there.
    pub(crate) async fn end_intents(
        &self,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let open = transactions::open(&mut *self.db.acquire().await?, self.asset.id).await?;
        let Some(signer) = open.first().map(|intent| intent.signer) else {
            return Ok(());
        };
        let used = self.chain.nonce(signer, tips.final_.block.hash).await?;
        for intent in open.iter().filter(|intent| intent.nonce < used) {
            let cost = self.cost_of(intent).await?;
            let has_effect = match intent.kind {
                IntentKind::Fill => cost.is_some(),
                IntentKind::Commit | IntentKind::AnswerExit => self.has_effect(intent).await?,
            };
            let ended = if has_effect {
                Ended::Done
            } else {
                Ended::Failed
            };
            if !has_effect {
                tracing::warn!(intent = %intent.id, nonce = intent.nonce, "the transaction had no effect");
            }
            let mut tx = self.begin().await?;
            let spent = cost.map(wei);
            transactions::end(&mut tx, intent.id, ended, spent, now).await?;
            self.commit(tx, "settler.intent_ended").await?;
            if cost.is_none() {
                let detail = format!(
                    "nonce {} of {signer} was used by a transaction that this settler did not sign: somebody else has its \
                     key. If nobody should, give the SETTLER role to another key; if that was you, resume",
                    intent.nonce
                );
                self.used_outside(&detail, used, now).await?;
            }
        }
        Ok(())
    }

    /// What the one of an intent's transactions that was mined cost; `None` where none of them was.
    async fn cost_of(&self, intent: &OpenIntent) -> Result<Option<u128>, StepError> {
        let hashes = transactions::hashes(&mut *self.db.acquire().await?, intent.id).await?;
        for hash in hashes {
            if let Some(cost) = self.chain.cost_wei(hash).await? {
                return Ok(Some(cost));
            }
        }
        Ok(None)
    }

    async fn has_effect(&self, intent: &OpenIntent) -> Result<bool, StepError> {
        match (intent.kind, intent.batch) {
            (IntentKind::Commit, Some(batch)) => {
                let batch = batches::find(&mut *self.db.acquire().await?, batch).await?;
                Ok(batch.is_some_and(|batch| batch.state.is_anchored()))
            }
            (IntentKind::Commit | IntentKind::Fill, _) => Ok(false),
            (IntentKind::AnswerExit, _) => Ok(!self.still_leaving(intent).await?),
        }
    }
}
