//! Purchases as they are written: the money is held first, so that what cannot be paid leaves nothing behind.

use std::collections::HashMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{
        AccountId, ApiKeyId, DatasetId, DatasetVersionId, EntitlementId, PurchaseId,
        SplitVersionId, SubscriptionId,
    },
    offer::OfferKind,
    purchase::{DELIVERY_SECONDS, Finality, PurchaseState},
    split::Split,
};
use sqlx::types::BigDecimal;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Purchase, TakeError, end, find};
use crate::{
    PgTransaction, assets,
    codec::to_numeric,
    holds::{self, Hold, HoldSource},
    offers::Offer,
    payees::Payees,
    spending::Budgets,
    splits::OpenVersions,
    subscriptions,
};

/// A purchase that is to be written.
pub(crate) struct Period<'a> {
    pub account: AccountId,
    pub payer: Option<Address>,
    pub spender: Option<ApiKeyId>,
    pub offer: &'a Offer,
    pub payees: &'a Payees,
    pub held: Amount,
    pub seconds: Option<u32>,
    /// The subscription that it is a period of, and the most that one may cost where it begins with it.
    pub subscription: Option<(SubscriptionId, Option<Amount>)>,
    pub note: Option<&'a str>,
    /// How long its seller has to answer; `None`: it is granted at once.
    pub answer_seconds: Option<u32>,
    pub starts_at: OffsetDateTime,
}

/// What the purchases of a transaction are paid from and shared by.
pub(crate) struct Books {
    budgets: Budgets,
    versions: OpenVersions,
    platforms: HashMap<i32, Address>,
}

/// A purchase that was judged and priced.
struct Priced<'a> {
    id: PurchaseId,
    period: Period<'a>,
    split: Option<SplitVersionId>,
}

/// Writes the next period of a subscription, which nobody has to approve again.
pub(crate) async fn begin_period(
    tx: &mut PgTransaction<'_>,
    period: Period<'_>,
    now: OffsetDateTime,
) -> Result<PurchaseId, TakeError> {
    let mut books = Books::open(tx, period.spender, now).await?;
    let written = write_all(tx, &mut books, vec![(0, period)], now).await?;
    let (_, written) = written.into_iter().next().ok_or(TakeError::NoOffer)?;
    written
}

