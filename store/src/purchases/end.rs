//! How purchases end: a sale becomes final and is charged, or its price goes back.

use comptoir_domain::{
    amount::Amount,
    bill::BillError,
    digest::Sha256,
    id::{PurchaseId, ReceiptId, SubscriptionId},
    ledger::Earned,
    purchase::{Finality, PurchaseState, SubscriptionEnd},
    sale::{Sale, SaleKind, Time},
};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Purchase, lock};
use crate::{
    PgTransaction,
    codec::{to_digest, to_numeric},
    dataset_servings, datasets,
    holdback::proceeds::Proceeds,
    holds::{self, HoldError, HoldSource},
    receipts::Documents,
    sales::{self, FinalSale, SaleError, Sold},
    subscriptions,
};

/// Why a purchase does not end.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// There is none.
    #[error("no such purchase")]
    NotFound,
    /// It ended before, or nothing was granted.
    #[error("the purchase is {0}")]
    NotOpen(PurchaseState),
    /// Something of it was read already.
    #[error("something of the purchase was read")]
    Served,
    /// The time in which it could be given back is over, or the offer never gave one.
    #[error("the purchase is not given back any more")]
    Late,
    /// Only what lasts for some time ends early, and only what is bought for good is given back.
    #[error("a purchase of this kind does not end so")]
    Kind,
    /// Its charge is out of bounds.
    #[error("bill the purchase")]
    Bill(#[from] BillError),
    /// It could not be charged.
    #[error("charge the purchase")]
    Sale(#[from] SaleError),
    /// Its price could not be given back.
    #[error("give back the price")]
    Hold(#[from] HoldError),
    /// A statement failed.
    #[error("end a purchase")]
    Database(#[from] sqlx::Error),
}

/// Makes the sale of something that is bought for good final, because its first byte is served. One that is final already stays as it
/// is, and so does what lasts for some time. The transaction must see everybody.
///
/// # Errors
/// When it cannot be charged, its price went back already, or its time was ended.
pub async fn make_final(
    tx: &mut PgTransaction<'_>,
    id: PurchaseId,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    let purchase = lock(tx, id).await?.ok_or(EndError::NotFound)?;
    match (purchase.state, purchase.seconds) {
        (PurchaseState::Granted, None) => settle(tx, &purchase, Finality::Served, now, now)
            .await
            .map(drop),
        (PurchaseState::Granted, Some(_)) | (PurchaseState::Settled, None) => Ok(()),
        (state, _) => Err(EndError::NotOpen(state)),
    }
}

/// Gives back the whole price of a purchase of which nothing was served, and takes back the right. The transaction must see everybody.
///
/// # Errors
/// When it is final, or was never granted.
pub async fn refund(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    reason: &str,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    if purchase.state != PurchaseState::Granted {
        return Err(EndError::NotOpen(purchase.state));
    }
    if dataset_servings::has_begun(tx, purchase.id).await? {
        return Err(EndError::Served);
    }
    give_back(tx, purchase, PurchaseState::Refunded, Some(reason), now).await?;
    end_right(tx, purchase.id, now).await?;
    if let Some(subscription) = purchase.subscription {
        give_back_upcoming(tx, subscription, reason, now).await?;
        subscriptions::end(tx, subscription, SubscriptionEnd::Refused, now).await?;
    }
    Ok(())
}

/// Gives back the periods of a subscription that were paid for ahead and have not begun: with the one before them they lose their reason.
pub(crate) async fn give_back_upcoming(
    tx: &mut PgTransaction<'_>,
    subscription: SubscriptionId,
    reason: &str,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    let upcoming = sqlx::query_scalar!(
        "SELECT purchase_id FROM purchases WHERE subscription_id = $1 AND state = 'granted' AND starts_at > $2 ORDER BY starts_at",
        subscription.0,
        now,
    )
    .fetch_all(&mut **tx)
    .await?;
    for id in upcoming {
        let period = lock(tx, PurchaseId(id)).await?;
        let granted = period.filter(|it| it.state == PurchaseState::Granted);
        if let Some(period) = granted {
            give_back(tx, &period, PurchaseState::Refunded, Some(reason), now).await?;
            end_right(tx, period.id, now).await?;
        }
    }
    Ok(())
}

/// Takes back a request that its seller has not answered; a subscription ends with the request for it. The transaction must see everybody.
pub(crate) async fn take_back(
    tx: &mut PgTransaction<'_>,
    request: &Purchase,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    let reason = Some("taken back by the buyer");
    give_back(tx, request, PurchaseState::Refunded, reason, now).await?;
    if let Some(subscription) = request.subscription {
        subscriptions::end(tx, subscription, SubscriptionEnd::Cancelled, now).await?;
    }
    Ok(())
}

/// Ends a rental or the period of a subscription before its time: what was used until `at` is charged, to the second, and the rest goes back. Once
/// something was read, its buyer pays for its least time. One that has not begun costs nothing. The transaction must see everybody.
///
/// # Errors
/// When it does not last for some time, or ended before.
pub(super) async fn end_early(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    (because, at): (Finality, OffsetDateTime),
    now: OffsetDateTime,
) -> Result<Option<ReceiptId>, EndError> {
    if purchase.state != PurchaseState::Granted {
        return Err(EndError::NotOpen(purchase.state));
    }
    if purchase.seconds.is_none() {
        return Err(EndError::Kind);
    }
    let receipt = settle(tx, purchase, because, at, now).await?;
    end_right(tx, purchase.id, now).await?;
    Ok(receipt)
}

/// Gives back to its buyer something that was bought for good, of which nothing was read, while its window is open, or a request of any kind that
/// waits for its answer. Again changes nothing. The transaction must see everybody.
///
/// # Errors
/// When it is final, lasts for some time, was read, or is not given back any more.
pub async fn refund_to_buyer(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    if purchase.state == PurchaseState::Refunded {
        return Ok(());
    }
    if purchase.state == PurchaseState::Requested {
        return take_back(tx, purchase, now).await;
    }
    if purchase.seconds.is_some() {
        return Err(EndError::Kind);
    }
    if purchase.state != PurchaseState::Granted {
        return Err(EndError::NotOpen(purchase.state));
    }
    if purchase.refundable_until().is_none_or(|until| until <= now) {
        return Err(EndError::Late);
    }
    refund(tx, purchase, "given back by the buyer", now).await
}

/// Ends a rental or a subscription for its buyer: its running period, the one after it that was begun already, and its renewal; or takes back the
/// request for one. The transaction must see everybody.
///
/// # Errors
/// When it does not last for some time, or ended before.
pub async fn end_by_buyer(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    let is_ended = purchase.finality == Some(Finality::EndedByBuyer);
    // A request that was taken back, and what could not be served.
    let is_back = purchase.state == PurchaseState::Refunded && purchase.seconds.is_some();
    if is_ended || is_back {
        return Ok(());
    }
    if purchase.state == PurchaseState::Requested && purchase.seconds.is_some() {
        return take_back(tx, purchase, now).await;
    }
    end_early(tx, purchase, (Finality::EndedByBuyer, now), now).await?;
    let Some(subscription) = purchase.subscription else {
        return Ok(());
    };
    let begun = sqlx::query_scalar!(
        "SELECT purchase_id FROM purchases WHERE subscription_id = $1 AND state = 'granted' ORDER BY starts_at",
        subscription.0,
    )
    .fetch_all(&mut **tx)
    .await?;
    for id in begun {
        let period = lock(tx, PurchaseId(id)).await?;
        let period = period.filter(|it| it.state == PurchaseState::Granted);
        if let Some(period) = period {
            end_early(tx, &period, (Finality::EndedByBuyer, now), now).await?;
        }
    }
    Ok(subscriptions::end(tx, subscription, SubscriptionEnd::Cancelled, now).await?)
}

/// Charges a granted purchase, of which time passed until `at`.
pub(super) async fn settle(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    because: Finality,
    at: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<Option<ReceiptId>, EndError> {
    let block = datasets::block(tx, purchase.dataset).await?;
    // Nobody pays for the time of a block.
    let at = match block {
        Some(block) if purchase.seconds.is_some() => at.min(block.since),
        _ => at,
    };
    let minimum_seconds = minimum_seconds(tx, purchase, because).await?;
    let sale = sale(purchase, minimum_seconds, at);
    let charged = match &sale {
        Some(sale) => sale.gross().ok_or(BillError::TooLarge)?,
        None => Amount::ZERO,
    };
    let receipt = match (sale, purchase.payer, purchase.split) {
        (Some(sale), Some(payer), Some(split)) if !purchase.amount.is_zero() => {
            let it = FinalSale {
                of: Sold::Purchase(purchase.id, sale),
                account: purchase.account,
                payer,
                asset_id: purchase.asset_id,
                split,
                held_back: block.is_some().then_some(Proceeds {
                    of: Earned::Sale(purchase.id),
                    dataset: purchase.dataset,
                    asset_id: purchase.asset_id,
                    payer,
                }),
                sold: sold(tx, purchase).await?,
                documents: Documents {
                    right: right(purchase),
                    finality: finality(purchase.id, because, at),
                },
            };
            sales::charge(tx, &it, now).await?
        }
        _ => None,
    };
    sqlx::query!(
        "UPDATE purchases SET state = 'settled', charged_base = $2, final_because = $3, ended_at = $4 WHERE purchase_id = $1",
        purchase.id.0,
        to_numeric(charged),
        because.as_str(),
        at,
    )
    .execute(&mut **tx)
    .await?;
    Ok(receipt)
}

/// The seconds that are charged at least: those of its offer, where its buyer ends what was read. A takedown is nobody's choice who paid.
async fn minimum_seconds(
    conn: &mut PgConnection,
    purchase: &Purchase,
    because: Finality,
) -> sqlx::Result<u32> {
    if purchase.minimum_seconds == 0 || !because.is_buyers_choice() {
        return Ok(0);
    }
    let was_read = dataset_servings::has_begun(conn, purchase.id).await?;
    Ok(if was_read {
        purchase.minimum_seconds
    } else {
        0
    })
}

/// What a purchase that ends at `at` costs; `None` of what costs nothing.
fn sale(purchase: &Purchase, minimum_seconds: u32, at: OffsetDateTime) -> Option<Sale> {
    let kind = SaleKind::of(purchase.kind)?;
    let time = purchase.seconds.map(|agreed_seconds| {
        let passed = purchase
            .starts_at
            .map_or(0, |from| (at - from).whole_seconds());
        let used = u32::try_from(passed.max(0)).unwrap_or(u32::MAX);
        Time {
            agreed_seconds,
            used_seconds: used.min(agreed_seconds),
            minimum_seconds,
        }
    });
    Some(Sale {
        kind,
        offer: purchase.offer,
        price_number: purchase.price_number.cast_unsigned(),
        price: purchase.price,
        time,
    })
}

/// The manifest's root of what was sold: the version, or the newest one.
async fn sold(conn: &mut PgConnection, purchase: &Purchase) -> Result<Sha256, EndError> {
    let root = sqlx::query_scalar!(
        r#"SELECT manifest_root AS "root!" FROM dataset_versions
           WHERE dataset_id = $1 AND number IS NOT NULL AND ($2::uuid IS NULL OR version_id = $2) ORDER BY number DESC LIMIT 1"#,
        purchase.dataset.0,
        purchase.version.map(|it| it.0),
    )
    .fetch_one(conn)
    .await?;
    Ok(to_digest("manifest_root", &root)?)
}

/// The right that was given.
fn right(purchase: &Purchase) -> Value {
    json!({
        "allows": purchase.kind.allows(),
        "buyer": purchase.account,
        "dataset": purchase.dataset,
        "from": purchase.starts_at.map(text),
        "purchase": purchase.id,
        "until": purchase.ends_at.map(text),
        "version": purchase.version,
    })
}

/// What made a sale final.
fn finality(purchase: PurchaseId, because: Finality, at: OffsetDateTime) -> Value {
    json!({ "at": text(at), "because": because, "purchase": purchase })
}

fn text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339)
        .expect("times of the service are within the calendar")
}

/// Ends a purchase without a charge.
pub(super) async fn give_back(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    state: PurchaseState,
    reason: Option<&str>,
    now: OffsetDateTime,
) -> Result<(), EndError> {
    if !purchase.amount.is_zero() {
        holds::release(tx, HoldSource::Purchase(purchase.id), now).await?;
    }
    sqlx::query!(
        "UPDATE purchases SET state = $2, reason = $3, ended_at = $4 WHERE purchase_id = $1",
        purchase.id.0,
        state.as_str(),
        reason,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn end_right(
    tx: &mut PgTransaction<'_>,
    purchase: PurchaseId,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE entitlements SET ended_at = $2 WHERE purchase_id = $1 AND ended_at IS NULL",
        purchase.0,
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}
