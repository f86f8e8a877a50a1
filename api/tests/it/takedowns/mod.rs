//! Takedowns over HTTP: who may say what, what a freeze does to everything that was sold, and what either end of it does to the money.

mod filing;
mod freezing;
mod money;

use axum::http::{StatusCode, header};
use comptoir_store::{
    holdback::proceeds,
    pool::{self, ServiceRole},
};
use serde_json::{Value, json};
use time::Duration;

use crate::{
    admin,
    datasets::{self, get},
    harness::{Reply, Session, TestApp},
    purchases::Shop,
};

const HOUR: u32 = 3_600;

fn claim() -> Value {
    json!({ "ground": "copyright", "statement": "I wrote these rows." })
}

impl Shop {
    /// Files a takedown of the dataset; by somebody else than the buyer.
    async fn filed(&self) -> (Session, String) {
        let claimant = self.app.session().await;
        let filed = self.file(&claimant, &claim()).await;
        let filed = filed.expect(StatusCode::CREATED);
        let path = filed.header(header::LOCATION).to_owned();
        (claimant, path)
    }

    async fn file(&self, by: &Session, claim: &Value) -> Reply {
        let path = format!("{}/takedowns", self.dataset);
        let by = self.app.renewed(by);
        self.app.post(&path, claim).by(&by).send().await
    }

    /// What an operator does with a takedown.
    async fn decide(&self, takedown: &str, act: &str) -> Reply {
        let admin = admin::admin(&self.app).await;
        let path = takedown.replace("/v1/", "/v1/admin/");
        admin::act(&self.app, &admin, &format!("{path}/{act}")).await
    }

    async fn frozen(&self) -> (Session, String) {
        let (claimant, takedown) = self.filed().await;
        let frozen = self.decide(&takedown, "freeze").await;
        frozen.expect(StatusCode::OK);
        self.settle().await;
        (claimant, takedown)
    }

    async fn contest(&self, takedown: &str) -> Reply {
        let body = json!({ "statement": "I wrote them, and have the drafts." });
        self.sell(&format!("{takedown}/contest"), &body).await
    }

    async fn state_of(&self, takedown: &str) -> String {
        let seller = self.app.renewed(&self.seller);
        let read = get(&self.app, &seller, takedown).await;
        read.expect(StatusCode::OK).text("/state").to_owned()
    }

    async fn asks(&self, by: &Session, path: &str) -> Reply {
        get(&self.app, &self.app.renewed(by), path).await
    }

    /// What is held back for the seller, and for the house.
    async fn held_back(&self) -> (u128, u128) {
        let seller = self.balances(self.paid).await.held_back.base();
        let platform = self.balances(super::purchases::PLATFORM).await;
        (seller, platform.held_back.base())
    }

    /// As the scheduler does in its steps, with its rights.
    async fn move_proceeds(&self) -> usize {
        let options = self.app.owner.connect_options().as_ref().clone();
        let scheduler = pool::connect(options, ServiceRole::Scheduler, 1).await;
        let scheduler = scheduler.unwrap();
        let mut moved = 0;
        let mut connection = scheduler.acquire().await.unwrap();
        let due = proceeds::due(&mut connection, self.app.now(), 10)
            .await
            .unwrap();
        drop(connection);
        for dataset in due {
            let mut tx = scheduler.begin().await.unwrap();
            let now = self.app.now();
            moved += proceeds::move_due(&mut tx, dataset, now).await.unwrap().1;
            tx.commit().await.unwrap();
        }
        moved
    }

    /// A rental of 1,000 seconds at 7 a second, 500 of them at least, that a freeze ended after 100.
    async fn rented_and_frozen(&self) -> String {
        let terms = json!({ "kind": "rent", "period_seconds": HOUR, "minimum_seconds": 500 });
        let offer = self.offer(terms, 7).await;
        let mut wish = self.wish(&offer, 7_000);
        wish["seconds"] = json!(1_000);
        let rental = self.taken(&wish).await;
        // Whoever read it did not choose that it ends: no least time is charged.
        self.read(&self.content().await).await;
        self.app.pass(Duration::seconds(100));
        let (_, takedown) = self.frozen().await;
        let ended = self.read(&rental).await;
        assert_eq!(ended.text("/state"), "settled");
        assert_eq!(ended.text("/final_because"), "taken_down");
        assert_eq!(ended.text("/charged/amount"), "700");
        takedown
    }
}

fn is_blocked(reply: Reply, takedown: &str) {
    let reply = reply.expect_problem(StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS, "dataset_blocked");
    let link = reply.header(header::LINK);
    assert!(link.ends_with(r#">; rel="blocked-by""#), "{link}");
    let id = takedown.rsplit('/').next().unwrap();
    assert!(reply.text("/detail").contains(id), "{:?}", reply.json);
}

/// For the walk over every route: a takedown that the owner filed.
pub async fn make(app: &TestApp, owner: &Session) -> Vec<String> {
    let seller = app.session().await;
    vec![against(app, owner, &seller).await.text("/id").to_owned()]
}

/// For the walk over every route: a takedown of a dataset of the owner's that is frozen.
pub async fn make_frozen(app: &TestApp, owner: &Session) -> Vec<String> {
    let claimant = app.session().await;
    let filed = against(app, &claimant, owner).await;
    let id = filed.text("/id");
    let admin = admin::admin(app).await;
    let frozen = admin::act(app, &admin, &format!("/v1/admin/takedowns/{id}/freeze")).await;
    frozen.expect(StatusCode::OK);
    vec![id.to_owned()]
}

async fn against(app: &TestApp, claimant: &Session, seller: &Session) -> Reply {
    let (dataset, ..) = datasets::published(app, seller, &[("a.csv", b"a\n1\n")]).await;
    let listed = datasets::act(app, seller, &format!("{dataset}/list")).await;
    listed.expect(StatusCode::OK);
    let path = format!("{dataset}/takedowns");
    let filed = app.post(&path, &claim()).by(claimant).send().await;
    filed.expect(StatusCode::CREATED)
}