/// Writes purchases, asked for or granted, each with its own outcome.
///
/// # Errors
/// When a statement fails: then none is written, and the transaction is over.
pub(super) async fn write_all(
    tx: &mut PgTransaction<'_>,
    books: &mut Books,
    periods: Vec<(usize, Period<'_>)>,
    now: OffsetDateTime,
) -> Result<Vec<(usize, Result<PurchaseId, TakeError>)>, TakeError> {
    let (mut outcomes, mut priced) = (Vec::with_capacity(periods.len()), Vec::new());
    for (place, period) in periods {
        match books.price(tx, period, now).await {
            Ok(it) => priced.push((place, it)),
            Err(refused) if refused.is_refusal() => outcomes.push((place, Err(refused))),
            Err(error) => return Err(error),
        }
    }
    let covered = books.hold(tx, priced, &mut outcomes, now).await?;
    let covered_purchases: Vec<_> = covered.iter().map(|(_, it)| it).collect();
    open_subscriptions(tx, &covered_purchases, now).await?;
    insert(tx, &covered_purchases, now).await?;
    books.keep(tx, &covered_purchases).await?;
    let granted: Vec<_> = covered_purchases
        .iter()
        .filter_map(|it| it.grant())
        .collect();
    give_rights(tx, &granted, now).await?;
    outcomes.extend(covered.iter().map(|(place, it)| (*place, Ok(it.id))));
    Ok(outcomes)
}

impl Books {
    /// Locks what the keys may spend.
    pub(super) async fn open(
        tx: &mut PgTransaction<'_>,
        spenders: impl IntoIterator<Item = ApiKeyId>,
        now: OffsetDateTime,
    ) -> sqlx::Result<Self> {
        Ok(Self {
            budgets: Budgets::lock(tx, spenders, now).await?,
            versions: OpenVersions::default(),
            platforms: HashMap::new(),
        })
    }

    /// Finds who shares a price, and takes it out of what its key may spend.
    async fn price<'a>(
        &mut self,
        tx: &mut PgTransaction<'_>,
        period: Period<'a>,
        now: OffsetDateTime,
    ) -> Result<Priced<'a>, TakeError> {
        let split = if period.held.is_zero() {
            None
        } else {
            if period.payer.is_none() {
                return Err(TakeError::NoAddress("buyer"));
            }
            if period.payees.is_empty() {
                return Err(TakeError::NoAddress("seller"));
            }
            let asset = period.offer.asset_id;
            let platform = self.platform(tx, asset).await?;
            let split = Split::new(platform, period.offer.price.platform_ppm, period.payees)?;
            Some(self.versions.of(tx, asset, &split, now).await?)
        };
        if let Some(key) = period.spender {
            self.budgets.take(key, period.held)?;
        }
        let id = PurchaseId::generate();
        Ok(Priced { id, period, split })
    }

    async fn platform(
        &mut self,
        tx: &mut PgTransaction<'_>,
        asset: i32,
    ) -> Result<Address, TakeError> {
        if let Some(platform) = self.platforms.get(&asset) {
            return Ok(*platform);
        }
        let platform = assets::platform(tx, asset).await?;
        self.platforms.insert(asset, platform);
        Ok(platform)
    }

    /// Holds the prices; what is not covered gives its key back what was taken.
    async fn hold<'a>(
        &mut self,
        tx: &mut PgTransaction<'_>,
        priced: Vec<(usize, Priced<'a>)>,
        outcomes: &mut Vec<(usize, Result<PurchaseId, TakeError>)>,
        now: OffsetDateTime,
    ) -> Result<Vec<(usize, Priced<'a>)>, TakeError> {
        let wanted: Vec<Hold> = priced.iter().filter_map(|(_, it)| it.hold()).collect();
        let mut placed = holds::place_all(tx, &wanted, now).await?.into_iter();
        let mut covered = Vec::with_capacity(priced.len());
        for (place, it) in priced {
            let refused = match it.hold() {
                Some(_) => placed.next().and_then(Result::err),
                None => None,
            };
            let Some(refused) = refused else {
                covered.push((place, it));
                continue;
            };
            if let Some(key) = it.period.spender {
                self.budgets.give_back(key, it.period.held);
            }
            outcomes.push((place, Err(refused.into())));
        }
        Ok(covered)
    }

    /// Counts what was held against the keys.
    async fn keep(
        &self,
        tx: &mut PgTransaction<'_>,
        purchases: &[&Priced<'_>],
    ) -> sqlx::Result<()> {
        let held = purchases.iter().filter_map(|it| {
            let hold = it.hold()?;
            Some((it.period.spender?, hold.source, hold.amount))
        });
        let held: Vec<_> = held.collect();
        self.budgets.keep(tx, &held).await
    }
}

impl Priced<'_> {
    /// What is held for it; nothing for what is free.
    fn hold(&self) -> Option<Hold> {
        let owner = self.period.payer.filter(|_| !self.period.held.is_zero())?;
        Some(Hold {
            source: HoldSource::Purchase(self.id),
            owner,
            asset_id: self.period.offer.asset_id,
            amount: self.period.held,
        })
    }

    /// The right that it gives at once, where nobody has to be asked.
    fn grant(&self) -> Option<Grant> {
        let (period, offer) = (&self.period, self.period.offer);
        let is_granted = period.answer_seconds.is_none();
        is_granted.then(|| Grant {
            purchase: self.id,
            account: period.account,
            dataset: offer.dataset,
            version: offer.terms.version,
            kind: offer.terms.kind,
            seconds: period.seconds,
            refund_seconds: offer.terms.refund_seconds,
            is_free: period.held.is_zero(),
            starts_at: period.starts_at,
        })
    }
}

async fn open_subscriptions(
    tx: &mut PgTransaction<'_>,
    purchases: &[&Priced<'_>],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    for Priced { period, .. } in purchases {
        if let Some((id, Some(cap))) = period.subscription {
            let by = (period.account, period.spender);
            subscriptions::create(tx, id, by, (period.offer.id, cap), now).await?;
        }
    }
    Ok(())
}

