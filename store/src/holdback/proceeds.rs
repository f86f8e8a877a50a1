//! Proceeds of datasets that are blocked: held back until the takedowns are decided, then released to who earned them, or forfeited to who paid.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::{DatasetId, JobId, PurchaseId},
    ledger::{AccountKey, Earned},
    policy::holdback::EXIT_MARGIN,
    split::{Shared, Split},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    AT_ONCE, Fate, HoldbackError,
    fate::{self, Share},
};
use crate::{
    PgTransaction,
    codec::{to_address, to_amount, to_numeric},
    queue::interval,
};

/// What was earned with a dataset that is blocked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proceeds {
    /// With what.
    pub of: Earned,
    /// The dataset.
    pub dataset: DatasetId,
    /// Row of `assets`.
    pub asset_id: i32,
    /// Who paid.
    pub payer: Address,
}

/// The account that a party's share of such a charge is credited to. The platform's waits like everybody's.
pub(crate) const fn account_of(payee: Address) -> AccountKey {
    AccountKey::HeldBack(payee)
}

/// Writes down what a charge holds back. Its money is in the parties' `held_back` already.
pub(crate) async fn keep(
    tx: &mut PgTransaction<'_>,
    it: Proceeds,
    (split, shared): (&Split, &Shared),
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut credits: BTreeMap<Address, Amount> = BTreeMap::new();
    for (party, credit) in split.parties().iter().zip(&shared.credits) {
        let sum = credits.entry(party.payee).or_insert(Amount::ZERO);
        *sum = sum
            .checked_add(*credit)
            .ok_or_else(|| sqlx::Error::Encode("a share is above every amount".into()))?;
    }
    let (kind, source) = match it.of {
        Earned::Sale(id) => ("purchase", id.0),
        Earned::Data(id) | Earned::Work(id) => ("job", id.0),
    };
    let credits = credits.into_iter().filter(|(_, amount)| !amount.is_zero());
    let (owners, amounts): (Vec<_>, Vec<_>) = credits
        .map(|(owner, amount)| (owner.to_vec(), to_numeric(amount)))
        .unzip();
    sqlx::query!(
        "INSERT INTO held_proceeds (source_kind, source_id, owner, dataset_id, asset_id, payer, amount_base, created_at)
         SELECT $1, $2, it.owner, $3, $4, $5, it.amount, $6 FROM UNNEST($7::bytea[], $8::numeric[]) AS it (owner, amount)",
        kind,
        source,
        it.dataset.0,
        it.asset_id,
        it.payer.as_slice(),
        now,
        &owners,
        &amounts,
    )
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// What is held back of a dataset's proceeds, over all assets: how many shares.
///
/// # Errors
/// When the statement fails.
pub async fn held(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "held!" FROM held_proceeds WHERE state = 'held'"#)
        .fetch_one(conn)
        .await
}

/// Datasets whose takedowns are decided, or one of whose payees is to have left soon, with proceeds that wait for it.
///
/// # Errors
/// When the statement fails.
pub async fn due(
    conn: &mut PgConnection,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<DatasetId>> {
    let rows = sqlx::query_scalar!(
        "SELECT DISTINCT dataset_id FROM held_proceeds WHERE state = 'held' AND NOT proceeds_wait(dataset_id, asset_id, owner, $2, $3)
         ORDER BY dataset_id LIMIT $1",
        limit,
        interval(EXIT_MARGIN),
        now,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(DatasetId).collect())
}

struct Held {
    kind: String,
    source: Uuid,
    owner: Address,
    payer: Address,
    asset_id: i32,
    amount: Amount,
}

impl Held {
    fn earned(&self) -> Earned {
        if self.kind == "purchase" {
            Earned::Sale(PurchaseId(self.source))
        } else {
            Earned::Data(JobId(self.source))
        }
    }
}

/// Moves some of what is held back of a dataset's proceeds, the oldest first, as its takedowns were decided; what they met, and how many shares
/// that was. While one of them is not, only what belongs to who is to have left soon: nobody's exit waits for an operator.
///
/// # Errors
/// When an entry is refused; the caller rolls back.
pub async fn move_due(
    tx: &mut PgTransaction<'_>,
    dataset: DatasetId,
    now: OffsetDateTime,
) -> Result<(Fate, usize), HoldbackError> {
    let (fate, held) = lock_due(tx, dataset, now).await?;
    let mut by_asset: BTreeMap<i32, Vec<Held>> = BTreeMap::new();
    let count = held.len();
    for it in held {
        by_asset.entry(it.asset_id).or_default().push(it);
    }
    for (asset_id, held) in by_asset {
        move_held(tx, asset_id, &held, fate, now).await?;
    }
    Ok((fate, count))
}

/// What is due, and its fate: both as of one moment, so that what was held back by a later freeze waits for the end of that one.
async fn lock_due(
    tx: &mut PgTransaction<'_>,
    dataset: DatasetId,
    now: OffsetDateTime,
) -> sqlx::Result<(Fate, Vec<Held>)> {
    let rows = sqlx::query!(
        r#"SELECT source_kind, source_id, owner, payer, asset_id, amount_base,
             EXISTS (SELECT FROM takedowns t WHERE t.dataset_id = $1 AND t.state = 'upheld') AS "is_upheld!"
           FROM held_proceeds h WHERE h.dataset_id = $1 AND h.state = 'held' AND NOT proceeds_wait(h.dataset_id, h.asset_id, h.owner, $3, $4)
           ORDER BY source_id, source_kind, owner LIMIT $2 FOR NO KEY UPDATE OF h SKIP LOCKED"#,
        dataset.0,
        AT_ONCE,
        interval(EXIT_MARGIN),
        now,
    )
    .fetch_all(&mut **tx)
    .await?;
    let fate = if rows.first().is_some_and(|it| it.is_upheld) {
        Fate::Forfeited
    } else {
        Fate::Released
    };
    let held = rows.into_iter().map(|row| {
        Ok(Held {
            kind: row.source_kind,
            source: row.source_id,
            owner: to_address("owner", &row.owner)?,
            payer: to_address("payer", &row.payer)?,
            asset_id: row.asset_id,
            amount: to_amount("amount_base", &row.amount_base)?,
        })
    });
    Ok((fate, held.collect::<sqlx::Result<_>>()?))
}

async fn move_held(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    held: &[Held],
    fate: Fate,
    now: OffsetDateTime,
) -> Result<(), HoldbackError> {
    let shares = held.iter().map(|it| Share {
        of: it.earned(),
        owner: it.owner,
        payer: it.payer,
        amount: it.amount,
    });
    let shares: Vec<_> = shares.collect();
    fate::move_shares(tx, asset_id, (fate, &shares), now).await?;
    let (mut kinds, mut sources, mut owners) = (vec![], vec![], vec![]);
    for it in held {
        kinds.push(it.kind.clone());
        sources.push(it.source);
        owners.push(it.owner.to_vec());
    }
    sqlx::query!(
        "UPDATE held_proceeds h SET state = $4, ended_at = $5
         FROM UNNEST($1::text[], $2::uuid[], $3::bytea[]) AS it (kind, source, owner)
         WHERE h.source_kind = it.kind AND h.source_id = it.source AND h.owner = it.owner",
        &kinds,
        &sources,
        &owners,
        fate.as_str(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
