//! Signs by the write-ahead rule: the chain is the right one, the money is there, the bytes are checked and stored; only
//! then they may leave this process.

use alloy::{
    consensus::{SignableTransaction as _, TxEip1559, TxEnvelope},
    eips::eip2718::Encodable2718 as _,
    primitives::{Address, TxKind, U256},
};
use comptoir_domain::{amount::Amount, id::BatchId, settlement::BatchState};
use comptoir_store::{
    batches,
    transactions::{self, Attempt, IntentKind, NewIntent, OpenIntent},
};
use time::{Duration, OffsetDateTime};

use crate::{
    alert::Alert,
    chain::Tips,
    error::StepError,
    fees::{self, Fees},
    settler::Settler,
};

/// Transactions that may be on their way at once.
pub(crate) const IN_FLIGHT_MAX: usize = 4;
/// The time that the spending ceiling is for.
const SPEND_WINDOW: Duration = Duration::DAY;

/// What is wanted on the chain.
pub(crate) struct Wanted {
    pub kind: IntentKind,
    pub subject: String,
    pub batch: Option<BatchId>,
    pub calldata: Vec<u8>,
    pub gas: u64,
}

/// What is signed.
struct Call {
    nonce: u64,
    to: Address,
    gas_limit: u64,
    fees: Fees,
    calldata: Vec<u8>,
}

impl Settler {
    pub(crate) fn signer(&self) -> Address {
        self.config.signer.address()
    }

    /// Signs and stores; nothing leaves this process before it is stored. Waits where that would cost too much now.
    pub(crate) async fn sign(
        &mut self,
        wanted: Wanted,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let Some(gas_limit) = fees::gas_limit(wanted.gas) else {
            let detail = format!("{} takes {} gas", wanted.subject, wanted.gas);
            return self.halt("gas_limit", &detail, now).await;
        };
        let policy = self.config.fees;
        let base_fee = tips.head.base_fee_wei;
        if base_fee > policy.ceiling_wei {
            self.at_ceiling = Some(format!(
                "the base fee is {base_fee} wei, the ceiling is {}",
                policy.ceiling_wei
            ));
            return Ok(());
        }
        let fees = policy.estimate(base_fee, self.chain.recent_tip_wei().await?);
        if !self.affordable(fees.most_wei(gas_limit), 0, now).await? {
            return Ok(());
        }
        let mut db = self.db.acquire().await?;
        let next = transactions::next_nonce(&mut db, self.asset.chain_id, self.signer()).await?;
        drop(db);
        let intent = NewIntent {
            kind: wanted.kind,
            subject: wanted.subject,
            batch: wanted.batch,
            chain_id: self.asset.chain_id,
            signer: self.signer(),
            nonce: next.unwrap_or_default(),
            target: self.chain.contract(),
            calldata: wanted.calldata,
        };
        self.store(intent, gas_limit, fees, now).await
    }

    /// Uses up a nonce that nothing of ours has, so that those after it are not held up.
    pub(crate) async fn sign_filler(
        &mut self,
        nonce: u64,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let tip = self.chain.recent_tip_wei().await?;
        let fees = self.config.fees.estimate(tips.head.base_fee_wei, tip);
        let most = fees.most_wei(fees::TRANSFER_GAS);
        if !self.affordable(most, 0, now).await? {
            return Ok(());
        }
        let intent = NewIntent {
            kind: IntentKind::Fill,
            subject: format!("{}/{}/{nonce}", self.asset.chain_id, self.signer()),
            batch: None,
            chain_id: self.asset.chain_id,
            signer: self.signer(),
            nonce,
            target: self.signer(),
            calldata: Vec::new(),
        };
        self.store(intent, fees::TRANSFER_GAS, fees, now).await
    }

    async fn store(
        &self,
        intent: NewIntent,
        gas_limit: u64,
        fees: Fees,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let call = Call {
            nonce: intent.nonce,
            to: intent.target,
            gas_limit,
            fees,
            calldata: intent.calldata.clone(),
        };
        let attempt = self.attempt(call, intent.kind == IntentKind::Fill).await?;
        let mut tx = self.begin().await?;
        transactions::create(&mut tx, self.asset.id, &intent, &attempt, now).await?;
        if let (IntentKind::Commit, Some(batch)) = (intent.kind, intent.batch) {
            batches::advance(&mut tx, batch, BatchState::Signed, None, now).await?;
        }
        self.commit(tx, "settler.bytes_stored").await?;
        tracing::info!(subject = intent.subject, nonce = intent.nonce, tx = %attempt.tx_hash, "transaction signed");
        Ok(())
    }

    /// Offers more for the same call under the same nonce; at the ceilings the bytes stay as they are.
    pub(crate) async fn bump(
        &mut self,
        intent: &mut OpenIntent,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let Some(fees) = self.higher_fees(intent, tips).await? else {
            return Ok(());
        };
        let call = Call {
            nonce: intent.nonce,
            to: if intent.attempt.fills {
                intent.signer
            } else {
                intent.target
            },
            gas_limit: intent.attempt.gas_limit,
            fees,
            calldata: if intent.attempt.fills {
                Vec::new()
            } else {
                intent.calldata.clone()
            },
        };
        self.replace(intent, call, intent.attempt.fills, now).await
    }

