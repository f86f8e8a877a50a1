//! Taking an offer: the hold, the purchase and the right, all or nothing. One at a time for each buyer, so that nobody pays twice for
//! what is his already, and rentals follow one another.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{
        AccountId, ApiKeyId, DatasetId, DatasetVersionId, OfferId, PurchaseId, SplitVersionId,
        SubscriptionId, TakedownId,
    },
    offer::OfferKind,
    purchase::{DELIVERY_SECONDS, Finality, PurchaseState},
    split::{InvalidSplit, Split},
};
use time::{Duration, OffsetDateTime};

use super::{EndError, Purchase, end, lock};
use crate::{
    PgTransaction, accounts, assets,
    codec::to_numeric,
    holds::{self, Hold, HoldError, HoldSource},
    offers::Offer,
    payees,
    spending::{AboveSpendLimit, Budgets},
    splits, subscriptions,
};

/// An offer that is to be taken.
#[derive(Debug, Clone)]
pub struct NewPurchase {
    /// The buyer.
    pub account: AccountId,
    /// The buyer's bound address.
    pub payer: Option<Address>,
    /// The API key that it is counted against; `None` where that has no limit.
    pub spender: Option<ApiKeyId>,
    /// The offer, as the buyer may see it.
    pub offer: Offer,
    /// What the buyer expects to be held.
    pub expected: Amount,
    /// How long a rental lasts, in seconds.
    pub seconds: Option<u32>,
    /// The most that a period of a subscription may cost.
    pub cap: Option<Amount>,
    /// Words to the seller of a gated offer.
    pub note: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The purchase.
    pub id: PurchaseId,
}

