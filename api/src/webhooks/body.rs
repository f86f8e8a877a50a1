//! Events in words: what `GET /v1/events` shows, and what is sent.

use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    id::{
        AdmissionId, BatchId, ContributionId, DatasetId, DepositId, JobId, ModelId, OfferId,
        PurchaseId, SubscriptionId, TakedownId, WebhookEndpointId, WebhookEventId, WorkerId,
    },
    purchase::SubscriptionEnd,
    takedown::Ground,
    webhook::{BODY_BYTES_MAX, EventType},
};
use comptoir_store::webhooks::events::WebhookEvent;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::money::MoneyBody;

/// Something about a job. Its state may have gone on since: ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookJob)]
pub struct JobData {
    #[schema(value_type = String, example = "job_01h455vb4pex5vsknk084sn02q")]
    job_id: JobId,
    /// The number of the event within the job, as `GET /v1/jobs/{id}/events` counts; there are gaps, since not every one is sent.
    seq: i64,
    /// Of `job.failed`: who is to blame. `client`, `worker`, `operator` or `chain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cause: Option<String>,
    /// Of `job.failed`: why, in a stable word.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    code: Option<String>,
}

/// Something about a purchase, told to its buyer and its seller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookPurchase)]
pub struct PurchaseData {
    #[schema(value_type = String, example = "pur_01h455vb4pex5vsknk084sn02q")]
    purchase_id: PurchaseId,
    #[schema(value_type = String)]
    dataset_id: DatasetId,
    /// What is or was held.
    price: MoneyBody,
    /// Of `purchase.settled`: what was charged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    charged: Option<MoneyBody>,
    /// Why it was denied or refunded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// Something about a contribution, told to its contributor and the owner of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookContribution)]
pub struct ContributionData {
    #[schema(value_type = String, example = "con_01h455vb4pex5vsknk084sn02q")]
    contribution_id: ContributionId,
    #[schema(value_type = String)]
    dataset_id: DatasetId,
    rows: u64,
    reward: MoneyBody,
    /// Of `contribution.rejected`: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// Something about a subscription, told to its subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookSubscription)]
pub struct SubscriptionData {
    #[schema(value_type = String, example = "sub_01h455vb4pex5vsknk084sn02q")]
    subscription_id: SubscriptionId,
    #[schema(value_type = String)]
    dataset_id: DatasetId,
    #[schema(value_type = String)]
    offer_id: OfferId,
    /// Of `subscription.renewed`: the period that began.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, nullable = false)]
    purchase_id: Option<PurchaseId>,
    /// Of `subscription.renewed`: what is held for the period. Of `subscription.price_rising`: what one will cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    price: Option<MoneyBody>,
    /// Of `subscription.price_rising`: periods that begin from then on cost that.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    effective_at: Option<OffsetDateTime>,
    /// Of `subscription.renewal_failed` and `subscription.ended`: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    because: Option<SubscriptionEnd>,
}

/// Something about a takedown, told to who filed it and to the seller of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookTakedown)]
pub struct TakedownData {
    #[schema(value_type = String, example = "tkd_01h455vb4pex5vsknk084sn02q")]
    takedown_id: TakedownId,
    #[schema(value_type = String)]
    dataset_id: DatasetId,
    ground: Ground,
    /// Why an operator decided as it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// A dataset that was blocked, or is back; told to its seller and to all who have a right to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookDataset)]
pub struct DatasetData {
    #[schema(value_type = String, example = "ds_01h455vb4pex5vsknk084sn02q")]
    dataset_id: DatasetId,
}

/// Something about an admission to a gated model, told to who asked and to the creator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookAdmission)]
pub struct AdmissionData {
    #[schema(value_type = String, example = "adm_01h455vb4pex5vsknk084sn02q")]
    admission_id: AdmissionId,
    #[schema(value_type = String)]
    model_id: ModelId,
    /// Why it was denied or revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// A batch that is final on the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookBatch)]
pub struct BatchData {
    #[schema(value_type = String, example = "bat_01h455vb4pex5vsknk084sn02q")]
    batch_id: BatchId,
    number: i64,
    hash: String,
}

/// What the contract paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookPayout)]
pub struct PayoutData {
    amount: MoneyBody,
    address: String,
    /// The batch that it was claimed with; none where it was taken out of a frozen contract.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    batch_number: Option<i64>,
    block_number: i64,
    tx_hash: String,
}

/// A deposit that is credited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookDeposit)]
pub struct DepositData {
    #[schema(value_type = String, example = "dep_01h455vb4pex5vsknk084sn02q")]
    deposit_id: DepositId,
    amount: MoneyBody,
    block_number: i64,
    tx_hash: String,
}

/// A balance that fell below what the account wants to be told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookBalance)]
pub struct BalanceData {
    available: MoneyBody,
    threshold: MoneyBody,
}

/// A worker that is not heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookWorker)]
pub struct WorkerData {
    #[schema(value_type = String, example = "wrk_01h455vb4pex5vsknk084sn02q")]
    worker_id: WorkerId,
    #[serde(with = "time::serde::rfc3339")]
    last_seen_at: OffsetDateTime,
}

/// A test of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookTested)]
pub struct TestData {
    #[schema(value_type = String, example = "we_01h455vb4pex5vsknk084sn02q")]
    endpoint_id: WebhookEndpointId,
}

/// What an event is about; its fields follow from the type. More fields may come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = WebhookData)]
pub enum Data {
    /// Of `job.*`.
    Job(JobData),
    /// Of `purchase.*`.
    Purchase(PurchaseData),
    /// Of `contribution.*`.
    Contribution(ContributionData),
    /// Of `subscription.*`.
    Subscription(SubscriptionData),
    /// Of `takedown.*`.
    Takedown(TakedownData),
    /// Of `dataset.*`.
    Dataset(DatasetData),
    /// Of `admission.*`.
    Admission(AdmissionData),
    /// Of `batch.anchored`.
    Batch(BatchData),
    /// Of `payout.paid`.
    Payout(PayoutData),
    /// Of `deposit.credited`.
    Deposit(DepositData),
    /// Of `balance.low`.
    Balance(BalanceData),
    /// Of `worker.offline`.
    Worker(WorkerData),
    /// Of `webhook.test`.
    Test(TestData),
}

/// What is sent. It is thin: what matters is asked for, with credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WebhookMessage)]
pub struct Message {
    #[serde(rename = "type")]
    kind: EventType,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    data: Data,
}

/// The kind of object that an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventObject {
    /// Something that happened.
    Event,
}

/// Something that happened, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventBody {
    /// What `webhook-id` says, however often it is sent.
    #[schema(value_type = String, example = "evt_01h455vb4pex5vsknk084sn02q")]
    id: WebhookEventId,
    object: EventObject,
    #[serde(rename = "type")]
    kind: EventType,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    data: Data,
}

/// What is stored of an event is not what its type says.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableEvent {
    /// A field is missing, or of another kind.
    #[error("read the data of event {0}")]
    Data(WebhookEventId, #[source] serde_json::Error),
    /// It names nothing, or no token.
    #[error("event {0} lacks its subject or its token")]
    Lacking(WebhookEventId),
    /// More than a receiver expects.
    #[error("event {0} is longer than {BODY_BYTES_MAX} bytes")]
    Long(WebhookEventId),
}

#[derive(Deserialize)]
struct StoredJob {
    seq: i64,
    cause: Option<String>,
    code: Option<String>,
}

#[derive(Deserialize)]
struct StoredPurchase {
    dataset_id: Uuid,
    amount_base: Amount,
    charged_base: Option<Amount>,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct StoredContribution {
    dataset_id: Uuid,
    rows: u64,
    reward_base: Amount,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct StoredSubscription {
    dataset_id: Uuid,
    offer_id: Uuid,
    purchase_id: Option<Uuid>,
    price_base: Option<Amount>,
    #[serde(default, with = "time::serde::rfc3339::option")]
    effective_at: Option<OffsetDateTime>,
    because: Option<SubscriptionEnd>,
}

#[derive(Deserialize)]
struct StoredTakedown {
    dataset_id: Uuid,
    ground: Ground,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct StoredAdmission {
    model_id: Uuid,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct StoredBatch {
    number: i64,
    hash: String,
}

#[derive(Deserialize)]
struct StoredPayment {
    amount_base: Amount,
    address: Option<alloy_primitives::Address>,
    batch_number: Option<i64>,
    block_number: i64,
    tx_hash: String,
}

#[derive(Deserialize)]
struct StoredBalance {
    available_base: Amount,
    threshold_base: Amount,
}

#[derive(Deserialize)]
struct StoredWorker {
    #[serde(with = "time::serde::rfc3339")]
    last_seen_at: OffsetDateTime,
}

impl Data {
    fn of(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        use EventType as E;
        let subject = || event.subject.ok_or(UnreadableEvent::Lacking(event.id));
        Ok(match event.kind {
            E::JobQueued
            | E::JobLeased
            | E::JobVerifying
            | E::JobCompleted
            | E::JobFailed
            | E::JobCancelled
            | E::JobExpired
            | E::JobRefunded => Self::job(event)?,
            E::PurchaseRequested
            | E::PurchaseGranted
            | E::PurchaseSettled
            | E::PurchaseRefunded
            | E::PurchaseDenied
            | E::PurchaseLapsed => Self::purchase(event)?,
            E::ContributionReceived
            | E::ContributionAccepted
            | E::ContributionRejected
            | E::ContributionWithdrawn
            | E::ContributionLapsed => Self::contribution(event)?,
            E::SubscriptionPriceRising
            | E::SubscriptionRenewed
            | E::SubscriptionRenewalFailed
            | E::SubscriptionEnded => Self::subscription(event)?,
            E::TakedownFiled
            | E::TakedownFrozen
            | E::TakedownContested
            | E::TakedownUpheld
            | E::TakedownRejected
            | E::TakedownDismissed
            | E::TakedownWithdrawn => Self::takedown(event)?,
            E::DatasetBlocked | E::DatasetRestored => Self::Dataset(DatasetData {
                dataset_id: DatasetId(subject()?),
            }),
            E::AdmissionRequested
            | E::AdmissionGranted
            | E::AdmissionDenied
            | E::AdmissionRevoked => Self::admission(event)?,
            E::BatchAnchored => Self::batch(event)?,
            E::PayoutPaid => Self::payout(event)?,
            E::DepositCredited => Self::deposit(event)?,
            E::BalanceLow => Self::balance(event)?,
            E::WorkerOffline => {
                let StoredWorker { last_seen_at } = stored(event)?;
                let worker_id = WorkerId(subject()?);
                Self::Worker(WorkerData {
                    worker_id,
                    last_seen_at,
                })
            }
            E::WebhookTest => {
                let endpoint_id = WebhookEndpointId(subject()?);
                Self::Test(TestData { endpoint_id })
            }
        })
    }

    fn job(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let StoredJob { seq, cause, code } = stored(event)?;
        let subject = event.subject.ok_or(UnreadableEvent::Lacking(event.id))?;
        let job_id = JobId(subject);
        Ok(Self::Job(JobData {
            job_id,
            seq,
            cause,
            code,
        }))
    }

    fn purchase(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let it: StoredPurchase = stored(event)?;
        let subject = event.subject.ok_or(UnreadableEvent::Lacking(event.id))?;
        let charged = it.charged_base.map(|charged| money(event, charged));
        Ok(Self::Purchase(PurchaseData {
            purchase_id: PurchaseId(subject),
            dataset_id: DatasetId(it.dataset_id),
            price: money(event, it.amount_base)?,
            charged: charged.transpose()?,
            reason: it.reason,
        }))
    }

    fn contribution(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let it: StoredContribution = stored(event)?;
        let subject = event.subject.ok_or(UnreadableEvent::Lacking(event.id))?;
        Ok(Self::Contribution(ContributionData {
            contribution_id: ContributionId(subject),
            dataset_id: DatasetId(it.dataset_id),
            rows: it.rows,
            reward: money(event, it.reward_base)?,
            reason: it.reason,
        }))
    }

    fn subscription(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let it: StoredSubscription = stored(event)?;
        let subject = event.subject.ok_or(UnreadableEvent::Lacking(event.id))?;
        let price = it.price_base.map(|price| money(event, price));
        Ok(Self::Subscription(SubscriptionData {
            subscription_id: SubscriptionId(subject),
            dataset_id: DatasetId(it.dataset_id),
            offer_id: OfferId(it.offer_id),
            purchase_id: it.purchase_id.map(PurchaseId),
            price: price.transpose()?,
            effective_at: it.effective_at,
            because: it.because,
        }))
    }

    fn takedown(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let it: StoredTakedown = stored(event)?;
        let subject = event.subject.ok_or(UnreadableEvent::Lacking(event.id))?;
        Ok(Self::Takedown(TakedownData {
            takedown_id: TakedownId(subject),
            dataset_id: DatasetId(it.dataset_id),
            ground: it.ground,
            reason: it.reason,
        }))
    }

    fn admission(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let StoredAdmission { model_id, reason } = stored(event)?;
        let subject = event.subject.ok_or(UnreadableEvent::Lacking(event.id))?;
        Ok(Self::Admission(AdmissionData {
            admission_id: AdmissionId(subject),
            model_id: ModelId(model_id),
            reason,
        }))
    }

    fn batch(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let StoredBatch { number, hash } = stored(event)?;
        let subject = event.subject.ok_or(UnreadableEvent::Lacking(event.id))?;
        Ok(Self::Batch(BatchData {
            batch_id: BatchId(subject),
            number,
            hash,
        }))
    }

    fn balance(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let it: StoredBalance = stored(event)?;
        Ok(Self::Balance(BalanceData {
            available: money(event, it.available_base)?,
            threshold: money(event, it.threshold_base)?,
        }))
    }

    fn payout(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let paid: StoredPayment = stored(event)?;
        let address = paid.address.ok_or(UnreadableEvent::Lacking(event.id))?;
        Ok(Self::Payout(PayoutData {
            amount: money(event, paid.amount_base)?,
            address: address.to_string(),
            batch_number: paid.batch_number,
            block_number: paid.block_number,
            tx_hash: paid.tx_hash,
        }))
    }

    fn deposit(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        let paid: StoredPayment = stored(event)?;
        let subject = event.subject.ok_or(UnreadableEvent::Lacking(event.id))?;
        Ok(Self::Deposit(DepositData {
            deposit_id: DepositId(subject),
            amount: money(event, paid.amount_base)?,
            block_number: paid.block_number,
            tx_hash: paid.tx_hash,
        }))
    }
}

fn stored<'a, T: Deserialize<'a>>(event: &'a WebhookEvent) -> Result<T, UnreadableEvent> {
    T::deserialize(&event.data).map_err(|error| UnreadableEvent::Data(event.id, error))
}

fn money(event: &WebhookEvent, amount: Amount) -> Result<MoneyBody, UnreadableEvent> {
    let asset: &Asset = event
        .asset
        .as_ref()
        .ok_or(UnreadableEvent::Lacking(event.id))?;
    Ok(MoneyBody::new(amount, asset))
}

impl EventBody {
    /// The event in words.
    ///
    /// # Errors
    /// When what is stored of it is not what its type says.
    pub fn new(event: &WebhookEvent) -> Result<Self, UnreadableEvent> {
        Ok(Self {
            id: event.id,
            object: EventObject::Event,
            kind: event.kind,
            created_at: event.created_at,
            data: Data::of(event)?,
        })
    }
}

/// The bytes that are sent: the same at each attempt.
///
/// # Errors
/// When what is stored of the event is not what its type says.
pub fn message(event: &WebhookEvent) -> Result<Vec<u8>, UnreadableEvent> {
    let message = Message {
        kind: event.kind,
        timestamp: event.created_at,
        data: Data::of(event)?,
    };
    let bytes =
        serde_json::to_vec(&message).map_err(|error| UnreadableEvent::Data(event.id, error))?;
    if bytes.len() > BODY_BYTES_MAX {
        return Err(UnreadableEvent::Long(event.id));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::macros::datetime;

    use super::*;

    fn event(kind: EventType, subject: Option<Uuid>, data: Value) -> WebhookEvent {
        WebhookEvent {
            id: WebhookEventId::generate(),
            kind,
            subject,
            asset: None,
            data,
            created_at: datetime!(2026-11-22 12:00 UTC),
        }
    }

    #[test]
    fn an_event_that_lacks_what_its_type_says_is_not_sent() {
        let subject = JobId::generate();
        let job = |data| message(&event(EventType::JobFailed, Some(subject.0), data));
        let sent = job(json!({ "seq": 3, "cause": "client", "code": "bad_program" })).unwrap();
        let sent: Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!(sent["type"], "job.failed");
        assert_eq!(sent["timestamp"], "2026-11-22T12:00:00Z");
        assert_eq!(sent["data"]["job_id"], subject.to_string());
        assert!(job(json!({})).is_err());
        assert!(message(&event(EventType::JobFailed, None, json!({ "seq": 3 }))).is_err());
        let balance = json!({ "available_base": "1", "threshold_base": "2" });
        assert!(
            message(&event(EventType::BalanceLow, None, balance)).is_err(),
            "of no token"
        );
    }
}
