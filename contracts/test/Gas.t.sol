// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Account, Claim, Header} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {Tree} from "./support/Tree.sol";
import {vm} from "./support/Vm.sol";

/// @notice What transactions cost in full: 21,000, calldata, execution, refunds. The figures are in `snapshots/Gas.json` and
/// a difference fails `contracts/check`. Taken after 70 batches, when every slot of the ring has been used.
/// forge-config: default.isolate = true
contract GasTest is Fixture {
    uint256 private constant DEPTH = 15;
    uint128 private constant DEPOSITED = 123_456_789e15;

    function setUp() public override {
        super.setUp();
        settlement.deposit(alice, DEPOSITED);
        for (uint64 id = 1; id <= 70; ++id) {
            commit(_header(1e18 + id, keccak256(abi.encode("accounts", id))));
            skip(6 hours);
        }
    }

    function test_commit() public {
        commit(_header(2e18 + 71, keccak256("accounts")));
        vm.assertLe(_record("commit"), 85_000, "commit");
    }

    function test_claim() public {
        require(token.transfer(bob, 1));
        Claim memory item = _commitAccount(5e18 + 12345);
        settlement.claim(71, item.leaf, item.proof);
        vm.assertLe(_record("claim, first of the account (depth 15)"), 97_000, "first claim");
        item = _commitAccount(8e18 + 67890);
        settlement.claim(72, item.leaf, item.proof);
        vm.assertLe(_record("claim (depth 15)"), 80_000, "claim");
    }

    function test_claimToAFreshWallet() public {
        Claim memory item = _commitAccount(5e18 + 12345);
        settlement.claim(71, item.leaf, item.proof);
        _record("claim, first of the account and of the token's balance (depth 15)");
    }

    function test_claimMany() public {
        Claim[] memory items = new Claim[](8);
        bytes32[] memory leaves = new bytes32[](items.length);
        for (uint160 i; i < items.length; ++i) {
            items[i].leaf = Account(address(0xC1A15000 + i), 1e18 + uint128(i), 0, 0);
            leaves[i] = settlement.accountLeaf(items[i].leaf);
        }
        for (uint256 i; i < items.length; ++i) {
            items[i].proof = Tree.proof(leaves, leaves[i]);
        }
        commit(_header(20e18, Tree.root(leaves)));
        skip(WINDOW);
        settlement.claimMany(71, items);
        _record("claimMany of 8, first ever (depth 3)");
    }

    function test_deposit() public {
        settlement.deposit(bob, 3e18 + 999);
        _record("deposit, first ever");
        settlement.deposit(bob, 3e18 + 111);
        _record("deposit");
    }

    function test_cancel() public {
        commit(_header(2e18, keccak256("accounts")));
        cancel(71);
        _record("cancelBatch");
    }

    function test_exit() public {
        vm.prank(alice);
        settlement.requestExit();
        _record("requestExit");
    }

    function test_escape() public {
        Claim memory item = _commitAccount(5e18);
        skip(WINDOW);
        vm.warp(settlement.lastCommitAt() + ESCAPE_AFTER + 1);
        settlement.freeze(address(0));
        _record("freeze");
        settlement.escape(item.leaf, item.proof);
        _record("escape, first ever (depth 15)");
    }

    function _record(string memory name) private returns (uint256) {
        return vm.snapshotGasLastCall("Gas", name);
    }

    function _header(uint128 totalPayable, bytes32 accountsRoot) private view returns (Header memory header) {
        header.id = settlement.lastBatch() + 1;
        header.generation = settlement.generation();
        header.receiptCount = 10_000;
        header.depositSeqSeen = 1;
        header.totalPayable = totalPayable;
        header.totalAvailable = DEPOSITED - totalPayable;
        header.depositsSeen = DEPOSITED;
        header.prevHash = settlement.batchHash(settlement.lastBatch());
        header.receiptsRoot = keccak256(abi.encode("receipts", header.id));
        header.accountsRoot = accountsRoot;
        header.dataHash = keccak256(abi.encode("data", header.id));
    }

    /// @dev Commits a batch in which bob was released `cumulative`, as one of 2^15 accounts, and lets its window pass.
    function _commitAccount(uint128 cumulative) private returns (Claim memory item) {
        item.leaf = Account(bob, cumulative, 3e18 + 77, 0);
        item.proof = new bytes32[](DEPTH);
        bytes32 node = settlement.accountLeaf(item.leaf);
        for (uint256 i; i < DEPTH; ++i) {
            item.proof[i] = keccak256(abi.encode("sibling", i));
            node = Tree.parent(node, item.proof[i]);
        }
        commit(_header(20e18 + cumulative, node));
        skip(WINDOW);
    }
}
