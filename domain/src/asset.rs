//! The token that everything is paid in, and how it is named outside.

use alloy_primitives::Address;

/// One ERC-20 token on one chain, and the settlement contract that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    /// Row of `assets`.
    pub id: i32,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The ERC-20 token.
    pub token: Address,
    /// The `Settlement` contract.
    pub contract: Address,
    /// The token's `decimals()`.
    pub decimals: u8,
}

impl Asset {
    /// The CAIP-19 name of the token.
    #[must_use]
    pub fn caip19(&self) -> String {
        format!("eip155:{}/erc20:{}", self.chain_id, self.token)
    }

    /// The CAIP-10 name of an account on the token's chain.
    #[must_use]
    pub fn caip10(&self, account: Address) -> String {
        format!("eip155:{}:{account}", self.chain_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::address;

    #[test]
    fn names_carry_checksummed_addresses() {
        let token = address!("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed");
        let asset = Asset {
            id: 1,
            chain_id: 1,
            token,
            contract: token,
            decimals: 18,
        };
        assert_eq!(
            asset.caip19(),
            "eip155:1/erc20:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
        );
        assert_eq!(
            asset.caip10(token),
            "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
        );
    }
}
