//! Taking offers: the hold, the purchase and the right, all or nothing for each, in a few statements for all of a group. One at a time for each
//! buyer, so that nobody pays twice for what is his already, and rentals follow one another.

use std::collections::HashSet;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{
        AccountId, ApiKeyId, DatasetId, DatasetVersionId, OfferId, PurchaseId, SubscriptionId,
        TakedownId,
    },
    offer::OfferKind,
    split::InvalidSplit,
};
use time::{Duration, OffsetDateTime};

use super::{
    EndError, Purchase, Stall, find_all,
    stall::Stand,
    write::{Books, Period, write_all},
};
use crate::{PgTransaction, assets, codec, holds::HoldError, spending::AboveSpendLimit};

/// An offer that is to be taken.
#[derive(Debug, Clone)]
pub struct NewPurchase {
    /// The buyer.
    pub account: AccountId,
    /// The buyer's bound address.
    pub payer: Option<Address>,
    /// The API key that it is counted against; `None` where that has no limit.
    pub spender: Option<ApiKeyId>,
    /// The offer.
    pub offer: OfferId,
    /// What the buyer expects to be held.
    pub expected: Amount,
    /// How long a rental lasts, in seconds.
    pub seconds: Option<u32>,
    /// The most that a period of a subscription may cost.
    pub cap: Option<Amount>,
    /// Words to the seller of a gated offer.
    pub note: Option<String>,
}

/// Why an offer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// There is none that the buyer may know of.
    #[error("no such offer")]
    NoOffer,
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

impl TakeError {
    /// Is it what one buyer is told? Else the transaction is over.
    pub(super) const fn is_refusal(&self) -> bool {
        !matches!(self, Self::End(_) | Self::Asset(_) | Self::Database(_))
    }
}

/// Takes an offer. The transaction must be one that sees everybody ([`crate::tenant::widen`]): it pays the seller.
///
/// # Errors
/// When it is not taken; the caller rolls back.
pub async fn take(
    tx: &mut PgTransaction<'_>,
    new: &NewPurchase,
    now: OffsetDateTime,
) -> Result<Purchase, TakeError> {
    let stall = Stall::lock(tx, &[(new.account, new.offer)], now).await?;
    let taken = take_all(tx, &stall, std::slice::from_ref(new), now).await?;
    taken.into_iter().next().ok_or(TakeError::NoOffer)?
}

/// Takes offers of a stall, each with its own outcome: one that is refused does not concern the others.
///
/// # Errors
/// When a statement fails: then none is taken, and the transaction is over.
pub async fn take_all(
    tx: &mut PgTransaction<'_>,
    stall: &Stall,
    new: &[NewPurchase],
    now: OffsetDateTime,
) -> Result<Vec<Result<Purchase, TakeError>>, TakeError> {
    let mut books = Books::open(tx, new.iter().filter_map(|it| it.spender), now).await?;
    let mut outcomes: Vec<Option<Result<PurchaseId, TakeError>>> =
        new.iter().map(|_| None).collect();
    // What a buyer may take depends on what was taken before, so that each has one turn in a round.
    let mut waiting: Vec<usize> = (0..new.len()).collect();
    while !waiting.is_empty() {
        let mut buyers = HashSet::new();
        let (round, later): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|place| buyers.insert(new[*place].account));
        let wanted = round.iter().map(|place| &new[*place]);
        let wanted: Vec<_> = wanted
            .map(|new| (new, stall.find(new.account, new.offer)))
            .collect();
        let histories = histories(tx, &wanted, now).await?;
        let mut periods = Vec::with_capacity(round.len());
        for ((place, (new, stand)), history) in round.into_iter().zip(wanted).zip(histories) {
            match judge(tx, new, stand, history, now).await {
                Ok(period) => periods.push((place, period)),
                Err(refused) if refused.is_refusal() => outcomes[place] = Some(Err(refused)),
                Err(error) => return Err(error),
            }
        }
        for (place, outcome) in write_all(tx, &mut books, periods, now).await? {
            outcomes[place] = Some(outcome);
        }
        waiting = later;
    }
    read(tx, outcomes).await
}