/// Why an offer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is the buyer's own.
    #[error("the dataset is the buyer's own")]
    Own,
    /// The buyer has it for good already.
    #[error("the buyer has it already, by {0}")]
    Owned(PurchaseId),
    /// The buyer's request waits for an answer.
    #[error("the buyer has asked already, with {0}")]
    Requested(PurchaseId),
    /// The buyer has a subscription of this offer.
    #[error("the buyer subscribes already, by {0}")]
    Subscribed(SubscriptionId),
    /// It costs something else than was expected.
    #[error("it costs {0} base units")]
    PriceChanged(Amount),
    /// It is above every amount.
    #[error("it costs more than any amount")]
    TooDear,
    /// No version of what it offers is ready.
    #[error("nothing of it is ready")]
    NothingReady,
    /// The offer is closed, its dataset is not listed, or its seller is frozen.
    #[error("it is not on sale")]
    NotOnSale,
    /// Its dataset is blocked.
    #[error("{0} blocks it")]
    Blocked(TakedownId),
    /// Whoever computes on it names it in a job; there is nothing to take.
    #[error("there is nothing to take: jobs name the dataset")]
    NothingToTake,
    /// Rented time would reach further than the offer lets.
    #[error("the rental would last longer than {0} seconds from now")]
    TooLong(u32),
    /// The first period costs more than the buyer allows.
    #[error("a period costs {0} base units, above the cap")]
    AboveCap(Amount),
    /// Nobody can be paid: the buyer or the seller has no address.
    #[error("the {0} has no address")]
    NoAddress(&'static str),
    /// More than the API key may spend.
    #[error("the purchase holds more than the key may still spend")]
    AboveSpendLimit(#[from] AboveSpendLimit),
    /// The money could not be held.
    #[error("hold the price")]
    Hold(#[from] HoldError),
    /// Nobody can share it.
    #[error("split the price")]
    Split(#[from] InvalidSplit),
    /// What costs nothing could not be ended.
    #[error("end a purchase that costs nothing")]
    End(#[from] EndError),
    /// No asset.
    #[error("read the asset")]
    Asset(#[from] assets::AssetError),
    /// A statement failed.
    #[error("take an offer")]
    Database(#[from] sqlx::Error),
}

/// Takes an offer. The transaction must be one that sees everybody ([`crate::tenant::widen`]): it pays the seller.
///
/// # Errors
/// When it is not taken; the caller rolls back.
pub async fn take(
    tx: &mut PgTransaction<'_>,
    new: &NewPurchase,
    now: OffsetDateTime,
) -> Result<Taken, TakeError> {
    let (offer, terms) = (&new.offer, &new.offer.terms);
    accounts::lock(tx, new.account).await?;
    if offer.account == new.account {
        return Err(TakeError::Own);
    }
    require_on_sale(tx, offer).await?;
    require_ready(tx, (offer.dataset, terms.version)).await?;
    if terms.kind == OfferKind::ComputeOnly && terms.answer_seconds.is_none() {
        return Err(TakeError::NothingToTake);
    }
    refuse_again(tx, new, now).await?;
    let seconds = match terms.kind {
        OfferKind::Subscribe => terms.period_seconds,
        _ => new.seconds,
    };
    let held = terms.held(offer.price.amount, seconds);
    let held = held.ok_or(TakeError::TooDear)?;
    if held != new.expected {
        return Err(TakeError::PriceChanged(held));
    }
    let subscription = match terms.kind {
        OfferKind::Subscribe => {
            let cap = new.cap.unwrap_or(held);
            if held > cap {
                return Err(TakeError::AboveCap(held));
            }
            let by = (new.account, new.spender);
            Some(subscriptions::create(tx, by, offer.id, cap, now).await?)
        }
        _ => None,
    };
    let period = Period {
        account: new.account,
        payer: new.payer,
        spender: new.spender,
        offer,
        held,
        seconds,
        subscription,
        note: new.note.as_deref(),
        starts_at: starts_at(tx, new, now).await?,
    };
    let id = begin(tx, &period, terms.answer_seconds, now).await?;
    Ok(Taken { id })
}

/// The offer is open, its dataset listed and not blocked, and its seller not frozen. None of the offer and the dataset changes until the end of the
/// transaction.
async fn require_on_sale(tx: &mut PgTransaction<'_>, offer: &Offer) -> Result<(), TakeError> {
    let found = sqlx::query!(
        r#"SELECT is_on_sale(o, d) AS "is_on_sale!", d.blocked_by
           FROM offers o JOIN datasets d USING (dataset_id) WHERE offer_id = $1 FOR SHARE"#,
        offer.id.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    let Some(found) = found else {
        return Err(TakeError::NotOnSale);
    };
    match (found.blocked_by, found.is_on_sale) {
        (Some(takedown), _) => Err(TakeError::Blocked(TakedownId(takedown))),
        (None, true) => Ok(()),
        (None, false) => Err(TakeError::NotOnSale),
    }
}

/// What is sold is there: the version, or the newest one where none is named, is not shredded before the transaction ends.
pub(super) async fn require_ready(
    tx: &mut PgTransaction<'_>,
    (dataset, version): (DatasetId, Option<DatasetVersionId>),
) -> Result<(), TakeError> {
    let ready = sqlx::query_scalar!(
        "SELECT version_id FROM dataset_versions WHERE dataset_id = $1 AND state = 'ready' AND ($2::uuid IS NULL OR version_id = $2)
         ORDER BY number DESC LIMIT 1 FOR SHARE",
        dataset.0,
        version.map(|it| it.0),
    )
    .fetch_optional(&mut **tx)
    .await?;
    ready.map(drop).ok_or(TakeError::NothingReady)
}

/// Refuses what the buyer has for good, asked for, or subscribes to.
async fn refuse_again(
    tx: &mut PgTransaction<'_>,
    new: &NewPurchase,
    now: OffsetDateTime,
) -> Result<(), TakeError> {
    let offer = &new.offer;
    let asked = sqlx::query_scalar!(
        "SELECT purchase_id FROM purchases WHERE account_id = $1 AND offer_id = $2 AND state = 'requested'",
        new.account.0,
        offer.id.0,
    )
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(asked) = asked {
        return Err(TakeError::Requested(PurchaseId(asked)));
    }
    if let Some(standing) = subscriptions::standing(tx, new.account, offer.id).await? {
        return Err(TakeError::Subscribed(standing));
    }
    let it = (offer.dataset, offer.terms.version, offer.terms.kind);
    let owned = owned(tx, new.account, it, now).await?;
    owned.map_or(Ok(()), |owned| Err(TakeError::Owned(owned)))
}

/// The purchase by which the buyer has for good at least what such an offer is about.
pub(crate) async fn owned(
    tx: &mut PgTransaction<'_>,
    buyer: AccountId,
    (dataset, version, kind): (DatasetId, Option<DatasetVersionId>, OfferKind),
    now: OffsetDateTime,
) -> sqlx::Result<Option<PurchaseId>> {
    let owned = sqlx::query_scalar!(
        r#"SELECT purchase_id AS "purchase_id!" FROM entitlements
         WHERE purchase_id IS NOT NULL AND account_id = $1 AND dataset_id = $2 AND ended_at IS NULL AND ends_at IS NULL AND starts_at <= $5
             AND (version_id IS NULL OR version_id = $3) AND (allows = 'download' OR allows = $4)
         LIMIT 1"#,
        buyer.0,
        dataset.0,
        version.map(|it| it.0),
        kind.allows().as_str(),
        now,
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(owned.map(PurchaseId))
}

/// When something that is taken begins, unless that is a rental which reaches further than the offer lets.
async fn starts_at(
    tx: &mut PgTransaction<'_>,
    new: &NewPurchase,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, TakeError> {
    let (offer, terms) = (&new.offer, &new.offer.terms);
    let of = (new.account, offer.dataset, offer.id);
    let starts_at = begins_at(tx, of, (terms.kind, new.seconds), now).await?;
    let (OfferKind::Rent, Some(seconds), Some(longest)) =
        (terms.kind, new.seconds, terms.period_seconds)
    else {
        return Ok(starts_at);
    };
    let after = |from: OffsetDateTime, seconds: u32| {
        from.saturating_add(Duration::seconds(i64::from(seconds)))
    };
    if after(starts_at, seconds) > after(now, longest) {
        return Err(TakeError::TooLong(longest));
    }
    Ok(starts_at)
}

/// A rental begins as soon as it overlaps no other one of the same offer: now, or when one of those ends. Everything else begins now. The buyer's
/// account is locked.
pub(super) async fn begins_at(
    tx: &mut PgTransaction<'_>,
    (buyer, dataset, offer): (AccountId, DatasetId, OfferId),
    (kind, seconds): (OfferKind, Option<u32>),
    now: OffsetDateTime,
) -> sqlx::Result<OffsetDateTime> {
    let (OfferKind::Rent, Some(seconds)) = (kind, seconds) else {
        return Ok(now);
    };
    let free_from = sqlx::query_scalar!(
        r#"WITH rented AS (
               SELECT e.starts_at, e.ends_at FROM entitlements e JOIN purchases p USING (purchase_id)
               WHERE e.account_id = $1 AND e.dataset_id = $2 AND e.ended_at IS NULL AND p.offer_id = $3 AND e.ends_at > $4
           )
           SELECT min(it.at) AS "at!" FROM (SELECT $4::timestamptz UNION ALL SELECT ends_at FROM rented) AS it (at)
           WHERE NOT EXISTS (SELECT FROM rented WHERE starts_at < it.at + $5::float8 * interval '1 s' AND ends_at > it.at)"#,
        buyer.0,
        dataset.0,
        offer.0,
        now,
        f64::from(seconds),
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(free_from)
}

/// A purchase that is to be written.
pub(crate) struct Period<'a> {
    pub account: AccountId,
    pub payer: Option<Address>,
    pub spender: Option<ApiKeyId>,
    pub offer: &'a Offer,
    pub held: Amount,
    pub seconds: Option<u32>,
    pub subscription: Option<SubscriptionId>,
    pub note: Option<&'a str>,
    pub starts_at: OffsetDateTime,
}

/// Writes the next period of a subscription, which nobody has to approve again.
pub(crate) async fn begin_period(
    tx: &mut PgTransaction<'_>,
    period: &Period<'_>,
    now: OffsetDateTime,
) -> Result<PurchaseId, TakeError> {
    begin(tx, period, None, now).await
}

/// Writes a purchase: asked for, or granted.
async fn begin(
    tx: &mut PgTransaction<'_>,
    it: &Period<'_>,
    answer_seconds: Option<u32>,
    now: OffsetDateTime,
) -> Result<PurchaseId, TakeError> {
    let (id, offer) = (PurchaseId::generate(), it.offer);
    let split = match it.payer {
        _ if it.held.is_zero() => None,
        Some(_) => Some(split(tx, offer, now).await?),
        None => return Err(TakeError::NoAddress("buyer")),
    };
    let due = |seconds: u32| now.saturating_add(Duration::seconds(i64::from(seconds)));
    sqlx::query!(
        "INSERT INTO purchases (purchase_id, account_id, payer, asset_id, seller_id, dataset_id, version_id, offer_id, price_number, kind,
             subscription_id, state, amount_base, split_version_id, seconds, note, created_at, answer_due_at, starts_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'requested', $12, $13, $14, $15, $16, $17, $18)",
        id.0,
        it.account.0,
        it.payer.map(|it| it.to_vec()),
        offer.asset_id,
        offer.account.0,
        offer.dataset.0,
        offer.terms.version.map(|it| it.0),
        offer.id.0,
        offer.price.number,
        offer.terms.kind.as_str(),
        it.subscription.map(|it| it.0),
        to_numeric(it.held),
        split.map(|it| it.0),
        it.seconds.map(u32::cast_signed),
        it.note,
        now,
        answer_seconds.map(due),
        it.subscription.map(|_| it.starts_at),
    )
    .execute(&mut **tx)
    .await?;
    hold(tx, id, it, now).await?;
    if answer_seconds.is_none() {
        let purchase = lock(tx, id).await?.ok_or(sqlx::Error::RowNotFound)?;
        grant(tx, &purchase, it.starts_at, now).await?;
    }
    Ok(id)
}

/// Holds the price, within what the API key may spend.
async fn hold(
    tx: &mut PgTransaction<'_>,
    id: PurchaseId,
    it: &Period<'_>,
    now: OffsetDateTime,
) -> Result<(), TakeError> {
    if it.held.is_zero() {
        return Ok(());
    }
    let wanted = Hold {
        source: HoldSource::Purchase(id),
        owner: it.payer.ok_or(TakeError::NoAddress("buyer"))?,
        asset_id: it.offer.asset_id,
        amount: it.held,
    };
    let mut budgets = Budgets::lock(tx, it.spender, now).await?;
    if let Some(key) = it.spender {
        budgets.take(key, it.held)?;
    }
    holds::place(tx, &wanted, now).await?;
    let made = it.spender.map(|key| (key, wanted.source, it.held));
    Ok(budgets.keep(tx, made.as_slice()).await?)
}

/// Gives a buyer its right. What costs nothing is final at once; everything else stays held until something of it is read or its time is over.
pub(super) async fn grant(
    tx: &mut PgTransaction<'_>,
    purchase: &Purchase,
    starts_at: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<(), TakeError> {
    let after = |seconds: u32| starts_at.saturating_add(Duration::seconds(i64::from(seconds)));
    let ends_at = purchase.seconds.map(after);
    let final_at = ends_at.unwrap_or_else(|| after(purchase.refund_seconds.max(DELIVERY_SECONDS)));
    sqlx::query!(
        "UPDATE purchases SET state = 'granted', starts_at = $2, ends_at = $3, final_at = $4, granted_at = $5 WHERE purchase_id = $1",
        purchase.id.0,
        starts_at,
        ends_at,
        final_at,
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO entitlements (entitlement_id, account_id, dataset_id, version_id, purchase_id, allows, starts_at, ends_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        comptoir_domain::id::EntitlementId::generate().0,
        purchase.account.0,
        purchase.dataset.0,
        purchase.version.map(|it| it.0),
        purchase.id.0,
        purchase.kind.allows().as_str(),
        starts_at,
        ends_at,
        now,
    )
    .execute(&mut **tx)
    .await?;
    if purchase.seconds.is_none() && purchase.amount.is_zero() {
        let granted = Purchase {
            state: PurchaseState::Granted,
            starts_at: Some(starts_at),
            ends_at,
            final_at: Some(final_at),
            ..purchase.clone()
        };
        end::settle(tx, &granted, Finality::AtOnce, now, now).await?;
    }
    Ok(())
}

/// The version of the split that shares what this offer brings.
async fn split(
    tx: &mut PgTransaction<'_>,
    offer: &Offer,
    now: OffsetDateTime,
) -> Result<SplitVersionId, TakeError> {
    let platform = assets::platform(tx, offer.asset_id).await?;
    let payees = payees::of(tx, offer.dataset).await?;
    if payees.is_empty() {
        return Err(TakeError::NoAddress("seller"));
    }
    let split = Split::new(platform, offer.price.platform_ppm, &payees)?;
    Ok(splits::open_version(tx, offer.asset_id, &split, now).await?)
}
