//! Offers and what is taken of them, over HTTP: the price is held with the right, and charged once the sale is final.

mod buying;
mod cases;
mod links;
mod prices;
mod refusals;
mod requests;
mod serving;
mod subscription_prices;
mod subscriptions;
mod time;

use ::time::Duration;
use alloy_primitives::Address;
use axum::http::{Method, StatusCode};
use comptoir_api::steps;
use comptoir_domain::{asset::Asset, id::AccountId};
use comptoir_store::ledger::Balances;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    datasets,
    harness::{Reply, Session, TestApp},
    market,
};

/// What the platform takes of a sale, in millionths: that of the harness.
const PLATFORM_PPM: u128 = 50_000;
/// How long something bought is held that nobody reads.
const KEPT: Duration = Duration::days(7);
/// The platform's address.
pub const PLATFORM: Address = Address::repeat_byte(0x33);

/// A listed dataset of a seller, and somebody with money.
pub struct Shop {
    pub app: TestApp,
    pub asset: Asset,
    pub seller: Session,
    pub paid: Address,
    pub buyer: Session,
    pub payer: Address,
    pub dataset: String,
    pub version: String,
}

impl Shop {
    pub async fn open(db: PgPool, money: u128) -> Self {
        let app = TestApp::new(db).await;
        let (asset, _) = market::open(&app).await;
        let (seller, paid) = app.bound_session().await;
        let (buyer, payer) = market::client(&app, &asset, money).await;
        let files: [(&str, &[u8]); 1] = [("rows.csv", b"a,b\n1,2\n")];
        let (dataset, version, _) = datasets::published(&app, &seller, &files).await;
        datasets::act(&app, &seller, &format!("{dataset}/list"))
            .await
            .expect(StatusCode::OK);
        Self {
            app,
            asset,
            seller,
            paid,
            buyer,
            payer,
            dataset,
            version,
        }
    }

    pub fn money(&self, base: u128) -> Value {
        json!({ "amount": base.to_string(), "asset": self.asset.caip19(), "decimals": 18 })
    }

    /// Offers the dataset: these terms, and the price.
    pub async fn offer(&self, terms: Value, price: u128) -> String {
        let made = self.try_offer(terms, price).await;
        made.expect(StatusCode::CREATED).text("/id").to_owned()
    }

    pub async fn try_offer(&self, mut terms: Value, price: u128) -> Reply {
        terms["price"] = self.money(price);
        let path = format!("{}/offers", self.dataset);
        let seller = self.app.renewed(&self.seller);
        self.app.post(&path, &terms).by(&seller).send().await
    }

    /// What takes an offer at this price.
    pub fn wish(&self, offer: &str, price: u128) -> Value {
        json!({ "offer": offer, "expected_price": self.money(price) })
    }

    pub async fn take(&self, wish: &Value) -> Reply {
        let buyer = self.app.renewed(&self.buyer);
        self.app.post("/v1/purchases", wish).by(&buyer).send().await
    }

    /// Takes an offer; the purchase's path.
    pub async fn taken(&self, wish: &Value) -> String {
        let taken = self.take(wish).await.expect(StatusCode::CREATED);
        format!("/v1/purchases/{}", taken.text("/id"))
    }

    pub async fn act(&self, path: &str) -> Reply {
        let buyer = self.app.renewed(&self.buyer);
        datasets::act(&self.app, &buyer, path).await
    }

    pub async fn sell(&self, path: &str, body: &Value) -> Reply {
        let seller = self.app.renewed(&self.seller);
        self.app
            .request(Method::POST, path)
            .by(&seller)
            .json(body)
            .send()
            .await
    }

    pub async fn read(&self, path: &str) -> Reply {
        let buyer = self.app.renewed(&self.buyer);
        datasets::get(&self.app, &buyer, path)
            .await
            .expect(StatusCode::OK)
    }

    /// Lets time pass, and does what is due until nothing is.
    pub async fn pass(&self, time: Duration) {
        self.app.pass(time);
        self.settle().await;
    }

    /// Reads what was bought, which makes the sale final.
    pub async fn open_it(&self) {
        self.read(&self.content().await).await;
    }

    pub async fn settle(&self) {
        for _ in 0..20 {
            if steps::step(&self.app.state).await.unwrap() == 0 {
                return;
            }
        }
    }

    pub async fn balances(&self, owner: Address) -> Balances {
        market::balances(&self.app, &self.asset, owner).await
    }

