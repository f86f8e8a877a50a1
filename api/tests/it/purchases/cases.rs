//! The bad requests of buyers that need something to have happened before, as one table: each has its answer, and moves no money. What is refused
//! as soon as it is read is in `refusals`; a period that many renew at once in `time`, and 64 that buy at once in `buying`.

use ::time::Duration;
use axum::http::StatusCode;
use comptoir_domain::amount::Amount;
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{Shop, freeze};
use crate::{
    datasets,
    harness::{Reply, Session},
};

const HOUR: u32 = 3_600;
const MONEY: u128 = 1_000_000;

/// A POST that is refused.
struct Request {
    by: Session,
    path: String,
    body: Value,
}

/// What happens before, the request, and its answer.
struct Case {
    name: &'static str,
    set_up: for<'a> fn(&'a Shop) -> BoxFuture<'a, Request>,
    status: StatusCode,
    code: &'static str,
}

impl Shop {
    /// Another listed dataset of the same seller, whom nobody froze.
    async fn restock(&mut self) {
        sqlx::query("DELETE FROM account_controls")
            .execute(&self.app.owner)
            .await
            .unwrap();
        let seller = self.app.renewed(&self.seller);
        let files: [(&str, &[u8]); 1] = [("rows.csv", b"a,b\n1,2\n")];
        (self.dataset, self.version, _) = datasets::published(&self.app, &seller, &files).await;
        let listed = datasets::act(&self.app, &seller, &format!("{}/list", self.dataset)).await;
        listed.expect(StatusCode::OK);
    }

    fn post(&self, path: impl Into<String>, body: Value) -> Request {
        Request {
            by: self.app.renewed(&self.buyer),
            path: path.into(),
            body,
        }
    }

    fn sale(&self, path: impl Into<String>, body: Value) -> Request {
        Request {
            by: self.app.renewed(&self.seller),
            ..self.post(path, body)
        }
    }

    fn buying(&self, wish: Value) -> Request {
        self.post("/v1/purchases", wish)
    }

    fn renting(&self, offer: &str, seconds: impl Into<Value>, price: u128) -> Value {
        let mut wish = self.wish(offer, price);
        wish["seconds"] = seconds.into();
        wish
    }

    async fn rent(&self) -> String {
        self.offer(
            json!({ "kind": "rent", "period_seconds": HOUR, "minimum_seconds": 0 }),
            2,
        )
        .await
    }

    /// Everything that the ledger says: who has what.
    async fn books(&self) -> Vec<(String, String)> {
        let books = "SELECT account::text, balance_base::text FROM ledger_accounts account ORDER BY ledger_account_id";
        let books = sqlx::query_as(books).fetch_all(&self.app.owner);
        books.await.unwrap()
    }
}

