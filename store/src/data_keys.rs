//! Keys of files of datasets: the operator's root keys, which open those of sellers, which open those of versions.

use std::sync::{Arc, PoisonError, RwLock};

use comptoir_domain::{
    envelope::{Damaged, Key},
    id::{AccountId, DatasetVersionId},
    root_keys::{self, OpenError, RootKeys},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{PgTransaction, dataset_versions::Version, tenant_keys};

/// The root keys, which an operator may rotate while a service runs. Clones share them.
#[derive(Debug, Clone)]
pub struct RootKeyRing(Arc<RwLock<RootKeys>>);

impl RootKeyRing {
    /// These keys.
    #[must_use]
    pub fn new(keys: RootKeys) -> Self {
        Self(Arc::new(RwLock::new(keys)))
    }

    /// Other keys, from now on.
    pub fn replace(&self, keys: RootKeys) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// The keys that count now.
    #[must_use]
    pub fn now(&self) -> RootKeys {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Why a key does not open.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The version's key is gone, or its seller has none.
    #[error("{0} has no key")]
    Gone(DatasetVersionId),
    /// The seller's key does not open.
    #[error("open the key of a seller")]
    Tenant(#[from] OpenError),
    /// The version's key does not open.
    #[error("open the key of a version")]
    Data(#[from] Damaged),
    /// Postgres failed.
    #[error("find a key")]
    Database(#[from] sqlx::Error),
}

impl KeyError {
    /// Is what it opens lost? Else it may be had later: Postgres failed, or the operator has not given a root key.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        match self {
            Self::Gone(_) | Self::Tenant(OpenError::Damaged(_)) | Self::Data(_) => true,
            Self::Tenant(OpenError::NoRootKey(_)) | Self::Database(_) => false,
        }
    }
}

/// The seller's key; made where there is none yet.
pub async fn of_tenant(
    tx: &mut PgTransaction<'_>,
    roots: &RootKeyRing,
    account: AccountId,
    now: OffsetDateTime,
) -> Result<Key, KeyError> {
    let roots = roots.now();
    if tenant_keys::find(tx, account).await?.is_none() {
        let fresh = roots.wrap(account, &Key::generate());
        // Another request may have been quicker: what it made counts.
        tenant_keys::create(tx, account, &fresh, now).await?;
    }
    let wrapped = tenant_keys::find(tx, account).await?;
    let wrapped = wrapped.ok_or(sqlx::Error::RowNotFound)?;
    Ok(roots.open(account, &wrapped)?)
}

/// The data key of a version. Who may have it was decided before: the connection sees everybody's keys.
pub async fn of_version(
    conn: &mut PgConnection,
    roots: &RootKeyRing,
    version: &Version,
) -> Result<Key, KeyError> {
    let gone = || KeyError::Gone(version.id);
    let wrapped = version.wrapped_key.as_ref().ok_or_else(gone)?;
    let tenant = tenant_keys::find(conn, version.account).await?;
    let tenant = roots
        .now()
        .open(version.account, &tenant.ok_or_else(gone)?)?;
    Ok(root_keys::open_data_key(&tenant, version.id, wrapped)?)
}
