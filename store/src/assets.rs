//! The tokens that the service is paid in. A deployment has one; a later registration replaces it.

use alloy_primitives::Address;
use comptoir_domain::asset::Asset;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::codec::to_address;

/// Why there is no asset.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// No contract was registered yet.
    #[error("no asset is registered")]
    NoneRegistered,
    /// The statement failed.
    #[error("read the asset")]
    Database(#[from] sqlx::Error),
}

/// What a deployment registers.
#[derive(Debug, Clone)]
pub struct NewAsset {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The ERC-20 token.
    pub token: Address,
    /// The `Settlement` contract.
    pub contract: Address,
    /// The token's `symbol()`.
    pub symbol: String,
    /// The token's `decimals()`.
    pub decimals: u8,
    /// The address that fees and dust belong to.
    pub platform: Address,
}

/// Registers a token with its settlement contract; it is the current asset from now on. The same contract
/// keeps its first registration.
///
/// # Errors
/// When the statement fails.
pub async fn register(
    conn: &mut PgConnection,
    new: &NewAsset,
    now: OffsetDateTime,
) -> sqlx::Result<Asset> {
    let chain_id =
        i64::try_from(new.chain_id).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!(
        "INSERT INTO assets (chain_id, token, contract, symbol, decimals, platform, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (chain_id, contract) DO NOTHING",
        chain_id,
        new.token.as_slice(),
        new.contract.as_slice(),
        new.symbol,
        i16::from(new.decimals),
        new.platform.as_slice(),
        now,
    )
    .execute(&mut *conn)
    .await?;
    let row = sqlx::query_as!(
        Row,
        "SELECT asset_id, chain_id, token, contract, decimals FROM assets WHERE chain_id = $1 AND contract = $2",
        chain_id,
        new.contract.as_slice(),
    )
    .fetch_one(conn)
    .await?;
    row.decode()
}

/// The asset that was registered last.
///
/// # Errors
/// When there is none.
pub async fn current(conn: &mut PgConnection) -> Result<Asset, AssetError> {
    let row = sqlx::query_as!(
        Row,
        "SELECT asset_id, chain_id, token, contract, decimals FROM assets ORDER BY asset_id DESC LIMIT 1",
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.ok_or(AssetError::NoneRegistered)?.decode()?)
}

/// The asset of that number.
///
/// # Errors
/// When there is none.
pub async fn find(conn: &mut PgConnection, asset_id: i32) -> Result<Asset, AssetError> {
    let row = sqlx::query_as!(
        Row,
        "SELECT asset_id, chain_id, token, contract, decimals FROM assets WHERE asset_id = $1",
        asset_id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.ok_or(AssetError::NoneRegistered)?.decode()?)
}

/// The address that fees and dust of the asset belong to.
///
/// # Errors
/// When there is no such asset.
pub async fn platform(conn: &mut PgConnection, asset_id: i32) -> Result<Address, AssetError> {
    let platform = sqlx::query_scalar!("SELECT platform FROM assets WHERE asset_id = $1", asset_id)
        .fetch_optional(conn)
        .await?;
    Ok(to_address(
        "platform",
        &platform.ok_or(AssetError::NoneRegistered)?,
    )?)
}

struct Row {
    asset_id: i32,
    chain_id: i64,
    token: Vec<u8>,
    contract: Vec<u8>,
    decimals: i16,
}

impl Row {
    fn decode(self) -> sqlx::Result<Asset> {
        let decode = |error: std::num::TryFromIntError| sqlx::Error::Decode(error.into());
        Ok(Asset {
            id: self.asset_id,
            chain_id: self.chain_id.try_into().map_err(decode)?,
            token: to_address("token", &self.token)?,
            contract: to_address("contract", &self.contract)?,
            decimals: self.decimals.try_into().map_err(decode)?,
        })
    }
}
