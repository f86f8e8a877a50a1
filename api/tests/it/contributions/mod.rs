//! Contributions over HTTP: on which terms they are taken, what is refused, what is paid, and who reads what.

mod paying;
mod refusals;
mod rights;

use ::time::Duration;
use alloy_primitives::Address;
use axum::http::{Method, StatusCode};
use comptoir_api::steps;
use comptoir_domain::asset::Asset;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    datasets,
    harness::{Reply, Session, TestApp},
    market, settlement,
};

/// A listed dataset that takes contributions, and somebody who makes them.
pub struct Guild {
    pub app: TestApp,
    pub asset: Asset,
    pub owner: Session,
    pub purse: Address,
    pub giver: Session,
    pub paid: Address,
    pub dataset: String,
}

impl Guild {
    /// Its owner has so much money, and gives 7 for a row and 40 % of its sales.
    pub async fn open(db: PgPool, money: u128) -> Self {
        let app = TestApp::new(db).await;
        let (asset, _) = market::open(&app).await;
        let (owner, purse) = app.bound_session().await;
        settlement::deposit(&app, &asset, purse, money).await;
        let (giver, paid) = app.bound_session().await;
        let files: [(&str, &[u8]); 1] = [("rows.csv", b"a,b\n1,2\n")];
        let (dataset, _, _) = datasets::published(&app, &owner, &files).await;
        datasets::act(&app, &owner, &format!("{dataset}/list"))
            .await
            .expect(StatusCode::OK);
        let guild = Self {
            app,
            asset,
            owner,
            purse,
            giver,
            paid,
            dataset,
        };
        guild.invite(guild.terms(7, 400_000)).await;
        guild
    }

    pub fn money(&self, base: u128) -> Value {
        json!({ "amount": base.to_string(), "asset": self.asset.caip19(), "decimals": 18 })
    }

    pub fn terms(&self, per_row: u128, pool_ppm: u32) -> Value {
        let per_row = self.money(per_row);
        json!({ "reward_per_row": per_row, "pool_ppm": pool_ppm, "rows_max": 1_000, "is_open": true })
    }

    pub async fn try_invite(&self, by: &Session, terms: &Value) -> Reply {
        let path = format!("{}/contribution-terms", self.dataset);
        let by = self.app.renewed(by);
        let call = self.app.request(Method::PUT, &path).by(&by);
        call.json(terms).send().await
    }

    pub async fn invite(&self, terms: Value) -> Reply {
        let set = self.try_invite(&self.owner, &terms).await;
        set.expect(StatusCode::OK)
    }

    /// A ready version of somebody with these files.
    pub async fn version(&self, by: &Session, files: &[(&str, &[u8])]) -> String {
        let by = self.app.renewed(by);
        let (_, version, _) = datasets::published(&self.app, &by, files).await;
        id_of(&version)
    }

    pub async fn offer(&self, by: &Session, version: &str) -> Reply {
        let path = format!("{}/contributions", self.dataset);
        let by = self.app.renewed(by);
        let body = json!({ "version": version, "note": "please" });
        self.app.post(&path, &body).by(&by).send().await
    }

    /// Offers a table with these rows; the contribution.
    pub async fn given(&self, by: &Session, rows: &[&str]) -> Reply {
        let table = format!("a,b\n{}\n", rows.join("\n"));
        let version = self.version(by, &[("more.csv", table.as_bytes())]).await;
        self.offer(by, &version).await.expect(StatusCode::CREATED)
    }

    pub async fn try_accept(&self, id: &str, reward: u128) -> Reply {
        let path = format!("/v1/contributions/{id}/accept");
        let owner = self.app.renewed(&self.owner);
        let body = json!({ "expected_reward": self.money(reward) });
        self.app.post(&path, &body).by(&owner).send().await
    }

    pub async fn accept(&self, contribution: &Reply) -> Reply {
        let reward = contribution.text("/reward/amount").parse().unwrap();
        let accepted = self.try_accept(contribution.text("/id"), reward).await;
        accepted.expect(StatusCode::OK)
    }

