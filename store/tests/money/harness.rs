//! A ledger with one asset, one price, and a pool per service role.

use alloy_primitives::Address;
use comptoir_domain::{
    amount::Amount,
    digest::Sha256,
    id::{AccountId, AttemptId, HoldId, JobId, JournalEntryId, QuoteId, ReceiptId, WorkerId},
    job::{Device, Tier},
    price::{self, Meter, PriceVersion, Rate},
};
use comptoir_store::{
    assets::{self, NewAsset},
    charges::{self, ChargeError, JobCharge},
    holds::{self, Hold, HoldError, HoldSource},
    ledger::{self, Balances, PostError},
    pool::{self, ServiceRole},
    prices::{self, NewPrice},
};
use sqlx::PgPool;
use time::{OffsetDateTime, macros::datetime};

pub const NOW: OffsetDateTime = datetime!(2026-11-22 09:00 UTC);
pub const PLATFORM: Address = Address::repeat_byte(0xff);
pub const ALICE: Address = Address::repeat_byte(0xa1);
pub const BOB: Address = Address::repeat_byte(0xb0);
pub const CAROL: Address = Address::repeat_byte(0xca);

/// The database, with the rights of whoever owns it and of each service.
pub struct Money {
    pub owner: PgPool,
    pub api: PgPool,
    pub scheduler: PgPool,
    pub settler: PgPool,
    pub admin: PgPool,
    /// Two administrators, once [`Self::hire`] has made their accounts.
    pub admins: [AccountId; 2],
    pub asset: i32,
    pub price: PriceVersion,
}

impl Money {
    /// A price of 0.37 base units per multiply-add, and 5 % for the platform.
    pub async fn new(owner: PgPool) -> Self {
        Self::with_price(owner, 370_000_000_000_000_000, 50_000).await
    }

    pub async fn with_price(owner: PgPool, rate_nano: u128, platform_ppm: u32) -> Self {
        let connect = |role| pool::connect((*owner.connect_options()).clone(), role, 8);
        let api = connect(ServiceRole::Api).await.unwrap();
        let scheduler = connect(ServiceRole::Scheduler).await.unwrap();
        let settler = connect(ServiceRole::Settler).await.unwrap();
        let admin = connect(ServiceRole::Admin).await.unwrap();
        let admins = [AccountId::generate(), AccountId::generate()];
        let (asset, price) = register(&owner, 1, rate_nano, platform_ppm).await;
        Self {
            owner,
            api,
            scheduler,
            settler,
            admin,
            admins,
            asset,
            price,
        }
    }

    /// Signs an account up and binds the address to it.
    pub async fn bind(&self, address: Address, auto_release: bool) -> AccountId {
        let id = AccountId::generate();
        sqlx::query(
            "INSERT INTO accounts (account_id, email, password_hash, address, address_bound_at, auto_release, created_at)
             VALUES ($1, $2, 'x', $3, $4, $5, $4)",
        )
        .bind(id.0)
        .bind(format!("{address:x}@example.org"))
        .bind(address.as_slice())
        .bind(NOW)
        .bind(auto_release)
        .execute(&self.owner)
        .await
        .unwrap();
        id
    }

    /// Makes the administrators' accounts.
    pub async fn hire(&self) {
        for id in self.admins {
            sqlx::query(
                "INSERT INTO accounts (account_id, email, password_hash, roles, created_at)
                 VALUES ($1, $2, 'x', '{user,platform}', $3)",
            )
            .bind(id.0)
            .bind(format!("{id}@example.org"))
            .bind(NOW)
            .execute(&self.owner)
            .await
            .unwrap();
        }
    }

