//! Purchases: what buyers took of offers. The price is held first and charged once the sale is final; a refund is the end of a hold, so
//! that nothing that was charged is ever taken back.

mod due;
mod end;
mod requests;
mod stall;
mod take;
mod write;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{
        AccountId, DatasetId, DatasetVersionId, OfferId, PurchaseId, ReceiptId, SplitVersionId,
        SubscriptionId,
    },
    offer::OfferKind,
    purchase::{Finality, PurchaseState},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_enum},
};

pub use due::{Due, due, put_off, step};
pub use end::{EndError, end_by_buyer, make_final, refund, refund_to_buyer};
pub(crate) use end::{give_back_upcoming, take_back};
pub use requests::{AnswerError, approve, deny};
pub use stall::{Stall, Stand};
pub(crate) use take::owned;
pub use take::{NewPurchase, TakeError, take, take_all};
pub(crate) use write::{Period, begin_period};

/// What a buyer took of an offer.
#[derive(Debug, Clone)]
pub struct Purchase {
    /// Its identifier.
    pub id: PurchaseId,
    /// The buyer.
    pub account: AccountId,
    /// The address that pays; `None` where it is free.
    pub payer: Option<Address>,
    /// Row of `assets`.
    pub asset_id: i32,
    /// The seller.
    pub seller: AccountId,
    /// The dataset.
    pub dataset: DatasetId,
    /// The version; `None`: every version.
    pub version: Option<DatasetVersionId>,
    /// The offer.
    pub offer: OfferId,
    /// Which of its prices.
    pub price_number: i32,
    /// That price.
    pub price: Amount,
    /// What was taken.
    pub kind: OfferKind,
    /// The subscription that it is a period of.
    pub subscription: Option<SubscriptionId>,
    /// Where it stands.
    pub state: PurchaseState,
    /// What is or was held: the most that is charged.
    pub amount: Amount,
    /// What was charged; `None` until it is settled.
    pub charged: Option<Amount>,
    /// Who shares the charge.
    pub split: Option<SplitVersionId>,
    /// How long it lasts, in seconds; `None`: for good.
    pub seconds: Option<u32>,
    /// How many of them are charged at least, once something was read.
    pub minimum_seconds: u32,
    /// For how long its buyer may give back what is bought for good, in seconds from its start.
    pub refund_seconds: u32,
    /// The buyer's words to the seller.
    pub note: Option<String>,
    /// Why it was denied or refunded.
    pub reason: Option<String>,
    /// What made it final.
    pub finality: Option<Finality>,
    /// When it was taken.
    pub created_at: OffsetDateTime,
    /// Until when the seller answers.
    pub answer_due_at: Option<OffsetDateTime>,
    /// From when on the buyer has its right.
    pub starts_at: Option<OffsetDateTime>,
    /// Until when; `None`: for good.
    pub ends_at: Option<OffsetDateTime>,
    /// When it is charged at the latest.
    pub final_at: Option<OffsetDateTime>,
    /// When it was settled, refunded, denied or given up.
    pub ended_at: Option<OffsetDateTime>,
    /// The receipt of its charge.
    pub receipt: Option<ReceiptId>,
}

impl Purchase {
    /// Until when its buyer may give it back, as long as nothing of it was read; `None` where that was never so.
    #[must_use]
    pub fn refundable_until(&self) -> Option<OffsetDateTime> {
        let seconds = Some(self.refund_seconds).filter(|it| *it > 0 && !self.amount.is_zero())?;
        let window = Duration::seconds(i64::from(seconds));
        Some(self.starts_at?.saturating_add(window))
    }
}

/// Whose purchases are listed.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// Those that the account made.
    Buyer(AccountId),
    /// Those of its datasets.
    Seller(AccountId),
}

/// Which of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Those in this state alone.
    pub state: Option<PurchaseState>,
    /// Those of this dataset alone.
    pub dataset: Option<DatasetId>,
}

/// A purchase that the connection may see.
///
/// # Errors
/// When the statement fails, or what is stored is not a purchase.
pub async fn find(conn: &mut PgConnection, id: PurchaseId) -> sqlx::Result<Option<Purchase>> {
    Ok(find_all(conn, &[id]).await?.pop())
}

/// Those of these purchases that the connection may see, newest first.
///
/// # Errors
/// When the statement fails, or what is stored is not a purchase.
pub async fn find_all(conn: &mut PgConnection, ids: &[PurchaseId]) -> sqlx::Result<Vec<Purchase>> {
    let ids: Vec<_> = ids.iter().map(|it| it.0).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT p.purchase_id, p.account_id, p.payer, p.asset_id, p.seller_id, p.dataset_id, p.version_id, p.offer_id, p.price_number,
               o.price_base, f.minimum_seconds, f.refund_seconds, p.kind, p.subscription_id, p.state, p.amount_base, p.charged_base, p.split_version_id, p.seconds, p.note,
               p.reason, p.final_because, p.created_at, p.answer_due_at, p.starts_at, p.ends_at, p.final_at, p.ended_at,
               r.receipt_id AS "receipt_id?"
           FROM purchases p JOIN offers f ON f.offer_id = p.offer_id
           JOIN offer_prices o ON o.offer_id = p.offer_id AND o.number = p.price_number
           LEFT JOIN receipts r ON r.purchase_id = p.purchase_id
           WHERE p.purchase_id = ANY ($1) ORDER BY p.purchase_id DESC"#,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Purchase::try_from).collect()
}

