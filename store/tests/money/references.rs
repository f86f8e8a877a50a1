//! References that are judged by statement instead of by foreign keys.

use sqlx::PgPool;

use crate::{
    guards::{RESTRICT_VIOLATION, code},
    harness::{ALICE, Money},
};

const FOREIGN_KEY_VIOLATION: &str = "23503";
/// Every reference that is judged so.
const REFERENCES: &[(&str, &[&str])] = &[
    ("quotes", &["account_id", "asset_id", "price_version_id"]),
    ("jobs", &["account_id", "quote_id", "asset_id"]),
    ("replicas", &["job_id"]),
    ("queue", &["replica_id", "job_id"]),
    ("attempts", &["replica_id", "job_id", "worker_id"]),
    ("attempt_blobs", &["attempt_id", "sha256"]),
    ("job_events", &["job_id"]),
    ("verdicts_due", &["job_id"]),
    ("verdicts", &["job_id"]),
    ("job_outputs", &["job_id", "sha256"]),
    (
        "receipts",
        &[
            "account_id",
            "asset_id",
            "job_id",
            "journal_entry_id",
            "split_version_id",
        ],
    ),
    ("receipt_splits", &["receipt_id"]),
    ("unbatched_receipts", &["receipt_id", "asset_id"]),
    ("holds", &["asset_id"]),
    ("releases", &["asset_id", "account_id"]),
    ("journal_entries", &["asset_id", "reverses"]),
    ("idempotency_keys", &["account_id"]),
    (
        "purchases",
        &[
            "account_id",
            "asset_id",
            "seller_id",
            "dataset_id",
            "version_id",
            "subscription_id",
            "split_version_id",
        ],
    ),
    (
        "entitlements",
        &["account_id", "dataset_id", "version_id", "purchase_id"],
    ),
];

/// Leaves of a table its columns and the trigger that judges its references, so that one reference can be tried alone.
const BARE: &str = r"DO $$
DECLARE
    it record;
BEGIN
    FOR it IN SELECT conname FROM pg_constraint WHERE conrelid = '$TABLE'::regclass AND contype <> 't' LOOP
        EXECUTE format('ALTER TABLE $TABLE DROP CONSTRAINT %I CASCADE', it.conname);
    END LOOP;
    FOR it IN SELECT attname FROM pg_attribute WHERE attrelid = '$TABLE'::regclass AND attnum > 0 AND attnotnull LOOP
        EXECUTE format('ALTER TABLE $TABLE ALTER COLUMN %I DROP NOT NULL', it.attname);
    END LOOP;
    ALTER TABLE $TABLE DISABLE TRIGGER USER;
    ALTER TABLE $TABLE ENABLE TRIGGER $TABLE_refer;
END $$";

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_row_that_refers_to_nothing_is_refused(db: PgPool) {
    let money = Money::new(db).await;
    for (table, columns) in REFERENCES {
        for column in *columns {
            let nothing = match *column {
                "asset_id" | "price_version_id" => "9999",
                "sha256" => "sha256('')",
                _ => "'00000000-0000-0000-0000-000000000000'",
            };
            let mut tx = money.owner.begin().await.unwrap();
            let bare = BARE.replace("$TABLE", table);
            sqlx::raw_sql(sqlx::AssertSqlSafe(bare))
                .execute(&mut *tx)
                .await
                .unwrap();
            let row = format!("INSERT INTO {table} ({column}) VALUES ({nothing})");
            let error = sqlx::query(sqlx::AssertSqlSafe(row))
                .execute(&mut *tx)
                .await
                .expect_err(column);
            let what = format!("{table}.{column}: {error}");
            assert_eq!(code(&error), FOREIGN_KEY_VIOLATION, "{what}");
            let refused = error.as_database_error().and_then(|it| it.constraint());
            let expected = format!("{table}_{column}_fkey");
            assert_eq!(refused, Some(expected.as_str()), "{what}");
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_row_refers_to_is_never_changed(db: PgPool) {
    let money = Money::new(db).await;
    for (table, columns) in REFERENCES {
        for column in *columns {
            let change = format!("UPDATE {table} SET {column} = {column}");
            let error = sqlx::query(sqlx::AssertSqlSafe(change))
                .execute(&money.owner)
                .await
                .expect_err(column);
            assert_eq!(
                code(&error),
                RESTRICT_VIOLATION,
                "{table}.{column}: {error}"
            );
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_may_be_referred_to_is_never_deleted(db: PgPool) {
    let money = Money::new(db).await;
    money.deposit(ALICE, 100).await;
    for table in [
        "accounts",
        "assets",
        "price_versions",
        "quotes",
        "jobs",
        "replicas",
        "attempts",
        "workers",
        "blobs",
        "split_versions",
        "receipts",
        "journal_entries",
        "ledger_accounts",
        "datasets",
        "dataset_versions",
        "subscriptions",
        "purchases",
    ] {
        let error = sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM {table}")))
            .execute(&money.owner)
            .await
            .expect_err(table);
        assert_eq!(code(&error), RESTRICT_VIOLATION, "{table}: {error}");
    }
}