    /// Puts a transfer of nothing in the place of a call that nobody wants any more. Whichever of the two is mined, the
    /// contract stays as it is: a call is only given up when it can change nothing.
    pub(crate) async fn fill_instead(
        &mut self,
        intent: &mut OpenIntent,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let Some(fees) = self.higher_fees(intent, tips).await? else {
            return Ok(());
        };
        let call = Call {
            nonce: intent.nonce,
            to: intent.signer,
            gas_limit: fees::TRANSFER_GAS,
            fees,
            calldata: Vec::new(),
        };
        tracing::info!(
            subject = intent.subject,
            nonce = intent.nonce,
            "the nonce is filled"
        );
        self.replace(intent, call, true, now).await
    }

    async fn higher_fees(
        &mut self,
        intent: &OpenIntent,
        tips: &Tips,
    ) -> Result<Option<Fees>, StepError> {
        let policy = self.config.fees;
        let old = Fees {
            cap_wei: intent.attempt.fee_cap_wei.base(),
            tip_wei: intent.attempt.tip_wei.base(),
        };
        let estimate = policy.estimate(tips.head.base_fee_wei, self.chain.recent_tip_wei().await?);
        let fees = policy.bump(old, estimate);
        if fees.is_none() {
            self.at_ceiling = Some(format!(
                "nonce {} is stuck at {} wei, the ceiling is {}",
                intent.nonce, old.cap_wei, policy.ceiling_wei
            ));
        }
        Ok(fees)
    }

    async fn replace(
        &mut self,
        intent: &mut OpenIntent,
        call: Call,
        fills: bool,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let most = call.fees.most_wei(call.gas_limit);
        let old = Fees {
            cap_wei: intent.attempt.fee_cap_wei.base(),
            tip_wei: intent.attempt.tip_wei.base(),
        };
        let before = old.most_wei(intent.attempt.gas_limit);
        if !self.affordable(most, before, now).await? {
            return Ok(());
        }
        let attempt = self.attempt(call, fills).await?;
        let mut tx = self.begin().await?;
        transactions::add_attempt(&mut tx, intent.id, &attempt, now).await?;
        self.commit(tx, "settler.replacement_stored").await?;
        intent.attempt = attempt;
        intent.first_sent_block = None;
        intent.last_sent_block = None;
        Ok(())
    }

    /// May so much be spent, in place of what was set aside for the same nonce before?
    async fn affordable(
        &self,
        most_wei: u128,
        before_wei: u128,
        now: OffsetDateTime,
    ) -> Result<bool, StepError> {
        let alerts = &self.health.alerts;
        let since = now - SPEND_WINDOW;
        let mut db = self.db.acquire().await?;
        let spent = transactions::spent(&mut db, self.asset.chain_id, self.signer(), since).await?;
        drop(db);
        let would = spent
            .base()
            .saturating_sub(before_wei)
            .saturating_add(most_wei);
        let ceiling = self.config.fees.spend_per_day_wei;
        if would > ceiling {
            let detail = format!("{would} wei in 24 hours, the ceiling is {ceiling}");
            alerts.raise(Alert::SpendCeiling, &detail);
            return Ok(false);
        }
        alerts.clear(Alert::SpendCeiling);
        self.has_ether(most_wei).await
    }

    /// Can the key pay so much?
    pub(crate) async fn has_ether(&self, most_wei: u128) -> Result<bool, StepError> {
        let alerts = &self.health.alerts;
        let ether = self.chain.ether(self.signer()).await?;
        if ether < U256::from(most_wei) {
            let signer = self.signer();
            let detail = format!("{signer} has {ether} wei, its transaction may take {most_wei}");
            alerts.raise(Alert::OutOfEther, &detail);
            return Ok(false);
        }
        alerts.clear(Alert::OutOfEther);
        Ok(true)
    }

    /// RFC 6979: the same fields make the same bytes. The chain is looked at for each signature, and what the signer
    /// returns has to be the key's, over this very transaction.
    async fn attempt(&self, call: Call, fills: bool) -> Result<Attempt, StepError> {
        self.chain.check_chain().await?;
        let mut transaction = TxEip1559 {
            chain_id: self.asset.chain_id,
            nonce: call.nonce,
            gas_limit: call.gas_limit,
            max_fee_per_gas: call.fees.cap_wei,
            max_priority_fee_per_gas: call.fees.tip_wei,
            to: TxKind::Call(call.to),
            value: U256::ZERO,
            access_list: alloy::eips::eip2930::AccessList::default(),
            input: call.calldata.into(),
        };
        let signing = self.config.signer.sign_transaction(&mut transaction);
        let signature = tokio::time::timeout(self.config.signer_timeout, signing)
            .await
            .map_err(|_| StepError::SignerSilent)??;
        let recovered = signature.recover_address_from_prehash(&transaction.signature_hash());
        if recovered.ok() != Some(self.signer()) {
            return Err(StepError::WrongSignature);
        }
        let envelope = TxEnvelope::Eip1559(transaction.into_signed(signature));
        Ok(Attempt {
            tx_hash: *envelope.tx_hash(),
            raw: envelope.encoded_2718(),
            gas_limit: call.gas_limit,
            fee_cap_wei: wei(call.fees.cap_wei),
            tip_wei: wei(call.fees.tip_wei),
            fills,
        })
    }
}

/// Fees are far below what an amount holds.
pub(crate) fn wei(wei: u128) -> Amount {
    Amount::from_base(wei).unwrap_or(Amount::MAX)
}