    pub async fn end(&self, by: &Session, id: &str, verb: &str) -> Reply {
        let path = format!("/v1/contributions/{id}/{verb}");
        let by = self.app.renewed(by);
        let call = self.app.request(Method::POST, &path).by(&by);
        let body = json!({ "reason": "not what was asked for" });
        match verb {
            "reject" => call.json(&body).send().await,
            _ => call.send().await,
        }
    }

    pub async fn read(&self, by: &Session, path: &str) -> Reply {
        datasets::get(&self.app, &self.app.renewed(by), path).await
    }

    pub async fn state(&self, id: &str) -> String {
        let read = self
            .read(&self.giver, &format!("/v1/contributions/{id}"))
            .await;
        read.expect(StatusCode::OK).text("/state").to_owned()
    }

    pub async fn available(&self, of: Address) -> u128 {
        let it = market::balances(&self.app, &self.asset, of).await;
        assert!(it.held.is_zero(), "rewards are charged at once");
        it.available.base()
    }

    pub async fn pass(&self, time: Duration) {
        self.app.pass(time);
        steps::step(&self.app.state).await.unwrap();
    }

    /// Whether the owner has a standing right to the version of a contribution.
    pub async fn may_read(&self, contribution: &str) -> bool {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM entitlements e JOIN contributions c USING (contribution_id)
             WHERE e.account_id = $1 AND e.version_id = c.version_id AND e.allows = 'download' AND e.ended_at IS NULL AND c.contribution_id = $2)",
        )
        .bind(self.owner.account.0)
        .bind(uuid_of(contribution))
        .fetch_one(&self.app.owner)
        .await
        .unwrap()
    }
}

pub fn id_of(path: &str) -> String {
    path.rsplit('/').next().unwrap().to_owned()
}

fn uuid_of(contribution: &str) -> uuid::Uuid {
    let id: comptoir_domain::id::ContributionId = contribution.parse().unwrap();
    id.0
}

/// For the walk over every route: a contribution to a dataset of the owner.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let giver = app.bound_session().await.0;
    contribution(app, owner, &giver).await
}

/// For the walk over every route: what this account offered to somebody.
pub async fn make_given(app: &TestApp, giver: &Session) -> Vec<String> {
    let owner = app.bound_session().await.0;
    contribution(app, &owner, giver).await
}

async fn contribution(app: &TestApp, owner: &Session, giver: &Session) -> Vec<String> {
    let asset = market::open(app).await.0;
    let (dataset, _, _) = datasets::published(app, owner, &[("a.csv", b"a\n1\n")]).await;
    datasets::act(app, owner, &format!("{dataset}/list"))
        .await
        .expect(StatusCode::OK);
    invite(app, owner, &asset, &dataset).await;
    let (_, version, _) = datasets::published(app, giver, &[("b.csv", b"a\n2\n")]).await;
    let body = json!({ "version": id_of(&version) });
    let path = format!("{dataset}/contributions");
    let made = app.post(&path, &body).by(giver).send().await;
    vec![made.expect(StatusCode::CREATED).text("/id").to_owned()]
}

/// For the walk over every route: a dataset that takes contributions.
pub async fn make_terms(app: &TestApp, owner: &Session) -> Vec<String> {
    let asset = market::open(app).await.0;
    let dataset = datasets::dataset(app, owner).await;
    invite(app, owner, &asset, &dataset).await;
    vec![id_of(&dataset)]
}

async fn invite(app: &TestApp, owner: &Session, asset: &Asset, dataset: &str) {
    let per_row = json!({ "amount": "0", "asset": asset.caip19(), "decimals": 18 });
    let terms = json!({ "reward_per_row": per_row, "pool_ppm": 0, "rows_max": 9, "is_open": true });
    let path = format!("{dataset}/contribution-terms");
    let call = app.request(Method::PUT, &path).by(owner);
    call.json(&terms).send().await.expect(StatusCode::OK);
}