/// What was taken, as it stands now.
async fn read(
    tx: &mut PgTransaction<'_>,
    outcomes: Vec<Option<Result<PurchaseId, TakeError>>>,
) -> Result<Vec<Result<Purchase, TakeError>>, TakeError> {
    let taken = outcomes.iter().flatten().filter_map(|it| it.as_ref().ok());
    let taken: Vec<_> = taken.copied().collect();
    let mut found = find_all(tx, &taken).await?;
    let mut purchase = |id| {
        let place = found.iter().position(|it: &Purchase| it.id == id);
        place
            .map(|place| found.swap_remove(place))
            .ok_or(TakeError::NoOffer)
    };
    let outcomes = outcomes.into_iter();
    Ok(outcomes
        .map(|outcome| outcome.unwrap_or(Err(TakeError::NoOffer)))
        .map(|outcome| outcome.and_then(&mut purchase))
        .collect())
}

/// What the buyer has to do with an offer already.
#[derive(Debug, Clone, Copy, Default)]
struct History {
    requested: Option<PurchaseId>,
    subscribed: Option<SubscriptionId>,
    owned: Option<PurchaseId>,
}

/// What is written when the offer is taken, unless it is refused.
async fn judge<'a>(
    tx: &mut PgTransaction<'_>,
    new: &'a NewPurchase,
    stand: Option<&'a Stand>,
    history: History,
    now: OffsetDateTime,
) -> Result<Period<'a>, TakeError> {
    let stand = stand.ok_or(TakeError::NoOffer)?;
    let (offer, terms) = (&stand.offer, &stand.offer.terms);
    if offer.account == new.account {
        return Err(TakeError::Own);
    }
    stand.require_on_sale()?;
    if terms.kind == OfferKind::ComputeOnly && terms.answer_seconds.is_none() {
        return Err(TakeError::NothingToTake);
    }
    history.refuse_again()?;
    let subscribes = terms.kind == OfferKind::Subscribe;
    let seconds = if subscribes {
        terms.period_seconds
    } else {
        new.seconds
    };
    let held = terms.held(offer.price.amount, seconds);
    let held = held.ok_or(TakeError::TooDear)?;
    if held != new.expected {
        return Err(TakeError::PriceChanged(held));
    }
    let cap = subscribes.then(|| new.cap.unwrap_or(held));
    if cap.is_some_and(|cap| held > cap) {
        return Err(TakeError::AboveCap(held));
    }
    Ok(Period {
        account: new.account,
        payer: new.payer,
        spender: new.spender,
        offer,
        payees: &stand.payees,
        held,
        seconds,
        subscription: cap.map(|cap| (SubscriptionId::generate(), Some(cap))),
        note: new.note.as_deref(),
        answer_seconds: terms.answer_seconds,
        starts_at: starts_at(tx, (new, stand), now).await?,
    })
}

impl History {
    /// Refuses what the buyer has for good, asked for, or subscribes to.
    fn refuse_again(self) -> Result<(), TakeError> {
        match self {
            Self {
                requested: Some(asked),
                ..
            } => Err(TakeError::Requested(asked)),
            Self {
                subscribed: Some(standing),
                ..
            } => Err(TakeError::Subscribed(standing)),
            Self {
                owned: Some(owned), ..
            } => Err(TakeError::Owned(owned)),
            Self { .. } => Ok(()),
        }
    }
}

