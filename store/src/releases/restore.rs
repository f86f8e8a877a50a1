//! After a restored backup: what the contract's last batch says was released is released again.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use time::OffsetDateTime;

use super::{
    Release, Row,
    seal::{Move, save},
    veto,
};
use crate::{
    PgTransaction,
    ledger::{self, PostError},
};

/// Why the ledger was not brought to where the contract is.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The ledger does not have what was released to an account.
    #[error("{owner} was released {short} base units that the ledger does not have")]
    NotCovered {
        /// Whose.
        owner: Address,
        /// How much is missing.
        short: Amount,
    },
    /// The entry was refused.
    #[error("post what was released")]
    Post(#[from] PostError),
    /// A statement failed.
    #[error("release again")]
    Database(#[from] sqlx::Error),
}

/// Brings what each account was released up to what a batch on the chain says: first from its queued releases, oldest first,
/// then from what it has available. In one entry that `seal` names; returns how much was moved.
///
/// # Errors
/// When an account has less than was released to it.
pub async fn release_again(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    said: &[(Address, Amount)],
    seal: &str,
    now: OffsetDateTime,
) -> Result<Amount, RestoreError> {
    let before = ledger::all_owner_balances(tx, asset_id).await?;
    let missing: BTreeMap<_, _> = said
        .iter()
        .filter_map(|(owner, said)| {
            let has = before.get(owner).map_or(Amount::ZERO, |it| it.payable);
            let missing = said.checked_sub(has)?;
            (!missing.is_zero()).then_some((*owner, missing))
        })
        .collect();
    let accounts = missing.keys().flat_map(|owner| {
        [
            AccountKey::Available(*owner),
            AccountKey::Held(*owner),
            AccountKey::Payable(*owner),
            AccountKey::Fees,
        ]
    });
    ledger::lock(tx, asset_id, accounts).await?;
    let balances = ledger::all_owner_balances(tx, asset_id).await?;
    let mut fees = ledger::house_balances(tx, asset_id).await?.fees;
    let queued = queued_of_all(tx, asset_id, missing.keys()).await?;
    let mut lines = Lines::default();
    let mut steps = Vec::new();
    let mut moved = Amount::ZERO;
    for (owner, mut left) in missing {
        let mut has = balances.get(&owner).copied().unwrap_or_default();
        for release in queued.iter().filter(|it| it.owner == owner) {
            let from = release.kind.from(owner);
            let source = match from {
                AccountKey::Fees => &mut fees,
                AccountKey::Held(_) => &mut has.held,
                _ => &mut has.available,
            };
            let wants = release
                .amount
                .checked_sub(release.released)
                .expect("`releases_not_more`");
            let part = wants.min(*source).min(left);
            *source = source.checked_sub(part).expect("at most what it has");
            left = left.checked_sub(part).expect("at most what is missing");
            lines = take(lines, from, owner, part);
            steps.push(Move {
                release: *release,
                moved: part,
                ended: part == wants,
            });
        }
        let short = left.checked_sub(has.available).unwrap_or_default();
        if !short.is_zero() {
            return Err(RestoreError::NotCovered { owner, short });
        }
        lines = take(lines, AccountKey::Available(owner), owner, left);
        moved = Amount::sum([moved, left]).expect("at most what was deposited");
    }
    steps.retain(|it| !it.moved.is_zero());
    save(tx, &steps, now).await?;
    let all = steps.iter().map(|it| it.moved).chain([moved]);
    let moved = Amount::sum(all).expect("at most what was deposited");
    if !moved.is_zero() {
        let source = Source::Seal(seal.to_owned());
        let entry = lines
            .into_entry(EntryKind::Release, source)
            .map_err(PostError::from)?;
        let entry = ledger::post_locked(tx, asset_id, &entry, now).await?;
        let parts: Vec<_> = steps.iter().map(|it| (it.release.id, it.moved)).collect();
        veto::note(tx, asset_id, entry, &parts).await?;
    }
    Ok(moved)
}

fn take(lines: Lines, from: AccountKey, owner: Address, amount: Amount) -> Lines {
    lines
        .debit(from, amount)
        .credit(AccountKey::Payable(owner), amount)
}

async fn queued_of_all(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    owners: impl Iterator<Item = &Address>,
) -> sqlx::Result<Vec<Release>> {
    let owners: Vec<_> = owners.map(|owner| owner.to_vec()).collect();
    let rows = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE asset_id = $1 AND state = 'queued' AND owner = ANY ($2) ORDER BY release_id",
        asset_id,
        &owners,
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}
