//! What was seen on the chain: the newest blocks, every event of the contract, and how far both were read.

use alloy_primitives::{Address, B256};
use comptoir_domain::{
    amount::Amount,
    id::DepositId,
    settlement::event::{Event, Logged},
};
use sqlx::{PgConnection, types::BigDecimal};
use time::OffsetDateTime;

use crate::{
    PgTransaction,
    codec::{to_hash, to_numeric},
};

/// Blocks that are kept to walk back by.
pub const BLOCKS_KEPT: u64 = 256;

/// A block, by what links it to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// The hash of the block before it.
    pub parent_hash: B256,
}

/// How far the chain was read, and how far what was read is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The newest block read.
    pub head_number: u64,
    /// Its hash.
    pub head_hash: B256,
    /// The last event up to it.
    pub head_event_seq: u64,
    /// The newest final block that was acted on.
    pub final_number: u64,
    /// Its hash.
    pub final_hash: B256,
    /// The last event up to it.
    pub final_event_seq: u64,
    /// How many blocks make one final; `None` where the node says what is.
    pub final_depth: Option<u64>,
}

/// Why blocks were not taken in or given back.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// An event is missing: the node's answer was not complete.
    #[error("event {found} follows event {last}: the node left some out")]
    Gap {
        /// The last event that is known.
        last: u64,
        /// The event that came next.
        found: u64,
    },
    /// Blocks that were final have left the chain.
    #[error("block {number} was final and has left the chain")]
    FinalReorganised {
        /// The newest block that is left.
        number: u64,
    },
    /// An amount passes what the ledger can hold.
    #[error("event {event_seq} carries more than 2^120 base units")]
    TooLarge {
        /// The event.
        event_seq: u64,
    },
    /// The database refused.
    #[error("follow the chain")]
    Database(#[from] sqlx::Error),
}

/// How far the chain was read; `None` before the first block.
///
/// # Errors
/// When the database refuses.
pub async fn cursor(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Option<Cursor>> {
    let row = sqlx::query!(
        "SELECT head_number, head_hash, head_event_seq, final_number, final_hash, final_event_seq, final_depth
         FROM chain_cursors WHERE asset_id = $1",
        asset
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(Cursor {
            head_number: row.head_number.cast_unsigned(),
            head_hash: to_hash("head_hash", &row.head_hash)?,
            head_event_seq: row.head_event_seq.cast_unsigned(),
            final_number: row.final_number.cast_unsigned(),
            final_hash: to_hash("final_hash", &row.final_hash)?,
            final_event_seq: row.final_event_seq.cast_unsigned(),
            final_depth: row.final_depth.map(i64::cast_unsigned),
        })
    })
    .transpose()
}