/// Purchases as columns.
#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    accounts: Vec<Uuid>,
    payers: Vec<Option<Vec<u8>>>,
    assets: Vec<i32>,
    sellers: Vec<Uuid>,
    datasets: Vec<Uuid>,
    versions: Vec<Option<Uuid>>,
    offers: Vec<Uuid>,
    price_numbers: Vec<i32>,
    kinds: Vec<String>,
    subscriptions: Vec<Option<Uuid>>,
    amounts: Vec<BigDecimal>,
    splits: Vec<Option<Uuid>>,
    seconds: Vec<Option<i32>>,
    notes: Vec<Option<String>>,
    answers_due: Vec<Option<OffsetDateTime>>,
    states: Vec<String>,
    starts: Vec<Option<OffsetDateTime>>,
    ends: Vec<Option<OffsetDateTime>>,
    finals: Vec<Option<OffsetDateTime>>,
    granted: Vec<Option<OffsetDateTime>>,
}

impl Columns {
    fn push(&mut self, it: &Priced<'_>, now: OffsetDateTime) {
        let (period, offer) = (&it.period, it.period.offer);
        let due = |seconds: u32| now.saturating_add(Duration::seconds(i64::from(seconds)));
        self.ids.push(it.id.0);
        self.accounts.push(period.account.0);
        self.payers.push(period.payer.map(|it| it.to_vec()));
        self.assets.push(offer.asset_id);
        self.sellers.push(offer.account.0);
        self.datasets.push(offer.dataset.0);
        self.versions.push(offer.terms.version.map(|it| it.0));
        self.offers.push(offer.id.0);
        self.price_numbers.push(offer.price.number);
        self.kinds.push(offer.terms.kind.as_str().to_owned());
        self.subscriptions
            .push(period.subscription.map(|(id, _)| id.0));
        self.amounts.push(to_numeric(period.held));
        self.splits.push(it.split.map(|it| it.0));
        self.seconds.push(period.seconds.map(u32::cast_signed));
        self.notes.push(period.note.map(str::to_owned));
        self.answers_due.push(period.answer_seconds.map(due));
        let grant = it.grant();
        let state = match grant {
            Some(_) => PurchaseState::Granted,
            None => PurchaseState::Requested,
        };
        self.states.push(state.as_str().to_owned());
        // A period begins when it does, whenever it is granted.
        let begins = grant.is_some() || period.subscription.is_some();
        self.starts.push(begins.then_some(period.starts_at));
        self.ends.push(grant.as_ref().and_then(Grant::ends_at));
        self.finals.push(grant.as_ref().map(Grant::final_at));
        self.granted.push(grant.map(|_| now));
    }
}

