//! Blocks come and go with their events.

use alloy_primitives::{Address, B256};
use comptoir_domain::settlement::event::Event;
use sqlx::PgPool;

use super::*;

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

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn however_far_the_head_runs_ahead_everything_after_the_final_block_can_be_read_again(
    db: PgPool,
) {
    let asset = followed(&db).await;
    let mut tx = db.begin().await.unwrap();
    // A range of blocks at once, as a settler that comes late reads them.
    let far = Block {
        parent_hash: block(0).hash,
        ..block(3 * BLOCKS_KEPT)
    };
    append(&mut tx, asset, &far, &[logged(5, 1, deposited(1))], NOW)
        .await
        .unwrap();
    give_back(&mut tx, asset, 0, NOW).await.unwrap();
    let cursor = cursor(&mut tx, asset).await.unwrap().unwrap();
    assert_eq!(
        (cursor.head_number, cursor.head_hash, cursor.head_event_seq),
        (0, block(0).hash, 0)
    );
}
