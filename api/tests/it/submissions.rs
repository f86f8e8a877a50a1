//! Submissions are committed in groups; what one is refused for concerns no other.

use std::{collections::BTreeSet, task::Poll};

use axum::http::StatusCode;
use comptoir_domain::{amount::Amount, id::QuoteId, job::Device, price::Rate};
use comptoir_store::{
    holds::HoldError,
    jobs::{self, CreateError, NewJob},
    prices::{self, NewPrice},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::{
    harness::{Session, TestApp},
    jobs::{RICH, count},
    market::{self, balances, client, quote, training},
};

async fn quoted(app: &TestApp, session: &Session, spec: &Value) -> QuoteId {
    let quoted = quote(app, session, spec, "none").await;
    quoted
        .expect(StatusCode::CREATED)
        .text("/id")
        .parse()
        .unwrap()
}

/// Names each rule of the ledger that is broken.
async fn broken_rules(app: &TestApp) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT 'version or balance of ' || code FROM ledger_accounts la CROSS JOIN LATERAL (
             SELECT count(*) AS lines, coalesce(sum(amount_base), 0) AS total, coalesce(max(account_version), 0) AS last
             FROM postings p WHERE p.ledger_account_id = la.ledger_account_id
         ) p WHERE (la.version, la.balance_base, la.version) IS DISTINCT FROM (p.lines, p.total, p.last)
         UNION ALL
         SELECT 'chain of ' || ledger_account_id FROM (
             SELECT ledger_account_id, balance_after_base - amount_base AS before,
                 lag(balance_after_base, 1, 0) OVER (PARTITION BY ledger_account_id ORDER BY account_version) AS previous
             FROM postings
         ) p WHERE before <> previous
         UNION ALL
         SELECT 'held of a job' FROM jobs WHERE NOT EXISTS (SELECT FROM holds WHERE source_id = job_id)",
    )
    .fetch_all(&app.owner)
    .await
    .unwrap()
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_one_of_a_group_is_refused_for_concerns_no_other(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (rich, payer) = client(&app, &asset, RICH).await;
    let (poor, poor_payer) = client(&app, &asset, market::MINIMUM - 1).await;
    let (spec, poor_spec) = (
        training(&app, &rich, "mlp.pt2").await,
        training(&app, &poor, "mlp.pt2").await,
    );
    let (first, second) = (
        quoted(&app, &rich, &spec).await,
        quoted(&app, &rich, &spec).await,
    );
    let theirs = quoted(&app, &poor, &poor_spec).await;
    let deadline_at = app.now() + Duration::HOUR;
    let new = |session: &Session, payer, quote, max_cost: u128| NewJob {
        account: session.account,
        quote,
        payer,
        spender: None,
        name: None,
        max_cost: Amount::from_base(max_cost).unwrap(),
        deadline_at,
    };
    let group = [
        new(&rich, payer, first, RICH),
        new(&poor, poor_payer, theirs, RICH),
        new(&rich, payer, first, RICH),
        new(&rich, payer, theirs, RICH),
        new(&rich, payer, second, 1),
        new(&rich, payer, second, RICH),
    ];
    let mut tx = app.state.db.begin().await.unwrap();
    let made = jobs::create_all(&mut tx, &group, Vec::new(), app.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert!(
        matches!(
            &made[..],
            [
                Ok(_),
                Err(CreateError::Hold(HoldError::InsufficientFunds { .. })),
                Err(CreateError::QuoteUsed),
                Err(CreateError::QuoteNotFound),
                Err(CreateError::AboveMaxCost { .. }),
                Ok(_),
            ]
        ),
        "{made:?}"
    );
    assert_eq!(
        (count(&app, "jobs").await, count(&app, "holds").await),
        (2, 2)
    );
    let held: u128 = made.iter().flatten().map(|job| job.hold.base()).sum();
    let left = balances(&app, &asset, payer).await;
    assert_eq!(
        (left.held.base(), left.available.base()),
        (held, RICH - held)
    );
    assert_eq!(broken_rules(&app).await, [""; 0]);
    for job in made.into_iter().flatten() {
        let mut connection = app.owner.acquire().await.unwrap();
        let found = jobs::find(&mut connection, rich.account, job.id)
            .await
            .unwrap();
        assert_eq!(found, Some(job), "what is answered is what is there");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn money_for_three_of_many_at_once_makes_three_jobs(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, payer) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000" });
    let probe = app.post("/v1/jobs", &body).by(&session).send().await;
    let hold: u128 = probe
        .expect(StatusCode::CREATED)
        .text("/quoted/amount")
        .parse()
        .unwrap();
    let (poor, poor_payer) = client(&app, &asset, 3 * hold + hold / 2).await;
    training(&app, &poor, "mlp.pt2").await;
    let calls = (0..24).map(|_| app.post("/v1/jobs", &body).by(&poor).send());
    let replies = futures::future::join_all(calls).await;
    let made = replies.iter().filter(|it| it.status == StatusCode::CREATED);
    assert_eq!(made.count(), 3);
    for reply in replies.iter().filter(|it| it.status != StatusCode::CREATED) {
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::PAYMENT_REQUIRED, "insufficient_funds")
        );
    }
    let left = balances(&app, &asset, poor_payer).await;
    assert_eq!(
        (left.held.base(), left.available.base()),
        (3 * hold, hold / 2)
    );
    assert_eq!(balances(&app, &asset, payer).await.held.base(), hold);
    assert_eq!(broken_rules(&app).await, [""; 0]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_item_that_breaks_its_group_fails_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    // Something that nobody foresaw: the database refuses one row.
    for statement in [
        "CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF NEW.name = 'poison' THEN RAISE EXCEPTION 'poisoned'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER poisoned BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION refuse_poison()",
    ] {
        sqlx::query(statement).execute(&app.owner).await.unwrap();
    }
    let calls = (0..32).map(|number| {
        let name = if number == 16 { "poison" } else { "sound" };
        let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000", "name": name });
        app.post("/v1/jobs", &body).by(&session).send()
    });
    let replies = futures::future::join_all(calls).await;
    for (number, reply) in replies.iter().enumerate() {
        let expected = if number == 16 {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::CREATED
        };
        assert_eq!(reply.status, expected, "{number}: {:?}", reply.json);
    }
    let ids: BTreeSet<_> = replies
        .iter()
        .filter_map(|it| it.json["id"].as_str())
        .collect();
    assert_eq!((ids.len(), count(&app, "jobs").await), (31, 31));
    assert_eq!(broken_rules(&app).await, [""; 0]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn whoever_missed_the_answer_gets_it_by_repeating_the_request(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000" });
    let submit = |key: &str| {
        app.post("/v1/jobs", &body)
            .by(&session)
            .idempotency_key(key)
            .send()
    };
    submit("first").await.expect(StatusCode::CREATED);
    // The client hangs up at every point at which its request waits for something.
    for polls in 1..40 {
        let key = format!("hung up after {polls}");
        let before = count(&app, "jobs").await;
        let mut call = Box::pin(submit(&key));
        let mut answered = false;
        for _ in 0..polls {
            answered = matches!(futures::poll!(&mut call), Poll::Ready(_));
            if answered {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        let repeated = loop {
            let reply = submit(&key).await;
            if reply.code() != "idempotency_in_progress" {
                break reply.expect(StatusCode::CREATED);
            }
        };
        let again = submit(&key).await.expect(StatusCode::CREATED);
        assert_eq!(again.json["id"], repeated.json["id"]);
        assert_eq!(count(&app, "jobs").await, before + 1);
        if answered {
            return;
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_key_is_good_for_one_body_also_within_a_group(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, _) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let submit = |name: String| {
        let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000", "name": name });
        app.post("/v1/jobs", &body)
            .by(&session)
            .idempotency_key("one key")
            .send()
    };
    let replies = futures::future::join_all((0..16).map(|name| submit(name.to_string()))).await;
    let made: Vec<_> = replies
        .iter()
        .filter(|it| it.status == StatusCode::CREATED)
        .collect();
    assert_eq!((made.len(), count(&app, "jobs").await), (1, 1));
    for reply in replies.iter().filter(|it| it.status != StatusCode::CREATED) {
        let code = reply.code();
        assert!(
            ["idempotency_key_reused", "idempotency_in_progress"].contains(&code),
            "{code}"
        );
    }
    let other = submit("another".to_owned()).await;
    other.expect_problem(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_is_priced_with_what_is_published_when_it_is_made(db: PgPool) {
    let app = TestApp::new(db).await;
    let (asset, old) = market::open(&app).await;
    let (session, _) = client(&app, &asset, RICH).await;
    let spec = training(&app, &session, "mlp.pt2").await;
    let body = json!({ "spec": spec, "tier": "none", "max_cost": "1000000" });
    let submit = || app.post("/v1/jobs", &body).by(&session).send();
    let first = submit().await.expect(StatusCode::CREATED);
    let dearer = NewPrice {
        device: Device::Cpu,
        rate_nano: Rate::from_nano(old.rate_nano.nano() * 3).unwrap(),
        minimum: old.minimum,
        platform_ppm: old.platform_ppm,
        effective_at: app.now(),
    };
    let mut connection = app.owner.acquire().await.unwrap();
    let new = prices::publish(&mut connection, asset.id, dearer)
        .await
        .unwrap();
    let second = submit().await.expect(StatusCode::CREATED);
    let version: i32 =
        sqlx::query_scalar("SELECT price_version_id FROM quotes WHERE quote_id = $1")
            .bind(second.text("/quote_id").parse::<QuoteId>().unwrap().0)
            .fetch_one(&app.owner)
            .await
            .unwrap();
    assert_eq!(version, new.id);
    let amount =
        |reply: &crate::harness::Reply| reply.text("/quoted/amount").parse::<u128>().unwrap();
    assert!(amount(&second) > 2 * amount(&first));
}