    /// A job of an account, as the API would have written it.
    pub async fn job(&self, account: AccountId, payer: Address, meter: &Meter) -> JobId {
        let (quote, job) = (QuoteId::generate(), JobId::generate());
        let exact = price::amount(meter, &self.price).unwrap();
        sqlx::query(
            "INSERT INTO quotes (quote_id, account_id, asset_id, spec, spec_sha256, tier, device, meter, madds,
                 price_version_id, amount_atto, hold_base, min_memory_bytes, created_at, expires_at)
             VALUES ($1, $2, $3, '{}', $4, 'none', 'cpu', $5, 1, $6, $7::numeric, $8::numeric, 0, $9, $9)",
        )
        .bind(quote.0)
        .bind(account.0)
        .bind(self.asset)
        .bind(&[0_u8; 32][..])
        .bind(serde_json::to_value(meter).unwrap())
        .bind(self.price.id)
        .bind(exact.to_string())
        .bind(exact.ceil().to_string())
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
        .bind(self.asset)
        .bind(NOW)
        .execute(&self.owner)
        .await
        .unwrap();
        job
    }

    /// A worker of an account.
    pub async fn worker(&self, account: AccountId) -> WorkerId {
        let worker = WorkerId::generate();
        for statement in [
            "INSERT INTO join_tokens (join_token_id, account_id, name, secret_sha256, max_uses, created_at, expires_at)
             VALUES ($1, $2, 'w', $3, 1, $4, $4)",
            "INSERT INTO workers (worker_id, account_id, join_token_id, name, public_key, device, device_name, memory_bytes,
                 threads, numeric_class, libtorch, version, joined_at)
             VALUES ($1, $2, $1, 'w', $3, 'cpu', 'd', 1, 1, 'x', 'l', 'v', $4)",
            "INSERT INTO worker_heartbeats (worker_id, seen_at)
             SELECT worker_id, $4 FROM workers WHERE worker_id = $1 AND account_id = $2 AND public_key = $3",
        ] {
            sqlx::query(statement)
                .bind(worker.0)
                .bind(account.0)
                .bind(Sha256::of(worker.0.as_bytes()).0)
                .bind(NOW)
                .execute(&self.owner)
                .await
                .unwrap();
        }
        worker
    }

    /// An attempt of a worker at a job of its own account.
    pub async fn attempt(&self, worker: WorkerId, account: AccountId) -> (AttemptId, JobId) {
        let meter = Meter::inference(1, 1, Tier::None).unwrap();
        let job = self.job(account, ALICE, &meter).await;
        for statement in [
            "INSERT INTO replicas (replica_id, job_id, ordinal, state)
             SELECT $1, job_id, 0, 'accepted' FROM jobs JOIN workers ON worker_id = $2 WHERE job_id = $1",
            "INSERT INTO attempts (attempt_id, replica_id, job_id, number, worker_id, numeric_class, state, started_at)
             SELECT $1, $1, $1, 1, worker_id, 'x', 'accepted', joined_at FROM workers WHERE worker_id = $2",
        ] {
            sqlx::query(statement)
                .bind(job.0)
                .bind(worker.0)
                .execute(&self.owner)
                .await
                .unwrap();
        }
        (AttemptId(job.0), job)
    }

    pub async fn deposit(&self, owner: Address, base: u128) -> JournalEntryId {
        self.deposit_as(owner, base, &JournalEntryId::generate().to_string())
            .await
            .unwrap()
    }

    pub async fn deposit_as(
        &self,
        owner: Address,
        base: u128,
        source: &str,
    ) -> Result<JournalEntryId, PostError> {
        let mut tx = self.settler.begin().await.unwrap();
        let entry = ledger::deposit(&mut tx, self.asset, owner, amount(base), source, NOW).await?;
        tx.commit().await.unwrap();
        Ok(entry)
    }

    pub async fn hold(
        &self,
        source: HoldSource,
        owner: Address,
        base: u128,
    ) -> Result<HoldId, HoldError> {
        let hold = Hold {
            source,
            owner,
            asset_id: self.asset,
            amount: amount(base),
        };
        let mut tx = self.api.begin().await.unwrap();
        let id = holds::place(&mut tx, &hold, NOW).await?;
        tx.commit().await.unwrap();
        Ok(id)
    }

    pub async fn settle(&self, charge: &JobCharge) -> Result<ReceiptId, ChargeError> {
        let mut tx = self.scheduler.begin().await.unwrap();
        let receipt = charges::settle_job(&mut tx, charge, NOW).await?;
        tx.commit().await.unwrap();
        Ok(receipt)
    }

    /// A job of that many multiply-adds, its budget held, ready to be settled.
    pub async fn held_job(
        &self,
        account: AccountId,
        payer: Address,
        madds: u128,
        shares: &[(Address, u64)],
    ) -> JobCharge {
        let meter = Meter::inference(madds, 1, Tier::None).unwrap();
        let job = self.job(account, payer, &meter).await;
        let exact = price::amount(&meter, &self.price).unwrap();
        self.hold(HoldSource::Job(job), payer, exact.ceil().base())
            .await
            .unwrap();
        JobCharge {
            job,
            account,
            payer,
            asset_id: self.asset,
            meter,
            price: self.price,
            amount: exact,
            shares: shares.to_vec(),
            data: None,
            input: Sha256::of(b"input"),
            result: Sha256::of(b"result"),
            verdict: Sha256::of(b"verdict"),
        }
    }

    pub async fn balances(&self, owner: Address) -> Balances {
        let mut conn = self.api.acquire().await.unwrap();
        ledger::balances(&mut conn, owner, self.asset)
            .await
            .unwrap()
    }

    /// `available, held, payable` of an owner.
    pub async fn bases(&self, owner: Address) -> (u128, u128, u128) {
        let it = self.balances(owner).await;
        (it.available.base(), it.held.base(), it.payable.base())
    }
}

/// Registers one more asset with one price.
pub async fn register(
    owner: &PgPool,
    chain_id: u64,
    rate_nano: u128,
    platform_ppm: u32,
) -> (i32, PriceVersion) {
    let mut conn = owner.acquire().await.unwrap();
    let new = NewAsset {
        chain_id,
        token: Address::repeat_byte(1),
        contract: Address::repeat_byte(2),
        symbol: "CPT".into(),
        decimals: 18,
        platform: PLATFORM,
    };
    let asset = assets::register(&mut conn, &new, NOW).await.unwrap();
    let new = NewPrice {
        device: Device::Cpu,
        rate_nano: Rate::from_nano(rate_nano).unwrap(),
        minimum: amount(1),
        platform_ppm,
        effective_at: NOW,
    };
    let price = prices::publish(&mut conn, asset.id, new).await.unwrap();
    (asset.id, price)
}

pub fn amount(base: u128) -> Amount {
    Amount::from_base(base).unwrap()
}