/// Begins to follow after `block`, before which the contract did not exist.
///
/// # Errors
/// When the database refuses.
pub async fn begin(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    block: &Block,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO chain_cursors (asset_id, head_number, head_hash, head_event_seq, final_number, final_hash, final_event_seq, updated_at)
         VALUES ($1, $2, $3, 0, $2, $3, 0, $4)",
        asset,
        block.number.cast_signed(),
        block.hash.as_slice(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    keep(tx, asset, block).await
}

/// The blocks that are kept, newest first: number and hash.
///
/// # Errors
/// When the database refuses.
pub async fn kept(conn: &mut PgConnection, asset: i32) -> sqlx::Result<Vec<(u64, B256)>> {
    sqlx::query!(
        "SELECT number, hash FROM chain_blocks WHERE asset_id = $1 ORDER BY number DESC",
        asset
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(|row| Ok((row.number.cast_unsigned(), to_hash("hash", &row.hash)?)))
    .collect()
}

/// Takes in the events up to `block`, which becomes the head.
///
/// # Errors
/// When an event is missing.
pub async fn append(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    block: &Block,
    events: &[Logged],
    now: OffsetDateTime,
) -> Result<(), FollowError> {
    let mut last = sqlx::query_scalar!(
        "SELECT head_event_seq FROM chain_cursors WHERE asset_id = $1",
        asset
    )
    .fetch_one(&mut **tx)
    .await?
    .cast_unsigned();
    for logged in events {
        if logged.event_seq != last + 1 {
            return Err(FollowError::Gap {
                last,
                found: logged.event_seq,
            });
        }
        last = logged.event_seq;
        record(tx, asset, logged, now).await?;
        apply(tx, asset, logged, now).await?;
    }
    keep(tx, asset, block).await?;
    sqlx::query!(
        "UPDATE chain_cursors SET head_number = $2, head_hash = $3, head_event_seq = $4, updated_at = $5 WHERE asset_id = $1",
        asset,
        block.number.cast_signed(),
        block.hash.as_slice(),
        last.cast_signed(),
        now,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM chain_blocks WHERE asset_id = $1 AND number <= $2",
        asset,
        block.number.cast_signed() - BLOCKS_KEPT.cast_signed()
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Gives back every block after `number`, which becomes the head again, with all that came of their events.
///
/// # Errors
/// When a block among them was final.
pub async fn give_back(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    number: u64,
    now: OffsetDateTime,
) -> Result<(), FollowError> {
    let keep = number.cast_signed();
    let cursor = sqlx::query!(
        "SELECT final_number, final_event_seq FROM chain_cursors WHERE asset_id = $1",
        asset
    )
    .fetch_one(&mut **tx)
    .await?;
    if cursor.final_number > keep {
        return Err(FollowError::FinalReorganised { number });
    }
    sqlx::query!(
        "UPDATE chain_events SET orphaned_at = $3 WHERE asset_id = $1 AND block_number > $2 AND orphaned_at IS NULL",
        asset,
        keep,
        now
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM deposits WHERE asset_id = $1 AND block_number > $2 AND credited_at IS NULL",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM claims WHERE asset_id = $1 AND block_number > $2",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM exits WHERE asset_id = $1 AND block_number > $2",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE exits SET answered_block_number = NULL WHERE asset_id = $1 AND answered_block_number > $2",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "DELETE FROM chain_blocks WHERE asset_id = $1 AND number > $2",
        asset,
        keep
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE chain_cursors
         SET head_number = $2, updated_at = $3,
             head_hash = (SELECT hash FROM chain_blocks WHERE asset_id = $1 AND number = $2),
             head_event_seq = (SELECT COALESCE(max(event_seq), $4) FROM chain_events
                               WHERE asset_id = $1 AND orphaned_at IS NULL AND event_seq > $4)
         WHERE asset_id = $1",
        asset,
        keep,
        now,
        cursor.final_event_seq,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Declares every block up to this one final, and says how that was known: by so many blocks after it, or by the node.
///
/// # Errors
/// When the database refuses.
pub async fn make_final(
    tx: &mut PgTransaction<'_>,
    asset: i32,
    (number, hash): (u64, B256),
    depth: Option<u64>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE chain_cursors
         SET final_number = $2, final_hash = $3, final_depth = $4, updated_at = $5,
             final_event_seq = (SELECT COALESCE(max(event_seq), 0) FROM chain_events
                                WHERE asset_id = $1 AND orphaned_at IS NULL AND block_number <= $2)
         WHERE asset_id = $1",
        asset,
        number.cast_signed(),
        hash.as_slice(),
        depth.map(u64::cast_signed),
        now,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn keep(tx: &mut PgTransaction<'_>, asset: i32, block: &Block) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO chain_blocks (asset_id, number, hash, parent_hash) VALUES ($1, $2, $3, $4)",
        asset,
        block.number.cast_signed(),
        block.hash.as_slice(),
        block.parent_hash.as_slice(),
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A block that left the chain may come back: its events are then the same rows again.
async fn record(
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

async fn apply(
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

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::PgPool;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    const OWNER: Address = Address::repeat_byte(0xa1);

    async fn followed(db: &PgPool) -> i32 {
        let asset = sqlx::query_scalar(
            "INSERT INTO assets (chain_id, token, contract, symbol, decimals, platform, created_at)
             VALUES (31337, '\\x0101010101010101010101010101010101010101', '\\x0202020202020202020202020202020202020202',
                     'CPTR', 18, '\\x0303030303030303030303030303030303030303', now()) RETURNING asset_id",
        )
        .fetch_one(db)
        .await
        .unwrap();
        let mut tx = db.begin().await.unwrap();
        begin(&mut tx, asset, &block(0), NOW).await.unwrap();
        tx.commit().await.unwrap();
        asset
    }

    fn block(number: u64) -> Block {
        let hash = |number: u64| B256::from(alloy_primitives::U256::from(number));
        Block {
            number,
            hash: hash(number),
            parent_hash: hash(number.saturating_sub(1)),
        }
    }

    fn logged(block_number: u64, event_seq: u64, event: Event) -> Logged {
        Logged {
            block_number,
            block_hash: block(block_number).hash,
            tx_hash: B256::repeat_byte(7),
            log_index: event_seq,
            event_seq,
            event,
        }
    }

    fn deposited(deposit_seq: u64) -> Event {
        Event::Deposited {
            account: OWNER,
            from: OWNER,
            deposit_seq,
            amount: 5,
        }
    }

    #[sqlx::test(migrator = "crate::MIGRATOR")]
    async fn an_event_that_was_left_out_is_noticed_and_nothing_is_taken_in(db: PgPool) {
        let asset = followed(&db).await;
        let mut tx = db.begin().await.unwrap();
        let events = [logged(1, 1, deposited(1)), logged(1, 3, deposited(3))];
        let refused = append(&mut tx, asset, &block(1), &events, NOW).await;
        assert!(matches!(
            refused,
            Err(FollowError::Gap { last: 1, found: 3 })
        ));
        drop(tx);
        let mut conn = db.acquire().await.unwrap();
        assert_eq!(
            cursor(&mut conn, asset).await.unwrap().unwrap().head_number,
            0
        );
    }

    #[sqlx::test(migrator = "crate::MIGRATOR")]
    async fn blocks_that_left_the_chain_take_their_events_with_them_and_may_come_back(db: PgPool) {
        let asset = followed(&db).await;
        let mut tx = db.begin().await.unwrap();
        let request = Event::ExitRequested {
            account: OWNER,
            due_at: 9,
        };
        let answer = Event::ExitAnswered { account: OWNER };
        append(
            &mut tx,
            asset,
            &block(1),
            &[logged(1, 1, request.clone())],
            NOW,
        )
        .await
        .unwrap();
        let later = [logged(2, 2, answer), logged(2, 3, deposited(1))];
        append(&mut tx, asset, &block(2), &later, NOW)
            .await
            .unwrap();
        assert!(
            !crate::exits::is_leaving(&mut tx, asset, OWNER)
                .await
                .unwrap()
        );
        for _ in 0..2 {
            give_back(&mut tx, asset, 1, NOW).await.unwrap();
            let cursor = cursor(&mut tx, asset).await.unwrap().unwrap();
            assert_eq!((cursor.head_number, cursor.head_event_seq), (1, 1));
            assert!(
                crate::exits::is_leaving(&mut tx, asset, OWNER)
                    .await
                    .unwrap()
            );
            let listed = crate::deposits::list(&mut tx, asset, OWNER, None, 9)
                .await
                .unwrap();
            assert_eq!(listed, []);
            // The same block again.
            append(&mut tx, asset, &block(2), &later, NOW)
                .await
                .unwrap();
        }
        make_final(&mut tx, asset, (2, block(2).hash), None, NOW)
            .await
            .unwrap();
        let refused = give_back(&mut tx, asset, 1, NOW).await;
        assert!(matches!(
            refused,
            Err(FollowError::FinalReorganised { number: 1 })
        ));
    }
}