const CASES: &[Case] = &[
    Case {
        name: "the price rose between quote and purchase",
        set_up: |shop| {
            async {
                let offer = shop.offer(json!({ "kind": "buy" }), 333).await;
                let quote = shop.post(format!("/v1/offers/{offer}/quote"), json!({}));
                let quoted = send(shop, quote).await.expect(StatusCode::OK);
                let prices = format!("/v1/offers/{offer}/prices");
                let raise = shop.sale(prices, json!({ "price": shop.money(334) }));
                send(shop, raise).await.expect(StatusCode::CREATED);
                shop.buying(json!({ "offer": offer, "expected_price": quoted.json["price"] }))
            }
            .boxed()
        },
        status: StatusCode::CONFLICT,
        code: "price_changed",
    },
    Case {
        name: "the seller of what is bought is frozen",
        set_up: |shop| {
            async {
                let offer = shop.offer(json!({ "kind": "buy" }), 333).await;
                freeze(&shop.app, shop.seller.account).await;
                shop.buying(shop.wish(&offer, 333))
            }
            .boxed()
        },
        status: StatusCode::CONFLICT,
        code: "not_on_sale",
    },
    Case {
        name: "the seller of what is free is frozen",
        set_up: |shop| {
            async {
                let offer = shop.offer(json!({ "kind": "free" }), 0).await;
                freeze(&shop.app, shop.seller.account).await;
                shop.buying(shop.wish(&offer, 0))
            }
            .boxed()
        },
        status: StatusCode::CONFLICT,
        code: "not_on_sale",
    },
    Case {
        name: "a quote of a frozen seller's offer",
        set_up: |shop| {
            async {
                let offer = shop.offer(json!({ "kind": "buy" }), 333).await;
                freeze(&shop.app, shop.seller.account).await;
                shop.post(format!("/v1/offers/{offer}/quote"), json!({}))
            }
            .boxed()
        },
        status: StatusCode::CONFLICT,
        code: "not_on_sale",
    },
    Case {
        name: "a frozen seller approves what was asked for",
        set_up: |shop| {
            async {
                let terms = json!({ "kind": "buy", "answer_seconds": HOUR });
                let offer = shop.offer(terms, 333).await;
                let asked = shop.taken(&shop.wish(&offer, 333)).await;
                freeze(&shop.app, shop.seller.account).await;
                let id = asked.rsplit('/').next().unwrap();
                shop.sale(format!("/v1/sales/{id}/approve"), json!({}))
            }
            .boxed()
        },
        status: StatusCode::FORBIDDEN,
        code: "account_frozen",
    },
    Case {
        name: "a refund of what was downloaded",
        set_up: |shop| {
            async {
                let terms = json!({ "kind": "buy", "refund_seconds": HOUR });
                let offer = shop.offer(terms, 333).await;
                let bought = shop.taken(&shop.wish(&offer, 333)).await;
                shop.read(&shop.content().await).await;
                shop.post(format!("{bought}/refund"), json!({}))
            }
            .boxed()
        },
        status: StatusCode::CONFLICT,
        code: "purchase_final",
    },
    Case {
        name: "the end of a rental whose time is over",
        set_up: |shop| {
            async {
                let rented = shop.rent().await;
                let rented = shop.taken(&shop.renting(&rented, 60, 120)).await;
                shop.pass(Duration::seconds(60)).await;
                shop.post(format!("{rented}/end"), json!({}))
            }
            .boxed()
        },
        status: StatusCode::CONFLICT,
        code: "purchase_final",
    },
    Case {
        name: "a rental of negative time",
        set_up: |shop| {
            async {
                let offer = shop.rent().await;
                shop.buying(shop.renting(&offer, -60, 120))
            }
            .boxed()
        },
        status: StatusCode::UNPROCESSABLE_ENTITY,
        code: "invalid_request",
    },
    Case {
        name: "a period of negative time",
        set_up: |shop| {
            let price = shop.money(1);
            let terms = json!({ "kind": "subscribe", "period_seconds": -60, "price": price });
            let request = shop.sale(format!("{}/offers", shop.dataset), terms);
            std::future::ready(request).boxed()
        },
        status: StatusCode::UNPROCESSABLE_ENTITY,
        code: "invalid_request",
    },
    Case {
        name: "a negative least time",
        set_up: |shop| {
            let terms = json!({ "kind": "rent", "period_seconds": 60, "minimum_seconds": -1, "price": shop.money(1) });
            let request = shop.sale(format!("{}/offers", shop.dataset), terms);
            std::future::ready(request).boxed()
        },
        status: StatusCode::UNPROCESSABLE_ENTITY,
        code: "invalid_request",
    },
    Case {
        name: "a rental that costs more than any amount",
        set_up: |shop| {
            async {
                let terms = json!({ "kind": "rent", "period_seconds": HOUR, "minimum_seconds": 0 });
                let offer = shop.offer(terms, Amount::MAX.base()).await;
                shop.buying(shop.renting(&offer, 2, Amount::MAX.base()))
            }
            .boxed()
        },
        status: StatusCode::UNPROCESSABLE_ENTITY,
        code: "invalid_request",
    },
];

async fn send(shop: &Shop, it: Request) -> Reply {
    shop.app.post(&it.path, &it.body).by(&it.by).send().await
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_must_not_be_is_refused_and_moves_no_money(db: PgPool) {
    let mut shop = Shop::open(db, MONEY).await;
    for case in CASES {
        shop.restock().await;
        let request = (case.set_up)(&shop).await;
        let (books, purse) = (shop.books().await, shop.purse().await);
        let reply = send(&shop, request).await;
        assert_eq!(
            (reply.status, reply.code()),
            (case.status, case.code),
            "{}: {}",
            case.name,
            reply.json
        );
        assert_eq!(shop.books().await, books, "{}", case.name);
        assert_eq!(shop.purse().await, purse, "{}", case.name);
        shop.adds_up(MONEY).await;
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_was_bought_of_a_seller_that_is_frozen_later_stays_and_is_not_renewed(db: PgPool) {
    let shop = Shop::open(db, 10_000).await;
    let rented = shop.rent().await;
    let rented = shop.taken(&shop.renting(&rented, HOUR, 7_200)).await;
    let monthly = json!({ "kind": "subscribe", "period_seconds": 24 * HOUR });
    let monthly = shop.offer(monthly, 100).await;
    let period = shop.taken(&shop.wish(&monthly, 100)).await;
    let content = shop.content().await;
    freeze(&shop.app, shop.seller.account).await;
    shop.read(&content).await;
    shop.pass(Duration::seconds(HOUR.into())).await;
    assert_eq!(shop.read(&rented).await.text("/charged/amount"), "7200");
    shop.read(&content).await;
    shop.pass(Duration::hours(23)).await;
    let period = shop.read(&period).await;
    assert_eq!(period.text("/charged/amount"), "100");
    let subscription = format!("/v1/subscriptions/{}", period.text("/subscription"));
    let subscription = shop.read(&subscription).await;
    assert_eq!(
        (
            subscription.text("/state"),
            subscription.text("/ended_because")
        ),
        ("ended", "seller_frozen")
    );
    assert_eq!(shop.purse().await, (2_700, 0), "nothing more is held");
    shop.adds_up(10_000).await;
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_sale_of_the_largest_amount_is_shared_to_the_unit(db: PgPool) {
    let all = Amount::MAX.base();
    let shop = Shop::open(db, all).await;
    let offer = shop.offer(json!({ "kind": "buy" }), all).await;
    shop.taken(&shop.wish(&offer, all)).await;
    shop.open_it().await;
    assert_eq!(shop.purse().await, (0, 0));
    assert_eq!(shop.earned().await, all / 20 * 19 + all % 20 * 19 / 20);
    shop.adds_up(all).await;
}
