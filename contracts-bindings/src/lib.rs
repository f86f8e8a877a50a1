//! Bindings of the chain contracts, from their committed ABI and bytecode: building them needs no Solidity compiler.
//!
//! `contracts/build` rewrites the files in `abi/`; `contracts/check` proves that they are what the sources compile to.

#![expect(
    clippy::too_many_arguments,
    reason = "the generated methods take what the Solidity functions take"
)]

alloy::sol!(
    #[sol(rpc)]
    #[derive(Debug, PartialEq, Eq)]
    ComptoirToken,
    "abi/ComptoirToken.json"
);

alloy::sol!(
    #[sol(rpc)]
    #[derive(Debug, PartialEq, Eq)]
    Settlement,
    "abi/Settlement.json"
);

alloy::sol!(
    #[sol(rpc)]
    #[derive(Debug, PartialEq, Eq)]
    TimelockController,
    "abi/TimelockController.json"
);