    /// What the buyer may spend, and what is held for it.
    pub async fn purse(&self) -> (u128, u128) {
        let it = self.balances(self.payer).await;
        (it.available.base(), it.held.base())
    }

    /// What the seller earned.
    pub async fn earned(&self) -> u128 {
        self.balances(self.paid).await.available.base()
    }

    /// What the house has: fees, and dust.
    pub async fn house(&self) -> u128 {
        let mut connection = self.app.owner.acquire().await.unwrap();
        let house = comptoir_store::ledger::house_balances(&mut connection, self.asset.id).await;
        let house = house.unwrap();
        house.fees.base() + house.split_dust.base()
    }

    /// Everything that anybody has is what was deposited.
    pub async fn adds_up(&self, money: u128) {
        let (available, held) = self.purse().await;
        assert_eq!(
            available + held + self.earned().await + self.house().await,
            money
        );
    }
}

/// The seller's part of a charge that begins with empty carries, and what stays with the house.
fn shared(gross: u128) -> (u128, u128) {
    let seller = gross * (1_000_000 - PLATFORM_PPM) / 1_000_000;
    (seller, gross - seller)
}

fn price(asset: &Asset, base: u128) -> Value {
    json!({ "amount": base.to_string(), "asset": asset.caip19(), "decimals": 18 })
}

/// A listed dataset of this seller with an offer on these terms.
async fn on_sale(app: &TestApp, seller: &Session, terms: &Value) -> String {
    let (dataset, ..) = datasets::published(app, seller, &[("a.csv", b"a\n1\n")]).await;
    let listed = datasets::act(app, seller, &format!("{dataset}/list")).await;
    listed.expect(StatusCode::OK);
    let path = format!("{dataset}/offers");
    let made = app.post(&path, terms).by(seller).send().await;
    made.expect(StatusCode::CREATED).text("/id").to_owned()
}

async fn buy(app: &TestApp, buyer: &Session, offer: &str, expected: &Value) -> Reply {
    let wish = json!({ "offer": offer, "expected_price": expected });
    let taken = app.post("/v1/purchases", &wish).by(buyer).send().await;
    taken.expect(StatusCode::CREATED)
}

/// Freezes an account, as an operator does; its sessions are left alone.
pub async fn freeze(app: &TestApp, account: AccountId) {
    let frozen = "INSERT INTO account_controls (account_id, frozen_at, frozen_reason, updated_at) VALUES ($1, now(), 'test', now())";
    let frozen = sqlx::query(frozen).bind(account.0);
    frozen.execute(&app.owner).await.unwrap();
}

/// For the walk over every route: an offer.
pub async fn make_offer(app: &TestApp, owner: &Session) -> Vec<String> {
    let asset = market::open(app).await.0;
    let terms = json!({ "kind": "buy", "price": price(&asset, 5) });
    let dataset = datasets::dataset(app, owner).await;
    let made = app
        .post(&format!("{dataset}/offers"), &terms)
        .by(owner)
        .send()
        .await;
    vec![made.expect(StatusCode::CREATED).text("/id").to_owned()]
}

/// For the walk over every route: what the owner bought or subscribed to.
pub async fn make(app: &TestApp, owner: &Session, kind: &str) -> Vec<String> {
    let asset = market::open(app).await.0;
    let (seller, _) = app.bound_session().await;
    let subscribes = kind == "subscribe";
    let price = price(&asset, subscribes.into());
    let mut terms = json!({ "kind": kind, "price": price });
    if subscribes {
        terms["period_seconds"] = json!(3_600);
        let address: Vec<u8> =
            sqlx::query_scalar("SELECT address FROM accounts WHERE account_id = $1")
                .bind(owner.account.0)
                .fetch_one(&app.owner)
                .await
                .unwrap();
        crate::money::credit(app, &asset, Address::from_slice(&address), 1).await;
    }
    let offer = on_sale(app, &seller, &terms).await;
    let taken = buy(app, owner, &offer, &price).await;
    let id = if subscribes { "/subscription" } else { "/id" };
    vec![taken.text(id).to_owned()]
}

/// For the walk over every route: what somebody asks the owner for.
pub async fn make_sale(app: &TestApp, owner: &Session) -> Vec<String> {
    let asset = market::open(app).await.0;
    let price = price(&asset, 0);
    let terms = json!({ "kind": "free", "price": price, "answer_seconds": 3_600 });
    let offer = on_sale(app, owner, &terms).await;
    let buyer = app.session().await;
    vec![
        buy(app, &buyer, &offer, &price)
            .await
            .text("/id")
            .to_owned(),
    ]
}
