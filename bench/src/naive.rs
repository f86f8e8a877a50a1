//! What people write first: one INSERT per request through axum, and a balance that each transaction locks for itself.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde_json::Value;
use sqlx::{Executor as _, PgPool, postgres::PgPoolOptions};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};

/// Connections of its pool: as many as there are clients.
const CONNECTIONS: u32 = 64;

/// A server that inserts one row per request.
pub struct Naive {
    /// Where it listens.
    pub address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Naive {
    /// Starts it on a database that has the plain table.
    pub async fn start(db: &PgPool) -> anyhow::Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .test_before_acquire(false)
            .connect_with(db.connect_options().as_ref().clone())
            .await?;
        let router = Router::new().route("/jobs", post(insert)).with_state(pool);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        Ok(Self { address, serving })
    }

    /// Ends it.
    pub fn stop(self) {
        self.serving.abort();
    }
}

async fn insert(State(db): State<PgPool>, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    let inserted = sqlx::query_scalar::<_, i64>(
        "INSERT INTO jobs_plain (account, body) VALUES (1, $1) RETURNING id",
    )
    .bind(&body)
    .fetch_one(&db)
    .await;
    match inserted {
        Ok(id) => (
            StatusCode::CREATED,
            Json(serde_json::json!({ "id": id, "body": body })),
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            Json(error.to_string().into()),
        ),
    }
}

/// Charges to one balance in a second, each in a transaction that locks its row.
pub async fn row_lock(db: &PgPool, clients: usize, lasting: Duration) -> anyhow::Result<f64> {
    db.execute(
        "DROP TABLE IF EXISTS naive_charges, naive_balances;
         CREATE TABLE naive_balances (id integer PRIMARY KEY, balance numeric(39, 0) NOT NULL CHECK (balance >= 0));
         CREATE TABLE naive_charges (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, payer integer NOT NULL, amount numeric(39, 0) NOT NULL);
         INSERT INTO naive_balances VALUES (1, 1000000000000000)",
    )
    .await?;
    let began = Instant::now();
    let mut running = Vec::new();
    for _ in 0..clients {
        let db = db.clone();
        running.push(tokio::spawn(async move {
            let mut done = 0_u32;
            while began.elapsed() < lasting {
                let mut tx = db.begin().await?;
                sqlx::query("SELECT balance FROM naive_balances WHERE id = 1 FOR UPDATE")
                    .execute(&mut *tx)
                    .await?;
                sqlx::query("INSERT INTO naive_charges (payer, amount) VALUES (1, 7)")
                    .execute(&mut *tx)
                    .await?;
                sqlx::query("UPDATE naive_balances SET balance = balance - 7 WHERE id = 1")
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
                done += 1;
            }
            anyhow::Ok(done)
        }));
    }
    let mut done = 0;
    for client in running {
        done += client.await?.context("charge a balance")?;
    }
    Ok(f64::from(done) / began.elapsed().as_secs_f64())
}
