//! The second wall: what a query sees that forgot its condition.

use std::collections::BTreeSet;

use alloy_primitives::{Address, hex};
use comptoir_domain::{
    id::AccountId,
    job::Tier,
    ledger::{AccountKey, EntryKind, Lines, Source},
    price::Meter,
};
use comptoir_store::{jobs, ledger, tenant};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::harness::{ALICE, BOB, CAROL, Money, NOW, amount};

async fn count(connection: &mut PgConnection, table: &str, condition: &str) -> i64 {
    let query = format!("SELECT count(*) FROM {table} WHERE {condition}");
    sqlx::query_scalar(AssertSqlSafe(query))
        .fetch_one(connection)
        .await
        .unwrap()
}

/// One row of everything for an account with an address.
async fn furnish(money: &Money, address: Address) -> AccountId {
    let account = money.bind(address, false).await;
    money.deposit(address, 1_000_000).await;
    let script = format!(
        "INSERT INTO address_challenges VALUES (gen_random_uuid(), '{id}', '\\x{address}', 'x', now());
         INSERT INTO api_keys VALUES (gen_random_uuid(), '{id}', 'x', 'x', sha256('{id}'), '{{jobs:read}}', now());
         INSERT INTO blobs VALUES (sha256('{id}'), 1, now());
         INSERT INTO blob_owners VALUES ('{id}', sha256('{id}'), now());
         INSERT INTO idempotency_keys VALUES ('{id}', 'POST', '/', 'k', sha256(''), 200, NULL, '', now(), now());
         INSERT INTO join_tokens VALUES (gen_random_uuid(), '{id}', 'x', sha256(''), 1, 0, now(), now());
         INSERT INTO workers (worker_id, account_id, join_token_id, name, public_key, device, device_name, memory_bytes, threads,
             numeric_class, libtorch, version, joined_at)
         SELECT gen_random_uuid(), '{id}', join_token_id, 'x', sha256('{id}'), 'cpu', 'x', 1, 1, 'x', 'x', 'x', now()
         FROM join_tokens WHERE account_id = '{id}';
         INSERT INTO account_controls (account_id, updated_at) VALUES ('{id}', now());
         INSERT INTO audit_events (body, account_id) VALUES ('{{\"action\":\"a\",\"subject\":\"s\"}}', '{id}');
         INSERT INTO deposits VALUES (gen_random_uuid(), {asset}, {number}, {number}, '\\x{address}', '\\x{address}', 1, 1, sha256(''), now());
         INSERT INTO exits VALUES ({asset}, {number}, '\\x{address}', 1, now(), now(), 2);
         INSERT INTO charge_carries SELECT {asset}, '\\x{address}', price_version_id, 0, 0 FROM price_versions;
         INSERT INTO api_key_spending SELECT api_key_id, current_date, 1 FROM api_keys WHERE account_id = '{id}';
         INSERT INTO claims VALUES ({asset}, {number}, 'claimed', '\\x{address}', 1, 1, 1, 1, sha256(''), now());
         INSERT INTO releases VALUES (gen_random_uuid(), {asset}, '\\x{address}', 'earning', 1, 0, 'queued', NULL, now());",
        id = account.0,
        address = hex::encode(address),
        asset = money.asset,
        number = u32::from(address.0[0]),
    );
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(&money.owner)
        .await
        .unwrap();
    let job = money.held_job(account, address, 10, &[]).await.job;
    let of_key = format!(
        "INSERT INTO api_key_holds (source_kind, source_id, api_key_id, starts_on, held_base) SELECT 'job', '{}', api_key_id, current_date, 1 FROM api_keys WHERE account_id = '{}'",
        job.0, account.0,
    );
    sqlx::raw_sql(AssertSqlSafe(of_key))
        .execute(&money.owner)
        .await
        .unwrap();
    account
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_query_without_its_condition_sees_no_other_tenant(db: PgPool) {
    let money = Money::new(db).await;
    let (alice, bob) = (furnish(&money, ALICE).await, furnish(&money, BOB).await);
    let by_account = [
        "accounts",
        "account_controls",
        "address_challenges",
        "api_keys",
        "audit_events",
        "blob_owners",
        "idempotency_keys",
        "join_tokens",
        "workers",
    ];
    let by_owner = [
        ("deposits", "owner"),
        ("claims", "owner"),
        ("releases", "owner"),
        ("ledger_accounts", "owner"),
        ("holds", "owner"),
        ("exits", "owner"),
        ("charge_carries", "payer"),
    ];
    let of_key = format!(
        "api_key_id IN (SELECT api_key_id FROM api_keys WHERE account_id = '{}')",
        alice.0
    );
    let of_line = format!(
        "ledger_account_id IN (SELECT ledger_account_id FROM ledger_accounts WHERE owner = '\\x{}')",
        hex::encode(ALICE),
    );
    let by_key = [
        ("api_key_spending", of_key.as_str()),
        ("api_key_holds", &of_key),
        ("postings", &of_line),
    ];
    let mut tx = tenant::begin(&money.api, (alice, Some(ALICE)))
        .await
        .unwrap();
    for table in by_account {
        let others = format!("account_id = '{}'", bob.0);
        assert_eq!(count(&mut tx, table, &others).await, 0, "{table}");
        assert!(count(&mut tx, table, "true").await > 0, "{table}: its own");
    }
    let of_address = by_owner.map(|(table, owner)| {
        let own = format!("{owner} = '\\x{}'", hex::encode(ALICE));
        (table, own)
    });
    let of_address = of_address.iter().map(|(table, own)| (*table, own.as_str()));
    for (table, own) in of_address.chain(by_key) {
        let mut owner = money.owner.acquire().await.unwrap();
        let others = format!("NOT ({own})");
        assert!(
            count(&mut owner, table, &others).await > 0,
            "{table}: others'"
        );
        let mine = count(&mut owner, table, own).await;
        assert!(mine > 0, "{table}: its own");
        assert_eq!(count(&mut tx, table, "true").await, mine, "{table}");
    }
    // Nor does it change or take away what another has.
    for statement in [
        "UPDATE api_keys SET revoked_at = now()",
        "UPDATE join_tokens SET revoked_at = now()",
        "DELETE FROM idempotency_keys",
        "DELETE FROM address_challenges",
        "UPDATE holds SET ended_at = now()",
        "UPDATE api_key_spending SET charged_base = 2",
        "DELETE FROM api_key_holds",
    ] {
        let done = sqlx::query(statement).execute(&mut *tx).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{statement}");
    }
    let forged = format!(
        "INSERT INTO blob_owners SELECT '{}', sha256, created_at FROM blob_owners",
        bob.0
    );
    let forged = sqlx::query(AssertSqlSafe(forged)).execute(&mut *tx).await;
    assert!(
        forged
            .unwrap_err()
            .to_string()
            .contains("row-level security")
    );
    tx.rollback().await.unwrap();
    // The wall falls with the transaction, and nobody inherits it.
    let mut connection = money.api.acquire().await.unwrap();
    assert_eq!(count(&mut connection, "api_keys", "true").await, 2);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_and_its_receipt_are_walled_with_all_their_parts(db: PgPool) {
    let money = Money::new(db).await;
    let meter = Meter::inference(1_000, 1, Tier::None).unwrap();
    let (alice, bob) = (money.bind(ALICE, true).await, money.bind(BOB, true).await);
    for (account, address) in [(alice, ALICE), (bob, BOB)] {
        money.deposit(address, 10_000).await;
        let job = money.job(account, address, &meter).await;
        let script = format!(
            "INSERT INTO job_events VALUES ('{job}', 1, 'x', '{{}}', now());
             INSERT INTO verdicts VALUES ('{job}', 'unverified', '{{}}', sha256(''), now());
             INSERT INTO blobs VALUES (sha256('{job}'), 1, now());
             INSERT INTO job_outputs VALUES ('{job}', 'x', sha256('{job}'));",
            job = job.0,
        );
        sqlx::raw_sql(AssertSqlSafe(script))
            .execute(&money.owner)
            .await
            .unwrap();
    }
    for table in ["jobs", "quotes", "job_events", "job_outputs", "verdicts"] {
        let mut connection = money.api.acquire().await.unwrap();
        assert_eq!(count(&mut connection, table, "true").await, 2, "{table}");
        let mut tx = tenant::begin(&money.api, (alice, Some(ALICE)))
            .await
            .unwrap();
        assert_eq!(count(&mut tx, table, "true").await, 1, "{table}");
        let mut tx = tenant::read(&money.api, (AccountId::generate(), None))
            .await
            .unwrap();
        assert_eq!(count(&mut tx, table, "true").await, 0, "{table}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_does_not_say_for_whom_it_asks_sees_nothing(db: PgPool) {
    let money = Money::new(db).await;
    furnish(&money, ALICE).await;
    let options = (*money.owner.connect_options()).clone();
    let silent = PgPool::connect_with(options.options([("role", "comptoir_api")]))
        .await
        .unwrap();
    let mut connection = silent.acquire().await.unwrap();
    for table in [
        "accounts",
        "api_keys",
        "jobs",
        "deposits",
        "receipts",
        "releases",
        "ledger_accounts",
        "postings",
        "holds",
        "exits",
        "charge_carries",
        "api_key_spending",
        "api_key_holds",
        "journal_entries",
        "workers",
    ] {
        assert_eq!(count(&mut connection, table, "true").await, 0, "{table}");
    }
    for service in [&money.scheduler, &money.settler] {
        let mut connection = service.acquire().await.unwrap();
        for table in ["accounts", "holds", "exits"] {
            assert_eq!(count(&mut connection, table, "true").await, 1, "{table}");
        }
    }
}

/// What the API reads and is no tenant's: whoever asks may see it, or nobody asks for it on behalf of a tenant.
const OF_NOBODY: &[&str] = &[
    "assets",
    "audit_head",
    // What proves a batch is public, and names digests.
    "batch_items",
    "batch_movements",
    "settlement_batches",
    // A blob is known by its digest; whose it is stands in `blob_owners`. What programs are is the same for all.
    "blobs",
    "programs",
    // What is listed is for everybody who signed in.
    "catalog",
    "catalog_prices",
    "chain_cursors",
    "eth_attempts",
    "eth_intents",
    "settler_halts",
    // The commitment before, the seed after: the columns say which.
    "draw_seeds",
    // Before anybody has signed in.
    "password_reset_requests",
    "siwe_nonces",
    "price_versions",
    "split_parties",
    "split_versions",
    // Without the jobs that the marks come from.
    "unstable_classes",
];

/// What has a door in its wall. `listed`: everybody looks at what a seller has listed, or a creator shows. `entitled`, `taken`, `contributed`: who has a right to it, took
/// it, or gave to it, looks at it still.
const DOORS: &[(&str, &str)] = &[
    ("contributed", "contribution_terms"),
    ("entitled", "dataset_versions"),
    ("entitled", "datasets"),
    ("listed", "dataset_files"),
    ("listed", "dataset_versions"),
    ("listed", "datasets"),
    ("listed", "model_prices"),
    ("listed", "model_versions"),
    ("listed", "models"),
    ("listed", "offers"),
    ("taken", "offers"),
];

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_table_that_the_api_reads_has_a_wall_unless_it_is_nobodys(db: PgPool) {
    // A wall stands for the owner too, and no policy opens it to every tenant.
    let tables: Vec<(String, bool)> = sqlx::query_as(
        "SELECT c.relname::text, c.relforcerowsecurity AND c.relrowsecurity AND coalesce((
             SELECT count(*) > 0 AND (bool_or(NOT polpermissive AND walls) OR bool_and(walls) FILTER (WHERE polpermissive))
             FROM (
                 SELECT polpermissive, pg_get_expr(polqual, polrelid) ~ 'sees_(all|account|owner)' AS walls FROM pg_policy
                 WHERE polrelid = c.oid AND polcmd IN ('*', 'r') AND polname NOT IN ('listed', 'entitled', 'taken', 'contributed')
                   AND (polroles = '{0}' OR 'comptoir_api'::regrole = ANY (polroles))
             ) it
         ), false)
         FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
           AND has_any_column_privilege('comptoir_api', c.oid, 'SELECT')
         ORDER BY c.relname",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    let without: BTreeSet<_> = tables
        .iter()
        .filter(|(_, is_walled)| !is_walled)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(without, OF_NOBODY.iter().copied().collect());
    assert!(tables.len() > 55, "the catalogue is read: {tables:?}");
    let doors: Vec<(String, String)> = sqlx::query_as(
        "SELECT polname::text, polrelid::regclass::text FROM pg_policy
         WHERE polname IN ('listed', 'entitled', 'taken', 'contributed') AND polcmd = 'r' ORDER BY 1, 2",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    let doors: Vec<_> = doors
        .iter()
        .map(|(name, table)| (name.as_str(), table.as_str()))
        .collect();
    assert_eq!(doors, DOORS);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_executes_a_job_is_its_clients_and_an_attempt_is_its_providers_too(db: PgPool) {
    let money = Money::new(db).await;
    let (alice, bob) = (money.bind(ALICE, true).await, money.bind(BOB, true).await);
    let provider = money.bind(CAROL, true).await;
    let (workers, others) = (money.worker(provider).await, money.worker(bob).await);
    for (worker, client) in [(workers, alice), (workers, bob), (others, bob)] {
        let (attempt, job) = money.attempt(worker, client).await;
        let script = format!(
            "INSERT INTO queue (replica_id, job_id, ready_at, device, min_memory_bytes, rate_nano)
             VALUES ('{job}', '{job}', now(), 'cpu', 1, 1);
             INSERT INTO blobs VALUES (sha256('{job}'), 1, now());
             INSERT INTO attempt_blobs VALUES ('{attempt}', sha256('{job}'));
             INSERT INTO segments VALUES ('{job}', 0, '{attempt}', 0, 1, sha256('{job}'), now());
             INSERT INTO segments_voided VALUES ('{attempt}', 0, '{job}', '{attempt}', 0, 1, sha256('{job}'), now(), now());",
            job = job.0,
            attempt = attempt.0,
        );
        sqlx::raw_sql(AssertSqlSafe(script))
            .execute(&money.owner)
            .await
            .unwrap();
    }
    let of_worker = format!(
        "INSERT INTO worker_controls SELECT worker_id, 'draining', 'x', now() FROM workers;
         INSERT INTO worker_records (worker_id, public_key, numeric_class, worked_at)
         SELECT worker_id, public_key, numeric_class, now() FROM workers WHERE worker_id IN ('{}', '{}')",
        workers.0, others.0,
    );
    sqlx::raw_sql(AssertSqlSafe(of_worker))
        .execute(&money.owner)
        .await
        .unwrap();
    for (table, of_all, of_client, of_provider) in [
        ("replicas", 3, 1, 0),
        ("queue", 3, 1, 0),
        ("segments", 3, 1, 0),
        ("segments_voided", 3, 1, 0),
        ("attempts", 3, 1, 2),
        ("attempt_blobs", 3, 1, 2),
        ("worker_heartbeats", 2, 0, 1),
        ("worker_controls", 2, 0, 1),
        ("worker_records", 2, 0, 1),
    ] {
        for service in [&money.api, &money.scheduler] {
            let mut connection = service.acquire().await.unwrap();
            let seen = count(&mut connection, table, "true").await;
            assert_eq!(seen, of_all, "{table}");
        }
        for (tenant, expected) in [
            ((alice, Some(ALICE)), of_client),
            ((provider, Some(CAROL)), of_provider),
            ((AccountId::generate(), None), 0),
        ] {
            let mut tx = tenant::read(&money.api, tenant).await.unwrap();
            let seen = count(&mut tx, table, "true").await;
            assert_eq!(seen, expected, "{table}");
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_journal_entry_is_seen_by_those_whose_lines_it_has(db: PgPool) {
    let money = Money::new(db).await;
    let (alice, carol) = (money.bind(ALICE, true).await, money.bind(CAROL, true).await);
    let bob = money.bind(BOB, true).await;
    money.deposit(ALICE, 10_000).await;
    money.deposit(BOB, 10_000).await;
    // A deposit, a hold and a charge of the payer; the charge is the provider's too.
    let charge = money.held_job(alice, ALICE, 1_000, &[(CAROL, 1)]).await;
    money.settle(&charge).await.unwrap();
    for (who, address, expected) in [(alice, ALICE, 3), (carol, CAROL, 1), (bob, BOB, 1)] {
        let mut tx = tenant::read(&money.api, (who, Some(address)))
            .await
            .unwrap();
        let seen = count(&mut tx, "journal_entries", "true").await;
        assert_eq!(seen, expected, "{address}");
    }
    let mut everybody = money.api.acquire().await.unwrap();
    assert_eq!(count(&mut everybody, "journal_entries", "true").await, 4);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn nothing_is_posted_to_another_tenants_account(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, false).await;
    for address in [ALICE, BOB] {
        money.deposit(address, 100).await;
    }
    for (owner, is_own) in [(ALICE, true), (BOB, false)] {
        let job = money
            .job(alice, ALICE, &Meter::inference(1, 1, Tier::None).unwrap())
            .await;
        let lines = Lines::default()
            .debit(AccountKey::Available(owner), amount(1))
            .credit(AccountKey::Held(owner), amount(1));
        let entry = lines
            .into_entry(EntryKind::Hold, Source::JobHold(job))
            .unwrap();
        let mut tx = tenant::begin(&money.api, (alice, Some(ALICE)))
            .await
            .unwrap();
        let posted = ledger::post(&mut tx, money.asset, &entry, NOW).await;
        assert_eq!(posted.is_ok(), is_own, "{posted:?}");
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_is_cancelled_though_its_payer_moved_to_another_address(db: PgPool) {
    let money = Money::new(db).await;
    let alice = money.bind(ALICE, false).await;
    money.deposit(ALICE, 10_000).await;
    money.deposit(BOB, 10_000).await;
    let job = money.held_job(alice, ALICE, 10, &[]).await.job;
    let moved = format!(
        "INSERT INTO address_changes VALUES (gen_random_uuid(), '{id}', '\\x{old}', '\\x{new}', now() - interval '2 days',
             now() - interval '1 day', 'applied', now());
         UPDATE accounts SET address = '\\x{new}', address_bound_at = now() WHERE account_id = '{id}'",
        id = alice.0,
        old = hex::encode(ALICE),
        new = hex::encode(CAROL),
    );
    let mut tx = money.owner.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(moved))
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut tx = tenant::begin(&money.api, (alice, Some(CAROL)))
        .await
        .unwrap();
    jobs::cancel(&mut tx, alice, job, NOW).await.unwrap();
    let bobs = format!("owner = '\\x{}'", hex::encode(BOB));
    assert_eq!(count(&mut tx, "ledger_accounts", &bobs).await, 0);
    tx.commit().await.unwrap();
    assert_eq!(money.bases(ALICE).await, (10_000, 0, 0));
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_policy_that_asks_another_table_asks_it_by_key(db: PgPool) {
    // Without `OFFSET 0` Postgres may read the whole table into a hash for one row.
    let policies: Vec<(String, String)> = sqlx::query_as(
        "SELECT tablename || '.' || policyname, coalesce(qual, '') || coalesce(with_check, '') FROM pg_policies",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    let asking: Vec<_> = policies
        .iter()
        .filter(|it| it.1.contains("EXISTS"))
        .collect();
    assert!(asking.len() > 10, "{asking:?}");
    for (policy, text) in asking {
        assert_eq!(
            text.matches("EXISTS").count(),
            text.matches("OFFSET 0").count(),
            "{policy}: {text}"
        );
    }
}
