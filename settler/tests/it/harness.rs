//! A chain with the contracts on it, a database that knows them, and a settler with its own rights.

use std::time::Duration;

use alloy::{
    primitives::{Address, B256, U256},
    signers::local::PrivateKeySigner,
    sol_types::SolCall,
};
use comptoir_contracts_bindings::{
    ComptoirToken::{self, approveCall},
    Settlement::{self, SettlementInstance, claimCall, depositCall},
};
use comptoir_domain::{
    amount::Amount,
    asset::Asset,
    digest::Sha256,
    id::{AccountId, JobId, QuoteId, ReceiptId},
    job::{Device, Tier},
    price::{self, Meter, PriceVersion, Rate},
    settlement::{
        AccountDocument, BatchState, ReceiptDocument,
        document::Disclosure,
        file::{self, Opening, Sealed},
    },
};
use comptoir_settler::{
    BatchPolicy, Config, Finality, Progress, Settler,
    deploy::{self, Caps, Deployed, Deployment, Sender, Token, Windows},
    fees::FeePolicy,
};
use comptoir_store::{
    assets::{self, NewAsset},
    batches::{self, Batch, Filter},
    charges::{self, JobCharge},
    holds::{self, Hold, HoldError, HoldSource},
    ledger,
    objects::Objects,
    pool::{self, ServiceRole},
    prices::{self, NewPrice},
    receipts,
};
use sqlx::PgPool;
use tempfile::TempDir;
use time::{OffsetDateTime, macros::datetime};

use crate::anvil::Anvil;

pub const NOW: OffsetDateTime = datetime!(2026-11-22 09:00 UTC);
/// Blocks until a block is final.
pub const DEPTH: u64 = 4;
pub const PLATFORM: Address = Address::repeat_byte(0xff);
const TOKEN: u128 = 10_u128.pow(18);

/// The first accounts of anvil's published mnemonic.
const KEYS: [&str; 7] = [
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
];

#[derive(Clone, Copy)]
pub enum Key {
    Deployer,
    Admin,
    Settler,
    Guardian,
    Alice,
    Bob,
    Carol,
}

impl Key {
    pub fn signer(self) -> PrivateKeySigner {
        KEYS[self as usize].parse().unwrap()
    }

    pub fn address(self) -> Address {
        self.signer().address()
    }
}

pub struct World {
    pub anvil: Anvil,
    pub owner: PgPool,
    pub db: PgPool,
    pub scheduler: PgPool,
    pub api: PgPool,
    pub objects: Objects,
    _folder: TempDir,
    pub deployed: Deployed,
    pub asset: Asset,
    pub price: PriceVersion,
}

pub fn amount(base: u128) -> Amount {
    Amount::from_base(base).unwrap()
}

pub const fn tokens(count: u128) -> u128 {
    count * TOKEN
}

impl World {
    pub async fn new(owner: PgPool) -> Self {
        Self::on(Anvil::start(&[]).await, owner).await
    }

    /// What is deployed.
    pub fn plan() -> Deployment {
        Deployment {
            token: Token::New {
                holder: Key::Alice.address(),
                initial_supply: U256::from(tokens(1_000_000)),
                cap: U256::from(tokens(1_000_000)),
            },
            admin: Key::Admin.address(),
            timelock_delay: Duration::from_hours(48),
            settler: Key::Settler.address(),
            guardian: Key::Guardian.address(),
            windows: Windows::DEVELOPMENT,
            caps: Caps {
                per_batch: tokens(100),
                per_day: tokens(150),
            },
        }
    }

    pub async fn on(anvil: Anvil, owner: PgPool) -> Self {
        let deployed = deploy::deploy(anvil.url.clone(), Key::Deployer.signer(), &Self::plan())
            .await
            .unwrap();
        let connect = |role| pool::connect((*owner.connect_options()).clone(), role, 4);
        let folder = TempDir::new().unwrap();
        let objects =
            Objects::open(&url::Url::from_directory_path(folder.path()).unwrap()).unwrap();
        let (asset, price) = register(&owner, &deployed).await;
        Self {
            db: connect(ServiceRole::Settler).await.unwrap(),
            scheduler: connect(ServiceRole::Scheduler).await.unwrap(),
            api: connect(ServiceRole::Api).await.unwrap(),
            owner,
            anvil,
            objects,
            _folder: folder,
            deployed,
            asset,
            price,
        }
    }

