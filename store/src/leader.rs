//! Who may write for an asset: one settler at a time, fenced twice inside the database.
//!
//! A session lock on a connection of its own keeps a second settler waiting. It cannot stop a process that was paused
//! while its connection was cut, so every transaction of the settler compares the epoch as well; the contract's own
//! compare-and-swap is the third fence.

use sqlx::{Connection as _, PgConnection, PgPool};
use time::OffsetDateTime;

use crate::PgTransaction;

/// First half of the advisory lock's key, so that it meets no other lock of the database.
const LOCK_SPACE: i32 = 0x5e77;

/// The right to write for one asset, as long as the epoch is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    asset: i32,
    epoch: i64,
}

/// A held lease: the locked session, and the fence of its epoch.
#[derive(Debug)]
pub struct Lease {
    session: PgConnection,
    fence: Fence,
}

/// Why a write was refused.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Another settler has taken over.
    #[error("another settler leads now")]
    Deposed,
    /// The database refused.
    #[error("compare the settler's epoch")]
    Database(#[from] sqlx::Error),
}

impl Lease {
    /// Takes the lead for an asset; `None` while another session has it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn take(
        db: &PgPool,
        asset: i32,
        holder: &str,
        now: OffsetDateTime,
    ) -> sqlx::Result<Option<Self>> {
        let mut session = PgConnection::connect_with(&db.connect_options()).await?;
        let locked = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_lock($1, $2) AS "locked!""#,
            LOCK_SPACE,
            asset
        )
        .fetch_one(&mut session)
        .await?;
        if !locked {
            session.close().await?;
            return Ok(None);
        }
        let epoch = sqlx::query_scalar!(
            "INSERT INTO settler_leases (asset_id, epoch, holder, taken_at) VALUES ($1, 1, $2, $3)
             ON CONFLICT (asset_id) DO UPDATE SET epoch = settler_leases.epoch + 1, holder = $2, taken_at = $3
             RETURNING epoch",
            asset,
            holder,
            now,
        )
        .fetch_one(&mut session)
        .await?;
        Ok(Some(Self {
            session,
            fence: Fence { asset, epoch },
        }))
    }

    /// What the leader's transactions begin with.
    #[must_use]
    pub const fn fence(&self) -> Fence {
        self.fence
    }

    /// Is the session, and with it the lock, still there?
    ///
    /// # Errors
    /// When it is not.
    pub async fn check(&mut self) -> sqlx::Result<()> {
        self.session.ping().await
    }
}

impl Fence {
    /// The asset that is written for.
    #[must_use]
    pub const fn asset(&self) -> i32 {
        self.asset
    }

    /// Holds the epoch still until the transaction ends: a successor waits for it, and a transaction that begins after
    /// the successor's is refused.
    ///
    /// # Errors
    /// When another settler has taken over.
    pub async fn hold(&self, tx: &mut PgTransaction<'_>) -> Result<(), FenceError> {
        let current = sqlx::query_scalar!(
            "SELECT epoch FROM settler_leases WHERE asset_id = $1 FOR SHARE",
            self.asset
        )
        .fetch_optional(&mut **tx)
        .await?;
        if current == Some(self.epoch) {
            Ok(())
        } else {
            Err(FenceError::Deposed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asset(db: &PgPool) -> i32 {
        sqlx::query_scalar(
            "INSERT INTO assets (chain_id, token, contract, symbol, decimals, platform, created_at)
             VALUES (31337, '\\x0101010101010101010101010101010101010101', '\\x0202020202020202020202020202020202020202',
                     'CPTR', 18, '\\x0303030303030303030303030303030303030303', now()) RETURNING asset_id",
        )
        .fetch_one(db)
        .await
        .unwrap()
    }

    #[sqlx::test(migrator = "crate::MIGRATOR")]
    async fn a_second_settler_waits_and_a_deposed_one_writes_nothing(db: PgPool) {
        let asset = asset(&db).await;
        let now = OffsetDateTime::UNIX_EPOCH;
        let first = Lease::take(&db, asset, "first", now)
            .await
            .unwrap()
            .unwrap();
        assert!(
            Lease::take(&db, asset, "second", now)
                .await
                .unwrap()
                .is_none()
        );
        let fence = first.fence();
        fence.hold(&mut db.begin().await.unwrap()).await.unwrap();
        first.session.close().await.unwrap();
        let second = Lease::take(&db, asset, "second", now)
            .await
            .unwrap()
            .unwrap();
        let mut tx = db.begin().await.unwrap();
        assert!(matches!(
            fence.hold(&mut tx).await,
            Err(FenceError::Deposed)
        ));
        second.fence().hold(&mut tx).await.unwrap();
    }
}
