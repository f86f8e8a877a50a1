// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Account, Header, Receipt, Split} from "./SettlementTypes.sol";

/// @title Hashes of what a batch commits to
/// @notice Receipts and accounts are EIP-712 structs of the domain (name "Comptoir Settlement", version "1", chain id,
/// contract), so that a proof holds for one contract on one chain.
///
///     digest = keccak256(0x1901 || domainSeparator || hashStruct(struct))
///     leaf   = keccak256(digest)
///
/// The preimage of a leaf is 32 bytes long and that of an inner node 64, so neither can pass for the other. Inner nodes
/// are keccak256 of both children, the smaller first, as in OpenZeppelin's MerkleProof.
library Leaves {
    string internal constant NAME = "Comptoir Settlement";
    string internal constant VERSION = "1";

    bytes32 internal constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 internal constant ACCOUNT_TYPEHASH =
        keccak256("Account(address account,uint128 payable,uint128 available,uint128 depositsSeen)");
    bytes32 internal constant SPLIT_TYPEHASH = keccak256("Split(address payee,uint128 amount)");
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(uint64 batchId,uint64 index,bytes16 receiptId,uint8 kind,address payer,uint128 gross,bytes32 splitsHash,bytes32 inputHash,bytes32 resultHash,bytes32 meterHash,bytes32 verdictHash)"
    );

    /// @notice Root of a tree without leaves.
    bytes32 internal constant EMPTY_ROOT = keccak256("comptoir.empty");

    /// @notice EIP-712 domain separator of the settlement contract at `settlement` on chain `chainId`.
    function domainSeparator(uint256 chainId, address settlement) internal pure returns (bytes32) {
        return
            keccak256(
                abi.encode(DOMAIN_TYPEHASH, keccak256(bytes(NAME)), keccak256(bytes(VERSION)), chainId, settlement)
            );
    }

    /// @notice Hash that identifies a batch: all fields of the header as 32-byte words, the domain before them.
    function headerHash(bytes32 domain, Header calldata header) internal pure returns (bytes32) {
        return keccak256(abi.encode(domain, header));
    }

    /// @notice Leaf of an account under `accountsRoot`.
    function accountLeaf(bytes32 domain, Account calldata account) internal pure returns (bytes32) {
        return _leaf(domain, keccak256(abi.encode(ACCOUNT_TYPEHASH, account)));
    }

    /// @notice Leaf of a receipt under `receiptsRoot`.
    function receiptLeaf(bytes32 domain, Receipt calldata receipt) internal pure returns (bytes32) {
        return _leaf(domain, keccak256(abi.encode(RECEIPT_TYPEHASH, receipt)));
    }

    /// @notice EIP-712 encoding of an array: keccak256 of the hashes of its members, one after the other.
    function splitsHash(Split[] calldata splits) internal pure returns (bytes32) {
        bytes32[] memory hashes = new bytes32[](splits.length);
        for (uint256 i; i < splits.length; ++i) {
            hashes[i] = keccak256(abi.encode(SPLIT_TYPEHASH, splits[i]));
        }
        return keccak256(abi.encodePacked(hashes));
    }

    function _leaf(bytes32 domain, bytes32 structHash) private pure returns (bytes32) {
        return keccak256(abi.encodePacked(keccak256(abi.encodePacked(hex"1901", domain, structHash))));
    }
}
