//! Money in the ledger and on the chain, and the documents about it.

use alloy::{
    primitives::{Address, B256, U256},
    sol_types::SolCall as _,
};
use comptoir_contracts_bindings::{
    ComptoirToken::approveCall,
    Settlement::{self, claimCall, depositCall},
};
use comptoir_domain::{
    digest::Sha256,
    id::{AccountId, JobId, QuoteId, ReceiptId},
    job::Tier,
    price::{self, Meter},
    settlement::{
        AccountDocument, ReceiptDocument,
        document::Disclosure,
        file::{self, Opening, Sealed},
    },
};
use comptoir_store::{
    batches::{self, Batch},
    charges::{self, JobCharge},
    holds::{self, Hold, HoldError, HoldSource},
    ledger, receipts,
};

use super::{Key, NOW, World, amount};

impl World {
    /// Deposits of Alice's tokens for an account. Alice has all there are.
    pub async fn deposit(&self, account: Address, base: u128) {
        let approve = approveCall {
            spender: self.deployed.settlement,
            value: U256::from(base),
        };
        self.sender(Key::Alice)
            .call(self.deployed.token, approve.abi_encode().into())
            .await
            .unwrap();
        self.call(
            Key::Alice,
            depositCall {
                account,
                amount: U256::from(base),
            },
        )
        .await;
    }

    pub async fn available(&self, owner: Address) -> u128 {
        self.balances(owner).await.available.base()
    }

    pub async fn balances(&self, owner: Address) -> ledger::Balances {
        ledger::balances(&mut self.api.acquire().await.unwrap(), owner, self.asset.id)
            .await
            .unwrap()
    }

    /// Signs an account up and binds the address to it.
    pub async fn bind(&self, address: Address) -> AccountId {
        let id = AccountId::generate();
        sqlx::query(
            "INSERT INTO accounts (account_id, email, password_hash, address, address_bound_at, auto_release, created_at)
             VALUES ($1, $2, 'x', $3, $4, true, $4)",
        )
        .bind(id.0)
        .bind(format!("{address:x}@example.org"))
        .bind(address.as_slice())
        .bind(NOW)
        .execute(&self.owner)
        .await
        .unwrap();
        id
    }

    /// The account that the address is bound to.
    pub async fn account_of(&self, address: Address) -> AccountId {
        let id = sqlx::query_scalar("SELECT account_id FROM accounts WHERE address = $1")
            .bind(address.as_slice());
        AccountId(id.fetch_one(&self.owner).await.unwrap())
    }

    pub async fn hold(
        &self,
        source: HoldSource,
        owner: Address,
        base: u128,
    ) -> Result<(), HoldError> {
        let hold = Hold {
            source,
            owner,
            asset_id: self.asset.id,
            amount: amount(base),
        };
        let mut tx = self.api.begin().await.unwrap();
        holds::place(&mut tx, &hold, NOW).await?;
        tx.commit().await.unwrap();
        Ok(())
    }

    /// A job of so many base units (one per multiply-add), held, done by `worker` and settled.
    pub async fn pay_job(
        &self,
        account: AccountId,
        payer: Address,
        base: u128,
        worker: Address,
    ) -> ReceiptId {
        let meter = Meter::inference(base, 1, Tier::None).unwrap();
        let exact = price::amount(&meter, &self.price).unwrap();
        let job = self.insert_job(account, payer, &meter).await;
        self.hold(HoldSource::Job(job), payer, exact.ceil().base())
            .await
            .unwrap();
        let charge = JobCharge {
            job,
            account,
            payer,
            asset_id: self.asset.id,
            meter,
            price: self.price,
            amount: exact,
            shares: vec![(worker, 1)],
            data: None,
            input: Sha256::of(b"input"),
            result: Sha256::of(b"result"),
            verdict: Sha256::of(b"verdict"),
        };
        let mut tx = self.scheduler.begin().await.unwrap();
        let receipt = charges::settle_job(&mut tx, &charge, NOW).await.unwrap();
        tx.commit().await.unwrap();
        receipt
    }

    async fn insert_job(&self, account: AccountId, payer: Address, meter: &Meter) -> JobId {
        let (quote, job) = (QuoteId::generate(), JobId::generate());
        sqlx::query(
            "INSERT INTO quotes (quote_id, account_id, asset_id, spec, spec_sha256, tier, device, meter, madds,
                 price_version_id, amount_atto, hold_base, min_memory_bytes, created_at, expires_at)
             VALUES ($1, $2, $3, '{}', $4, 'none', 'cpu', $5, 1, $6, 1, 1, 0, $7, $7)",
        )
        .bind(quote.0)
        .bind(account.0)
        .bind(self.asset.id)
        .bind(&[0_u8; 32][..])
        .bind(serde_json::to_value(meter).unwrap())
        .bind(self.price.id)
        .bind(NOW)
        .execute(&self.owner)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO jobs (job_id, account_id, quote_id, payer, asset_id, kind, tier, max_cost_base, state,
                 deadline_at, created_at)
             VALUES ($1, $2, $3, $4, $5, 'inference', 'none', 1, 'verifying', $6, $6)",
        )
        .bind(job.0)
        .bind(account.0)
        .bind(quote.0)
        .bind(payer.as_slice())
        .bind(self.asset.id)
        .bind(NOW)
        .execute(&self.owner)
        .await
        .unwrap();
        job
    }

    pub async fn leaves(&self, batch: &Batch) -> (Opening, Sealed) {
        let bytes = self
            .objects
            .get_all(batch.data_hash(), 1 << 20)
            .await
            .unwrap();
        file::read(&bytes).unwrap()
    }

    pub async fn account_document(&self, batch: &Batch, owner: Address) -> AccountDocument {
        let (opening, sealed) = self.leaves(batch).await;
        sealed
            .account_document(&opening, owner)
            .expect("the account has a leaf")
    }

    /// What the API makes of a receipt for its payer.
    pub async fn receipt_document(&self, id: ReceiptId) -> ReceiptDocument {
        let mut conn = self.api.acquire().await.unwrap();
        let receipt = receipts::find(&mut conn, id).await.unwrap().unwrap();
        let (batch, index) = batches::of_receipt(&mut conn, id)
            .await
            .unwrap()
            .expect("the receipt is batched");
        let (opening, sealed) = self.leaves(&batch).await;
        let index = usize::try_from(index).unwrap();
        ReceiptDocument {
            chain_id: opening.chain_id,
            contract: opening.contract,
            header: batch.header,
            receipt: sealed.receipts[index].clone(),
            input: Some(Disclosure {
                sha256: receipt.input,
                salt: B256::from(receipt.input_salt),
            }),
            result: Some(Disclosure {
                sha256: receipt.result,
                salt: B256::from(receipt.result_salt),
            }),
            meter: serde_json::to_value(&receipt.bill).unwrap(),
            right: receipt.documents.as_ref().map(|it| it.right.clone()),
            finality: receipt.documents.map(|it| it.finality),
            proof: sealed.receipts_tree.proof(index).unwrap(),
        }
    }

    /// Anybody may claim for anybody; here it is Carol.
    pub async fn claim(&self, document: &AccountDocument) {
        let leaf = Settlement::Account {
            account: document.account.account,
            payable_: document.account.payable,
            available: document.account.available,
            depositsSeen: document.account.deposits_seen,
        };
        self.call(
            Key::Carol,
            claimCall {
                id: document.header.id,
                leaf,
                proof: document.proof.clone(),
            },
        )
        .await;
    }
}