    pub fn config(&self) -> Config {
        Config {
            rpc: self.anvil.url.clone(),
            signer: Key::Settler.signer(),
            start_block: self.deployed.start_block,
            finality: Finality::Depth(DEPTH),
            batches: BatchPolicy {
                interval: Duration::ZERO,
                ..BatchPolicy::default()
            },
            fees: FeePolicy::default(),
            poll: Duration::from_millis(100),
            holder: "test".to_owned(),
        }
    }

    pub async fn lead_with(&self, config: Config) -> Option<Settler> {
        let (db, objects) = (self.db.clone(), self.objects.clone());
        Settler::lead(db, objects, self.asset, config, NOW)
            .await
            .unwrap()
    }

    pub async fn lead(&self) -> Option<Settler> {
        self.lead_with(self.config()).await
    }

    pub async fn settler(&self) -> Settler {
        self.lead().await.expect("nobody else leads")
    }

    pub fn sender(&self, key: Key) -> Sender {
        Sender::new(self.anvil.url.clone(), key.signer()).unwrap()
    }

    pub async fn call(&self, key: Key, call: impl SolCall) {
        self.sender(key)
            .call(self.deployed.settlement, call.abi_encode().into())
            .await
            .unwrap();
    }

    pub fn contract(&self) -> SettlementInstance<&alloy::providers::RootProvider> {
        Settlement::new(self.deployed.settlement, &self.anvil.node)
    }

    pub async fn tokens_of(&self, owner: Address) -> u128 {
        let token = ComptoirToken::new(self.deployed.token, &self.anvil.node);
        token
            .balanceOf(owner)
            .call()
            .await
            .unwrap()
            .try_into()
            .unwrap()
    }

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

    /// Newest first.
    pub async fn batches(&self) -> Vec<Batch> {
        let mut conn = self.api.acquire().await.unwrap();
        batches::list(
            &mut conn,
            self.asset.id,
            Filter {
                before: None,
                limit: 1_000,
            },
        )
        .await
        .unwrap()
    }

    pub async fn states(&self) -> Vec<(u64, u32, BatchState)> {
        let batches = self.batches().await;
        batches
            .iter()
            .map(|it| (it.header.id, it.header.generation, it.state))
            .collect()
    }

    /// Mines and steps until the newest batch can be claimed from.
    pub async fn until_claimable(&self, settler: &mut Settler) -> Batch {
        for _ in 0..20 {
            settler.step(NOW).await.unwrap();
            let newest = self.batches().await.into_iter().next();
            if let Some(batch) = newest.filter(|batch| batch.state == BatchState::Claimable) {
                return batch;
            }
            self.anvil.pass(21).await;
            self.anvil.mine(DEPTH).await;
        }
        panic!("no batch became claimable: {:?}", self.states().await);
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

    /// Steps until nothing changes any more.
    pub async fn settle_down(&self, settler: &mut Settler) {
        for _ in 0..20 {
            if settler.step(NOW).await.unwrap() == Progress::default() {
                return;
            }
        }
        panic!(
            "the settler does not come to rest: {:?}",
            self.states().await
        );
    }
}

async fn register(owner: &PgPool, deployed: &Deployed) -> (Asset, PriceVersion) {
    let mut conn = owner.acquire().await.unwrap();
    let new = NewAsset {
        chain_id: deployed.chain_id,
        token: deployed.token,
        contract: deployed.settlement,
        symbol: deployed.symbol.clone(),
        decimals: deployed.decimals,
        platform: PLATFORM,
    };
    let asset = assets::register(&mut conn, &new, NOW).await.unwrap();
    // One base unit for each multiply-add, a tenth of it the platform's.
    let price = NewPrice {
        device: Device::Cpu,
        rate_nano: Rate::from_nano(10_u128.pow(18)).unwrap(),
        minimum: amount(1),
        platform_ppm: 100_000,
        effective_at: NOW,
    };
    (
        asset,
        prices::publish(&mut conn, asset.id, price).await.unwrap(),
    )
}