/// The purchases of one side, newest first, older than `before`.
///
/// # Errors
/// When the statement fails, or what is stored is not a purchase.
pub async fn list(
    conn: &mut PgConnection,
    side: Side,
    filter: Filter,
    before: Option<PurchaseId>,
    limit: i64,
) -> sqlx::Result<Vec<Purchase>> {
    let (buyer, seller) = match side {
        Side::Buyer(account) => (Some(account.0), None),
        Side::Seller(account) => (None, Some(account.0)),
    };
    let ids = sqlx::query_scalar!(
        "SELECT purchase_id FROM purchases
         WHERE (account_id = $1 OR seller_id = $2) AND ($3::text IS NULL OR state = $3) AND ($4::uuid IS NULL OR purchase_id < $4)
           AND ($6::uuid IS NULL OR dataset_id = $6)
         ORDER BY purchase_id DESC LIMIT $5",
        buyer,
        seller,
        filter.state.map(PurchaseState::as_str),
        before.map(|it| it.0),
        limit,
        filter.dataset.map(|it| it.0),
    )
    .fetch_all(&mut *conn)
    .await?;
    let ids: Vec<_> = ids.into_iter().map(PurchaseId).collect();
    find_all(conn, &ids).await
}

/// Locks a purchase, so that one at a time decides what becomes of it.
///
/// # Errors
/// When the statement fails, or what is stored is not a purchase.
pub async fn lock(tx: &mut PgTransaction<'_>, id: PurchaseId) -> sqlx::Result<Option<Purchase>> {
    let locked = sqlx::query_scalar!(
        "SELECT purchase_id FROM purchases WHERE purchase_id = $1 FOR NO KEY UPDATE",
        id.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    match locked {
        Some(id) => find(tx, PurchaseId(id)).await,
        None => Ok(None),
    }
}

struct Row {
    purchase_id: Uuid,
    account_id: Uuid,
    payer: Option<Vec<u8>>,
    asset_id: i32,
    seller_id: Uuid,
    dataset_id: Uuid,
    version_id: Option<Uuid>,
    offer_id: Uuid,
    price_number: i32,
    price_base: BigDecimal,
    minimum_seconds: i32,
    refund_seconds: i32,
    kind: String,
    subscription_id: Option<Uuid>,
    state: String,
    amount_base: BigDecimal,
    charged_base: Option<BigDecimal>,
    split_version_id: Option<Uuid>,
    seconds: Option<i32>,
    note: Option<String>,
    reason: Option<String>,
    final_because: Option<String>,
    created_at: OffsetDateTime,
    answer_due_at: Option<OffsetDateTime>,
    starts_at: Option<OffsetDateTime>,
    ends_at: Option<OffsetDateTime>,
    final_at: Option<OffsetDateTime>,
    ended_at: Option<OffsetDateTime>,
    receipt_id: Option<Uuid>,
}

impl TryFrom<Row> for Purchase {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let payer = row.payer.map(|it| to_address("payer", &it)).transpose()?;
        let charged = row.charged_base.map(|it| to_amount("charged_base", &it));
        let seconds = row.seconds.map(i32::cast_unsigned);
        let minimum_seconds = row.minimum_seconds.cast_unsigned();
        let finality = row.final_because;
        let finality = finality.map(|it| to_enum("final_because", &it, Finality::parse));
        Ok(Self {
            id: PurchaseId(row.purchase_id),
            account: AccountId(row.account_id),
            payer,
            asset_id: row.asset_id,
            seller: AccountId(row.seller_id),
            dataset: DatasetId(row.dataset_id),
            version: row.version_id.map(DatasetVersionId),
            offer: OfferId(row.offer_id),
            price_number: row.price_number,
            price: to_amount("price_base", &row.price_base)?,
            kind: to_enum("kind", &row.kind, OfferKind::parse)?,
            subscription: row.subscription_id.map(SubscriptionId),
            state: to_enum("state", &row.state, PurchaseState::parse)?,
            amount: to_amount("amount_base", &row.amount_base)?,
            charged: charged.transpose()?,
            split: row.split_version_id.map(SplitVersionId),
            seconds,
            minimum_seconds: minimum_seconds.min(seconds.unwrap_or_default()),
            refund_seconds: row.refund_seconds.cast_unsigned(),
            note: row.note,
            reason: row.reason,
            finality: finality.transpose()?,
            created_at: row.created_at,
            answer_due_at: row.answer_due_at,
            starts_at: row.starts_at,
            ends_at: row.ends_at,
            final_at: row.final_at,
            ended_at: row.ended_at,
            receipt: row.receipt_id.map(ReceiptId),
        })
    }
}
