//! What must hold after every scenario, whatever happened in it: invariants S1 to S6 and the ledger's L1, L2, L5 and L6.

use std::collections::{BTreeMap, BTreeSet};

use alloy::{
    consensus::{Transaction as _, TxEnvelope},
    eips::eip2718::Decodable2718 as _,
    primitives::{Address, B256, U256},
    providers::Provider as _,
    rpc::types::Filter,
    sol_types::SolEvent as _,
};
use comptoir_contracts_bindings::Settlement::{BatchCancelled, BatchCommitted, Claimed};
use comptoir_domain::settlement::BatchState;

use super::{Key, World};

/// One attempt to use a nonce, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub nonce: i64,
    pub hash: B256,
    pub raw: Vec<u8>,
    pub fills: bool,
}

impl World {
    /// Every attempt ever stored, oldest first.
    pub async fn attempts(&self) -> Vec<Attempt> {
        let rows: Vec<(i64, Vec<u8>, Vec<u8>, bool)> = sqlx::query_as(
            "SELECT nonce, tx_hash, raw_tx, fills FROM eth_attempts JOIN eth_intents USING (intent_id)
             ORDER BY nonce, fee_cap_wei",
        )
        .fetch_all(&self.owner)
        .await
        .unwrap();
        rows.into_iter()
            .map(|(nonce, hash, raw, fills)| Attempt {
                nonce,
                hash: B256::from_slice(&hash),
                raw,
                fills,
            })
            .collect()
    }

    /// Fails where anything that must always hold does not.
    pub async fn audit(&self) {
        self.ledger_adds_up().await;
        self.each_receipt_has_one_leaf().await;
        self.roots_are_what_the_leaves_make().await;
        self.a_nonce_is_one_call().await;
        self.batches_follow_each_other().await;
        self.claims_are_covered().await;
    }

    /// L1, L2, L5: entries sum to zero, balances are the sums of their postings, and what is held is what open holds lock.
    /// L6: what the contract has is what the ledger owes less what was claimed.
    async fn ledger_adds_up(&self) {
        let broken: Vec<String> = sqlx::query_scalar(
            "SELECT 'entry ' || journal_entry_id FROM postings GROUP BY journal_entry_id HAVING sum(amount_base) <> 0
             UNION ALL
             SELECT 'balance ' || code FROM ledger_accounts la
             WHERE balance_base <> (SELECT COALESCE(sum(amount_base), 0) FROM postings p
                                    WHERE p.ledger_account_id = la.ledger_account_id)
             UNION ALL
             SELECT 'held ' || encode(la.owner, 'hex') FROM ledger_accounts la WHERE code = 'held'
               AND balance_base <> (SELECT COALESCE(sum(amount_base - moved_base), 0) FROM holds h
                                    WHERE h.owner = la.owner AND h.ended_at IS NULL)
             UNION ALL
             SELECT 'release ' || release_id FROM releases r
             WHERE released_base <> (SELECT COALESCE(sum(moved_base), 0) FROM seal_releases s JOIN seal_entries e USING (journal_entry_id)
                                     WHERE s.release_id = r.release_id AND e.reversed_at IS NULL)",
        )
        .fetch_all(&self.owner)
        .await
        .unwrap();
        assert!(broken.is_empty(), "{broken:?}");
        let owed: String = sqlx::query_scalar(
            "SELECT sum(balance_base)::text FROM ledger_accounts WHERE code <> 'deposits'",
        )
        .fetch_one(&self.owner)
        .await
        .unwrap();
        let contract = self.contract();
        let deposited = contract.totalDeposited().call().await.unwrap();
        let claimed = contract.totalClaimed().call().await.unwrap();
        let holds = self.tokens_of(self.deployed.settlement).await;
        assert_eq!(holds, deposited - claimed);
        assert_eq!(owed.parse::<u128>().unwrap(), deposited);
    }

    /// S1: every receipt waits, or is in exactly one batch that stands.
    async fn each_receipt_has_one_leaf(&self) {
        let receipts: Vec<(bool, i64)> = sqlx::query_as(
            "SELECT EXISTS (SELECT FROM unbatched_receipts u WHERE u.receipt_id = r.receipt_id),
                    (SELECT count(*) FROM batch_items i JOIN settlement_batches b USING (batch_id)
                     WHERE i.receipt_id = r.receipt_id AND b.state <> 'cancelled')
             FROM receipts r",
        )
        .fetch_all(&self.owner)
        .await
        .unwrap();
        for (waits, batches) in receipts {
            assert_eq!(i64::from(waits) + batches, 1);
        }
    }

