//! Money on its way to be claimable: earnings and fees by themselves, withdrawals when they are asked for.
//! Each seal takes what is queued, oldest first, as far as the contract's caps allow.

mod restore;
mod seal;
mod veto;
mod withdrawals;

use alloy_primitives::Address;
use comptoir_domain::{amount::Amount, id::ReleaseId, split::Party};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::codec::{to_address, to_amount, to_enum, to_numeric};

pub use comptoir_domain::release::{ReleaseKind, ReleaseState};
pub use restore::{RestoreError, release_again};
pub use seal::{RELEASES_MAX, release_queued};
pub(crate) use veto::{come_to, give_back, note};
pub use withdrawals::{
    WithdrawalError, cancel_withdrawal, find_withdrawal, list_withdrawals, request_withdrawal,
};

/// Money on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// Its row.
    pub id: ReleaseId,
    /// Whose money.
    pub owner: Address,
    /// Where it comes from.
    pub kind: ReleaseKind,
    /// How much was asked for or earned.
    pub amount: Amount,
    /// How much is released so far.
    pub released: Amount,
    /// Where it stands.
    pub state: ReleaseState,
    /// When it was queued.
    pub created_at: OffsetDateTime,
    /// When the last part was released.
    pub released_at: Option<OffsetDateTime>,
}

/// What is to be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewRelease {
    pub owner: Address,
    pub kind: ReleaseKind,
    pub amount: Amount,
}

impl NewRelease {
    /// What a party is credited; `None` where that is nothing.
    pub(crate) fn of((party, credit): (&Party, &Amount)) -> Option<Self> {
        let kind = if party.platform {
            ReleaseKind::Fees
        } else {
            ReleaseKind::Earning
        };
        (!credit.is_zero()).then_some(Self {
            owner: party.payee,
            kind,
            amount: *credit,
        })
    }
}

/// Queues what payees and the platform earned, for those that want it released by itself: one release for all that one earned of a
/// kind. The platform wants it unless an account that is bound to its address says otherwise; its fees stay where they are while the house owes for
/// confirming runs.
pub(crate) async fn queue(
    conn: &mut PgConnection,
    asset_id: i32,
    earned: &[NewRelease],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let mut sums: Vec<((Address, &str), BigDecimal)> = Vec::new();
    for it in earned {
        let of = (it.owner, it.kind.as_str());
        match sums.iter_mut().find(|(known, _)| *known == of) {
            Some((_, sum)) => *sum += to_numeric(it.amount),
            None => sums.push((of, to_numeric(it.amount))),
        }
    }
    let ids: Vec<_> = sums.iter().map(|_| ReleaseId::generate().0).collect();
    let (mut owners, mut kinds, mut amounts) = (vec![], vec![], vec![]);
    for ((owner, kind), amount) in sums {
        owners.push(owner.to_vec());
        kinds.push(kind.to_owned());
        amounts.push(amount);
    }
    sqlx::query!(
        "INSERT INTO releases (release_id, asset_id, owner, kind, amount_base, created_at)
         SELECT it.id, $1, it.owner, it.kind, it.amount, $6
         FROM UNNEST($2::uuid[], $3::bytea[], $4::text[], $5::numeric[]) AS it (id, owner, kind, amount)
         LEFT JOIN accounts ON accounts.address = it.owner
         WHERE coalesce(accounts.auto_release, it.kind = 'fees')
             AND NOT (it.kind = 'fees' AND EXISTS (SELECT FROM audit_pays WHERE asset_id = $1 AND paid_at IS NULL))",
        asset_id,
        &ids,
        &owners,
        &kinds,
        &amounts,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What waits for a seal, oldest first.
///
/// # Errors
/// When the statement fails.
pub async fn queued(
    conn: &mut PgConnection,
    asset_id: i32,
    limit: i64,
) -> sqlx::Result<Vec<Release>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE asset_id = $1 AND state = 'queued' ORDER BY release_id LIMIT $2",
        asset_id,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Row::decode).collect()
}

/// What waits for a seal of one owner's.
///
/// # Errors
/// When the statement fails.
pub async fn queued_of(
    conn: &mut PgConnection,
    asset_id: i32,
    owner: Address,
) -> sqlx::Result<Amount> {
    let left = sqlx::query_scalar!(
        r#"SELECT coalesce(sum(amount_base - released_base), 0) AS "left!" FROM releases
           WHERE asset_id = $1 AND owner = $2 AND state = 'queued'"#,
        asset_id,
        owner.as_slice(),
    )
    .fetch_one(conn)
    .await?;
    to_amount("left", &left)
}

struct Row {
    release_id: Uuid,
    owner: Vec<u8>,
    kind: String,
    amount_base: BigDecimal,
    released_base: BigDecimal,
    state: String,
    created_at: OffsetDateTime,
    released_at: Option<OffsetDateTime>,
}

impl Row {
    fn decode(self) -> sqlx::Result<Release> {
        Ok(Release {
            id: ReleaseId(self.release_id),
            owner: to_address("owner", &self.owner)?,
            kind: to_enum("kind", &self.kind, ReleaseKind::parse)?,
            amount: to_amount("amount_base", &self.amount_base)?,
            released: to_amount("released_base", &self.released_base)?,
            state: to_enum("state", &self.state, ReleaseState::parse)?,
            created_at: self.created_at,
            released_at: self.released_at,
        })
    }
}
