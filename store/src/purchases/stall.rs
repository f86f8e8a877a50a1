//! Offers that are about to be taken, as they stand until the end of a transaction.

use std::collections::{BTreeSet, HashMap};

use comptoir_domain::id::{AccountId, DatasetId, DatasetVersionId, OfferId, TakedownId};
use time::OffsetDateTime;

use super::TakeError;
use crate::{
    PgTransaction, accounts, codec,
    offers::{self, Offer},
    payees::{self, Payees},
};

/// Offers, and whether they are on sale. Neither they nor their datasets change until the transaction ends, and the buyers take one thing at a time.
#[derive(Debug)]
pub struct Stall(HashMap<OfferId, Stand>);

/// An offer as it stands.
#[derive(Debug)]
pub struct Stand {
    /// The offer, with the price that counts.
    pub offer: Offer,
    /// The version that is offered, or the newest where none is named, which is not shredded before the transaction ends; `None`: none is ready.
    pub ready: Option<DatasetVersionId>,
    /// Who is paid; nobody where the seller has no address.
    pub(super) payees: Payees,
    was_listed: bool,
    is_on_sale: bool,
    blocked_by: Option<TakedownId>,
}

impl Stall {
    /// Locks buyers, and the offers that they take. The transaction must be one that sees everybody.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn lock(
        tx: &mut PgTransaction<'_>,
        wanted: &[(AccountId, OfferId)],
        now: OffsetDateTime,
    ) -> sqlx::Result<Self> {
        accounts::lock_all(tx, wanted.iter().map(|(buyer, _)| *buyer)).await?;
        let ids: BTreeSet<_> = wanted.iter().map(|(_, offer)| *offer).collect();
        let ids: Vec<_> = ids.into_iter().collect();
        let locked = lock_offers(tx, &ids).await?;
        let offers = offers::find_all(tx, &ids, now).await?;
        let offered: Vec<_> = offers
            .iter()
            .map(|it| (it.dataset, it.terms.version))
            .collect();
        let ready = ready(tx, &offered).await?;
        let datasets: BTreeSet<_> = offers.iter().map(|it| it.dataset).collect();
        let datasets: Vec<_> = datasets.into_iter().collect();
        let payees = payees::of_all(tx, &datasets).await?;
        let stands = offers.into_iter().zip(ready).filter_map(|(offer, ready)| {
            let locked = locked.get(&offer.id)?;
            let stand = Stand {
                ready,
                payees: payees.get(&offer.dataset).cloned().unwrap_or_default(),
                was_listed: locked.was_listed,
                is_on_sale: locked.is_on_sale,
                blocked_by: locked.blocked_by,
                offer,
            };
            Some((stand.offer.id, stand))
        });
        Ok(Self(stands.collect()))
    }

    /// An offer that the buyer may know of: that there is one of a dataset which was never listed is its seller's secret.
    #[must_use]
    pub fn find(&self, buyer: AccountId, offer: OfferId) -> Option<&Stand> {
        let stand = self.0.get(&offer)?;
        (stand.was_listed || stand.offer.account == buyer).then_some(stand)
    }
}

impl Stand {
    /// The offer is open, its dataset listed and not blocked, its seller not frozen, and something of it is ready.
    pub(super) fn require_on_sale(&self) -> Result<(), TakeError> {
        match (self.blocked_by, self.is_on_sale, self.ready) {
            (Some(takedown), ..) => Err(TakeError::Blocked(takedown)),
            (None, false, _) => Err(TakeError::NotOnSale),
            (None, true, None) => Err(TakeError::NothingReady),
            (None, true, Some(_)) => Ok(()),
        }
    }
}

struct Locked {
    was_listed: bool,
    is_on_sale: bool,
    blocked_by: Option<TakedownId>,
}

async fn lock_offers(
    tx: &mut PgTransaction<'_>,
    ids: &[OfferId],
) -> sqlx::Result<HashMap<OfferId, Locked>> {
    let ids: Vec<_> = ids.iter().map(|it| it.0).collect();
    let rows = sqlx::query!(
        r#"SELECT offer_id, d.state <> 'draft' AS "was_listed!", is_on_sale(o, d) AS "is_on_sale!", d.blocked_by
           FROM offers o JOIN datasets d USING (dataset_id) WHERE offer_id = ANY ($1) ORDER BY offer_id FOR SHARE"#,
        &ids,
    )
    .fetch_all(&mut **tx)
    .await?;
    let locked = rows.into_iter().map(|row| {
        let locked = Locked {
            was_listed: row.was_listed,
            is_on_sale: row.is_on_sale,
            blocked_by: row.blocked_by.map(TakedownId),
        };
        (OfferId(row.offer_id), locked)
    });
    Ok(locked.collect())
}

/// What is sold is there: the version, or the newest one where none is named, is not shredded before the transaction ends.
pub(super) async fn require_ready(
    tx: &mut PgTransaction<'_>,
    offered: (DatasetId, Option<DatasetVersionId>),
) -> Result<(), TakeError> {
    let ready = ready(tx, &[offered]).await?;
    let version = ready.into_iter().next().flatten();
    version.map(drop).ok_or(TakeError::NothingReady)
}

/// Of each dataset the version that is named, or the newest, if it is ready. It is not shredded before the transaction ends.
async fn ready(
    tx: &mut PgTransaction<'_>,
    offered: &[(DatasetId, Option<DatasetVersionId>)],
) -> sqlx::Result<Vec<Option<DatasetVersionId>>> {
    let datasets: Vec<_> = offered.iter().map(|(dataset, _)| dataset.0).collect();
    let versions = offered.iter().map(|(_, version)| version.map(|it| it.0));
    let versions: Vec<_> = versions.collect();
    let rows = sqlx::query!(
        r#"SELECT place AS "place!", v.version_id
           FROM UNNEST($1::uuid[], $2::uuid[]) WITH ORDINALITY AS it (dataset, version, place)
           CROSS JOIN LATERAL (
               SELECT version_id FROM dataset_versions
               WHERE dataset_id = it.dataset AND state = 'ready' AND (it.version IS NULL OR version_id = it.version)
               ORDER BY number DESC LIMIT 1 FOR SHARE
           ) v"#,
        &datasets,
        &versions as &[Option<uuid::Uuid>],
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut ready = vec![None; offered.len()];
    for row in rows {
        codec::put(
            &mut ready,
            row.place,
            Some(DatasetVersionId(row.version_id)),
        );
    }
    Ok(ready)
}
