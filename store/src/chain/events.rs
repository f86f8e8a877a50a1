//! What the contract's events leave behind: their own rows, deposits, claims and exits.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    id::DepositId,
    settlement::event::{Event, Logged},
};
use sqlx::types::BigDecimal;
use time::OffsetDateTime;

use super::FollowError;
use crate::{PgTransaction, codec::to_numeric};

/// A block that left the chain may come back: its events are then the same rows again.
pub(super) async fn record(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    logged: &Logged,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    let payload =
        serde_json::to_value(&logged.event).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "INSERT INTO chain_events (asset_id, block_hash, log_index, block_number, tx_hash, event_seq, kind, payload, seen_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (asset_id, block_hash, log_index) DO UPDATE SET orphaned_at = NULL",
        asset,
        logged.block_hash.as_slice(),
        logged.log_index.cast_signed(),
        logged.block_number.cast_signed(),
        logged.tx_hash.as_slice(),
        logged.event_seq.cast_signed(),
        logged.event.kind(),
        payload,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// What the event of a deposit says.
struct Arrival {
    owner: Address,
    sender: Address,
    deposit_seq: u64,
    amount: u128,
}

/// What a payment of the contract says.
struct Payment {
    kind: &'static str,
    owner: Address,
    batch: Option<u64>,
    amount: u128,
    cumulative: u128,
}

/// What an event changes besides its own row.
pub(super) async fn apply(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    logged: &Logged,
    now: OffsetDateTime,
) -> Result<(), FollowError> {
    match logged.event {
        Event::Deposited {
            account,
            from,
            deposit_seq,
            amount,
        } => {
            let deposit = Arrival {
                owner: account,
                sender: from,
                deposit_seq,
                amount,
            };
            show_deposit(tx, asset, logged, &deposit, now).await?;
        }
        Event::Claimed {
            account: owner,
            batch,
            amount,
            cumulative,
        } => {
            let payment = Payment {
                kind: "claimed",
                owner,
                batch: Some(batch),
                amount,
                cumulative,
            };
            pay_out(tx, asset, logged, &payment, now).await?;
        }
        Event::Escaped {
            account: owner,
            amount,
            cumulative,
        } => {
            let payment = Payment {
                kind: "escaped",
                owner,
                batch: None,
                amount,
                cumulative,
            };
            pay_out(tx, asset, logged, &payment, now).await?;
        }
        Event::ExitRequested { account, due_at } => {
            open_exit(tx, asset, logged, (account, due_at), now).await?;
        }
        Event::ExitAnswered { account } => {
            sqlx::query!(
                "UPDATE exits SET answered_block_number = $3
                 WHERE asset_id = $1 AND owner = $2 AND answered_block_number IS NULL",
                asset,
                account.as_slice(),
                logged.block_number.cast_signed(),
            )
            .execute(&mut **tx)
            .await?;
        }
        Event::BatchCommitted { .. }
        | Event::BatchCancelled { .. }
        | Event::Frozen
        | Event::Paused { .. }
        | Event::Other { .. } => {}
    }
    Ok(())
}

async fn show_deposit(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    logged: &Logged,
    deposit: &Arrival,
    now: OffsetDateTime,
) -> Result<(), FollowError> {
    sqlx::query!(
        "INSERT INTO deposits (deposit_id, asset_id, event_seq, deposit_seq, owner, sender, amount_base, block_number, tx_hash, seen_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        DepositId::generate().0,
        asset,
        logged.event_seq.cast_signed(),
        deposit.deposit_seq.cast_signed(),
        deposit.owner.as_slice(),
        deposit.sender.as_slice(),
        base(logged, deposit.amount)?,
        logged.block_number.cast_signed(),
        logged.tx_hash.as_slice(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn base(logged: &Logged, amount: u128) -> Result<BigDecimal, FollowError> {
    Amount::from_base(amount)
        .map(to_numeric)
        .ok_or(FollowError::TooLarge {
            event_seq: logged.event_seq,
        })
}

async fn pay_out(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    logged: &Logged,
    payment: &Payment,
    now: OffsetDateTime,
) -> Result<(), FollowError> {
    sqlx::query!(
        "INSERT INTO claims (asset_id, event_seq, kind, owner, batch_number, amount_base, cumulative_base, block_number, tx_hash, seen_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        asset,
        logged.event_seq.cast_signed(),
        payment.kind,
        payment.owner.as_slice(),
        payment.batch.map(u64::cast_signed),
        base(logged, payment.amount)?,
        base(logged, payment.cumulative)?,
        logged.block_number.cast_signed(),
        logged.tx_hash.as_slice(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn open_exit(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    logged: &Logged,
    (owner, due_at): (Address, u64),
    now: OffsetDateTime,
) -> Result<(), FollowError> {
    let due_at = OffsetDateTime::from_unix_timestamp(due_at.cast_signed())
        .map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "INSERT INTO exits (asset_id, event_seq, owner, block_number, due_at, seen_at) VALUES ($1, $2, $3, $4, $5, $6)",
        asset,
        logged.event_seq.cast_signed(),
        owner.as_slice(),
        logged.block_number.cast_signed(),
        due_at,
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
