//! What moves between owners without a charge has a leaf in a batch, once, and waits again when its batch is vetoed.

use alloy_primitives::{Address, B256};
use comptoir_domain::{
    id::{AttemptId, BatchId},
    ledger::{AccountKey, EntryKind, Lines, Source},
    settlement::{
        Account, BatchState, Domain, Receipt,
        file::{self, Opening},
    },
};
use comptoir_store::{
    batches::{self, NewBatch, Snapshot},
    ledger, receipts, splits,
};
use sqlx::PgPool;

use crate::harness::{ALICE, BOB, CAROL, Money, NOW, PLATFORM, amount};

const CONTRACT: Address = Address::repeat_byte(7);

pub async fn snapshot(money: &Money) -> Snapshot {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let mut tx = money.settler.begin_with(begin).await.unwrap();
    batches::snapshot(&mut tx, money.asset).await.unwrap()
}

/// Stores what a snapshot holds as a batch.
async fn seal(money: &Money, number: u64, snapshot: Snapshot) -> (BatchId, Vec<B256>) {
    let opening = Opening {
        chain_id: 1,
        contract: CONTRACT,
        id: number,
        generation: 0,
        deposit_seq_seen: snapshot.deposit_seq_seen,
        prev_hash: B256::ZERO,
        audit_head: None,
    };
    let ids = snapshot.receipt_ids();
    let leaves: Vec<Receipt> = snapshot.receipts;
    // Deposits of these tests are entries alone: what everybody has is what came in.
    let whole = |account: Account| Account {
        deposits_seen: account.payable + account.available,
        ..account
    };
    let accounts = snapshot.accounts.into_iter().map(whole).collect();
    let (sealed, bytes) = file::seal(&opening, leaves, accounts).unwrap();
    let domain = Domain::new(1, CONTRACT);
    let leaves: Vec<_> = sealed.receipts.iter().map(|it| it.leaf(&domain)).collect();
    let items: Vec<_> = ids.into_iter().zip(leaves.iter().copied()).collect();
    let batch = NewBatch {
        id: BatchId::generate(),
        header: sealed.header,
        hash: sealed.hash,
        data_bytes: bytes.len() as u64,
        account_count: sealed.accounts.len() as u64,
        items: &items,
    };
    let mut tx = money.settler.begin().await.unwrap();
    batches::insert(&mut tx, money.asset, &batch, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    (batch.id, leaves)
}

/// What an account has more, by the receipts of a batch.
pub fn explained(receipts: &[Receipt], account: Address) -> i128 {
    let base = |amount: u128| i128::try_from(amount).unwrap();
    let paid: u128 = receipts
        .iter()
        .filter(|it| it.payer == account)
        .map(|it| it.gross)
        .sum();
    let splits = receipts.iter().flat_map(|it| &it.splits);
    let earned: u128 = splits
        .filter(|it| it.payee == account)
        .map(|it| it.amount)
        .sum();
    base(earned) - base(paid)
}

pub fn has(snapshot: &Snapshot, account: Address) -> i128 {
    let found = snapshot.accounts.iter().find(|it| it.account == account);
    found.map_or(0, |it| i128::try_from(it.payable + it.available).unwrap())
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_moves_without_a_charge_has_a_leaf_once_and_again_after_a_veto(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, true).await;
    money.deposit(ALICE, 1_000).await;
    let charge = money
        .held_job(alice, ALICE, 1_000, &[(BOB, 3), (CAROL, 1)])
        .await;
    money.settle(&charge).await.unwrap();
    let before = snapshot(&money).await;
    assert_eq!(before.receipts.len(), 1);
    seal(&money, 1, before.clone()).await;

    // The dust of a split is handed out, and the house pays for an audit.
    let mut conn = money.settler.acquire().await.unwrap();
    let receipt = receipts::find_of_job(&mut conn, charge.job)
        .await
        .unwrap()
        .unwrap();
    let mut tx = money.scheduler.begin().await.unwrap();
    splits::close(&mut tx, receipt.split_version, NOW)
        .await
        .unwrap()
        .unwrap();
    let pay = Lines::default()
        .debit(AccountKey::Fees, amount(5))
        .credit(AccountKey::Available(BOB), amount(5))
        .into_entry(EntryKind::AuditPay, Source::AuditPay(AttemptId::generate()))
        .unwrap();
    ledger::post(&mut tx, money.asset, &pay, NOW).await.unwrap();
    tx.commit().await.unwrap();

    let after = snapshot(&money).await;
    let mut kinds: Vec<_> = after.receipts.iter().map(|it| it.kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [66, 67]);
    assert!(after.receipts.iter().all(|it| it.payer == PLATFORM));
    for account in [ALICE, BOB, CAROL, PLATFORM] {
        let moved = has(&after, account) - has(&before, account);
        assert_eq!(moved, explained(&after.receipts, account), "{account}");
    }

    let (batch, leaves) = seal(&money, 2, after.clone()).await;
    assert_eq!(batches::items(&mut conn, batch).await.unwrap(), leaves);
    assert!(snapshot(&money).await.receipts.is_empty());
    let mut tx = money.settler.begin().await.unwrap();
    batches::advance(&mut tx, batch, BatchState::Cancelled, None, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(snapshot(&money).await.receipts, after.receipts);
}