/// What each buyer has to do with the offer that is wanted; nothing, where there is none.
async fn histories(
    tx: &mut PgTransaction<'_>,
    wanted: &[(&NewPurchase, Option<&Stand>)],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<History>> {
    let (mut buyers, mut offers, mut owning) = (vec![], vec![], vec![]);
    for (new, stand) in wanted {
        buyers.push(new.account.0);
        offers.push(new.offer.0);
        owning.push(stand.map(|it| {
            let offer = &it.offer;
            let what = (offer.dataset, offer.terms.version, offer.terms.kind);
            (new.account, what)
        }));
    }
    let rows = sqlx::query!(
        r#"SELECT place AS "place!",
             (SELECT purchase_id FROM purchases WHERE account_id = it.buyer AND offer_id = it.offer AND state = 'requested') AS requested,
             (SELECT subscription_id FROM subscriptions WHERE account_id = it.buyer AND offer_id = it.offer AND state <> 'ended' LIMIT 1) AS subscribed
           FROM UNNEST($1::uuid[], $2::uuid[]) WITH ORDINALITY AS it (buyer, offer, place)"#,
        &buyers,
        &offers,
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut histories = vec![History::default(); wanted.len()];
    for row in rows {
        let history = History {
            requested: row.requested.map(PurchaseId),
            subscribed: row.subscribed.map(SubscriptionId),
            owned: None,
        };
        codec::put(&mut histories, row.place, history);
    }
    let places: Vec<_> = (0..wanted.len())
        .filter(|it| owning[*it].is_some())
        .collect();
    let owning: Vec<_> = owning.into_iter().flatten().collect();
    for (place, owned) in places.into_iter().zip(owned_all(tx, &owning, now).await?) {
        histories[place].owned = owned;
    }
    Ok(histories)
}

/// What an offer is about.
type What = (DatasetId, Option<DatasetVersionId>, OfferKind);

/// The purchase by which the buyer has for good at least what such an offer is about.
pub(crate) async fn owned(
    tx: &mut PgTransaction<'_>,
    buyer: AccountId,
    what: What,
    now: OffsetDateTime,
) -> sqlx::Result<Option<PurchaseId>> {
    let owned = owned_all(tx, &[(buyer, what)], now).await?;
    Ok(owned.into_iter().next().flatten())
}

async fn owned_all(
    tx: &mut PgTransaction<'_>,
    asked: &[(AccountId, What)],
    now: OffsetDateTime,
) -> sqlx::Result<Vec<Option<PurchaseId>>> {
    let (mut buyers, mut datasets, mut versions, mut allows) = (vec![], vec![], vec![], vec![]);
    for (buyer, (dataset, version, kind)) in asked {
        buyers.push(buyer.0);
        datasets.push(dataset.0);
        versions.push(version.map(|it| it.0));
        allows.push(kind.allows().as_str().to_owned());
    }
    let rows = sqlx::query!(
        r#"SELECT place AS "place!", e.purchase_id AS "purchase_id!"
           FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::text[]) WITH ORDINALITY AS it (buyer, dataset, version, allows, place)
           CROSS JOIN LATERAL (
               SELECT purchase_id FROM entitlements AS e
               WHERE purchase_id IS NOT NULL AND account_id = it.buyer AND dataset_id = it.dataset AND ended_at IS NULL AND ends_at IS NULL AND starts_at <= $5
                   AND (version_id IS NULL OR version_id = it.version) AND (e.allows = 'download' OR e.allows = it.allows)
               LIMIT 1
           ) e"#,
        &buyers,
        &datasets,
        &versions as &[Option<uuid::Uuid>],
        &allows,
        now,
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut owned = vec![None; asked.len()];
    for row in rows {
        codec::put(&mut owned, row.place, Some(PurchaseId(row.purchase_id)));
    }
    Ok(owned)
}

/// When something that is taken begins, unless that is a rental which reaches further than the offer lets.
async fn starts_at(
    tx: &mut PgTransaction<'_>,
    (new, stand): (&NewPurchase, &Stand),
    now: OffsetDateTime,
) -> Result<OffsetDateTime, TakeError> {
    let (offer, terms) = (&stand.offer, &stand.offer.terms);
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
