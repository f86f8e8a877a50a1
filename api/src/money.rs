//! Money on the wire: base units in a string, beside the token that they are of; and whose it is.

use alloy_primitives::Address;
use comptoir_domain::{amount::Amount, asset::Asset};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{FieldError, Problem};

/// An amount of money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Money)]
pub struct MoneyBody {
    /// Base units of the token, in decimal digits.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$", example = "12500000000000000000")]
    pub amount: Amount,
    /// The token, as CAIP-19 names it.
    #[schema(example = "eip155:1/erc20:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed")]
    pub asset: String,
    /// Base units are this power of ten of one token.
    pub decimals: u8,
}

impl MoneyBody {
    /// An amount of the deployment's token.
    #[must_use]
    pub fn new(amount: Amount, asset: &Asset) -> Self {
        Self {
            amount,
            asset: asset.caip19(),
            decimals: asset.decimals,
        }
    }

    /// The amount, when it is of the deployment's token: 422 naming `pointer` otherwise.
    pub fn amount_of(&self, asset: &Asset, pointer: &str) -> Result<Amount, Problem> {
        let mut errors = Vec::new();
        if self.asset != asset.caip19() {
            errors.push(FieldError::new(
                format!("{pointer}/asset"),
                format!("expected {}", asset.caip19()),
            ));
        }
        if self.decimals != asset.decimals {
            errors.push(FieldError::new(
                format!("{pointer}/decimals"),
                format!("expected {}", asset.decimals),
            ));
        }
        if errors.is_empty() {
            Ok(self.amount)
        } else {
            Err(Problem::invalid_fields(errors))
        }
    }
}

/// An address, with the checksum of EIP-55; serde's own form of it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(as = Address, value_type = String, pattern = "^0x[0-9a-fA-F]{40}$")]
pub struct AddressBody(pub Address);

impl Serialize for AddressBody {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