async fn insert(
    tx: &mut PgTransaction<'_>,
    purchases: &[&Priced<'_>],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut columns = Columns::default();
    for it in purchases {
        columns.push(it, now);
    }
    sqlx::query!(
        "INSERT INTO purchases (purchase_id, account_id, payer, asset_id, seller_id, dataset_id, version_id, offer_id, price_number, kind,
             subscription_id, amount_base, split_version_id, seconds, note, answer_due_at, state, starts_at, ends_at, final_at, granted_at, created_at)
         SELECT it.*, $22
         FROM UNNEST($1::uuid[], $2::uuid[], $3::bytea[], $4::integer[], $5::uuid[], $6::uuid[], $7::uuid[], $8::uuid[], $9::integer[], $10::text[],
             $11::uuid[], $12::numeric[], $13::uuid[], $14::integer[], $15::text[], $16::timestamptz[], $17::text[],
             $18::timestamptz[], $19::timestamptz[], $20::timestamptz[], $21::timestamptz[]) AS it",
        &columns.ids,
        &columns.accounts,
        &columns.payers as &[Option<Vec<u8>>],
        &columns.assets,
        &columns.sellers,
        &columns.datasets,
        &columns.versions as &[Option<Uuid>],
        &columns.offers,
        &columns.price_numbers,
        &columns.kinds,
        &columns.subscriptions as &[Option<Uuid>],
        &columns.amounts,
        &columns.splits as &[Option<Uuid>],
        &columns.seconds as &[Option<i32>],
        &columns.notes as &[Option<String>],
        &columns.answers_due as &[Option<OffsetDateTime>],
        &columns.states,
        &columns.starts as &[Option<OffsetDateTime>],
        &columns.ends as &[Option<OffsetDateTime>],
        &columns.finals as &[Option<OffsetDateTime>],
        &columns.granted as &[Option<OffsetDateTime>],
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// A right that is to be given.
struct Grant {
    purchase: PurchaseId,
    account: AccountId,
    dataset: DatasetId,
    version: Option<DatasetVersionId>,
    kind: OfferKind,
    seconds: Option<u32>,
    refund_seconds: u32,
    is_free: bool,
    starts_at: OffsetDateTime,
}

impl Grant {
    fn after(&self, seconds: u32) -> OffsetDateTime {
        let lasting = Duration::seconds(i64::from(seconds));
        self.starts_at.saturating_add(lasting)
    }

    fn ends_at(&self) -> Option<OffsetDateTime> {
        self.seconds.map(|seconds| self.after(seconds))
    }

    /// When it is charged at the latest.
    fn final_at(&self) -> OffsetDateTime {
        let delivered = || self.after(self.refund_seconds.max(DELIVERY_SECONDS));
        self.ends_at().unwrap_or_else(delivered)
    }
}

/// Gives the buyer of a request its right.
pub(super) async fn grant(
    tx: &mut PgTransaction<'_>,
    request: &Purchase,
    starts_at: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<(), TakeError> {
    let grant = Grant {
        purchase: request.id,
        account: request.account,
        dataset: request.dataset,
        version: request.version,
        kind: request.kind,
        seconds: request.seconds,
        refund_seconds: request.refund_seconds,
        is_free: request.amount.is_zero(),
        starts_at,
    };
    sqlx::query!(
        "UPDATE purchases SET state = 'granted', starts_at = $2, ends_at = $3, final_at = $4, granted_at = $5 WHERE purchase_id = $1",
        grant.purchase.0,
        starts_at,
        grant.ends_at(),
        grant.final_at(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    give_rights(tx, &[grant], now).await
}

/// Gives buyers their rights. What costs nothing is final at once; everything else stays held until something of it is read or its time is over.
async fn give_rights(
    tx: &mut PgTransaction<'_>,
    grants: &[Grant],
    now: OffsetDateTime,
) -> Result<(), TakeError> {
    insert_entitlements(tx, grants, now).await?;
    let at_once = grants
        .iter()
        .filter(|it| it.is_free && it.seconds.is_none());
    for grant in at_once {
        let granted = find(tx, grant.purchase).await?;
        let granted = granted.ok_or(sqlx::Error::RowNotFound)?;
        end::settle(tx, &granted, Finality::AtOnce, now, now).await?;
    }
    Ok(())
}

async fn insert_entitlements(
    tx: &mut PgTransaction<'_>,
    grants: &[Grant],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let ids: Vec<_> = grants.iter().map(|_| EntitlementId::generate().0).collect();
    let accounts: Vec<_> = grants.iter().map(|it| it.account.0).collect();
    let datasets: Vec<_> = grants.iter().map(|it| it.dataset.0).collect();
    let versions: Vec<_> = grants.iter().map(|it| it.version.map(|it| it.0)).collect();
    let purchases: Vec<_> = grants.iter().map(|it| it.purchase.0).collect();
    let allows = grants.iter().map(|it| it.kind.allows().as_str().to_owned());
    let allows: Vec<_> = allows.collect();
    let starts: Vec<_> = grants.iter().map(|it| it.starts_at).collect();
    let ends: Vec<_> = grants.iter().map(Grant::ends_at).collect();
    sqlx::query!(
        "INSERT INTO entitlements (entitlement_id, account_id, dataset_id, version_id, purchase_id, allows, starts_at, ends_at, created_at)
         SELECT it.*, $9
         FROM UNNEST($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::timestamptz[], $8::timestamptz[]) AS it",
        &ids,
        &accounts,
        &datasets,
        &versions as &[Option<Uuid>],
        &purchases,
        &allows,
        &starts,
        &ends as &[Option<OffsetDateTime>],
        now,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}
