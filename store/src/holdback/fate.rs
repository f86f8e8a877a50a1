//! What becomes of a share that is held back, and the entries that move it.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::JobId,
    ledger::{AccountKey, Earned, Entry, EntryKind, Lines, Source},
};
use time::OffsetDateTime;

use super::{HoldbackError, earning};
use crate::{
    PgTransaction, assets,
    ledger::{self, PostError},
    refunds, releases,
};

/// What becomes of held-back pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its owner may spend it.
    Released,
    /// It goes to the client that it came from; to the platform, as far as that gave it back to the client before.
    Forfeited,
}

impl Fate {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Forfeited => "forfeited",
        }
    }
}

/// A share of a charge that is held back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// What it was earned with.
    pub of: Earned,
    /// Who earned it.
    pub owner: Address,
    /// Who paid it.
    pub payer: Address,
    /// How much it is.
    pub amount: Amount,
}

impl Share {
    /// The job that it was earned with; nothing that was charged for a sale is ever refunded.
    const fn job(&self) -> Option<JobId> {
        match self.of {
            Earned::Work(job) | Earned::Data(job) => Some(job),
            Earned::Sale(_) => None,
        }
    }

    fn release(&self) -> Result<Entry, PostError> {
        let lines = Lines::default()
            .debit(AccountKey::HeldBack(self.owner), self.amount)
            .credit(AccountKey::Available(self.owner), self.amount);
        let source = Source::HoldbackRelease(self.of, self.owner);
        Ok(lines.into_entry(EntryKind::HoldbackRelease, source)?)
    }

    /// Nobody gets back more than he paid: what was refunded before came from the platform, and goes there.
    fn forfeit(
        &self,
        left: &mut BTreeMap<JobId, Amount>,
        platform: Address,
    ) -> Result<Entry, PostError> {
        let back = match self.job().map(|job| left.entry(job).or_default()) {
            Some(left) => {
                let back = self.amount.min(*left);
                *left = left.checked_sub(back).expect("at most what is left");
                back
            }
            None => self.amount,
        };
        let rest = self.amount.checked_sub(back).expect("at most the amount");
        let lines = Lines::default()
            .debit(AccountKey::HeldBack(self.owner), self.amount)
            .credit(AccountKey::Available(self.payer), back)
            .credit(AccountKey::Available(platform), rest);
        let source = Source::Forfeit(self.of, self.owner);
        Ok(lines.into_entry(EntryKind::Forfeit, source)?)
    }
}

/// Moves shares of one asset; each has its money and its source to itself. The caller writes down that it happened.
pub(super) async fn move_shares(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    (fate, shares): (Fate, &[Share]),
    now: OffsetDateTime,
) -> Result<(), HoldbackError> {
    match fate {
        Fate::Released => release(tx, asset_id, shares, now).await,
        Fate::Forfeited => forfeit(tx, asset_id, shares, now).await,
    }
}

async fn release(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    shares: &[Share],
    now: OffsetDateTime,
) -> Result<(), HoldbackError> {
    let accounts = shares.iter().flat_map(|it| {
        [
            AccountKey::HeldBack(it.owner),
            AccountKey::Available(it.owner),
        ]
    });
    ledger::lock(tx, asset_id, accounts).await?;
    let entries = shares.iter().map(Share::release);
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    post(tx, asset_id, &entries, now).await?;
    let earned = shares.iter().map(|it| earning(it.owner, it.amount));
    Ok(releases::queue(tx, asset_id, &earned.collect::<Vec<_>>(), now).await?)
}

async fn forfeit(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    shares: &[Share],
    now: OffsetDateTime,
) -> Result<(), HoldbackError> {
    let platform = assets::platform(tx, asset_id).await?;
    let accounts = shares.iter().flat_map(|it| {
        [
            AccountKey::HeldBack(it.owner),
            AccountKey::Available(it.payer),
        ]
    });
    let own = AccountKey::Available(platform);
    ledger::lock(tx, asset_id, accounts.chain([own])).await?;
    // Read under the payers' locks: a refund of this moment, or another share of the job, is counted.
    let jobs: Vec<_> = shares.iter().filter_map(Share::job).collect();
    let mut left = refunds::left(tx, &jobs).await?;
    let entries = shares.iter().map(|it| it.forfeit(&mut left, platform));
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    Ok(post(tx, asset_id, &entries, now).await?)
}

async fn post(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    entries: &[Entry],
    now: OffsetDateTime,
) -> Result<(), PostError> {
    let posted = ledger::post_all_locked(tx, asset_id, entries, now).await?;
    if posted.iter().all(Option::is_some) {
        Ok(())
    } else {
        Err(PostError::AlreadyPosted)
    }
}
