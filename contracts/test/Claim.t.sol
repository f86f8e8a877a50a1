// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Settlement} from "../src/Settlement.sol";
import {
    Account,
    BadProof,
    Claim,
    Claimed,
    Header,
    IsPaused,
    NotActive,
    NothingToClaim,
    OverPaid
} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {Ledger} from "./support/Ledger.sol";
import {BlockingToken} from "./support/Tokens.sol";
import {Tree} from "./support/Tree.sol";
import {vm} from "./support/Vm.sol";

contract ClaimTest is Fixture {
    function setUp() public override {
        super.setUp();
        fund(alice, 10_000e18);
        ledger.spend(alice, bob, 60e18);
        ledger.spend(alice, carol, 30e18);
        ledger.spend(alice, platform, 10e18);
        ledger.release(bob, 50e18);
        ledger.release(carol, 30e18);
        ledger.release(platform, 10e18);
    }

    function test_aClaimPaysTheAccountWhatWasReleased() public {
        activateLedger();
        Claim memory item = ledger.claimOf(1, bob);
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit Claimed(events + 1, bob, 1, 50e18, 50e18);
        vm.prank(stranger);
        settlement.claim(1, item.leaf, item.proof);
        vm.assertEq(token.balanceOf(bob), 50e18, "paid");
        vm.assertEq(token.balanceOf(stranger), 0, "nobody else");
        vm.assertEq(settlement.claimed(bob), 50e18, "claimed");
        vm.assertEq(settlement.totalClaimed(), 50e18, "total");
    }

    function test_aLaterClaimPaysTheDifference() public {
        activateLedger();
        claim(1, bob);
        ledger.release(bob, 10e18);
        activateLedger();
        claim(2, bob);
        vm.assertEq(token.balanceOf(bob), 60e18, "cumulative");
    }

    function test_noClaimBeforeTheWindowHasPassed() public {
        commitLedger();
        Claim memory item = ledger.claimOf(1, bob);
        skip(WINDOW - 1);
        vm.expectRevert(NotActive.selector);
        settlement.claim(1, item.leaf, item.proof);
        skip(1);
        settlement.claim(1, item.leaf, item.proof);
    }

    function test_noClaimTwice() public {
        activateLedger();
        Claim memory item = ledger.claimOf(1, bob);
        settlement.claim(1, item.leaf, item.proof);
        vm.expectRevert(NothingToClaim.selector);
        settlement.claim(1, item.leaf, item.proof);
        activateLedger();
        item = ledger.claimOf(2, bob);
        vm.expectRevert(NothingToClaim.selector);
        settlement.claim(2, item.leaf, item.proof);
    }

    function test_noClaimOfACancelledBatch() public {
        commitLedger();
        Claim memory item = ledger.claimOf(1, bob);
        cancel(1);
        skip(WINDOW);
        vm.expectRevert(NotActive.selector);
        settlement.claim(1, item.leaf, item.proof);
        ledger.reopen();
        activateLedger();
        vm.expectRevert(BadProof.selector);
        settlement.claim(1, item.leaf, item.proof);
    }

    function test_noClaimOfAForgedLeaf() public {
        activateLedger();
        Claim memory item = ledger.claimOf(1, bob);
        item.leaf.payable_ += 1;
        _refuse(item);
        item = ledger.claimOf(1, bob);
        item.leaf.available = 0;
        _refuse(item);
        item = ledger.claimOf(1, bob);
        item.leaf.depositsSeen = 1;
        _refuse(item);
        item = ledger.claimOf(1, bob);
        item.leaf.account = stranger;
        _refuse(item);
    }

    function test_noClaimWithAForgedProof() public {
        activateLedger();
        Claim memory item = ledger.claimOf(1, bob);
        item.proof[0] = keccak256("sibling");
        _refuse(item);
        item.proof = new bytes32[](0);
        _refuse(item);
    }

    function test_noClaimAgainstAnotherBatch() public {
        activateLedger();
        ledger.release(bob, 10e18);
        activateLedger();
        Claim memory item = ledger.claimOf(2, bob);
        _refuse(item);
    }

    function test_noClaimWithAnotherContractsProof() public {
        activateLedger();
        Claim memory item = _foreign(deploy(IERC20(address(token))));
        _refuse(item);
    }

    function test_noClaimWithAnotherChainsProof() public {
        activateLedger();
        uint256 here = block.chainid;
        vm.chainId(here + 1);
        Settlement there = deploy(IERC20(address(token)));
        vm.chainId(here);
        vm.assertTrue(there.DOMAIN_SEPARATOR() != settlement.DOMAIN_SEPARATOR(), "domains");
        _refuse(_foreign(there));
    }

    function test_anInnerNodeIsNoLeaf() public {
        // The preimage of an inner node has 64 bytes, of a leaf 32: no account hashes to a node. What is left to try is a
        // proof that starts one level higher.
        activateLedger();
        Claim memory item = ledger.claimOf(1, bob);
        bytes32 node = Tree.parent(settlement.accountLeaf(item.leaf), item.proof[0]);
        bytes32 root = Tree.parent(node, item.proof[1]);
        vm.assertEq(root, settlement.committedBatch(1).accountsRoot, "the node is under the root");
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = item.proof[1];
        item.proof = proof;
        _refuse(item);
    }

    function test_claimsNeverExceedAllThatWasReleased() public {
        // A root whose leaves add up to more than the header says: the sum is what the contract enforces.
        Account memory greedy = Account(bob, 91e18, 0, 0);
        Header memory header = ledger.seal();
        header.accountsRoot = settlement.accountLeaf(greedy);
        commit(header);
        skip(WINDOW);
        vm.expectRevert(OverPaid.selector);
        settlement.claim(1, greedy, new bytes32[](0));
    }

    function test_oneAccountsClaimsCountAgainstAllOthers() public {
        Account memory greedy = Account(stranger, 90e18, 0, 0);
        activateLedger();
        claim(1, bob);
        Header memory header = ledger.seal();
        header.accountsRoot = settlement.accountLeaf(greedy);
        commit(header);
        skip(WINDOW);
        vm.expectRevert(OverPaid.selector);
        settlement.claim(2, greedy, new bytes32[](0));
    }

    function test_noClaimOfABatchThatLeftTheRing() public {
        activateLedger();
        Claim memory item = ledger.claimOf(1, bob);
        for (uint64 id = 2; id <= 64; ++id) {
            activateLedger();
        }
        settlement.claim(1, item.leaf, item.proof);
        activateLedger();
        item = ledger.claimOf(1, carol);
        vm.expectRevert(NotActive.selector);
        settlement.claim(1, item.leaf, item.proof);
        claim(65, carol);
    }

    // ---- many at once

    function test_claimManyPaysEachAccount() public {
        activateLedger();
        uint256[] memory amounts = settlement.claimMany(1, _items());
        vm.assertEq(amounts[0] + amounts[1] + amounts[2], 90e18, "reported");
        vm.assertEq(token.balanceOf(bob), 50e18, "bob");
        vm.assertEq(token.balanceOf(carol), 30e18, "carol");
        vm.assertEq(token.balanceOf(platform), 10e18, "platform");
    }

    function test_badItemsCannotHoldUpTheOthers() public {
        BlockingToken blocking = new BlockingToken();
        settlement = deploy(IERC20(address(blocking)));
        blocking.approve(address(settlement), type(uint256).max);
        ledger = new Ledger(settlement, people());
        fund(alice, 10_000e18);
        ledger.spend(alice, bob, 50e18);
        ledger.spend(alice, carol, 30e18);
        ledger.release(bob, 50e18);
        ledger.release(carol, 30e18);
        activateLedger();
        blocking.setBlocked(bob);
        uint64 events = settlement.eventSeq();

        Claim[] memory items = new Claim[](6);
        items[0] = ledger.claimOf(1, bob); // the token refuses bob
        items[1] = ledger.claimOf(1, platform); // nothing owed
        items[2] = ledger.claimOf(1, carol);
        items[2].leaf.account = stranger; // forged
        items[3] = ledger.claimOf(1, carol);
        items[3].proof = new bytes32[](0); // without a proof
        items[4] = ledger.claimOf(1, carol);
        items[5] = ledger.claimOf(1, carol); // paid by the one before
        uint256[] memory amounts = settlement.claimMany(1, items);

        for (uint256 i; i < items.length; ++i) {
            vm.assertEq(amounts[i], i == 4 ? 30e18 : 0, "only carol is paid, once");
        }
        vm.assertEq(blocking.balanceOf(carol), 30e18, "carol");
        vm.assertEq(settlement.claimed(bob), 0, "bob's claim stands");
        vm.assertEq(settlement.totalClaimed(), 30e18, "total");
        vm.assertEq(settlement.surplus(), 0, "nothing came loose");
        vm.assertEq(settlement.eventSeq(), events + 1, "what did not happen is not reported");

        blocking.setBlocked(address(0));
        claim(1, bob);
        vm.assertEq(blocking.balanceOf(bob), 50e18, "bob, later");
    }

    function test_claimManyOfNothingIsRefused() public {
        activateLedger();
        vm.expectRevert(NothingToClaim.selector);
        settlement.claimMany(1, new Claim[](0));
        settlement.claimMany(1, _items());
        Claim[] memory items = _items();
        vm.expectRevert(NothingToClaim.selector);
        settlement.claimMany(1, items);
    }

    function test_claimManyObeysWindowAndCeiling() public {
        commitLedger();
        Claim[] memory items = _items();
        vm.expectRevert(NotActive.selector);
        settlement.claimMany(1, items);

        Header memory header = ledger.seal();
        items = new Claim[](2);
        items[0].leaf = Account(stranger, 89e18, 0, 0);
        items[1].leaf = Account(bob, 2e18, 0, 0);
        items[0].proof = new bytes32[](1);
        items[1].proof = new bytes32[](1);
        items[0].proof[0] = settlement.accountLeaf(items[1].leaf);
        items[1].proof[0] = settlement.accountLeaf(items[0].leaf);
        header.accountsRoot = Tree.parent(items[0].proof[0], items[1].proof[0]);
        commit(header);
        skip(WINDOW);
        uint256[] memory amounts = settlement.claimMany(2, items);
        vm.assertEq(amounts[0], 89e18, "within all that was released");
        vm.assertEq(amounts[1], 0, "beyond it");
    }

    // ---- pause

    function test_aPauseDelaysClaims() public {
        activateLedger();
        uint8 bit = settlement.PAUSE_CLAIMS();
        vm.prank(guardian);
        settlement.pause(bit);
        Claim memory item = ledger.claimOf(1, bob);
        vm.expectRevert(abi.encodeWithSelector(IsPaused.selector, bit));
        settlement.claim(1, item.leaf, item.proof);
        Claim[] memory items = _items();
        vm.expectRevert(abi.encodeWithSelector(IsPaused.selector, bit));
        settlement.claimMany(1, items);
        skip(settlement.PAUSE_LENGTH());
        settlement.claim(1, item.leaf, item.proof);
    }

    function _items() private view returns (Claim[] memory items) {
        items = new Claim[](3);
        items[0] = ledger.claimOf(1, bob);
        items[1] = ledger.claimOf(1, carol);
        items[2] = ledger.claimOf(1, platform);
    }

    /// @dev Bob's leaf and proof as another settlement with the same accounts would have them.
    function _foreign(Settlement there) private view returns (Claim memory item) {
        (Account[] memory accounts,) = ledger.snapshotOf(1);
        bytes32[] memory leaves = new bytes32[](accounts.length);
        for (uint256 i; i < accounts.length; ++i) {
            leaves[i] = there.accountLeaf(accounts[i]);
        }
        item.leaf = ledger.claimOf(1, bob).leaf;
        item.proof = Tree.proof(leaves, there.accountLeaf(item.leaf));
    }

    function _refuse(Claim memory item) private {
        vm.expectRevert(BadProof.selector);
        settlement.claim(1, item.leaf, item.proof);
    }
}
