//! What charges come to, and what they leave of a base unit for the next.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::Address;
use comptoir_domain::{
    atto::Atto,
    bill::{Bill, Billed},
    charge::ChargeCarry,
    id::SplitVersionId,
};
use sqlx::PgConnection;

use super::{ChargeError, shared::Shared};
use crate::{
    PgTransaction,
    codec::{to_address, to_numeric, to_wide, wide_to_numeric},
    splits,
};

/// Bills charges one after the other: what one leaves of a base unit, the next begins with.
pub(super) async fn bill(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    shared: &[Shared<'_>],
) -> Result<Vec<Billed>, ChargeError> {
    let (mut streams, mut versions) = (BTreeSet::new(), BTreeSet::new());
    for it in shared {
        streams.insert((it.charge.payer, it.charge.price.id));
        versions.insert(it.version);
        versions.extend(it.data.iter().map(|data| data.version));
    }
    let mut used = carries(tx, asset_id, &streams).await?;
    let mut standing: BTreeMap<SplitVersionId, Vec<u32>> = BTreeMap::new();
    for version in versions {
        let stored = splits::find(tx, version).await?.filter(|it| !it.closed);
        standing.insert(version, stored.ok_or(ChargeError::SplitClosed)?.carries);
    }
    let mut bills = Vec::with_capacity(shared.len());
    for it in shared {
        let before = used
            .entry((it.charge.payer, it.charge.price.id))
            .or_default();
        let carries = standing
            .get_mut(&it.version)
            .ok_or(ChargeError::SplitClosed)?;
        let billed = Bill::charge(
            (it.charge.meter, it.charge.price),
            *before,
            it.version,
            &it.split,
            carries,
        )?;
        *before = billed.carry;
        carries.clone_from(&billed.shared.carries);
        bills.push(add_data(it, billed, &mut standing)?);
    }
    save_carries(tx, asset_id, &used).await?;
    for (version, carries) in &standing {
        splits::save_carries(tx, *version, carries).await?;
    }
    Ok(bills)
}

/// Adds the data's side. Its split may be that of the work, if the same are paid in the same parts: then it goes on with what that left.
fn add_data(
    it: &Shared<'_>,
    billed: Billed,
    standing: &mut BTreeMap<SplitVersionId, Vec<u32>>,
) -> Result<Billed, ChargeError> {
    let Some(data) = &it.data else {
        return Ok(billed);
    };
    let carries = standing
        .get_mut(&data.version)
        .ok_or(ChargeError::SplitClosed)?;
    let billed = billed.with_data(data.terms, data.version, &data.split, carries)?;
    if let Some(shared) = &billed.data {
        carries.clone_from(&shared.carries);
    }
    Ok(billed)
}

/// What payers have used of price versions. Lock the payers' accounts first.
async fn carries(
    conn: &mut PgConnection,
    asset_id: i32,
    streams: &BTreeSet<(Address, i32)>,
) -> sqlx::Result<BTreeMap<(Address, i32), ChargeCarry>> {
    let (payers, versions): (Vec<_>, Vec<_>) = streams
        .iter()
        .map(|(payer, version)| (payer.to_vec(), *version))
        .unzip();
    let rows = sqlx::query!(
        "SELECT charge_carries.payer, price_version_id, cum_atto
         FROM UNNEST($2::bytea[], $3::integer[]) AS it (payer, version)
         JOIN charge_carries ON asset_id = $1 AND charge_carries.payer = it.payer AND price_version_id = it.version",
        asset_id,
        &payers,
        &versions,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let payer = to_address("payer", &row.payer)?;
            let used = Atto::from_atto(to_wide("cum_atto", &row.cum_atto)?)
                .ok_or_else(|| sqlx::Error::Decode("`cum_atto` is above every amount".into()))?;
            Ok(((payer, row.price_version_id), ChargeCarry::new(used)))
        })
        .collect()
}

async fn save_carries(
    conn: &mut PgConnection,
    asset_id: i32,
    carries: &BTreeMap<(Address, i32), ChargeCarry>,
) -> sqlx::Result<()> {
    let (mut payers, mut versions, mut used, mut charged) = (vec![], vec![], vec![], vec![]);
    for ((payer, version), carry) in carries {
        payers.push(payer.to_vec());
        versions.push(*version);
        used.push(wide_to_numeric(carry.used().atto()));
        charged.push(to_numeric(carry.charged()));
    }
    sqlx::query!(
        "INSERT INTO charge_carries (asset_id, payer, price_version_id, cum_atto, charged_base)
         SELECT $1, it.payer, it.version, it.used, it.charged
         FROM UNNEST($2::bytea[], $3::integer[], $4::numeric[], $5::numeric[]) AS it (payer, version, used, charged)
         ON CONFLICT (asset_id, payer, price_version_id)
         DO UPDATE SET cum_atto = excluded.cum_atto, charged_base = excluded.charged_base",
        asset_id,
        &payers,
        &versions,
        &used,
        &charged,
    )
    .execute(conn)
    .await
    .map(drop)
}