    /// S2, S5: the published leaves make the stored header, and a final batch is the one that the contract holds.
    async fn roots_are_what_the_leaves_make(&self) {
        let mut seen = BTreeSet::new();
        for batch in self.batches().await {
            if batch.state == BatchState::Cancelled {
                continue;
            }
            let (_, sealed) = self.leaves(&batch).await;
            assert_eq!(sealed.header, batch.header);
            assert_eq!(sealed.hash, batch.hash);
            for receipt in &sealed.receipts {
                assert!(
                    seen.insert(receipt.receipt_id),
                    "a receipt is in two batches"
                );
            }
            if batch.state.is_anchored() {
                let kept = self
                    .contract()
                    .batchHash(batch.header.id)
                    .call()
                    .await
                    .unwrap();
                assert!(kept == batch.hash || kept.is_zero());
            }
        }
    }

    /// S3: whatever was signed under a nonce is one call, or a transfer that takes its place; one of them is mined.
    async fn a_nonce_is_one_call(&self) {
        let mut calls: BTreeMap<i64, Vec<TxEnvelope>> = BTreeMap::new();
        let mut mined: BTreeMap<i64, u32> = BTreeMap::new();
        for attempt in self.attempts().await {
            let transaction = TxEnvelope::decode_2718(&mut attempt.raw.as_slice()).unwrap();
            assert_eq!(*transaction.tx_hash(), attempt.hash);
            assert_eq!(transaction.nonce(), attempt.nonce.cast_unsigned());
            let receipt = self.anvil.node.get_transaction_receipt(attempt.hash).await;
            *mined.entry(attempt.nonce).or_default() += u32::from(receipt.unwrap().is_some());
            if attempt.fills {
                assert_eq!(transaction.to(), Some(Key::Settler.address()));
                assert!(transaction.input().is_empty() && transaction.value().is_zero());
            } else {
                calls.entry(attempt.nonce).or_default().push(transaction);
            }
        }
        for attempts in calls.values() {
            let first = (attempts[0].to(), attempts[0].input());
            assert!(attempts.iter().all(|it| (it.to(), it.input()) == first));
        }
        assert!(mined.values().all(|times| *times <= 1), "{mined:?}");
    }

    /// S4: batches on the chain are numbered without gap or repeat, each on top of the one before.
    async fn batches_follow_each_other(&self) {
        let filter = Filter::new()
            .address(self.deployed.settlement)
            .from_block(0);
        let mut standing: Vec<(u64, B256)> = Vec::new();
        for log in self.anvil.node.get_logs(&filter).await.unwrap() {
            if let Ok(event) = BatchCommitted::decode_log(&log.inner) {
                let (last, parent) = standing.last().copied().unwrap_or_default();
                assert_eq!((event.id, event.header.prevHash), (last + 1, parent));
                standing.push((event.id, event.hash));
            } else if let Ok(event) = BatchCancelled::decode_log(&log.inner) {
                assert_eq!(standing.pop().unwrap().0, event.id);
            }
        }
        let last = self.contract().lastBatch().call().await.unwrap();
        assert_eq!(standing.len() as u64, last);
    }

    /// S6: no more is claimed than was released, in all and at each claim; an account's claims only grow.
    async fn claims_are_covered(&self) {
        let contract = self.contract();
        let last = contract.lastBatch().call().await.unwrap();
        let payable = contract
            .committedBatch(last)
            .call()
            .await
            .unwrap()
            .totalPayable;
        let claimed = contract.totalClaimed().call().await.unwrap();
        assert!(last == 0 && claimed == 0 || claimed <= payable);
        let filter = Filter::new()
            .address(self.deployed.settlement)
            .from_block(0);
        let mut sums: BTreeMap<Address, U256> = BTreeMap::new();
        for log in self.anvil.node.get_logs(&filter).await.unwrap() {
            if let Ok(event) = Claimed::decode_log(&log.inner) {
                let sum = sums.entry(event.account).or_default();
                *sum += event.amount;
                assert_eq!(*sum, event.cumulative);
            }
        }
    }
}
