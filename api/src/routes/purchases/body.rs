//! Purchases as they are shown.

use comptoir_domain::{
    asset::Asset,
    id::{AccountId, DatasetId, DatasetVersionId, OfferId, PurchaseId, ReceiptId, SubscriptionId},
    offer::{Allows, OfferKind},
    purchase::{Finality, PurchaseState},
};
use comptoir_store::{
    PgTransaction, assets,
    purchases::{self, Purchase},
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::{Problem, money::MoneyBody, quoting::no_asset};

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PurchaseObject {
    Purchase,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Purchase)]
pub(in crate::routes) struct PurchaseBody {
    #[schema(value_type = String, example = "pur_01h455vb4pex5vsknk084sn02q")]
    id: PurchaseId,
    object: PurchaseObject,
    state: PurchaseState,
    kind: OfferKind,
    #[schema(value_type = String)]
    buyer: AccountId,
    #[schema(value_type = String)]
    seller: AccountId,
    #[schema(value_type = String)]
    dataset: DatasetId,
    /// The version; `null`: every version, future ones too.
    #[schema(required = true, value_type = Option<String>)]
    version: Option<DatasetVersionId>,
    #[schema(value_type = String)]
    offer: OfferId,
    /// Which of the offer's prices.
    price_number: i32,
    /// What the buyer may do.
    allows: Allows,
    #[schema(required = true, value_type = Option<String>)]
    subscription: Option<SubscriptionId>,
    /// What is or was held: the most that is charged.
    price: MoneyBody,
    /// What was charged; `null` until the sale is final.
    #[schema(required = true)]
    charged: Option<MoneyBody>,
    /// What made the sale final.
    #[schema(required = true)]
    final_because: Option<Finality>,
    /// The receipt of the charge.
    #[schema(required = true, value_type = Option<String>)]
    receipt: Option<ReceiptId>,
    #[schema(required = true)]
    seconds: Option<u32>,
    /// How many of them are charged at least, once something was read.
    minimum_seconds: u32,
    /// The buyer's words to the seller.
    #[schema(required = true)]
    note: Option<String>,
    /// Why it was denied or refunded.
    #[schema(required = true)]
    reason: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Until when the seller answers.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    answer_due_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    starts_at: Option<OffsetDateTime>,
    /// Until when the buyer has its right; `null`: for good, or not granted.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ends_at: Option<OffsetDateTime>,
    /// Until when something bought for good can be given back, as long as nothing of it was read; `null`: not at all, or not granted.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    refundable_until: Option<OffsetDateTime>,
    /// When it is charged at the latest; something bought for good is charged before, once its first byte is served.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    final_at: Option<OffsetDateTime>,
    /// When it was settled, refunded, denied, or lapsed.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ended_at: Option<OffsetDateTime>,
}

impl PurchaseBody {
    pub(super) fn new(purchase: Purchase, asset: &Asset) -> Self {
        Self {
            refundable_until: purchase.refundable_until(),
            id: purchase.id,
            object: PurchaseObject::Purchase,
            state: purchase.state,
            kind: purchase.kind,
            buyer: purchase.account,
            seller: purchase.seller,
            dataset: purchase.dataset,
            version: purchase.version,
            offer: purchase.offer,
            price_number: purchase.price_number,
            allows: purchase.kind.allows(),
            subscription: purchase.subscription,
            price: MoneyBody::new(purchase.amount, asset),
            charged: purchase.charged.map(|it| MoneyBody::new(it, asset)),
            final_because: purchase.finality,
            receipt: purchase.receipt,
            seconds: purchase.seconds,
            minimum_seconds: purchase.minimum_seconds,
            note: purchase.note,
            reason: purchase.reason,
            created_at: purchase.created_at,
            answer_due_at: purchase.answer_due_at,
            starts_at: purchase.starts_at,
            ends_at: purchase.ends_at,
            final_at: purchase.final_at,
            ended_at: purchase.ended_at,
        }
    }

    pub(super) async fn read(tx: &mut PgTransaction<'_>, id: PurchaseId) -> Result<Self, Problem> {
        let purchase = purchases::find(tx, id).await?;
        let purchase = purchase.ok_or_else(Problem::not_found)?;
        let asset = assets::find(tx, purchase.asset_id)
            .await
            .map_err(no_asset)?;
        Ok(Self::new(purchase, &asset))
    }
}
