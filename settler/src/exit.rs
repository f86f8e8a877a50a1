//! Answers exits: once an active batch shows that nothing is left off-chain of who leaves, the contract is told.

use std::sync::Arc;

use alloy::{primitives::Bytes, sol_types::SolCall as _};
use comptoir_contracts_bindings::Settlement::{self, answerExitCall};
use comptoir_domain::settlement::file;
use comptoir_store::{
    batches::{self, Batch},
    exits::{self, Exit},
    transactions::{self, IntentKind, OpenIntent},
};
use time::OffsetDateTime;

use crate::{chain::Tips, error::StepError, settler::Settler, sign::Wanted};

/// Exits that one step answers.
const ANSWERS_MAX: i64 = 16;
/// Exits that are looked at when an answer is judged.
const EXITS_MAX: i64 = 100_000;
/// Largest leaf file that is read back.
pub const LEAF_FILE_MAX: u64 = 4 << 30;

/// What intents about an exit are named after.
fn subject(exit: &Exit) -> String {
    format!("{}:{}/", exit.owner, exit.event_seq)
}

impl Settler {
    /// Signs an answer for each open exit that the newest claimable batch serves.
    pub(crate) async fn sign_answers(
        &mut self,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let mut db = self.db.acquire().await?;
        let mut open = exits::open(&mut db, self.asset.id, ANSWERS_MAX).await?;
        let intents = transactions::open(&mut db, self.asset.id).await?;
        open.retain(|exit| {
            let subject = subject(exit);
            !intents.iter().any(|it| it.subject.starts_with(&subject))
        });
        if open.is_empty() {
            return Ok(());
        }
        let Some(batch) = batches::active_for_claims(&mut db, self.asset.id).await? else {
            return Ok(());
        };
        drop(db);
        let sealed = self.leaves(&batch).await?;
        for exit in open {
            self.sign_answer(&exit, &batch, &sealed, tips, now).await?;
        }
        Ok(())
    }

    async fn sign_answer(
        &mut self,
        exit: &Exit,
        batch: &Batch,
        sealed: &file::Sealed,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let place = sealed
            .accounts
            .binary_search_by_key(&exit.owner, |it| it.account);
        let proof = place
            .ok()
            .and_then(|place| Some((sealed.accounts[place], sealed.accounts_tree.proof(place)?)));
        let Some((account, proof)) = proof.filter(|(account, _)| account.available == 0) else {
            return Ok(());
        };
        let leaf = Settlement::Account {
            account: account.account,
            payable_: account.payable,
            available: account.available,
            depositsSeen: account.deposits_seen,
        };
        let calldata = answerExitCall {
            id: batch.header.id,
            leaf,
            proof,
        }
        .abi_encode();
        // A batch that is older than the request, or a deposit that it has not seen: the next one will do.
        let Ok(gas) = self
            .chain
            .estimate_gas(
                self.signer(),
                &Bytes::from(calldata.clone()),
                tips.head.block.hash,
            )
            .await?
        else {
            return Ok(());
        };
        let prefix = subject(exit);
        let mut db = self.db.acquire().await?;
        let tries = transactions::count_about(&mut db, IntentKind::AnswerExit, &prefix).await?;
        drop(db);
        let subject = format!("{prefix}{}", tries + 1);
        self.sign(
            Wanted {
                kind: IntentKind::AnswerExit,
                subject,
                batch: Some(batch.id),
                calldata,
                gas,
            },
            tips,
            now,
        )
        .await
    }

    /// Does whoever the intent answers still wait for it?
    pub(crate) async fn still_leaving(&self, intent: &OpenIntent) -> Result<bool, StepError> {
        let mut db = self.db.acquire().await?;
        let open = exits::open(&mut db, self.asset.id, EXITS_MAX).await?;
        Ok(open
            .iter()
            .any(|exit| intent.subject.starts_with(&subject(exit))))
    }

    /// The leaves of a batch, from its published file; kept for the next step.
    async fn leaves(&mut self, batch: &Batch) -> Result<Arc<file::Sealed>, StepError> {
        if let Some((known, leaves)) = &self.answered_from
            && *known == batch.id
        {
            return Ok(Arc::clone(leaves));
        }
        let bytes = self
            .objects
            .get_all(batch.data_hash(), LEAF_FILE_MAX)
            .await?;
        let (_, sealed) = tokio::task::spawn_blocking(move || file::read(&bytes)).await??;
        let leaves = Arc::new(sealed);
        self.answered_from = Some((batch.id, Arc::clone(&leaves)));
        Ok(leaves)
    }
}
