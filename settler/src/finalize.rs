//! Acts on what is final: credits deposits, then compares ledger and contract, in all and account by account.

use alloy::primitives::U256;
use comptoir_store::{
    chain::{self, FollowError},
    deposits, reconciliation,
};
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::{
    chain::{AccountTotals, Tip, Tips},
    error::StepError,
    follow::approximate,
    settler::Settler,
};

/// The last final block acted on.
const FINAL: &str = "settler_final_block";
/// Accounts that are compared with one question to the node.
const ACCOUNTS_MAX: i64 = 100;
/// Differences that a halt names.
const DIFFERENCES_MAX: usize = 20;

impl Settler {
    /// Acts on what became final: credits deposits, then compares ledger and contract. Returns how many it credited.
    pub(crate) async fn finalize(
        &mut self,
        tips: &Tips,
        now: OffsetDateTime,
    ) -> Result<u64, StepError> {
        let cursor = self.cursor(now).await?;
        let kept = chain::kept(&mut *self.db.acquire().await?, self.asset.id).await?;
        let newest = kept
            .into_iter()
            .find(|(number, _)| *number <= tips.final_.block.number);
        let Some((number, hash)) = newest.filter(|(number, _)| *number >= cursor.final_number)
        else {
            return Ok(0);
        };
        if self.reconciled == Some(number) {
            return Ok(0);
        }
        let block = self.chain.tip(number).await?;
        if block.block.hash != hash {
            return Ok(0);
        }
        let said = self.chain.totals(hash).await?;
        let mut tx = self.begin().await?;
        let depth = self.config.finality.depth();
        chain::make_final(&mut tx, self.asset.id, (number, hash), depth, now).await?;
        let final_seq = chain::cursor(&mut tx, self.asset.id)
            .await?
            .map_or(0, |cursor| cursor.final_event_seq);
        if final_seq != said.event_seq {
            tx.rollback().await?;
            self.read_again(&cursor, now).await?;
            return Err(FollowError::Gap {
                last: final_seq,
                found: said.event_seq,
            }
            .into());
        }
        self.commit(tx, "settler.final_stored").await?;
        let credited = self.credit(number, now).await?;
        self.reconcile(&block, &said, now).await?;
        self.reconciled = Some(number);
        metrics::gauge!(FINAL).set(approximate(number));
        Ok(credited)
    }

    /// Credits every deposit up to a block that was made final, some in each transaction; returns how many. Cut short, the
    /// next step goes on: a deposit is marked in the transaction that credits it.
    async fn credit(&self, number: u64, now: OffsetDateTime) -> Result<u64, StepError> {
        let mut credited = 0;
        loop {
            let mut tx = self.begin().await?;
            let some = deposits::credit(&mut tx, &self.asset, number, now).await?;
            self.commit(tx, "settler.deposits_credited").await?;
            if some == 0 {
                return Ok(credited);
            }
            credited += some;
        }
    }

    /// Every unit in the contract has its owner in the ledger, and the other way round. A difference halts.
    async fn reconcile(
        &self,
        at: &Tip,
        said: &crate::chain::Totals,
        now: OffsetDateTime,
    ) -> Result<(), StepError> {
        let ours = totals(&self.db, self.asset.id, at.block.number).await?;
        let differences: Vec<String> = [
            (
                "deposits by the index",
                ours.credited.base(),
                "deposits",
                said.deposited,
            ),
            (
                "deposits by the ledger",
                ours.deposits.base(),
                "deposits",
                said.deposited,
            ),
            (
                "what the ledger owes",
                ours.owed.base(),
                "deposits",
                said.deposited,
            ),
            (
                "claims by the index",
                ours.claimed.base(),
                "claims",
                said.claimed,
            ),
            (
                "the last deposit",
                u128::from(ours.deposit_seq),
                "the last deposit",
                u128::from(said.deposit_seq),
            ),
        ]
        .into_iter()
        .filter(|(_, ours, _, theirs)| ours != theirs)
        .map(|(what, ours, of, theirs)| format!("{what}: {ours}, {of} of the contract: {theirs}"))
        .chain(shortfalls(&ours, said))
        .chain(self.compare_accounts(at).await?)
        .take(DIFFERENCES_MAX)
        .collect();
        if differences.is_empty() {
            let mut tx = self.begin().await?;
            reconciliation::reconciled(&mut tx, self.asset.id, at.block.number).await?;
            self.commit(tx, "settler.accounts_compared").await?;
            return Ok(());
        }
        let detail = format!("at block {}: {}", at.block.number, differences.join("; "));
        self.halt("ledger_differs", &detail, now).await
    }

    /// Compares every account that was paid in for or paid out to since the last comparison: what the index says, what the
    /// ledger says, and what the contract says of this very account.
    async fn compare_accounts(&self, at: &Tip) -> Result<Vec<String>, StepError> {
        let mut db = self.db.acquire().await?;
        let cursor = chain::cursor(&mut db, self.asset.id).await?;
        let after = cursor.map_or(0, |cursor| cursor.reconciled_number);
        let mut differences = Vec::new();
        let mut page = None;
        loop {
            let blocks = (after, at.block.number);
            let ours =
                reconciliation::touched(&mut db, &self.asset, blocks, page, ACCOUNTS_MAX).await?;
            let Some(last) = ours.last().map(|it| it.owner) else {
                return Ok(differences);
            };
            page = Some(last);
            let owners: Vec<_> = ours.iter().map(|it| it.owner).collect();
            let theirs = self.chain.accounts(&owners, at.block.hash).await?;
            differences.extend(
                ours.iter()
                    .zip(&theirs)
                    .flat_map(|(ours, theirs)| account_differences(ours, theirs)),
            );
        }
    }
}

fn account_differences(
    ours: &reconciliation::Account,
    theirs: &AccountTotals,
) -> impl Iterator<Item = String> {
    let owner = ours.owner;
    let (deposited, claimed) = (ours.deposited.base(), ours.claimed.base());
    let index = [
        ("deposits", deposited, theirs.deposited),
        ("claims", claimed, theirs.claimed),
    ]
    .into_iter()
    .filter(|(_, ours, theirs)| U256::from(*ours) != *theirs)
    .map(move |(what, ours, theirs)| {
        format!("{what} of {owner} by the index: {ours}, by the contract: {theirs}")
    });
    let unposted = (ours.unposted > 0).then(|| {
        format!(
            "{} deposits of {owner} are not in the ledger",
            ours.unposted
        )
    });
    index.chain(unposted)
}

fn shortfalls(ours: &reconciliation::Totals, said: &crate::chain::Totals) -> Vec<String> {
    let held = said.deposited.saturating_sub(said.claimed);
    let mut shortfalls = Vec::new();
    if said.balance < U256::from(held) {
        shortfalls.push(format!(
            "the contract holds {} tokens and owes {held}",
            said.balance
        ));
    }
    if ours.payable.base() < said.claimed {
        shortfalls.push(format!(
            "{} were paid, {} were released",
            said.claimed, ours.payable
        ));
    }
    if ours.overpaid_owners > 0 {
        shortfalls.push(format!(
            "{} owners were paid more than was released to them",
            ours.overpaid_owners
        ));
    }
    shortfalls
}

async fn totals(db: &PgPool, asset: i32, number: u64) -> Result<reconciliation::Totals, StepError> {
    let mut tx = db
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let totals = reconciliation::totals(&mut tx, asset, number).await?;
    tx.commit().await?;
    Ok(totals)
}
