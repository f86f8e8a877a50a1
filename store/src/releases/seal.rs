//! What a seal releases.

use std::collections::BTreeMap;

use comptoir_domain::{
    amount::Amount,
    ledger::{AccountKey, EntryKind, Lines, Source},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Release, Row, queued, veto};
use crate::{
    PgTransaction,
    codec::{to_amount, to_numeric},
    ledger::{self, PostError},
};

/// Most rows that one call of [`release_queued`] takes.
pub const RELEASES_MAX: i64 = 2_000;

/// Moves what is queued to `payable`, oldest first, `at_most` in all and [`RELEASES_MAX`] rows at once, in one
/// entry that `seal` names. What it returns is how much it moved.
///
/// Wants READ COMMITTED: it waits for the accounts and then reads what they became.
///
/// # Errors
/// When the seal has its entry already, or a statement fails.
pub async fn release_queued(
    tx: &mut PgTransaction<'_>,
    asset_id: i32,
    seal: &str,
    at_most: Amount,
    now: OffsetDateTime,
) -> Result<Amount, PostError> {
    let waiting = queued(tx, asset_id, RELEASES_MAX).await?;
    let accounts = waiting
        .iter()
        .flat_map(|it| [it.kind.from(it.owner), AccountKey::Payable(it.owner)]);
    ledger::lock(tx, asset_id, accounts).await?;
    let ids: Vec<_> = waiting.iter().map(|it| it.id.0).collect();
    let steps = plan(tx, asset_id, &ids, at_most).await?;
    let mut lines = Lines::default();
    for it in &steps {
        let from = it.release.kind.from(it.release.owner);
        lines = lines
            .debit(from, it.moved)
            .credit(AccountKey::Payable(it.release.owner), it.moved);
    }
    save(tx, &steps, now).await?;
    let moved = Amount::sum(steps.iter().map(|it| it.moved)).expect("at most `at_most`");
    if !moved.is_zero() {
        let entry = lines.into_entry(EntryKind::Release, Source::Seal(seal.to_owned()))?;
        let entry = ledger::post_locked(tx, asset_id, &entry, now).await?;
        let parts: Vec<_> = steps.iter().map(|it| (it.release.id, it.moved)).collect();
        veto::note(tx, asset_id, entry, &parts).await?;
    }
    Ok(moved)
}

/// What one seal does to one release.
pub(super) struct Move {
    pub release: Release,
    pub moved: Amount,
    /// Nothing of it waits any longer.
    pub ended: bool,
}

/// Decides under the locks on the accounts: each release takes what it wants, has and may.
async fn plan(
    conn: &mut PgConnection,
    asset_id: i32,
    ids: &[Uuid],
    at_most: Amount,
) -> sqlx::Result<Vec<Move>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT release_id, owner, kind, amount_base, released_base, state, created_at, released_at
         FROM releases WHERE release_id = ANY ($1) AND state = 'queued' ORDER BY release_id",
        ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    let releases = rows
        .into_iter()
        .map(Row::decode)
        .collect::<sqlx::Result<Vec<_>>>()?;
    let sources: Vec<_> = releases
        .iter()
        .map(|it| it.kind.from(it.owner).id(asset_id).0)
        .collect();
    let balances = sqlx::query!(
        "SELECT ledger_account_id, balance_base FROM ledger_accounts WHERE ledger_account_id = ANY ($1)",
        &sources,
    )
    .fetch_all(conn)
    .await?;
    let mut left = BTreeMap::new();
    for row in balances {
        left.insert(
            row.ledger_account_id,
            to_amount("balance_base", &row.balance_base)?,
        );
    }
    let mut allowed = at_most;
    let mut steps = Vec::with_capacity(releases.len());
    for (release, source) in releases.into_iter().zip(sources) {
        if allowed.is_zero() {
            break;
        }
        let has = left.entry(source).or_default();
        let wants = release
            .amount
            .checked_sub(release.released)
            .expect("`releases_not_more`")
            .min(*has);
        let moved = wants.min(allowed);
        *has = has.checked_sub(moved).expect("at most what it has");
        allowed = allowed.checked_sub(moved).expect("at most what is allowed");
        steps.push(Move {
            release,
            moved,
            ended: moved == wants,
        });
    }
    Ok(steps)
}

pub(super) async fn save(
    tx: &mut PgTransaction<'_>,
    steps: &[Move],
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let ids: Vec<_> = steps.iter().map(|it| it.release.id.0).collect();
    let moved: Vec<_> = steps.iter().map(|it| to_numeric(it.moved)).collect();
    let ended: Vec<_> = steps.iter().map(|it| it.ended).collect();
    sqlx::query!(
        "UPDATE releases SET
             released_base = released_base + it.moved,
             state = CASE WHEN NOT it.ended THEN 'queued' WHEN released_base + it.moved > 0 THEN 'released' ELSE 'cancelled' END,
             released_at = CASE WHEN it.ended AND released_base + it.moved > 0 THEN $4::timestamptz END
         FROM UNNEST($1::uuid[], $2::numeric[], $3::boolean[]) AS it (id, moved, ended)
         WHERE release_id = it.id",
        &ids,
        &moved,
        &ended,
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE holds SET
             moved_base = moved_base + it.moved,
             ended_at = CASE WHEN it.ended THEN $4::timestamptz END
         FROM UNNEST($1::uuid[], $2::numeric[], $3::boolean[]) AS it (id, moved, ended)
         WHERE source_kind = 'withdrawal' AND source_id = it.id",
        &ids,
        &moved,
        &ended,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
