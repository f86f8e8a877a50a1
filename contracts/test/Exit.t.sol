// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {
    Account,
    AnswerTooOld,
    BadProof,
    Claim,
    DepositSeen,
    Escaped,
    ExitAnswered,
    ExitNotOpen,
    ExitNotServed,
    ExitOpen,
    ExitRequested,
    Frozen,
    Header,
    IsFrozen,
    NotActive,
    NotFrozen,
    NothingToClaim,
    NothingToExit,
    OverPaid,
    TooEarly,
    Unfunded
} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {Tree} from "./support/Tree.sol";
import {vm} from "./support/Vm.sol";

contract ExitTest is Fixture {
    function setUp() public override {
        super.setUp();
        fund(alice, 1_000e18);
        ledger.spend(alice, bob, 100e18);
        ledger.release(bob, 60e18);
        activateLedger();
    }

    // ---- asking and answering

    function test_anExitStartsAClock() public {
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit ExitRequested(events + 1, alice, uint64(block.timestamp) + EXIT_DEADLINE);
        _requestExit(alice);
        (,, uint40 requestedAt, uint40 dueAt) = settlement.depositors(alice);
        vm.assertEq(requestedAt, block.timestamp, "requested");
        vm.assertEq(dueAt, block.timestamp + EXIT_DEADLINE, "due");
    }

    function test_aStrangerCannotStartTheClock() public {
        vm.expectRevert(NothingToExit.selector);
        _requestExit(stranger);
    }

    function test_anAccountThatOnlyEverClaimedCanExit() public {
        vm.expectRevert(NothingToExit.selector);
        _requestExit(bob);
        claim(1, bob);
        _requestExit(bob);
    }

    function test_anOpenExitIsNotAskedForAgain() public {
        _requestExit(alice);
        skip(1);
        vm.expectRevert(ExitOpen.selector);
        _requestExit(alice);
    }

    function test_noDepositForAnAccountThatIsLeaving() public {
        _requestExit(alice);
        vm.expectRevert(ExitOpen.selector);
        settlement.deposit(alice, 1);
        settlement.deposit(bob, 1);
    }

    function test_anExitIsAnsweredByABatchThatReleasedEverything() public {
        _requestExit(alice);
        skip(1);
        _serve(alice);
        Claim memory item = ledger.claimOf(4, alice);
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit ExitAnswered(events + 1, alice, 4);
        vm.prank(stranger);
        settlement.answerExit(4, item.leaf, item.proof);
        _keepCommitting(EXIT_DEADLINE + 1);
        vm.expectRevert(TooEarly.selector);
        settlement.freeze(alice);
        claim(4, alice);
        vm.assertEq(token.balanceOf(alice), 900e18, "paid out");
        settlement.deposit(alice, 1);
        _requestExit(alice);
    }

    function test_noAnswerWhileSomethingIsAvailable() public {
        _requestExit(alice);
        skip(1);
        ledger.release(alice, 400e18);
        activateLedger();
        _refuseAnswer(2, alice, ExitNotServed.selector);
    }

    function test_noAnswerBeforeAllDepositsWereSeen() public {
        settlement.deposit(alice, 5e18);
        _requestExit(alice);
        skip(1);
        ledger.release(alice, 400e18);
        activateLedger();
        skip(1 days); // the caps give the rest another day
        ledger.release(alice, 500e18);
        activateLedger();
        _refuseAnswer(3, alice, ExitNotServed.selector);
        ledger.credit();
        skip(1 days);
        ledger.release(alice, 5e18);
        activateLedger();
        Claim memory item = ledger.claimOf(4, alice);
        settlement.answerExit(4, item.leaf, item.proof);
    }

    function test_noAnswerWithABatchOlderThanTheRequest() public {
        ledger.spend(alice, bob, 900e18);
        commitLedger();
        _requestExit(alice); // in the same second
        skip(WINDOW);
        _refuseAnswer(2, alice, AnswerTooOld.selector);
    }

    function test_noAnswerWithABatchInItsWindow() public {
        _requestExit(alice);
        skip(1);
        ledger.spend(alice, bob, 900e18);
        commitLedger();
        _refuseAnswer(2, alice, NotActive.selector);
    }

    function test_noAnswerWithAForgedLeafAndNoneUnasked() public {
        activateLedger();
        _refuseAnswer(2, alice, ExitNotOpen.selector);
        _requestExit(alice);
        skip(1);
        activateLedger();
        Claim memory item = ledger.claimOf(3, alice);
        item.leaf.available = 0;
        vm.expectRevert(BadProof.selector);
        settlement.answerExit(3, item.leaf, item.proof);
    }

    // ---- freezing

    function test_silenceFreezes() public {
        vm.warp(settlement.lastCommitAt() + ESCAPE_AFTER);
        vm.expectRevert(TooEarly.selector);
        settlement.freeze(address(0));
        skip(1);
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit Frozen(events + 1, 1, address(0));
        vm.prank(stranger);
        settlement.freeze(address(0));
        vm.assertTrue(settlement.frozen(), "frozen");
        vm.expectRevert(IsFrozen.selector);
        settlement.freeze(address(0));
    }

    function test_anEmptyBatchBreaksTheSilence() public {
        skip(ESCAPE_AFTER - WINDOW);
        commitLedger();
        skip(ESCAPE_AFTER);
        vm.expectRevert(TooEarly.selector);
        settlement.freeze(address(0));
    }

    function test_anUnansweredExitFreezes() public {
        _requestExit(alice);
        _keepCommitting(EXIT_DEADLINE);
        vm.expectRevert(TooEarly.selector);
        settlement.freeze(alice);
        skip(1);
        vm.expectRevert(TooEarly.selector);
        settlement.freeze(bob);
        uint64 events = settlement.eventSeq();
        uint64 active = settlement.lastBatch();
        skip(WINDOW);
        vm.expectEmit();
        emit Frozen(events + 1, active, alice);
        settlement.freeze(alice);
    }

    function test_aFreezeTakesTheLatestActiveBatch() public {
        vm.assertEq(settlement.lastBatch(), 1, "active");
        _requestExit(alice);
        _keepCommitting(EXIT_DEADLINE - 5);
        uint64 active = settlement.lastBatch();
        skip(WINDOW - 4);
        ledger.spend(alice, bob, 100e18);
        commitLedger();
        commitLedger();
        skip(4);
        settlement.freeze(alice);
        vm.assertEq(settlement.frozenBatch(), active, "those in their window do not count");
        // ... and never will, however much time passes.
        skip(WINDOW);
        vm.assertTrue(settlement.isActive(active), "the frozen batch");
        vm.assertTrue(!settlement.isActive(active + 1) && !settlement.isActive(active + 2), "younger ones");
        Claim memory item = ledger.claimOf(active + 2, bob);
        vm.expectRevert(NotActive.selector);
        settlement.claim(active + 2, item.leaf, item.proof);
        claim(active, bob);
        _escapeAll();
        vm.assertEq(token.balanceOf(alice), 900e18, "alice by the frozen batch");
        vm.assertEq(token.balanceOf(bob), 100e18, "bob by the frozen batch");
    }

    function test_aFreezeLooksPastAFullWindowOfBatches() public {
        _requestExit(alice);
        vm.warp(block.timestamp / WINDOW * WINDOW + EXIT_DEADLINE);
        activateLedger();
        for (uint64 id = 3; id <= 65; ++id) {
            commitLedger();
        }
        skip(1);
        settlement.freeze(alice);
        vm.assertEq(settlement.frozenBatch(), 2, "63 batches back");
        _escapeAll();
    }

    function test_vetoedBatchesDoNotBreakASilence() public {
        uint64 silentSince = settlement.lastCommitAt();
        while (block.timestamp <= silentSince + ESCAPE_AFTER) {
            commitLedger();
            cancel(2);
            skip(10 minutes);
        }
        settlement.freeze(address(0));
    }

    function test_silenceIsMeasuredFromDeploymentBeforeTheFirstBatch() public {
        settlement = deploy(settlement.TOKEN());
        skip(ESCAPE_AFTER);
        vm.expectRevert(TooEarly.selector);
        settlement.freeze(address(0));
        skip(1);
        settlement.freeze(address(0));
        vm.assertEq(settlement.frozenBatch(), 0, "no batch");
    }

    function test_afterAFreezeNobodyAsksToLeaveOrAnswers() public {
        _requestExit(alice);
        freezeBySilence();
        vm.expectRevert(IsFrozen.selector);
        _requestExit(bob);
        _refuseAnswer(1, alice, IsFrozen.selector);
    }

    // ---- escaping

    function test_noEscapeWhileNotFrozen() public {
        Claim memory item = ledger.claimOf(1, alice);
        vm.expectRevert(NotFrozen.selector);
        settlement.escape(item.leaf, item.proof);
        vm.expectRevert(NotFrozen.selector);
        settlement.escapeUnseen(alice);
    }

    function test_everyEscapeIsExactAndTogetherTheyAreTheBalance() public {
        claim(1, bob);
        settlement.deposit(alice, 7); // not seen by the frozen batch
        settlement.deposit(carol, 11); // nor anything else of carol, who has a leaf of nothing
        settlement.deposit(stranger, 13); // no leaf at all
        freezeBySilence();
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit Escaped(events + 1, alice, 900e18 + 7, 900e18 + 7);
        escape(alice);
        escape(bob);
        escape(carol);
        settlement.escapeUnseen(stranger);
        vm.assertEq(token.balanceOf(alice), 900e18 + 7, "alice");
        vm.assertEq(token.balanceOf(bob), 100e18, "bob, what he claimed before included");
        vm.assertEq(token.balanceOf(carol), 11, "carol");
        vm.assertEq(token.balanceOf(stranger), 13, "stranger");
        vm.assertEq(token.balanceOf(address(settlement)), 0, "to the base unit");
        vm.assertEq(settlement.totalClaimed(), settlement.totalDeposited(), "all of it");
    }

    function test_noEscapeTwice() public {
        settlement.deposit(stranger, 13);
        freezeBySilence();
        Claim memory item = ledger.claimOf(1, alice);
        settlement.escape(item.leaf, item.proof);
        vm.expectRevert(NothingToClaim.selector);
        settlement.escape(item.leaf, item.proof);
        settlement.escapeUnseen(stranger);
        vm.expectRevert(NothingToClaim.selector);
        settlement.escapeUnseen(stranger);
    }

    function test_noEscapeWithAForgedLeaf() public {
        freezeBySilence();
        Claim memory item = ledger.claimOf(1, alice);
        item.leaf.available += 1;
        vm.expectRevert(BadProof.selector);
        settlement.escape(item.leaf, item.proof);
    }

    function test_aSeenDepositIsNotEscapedAsUnseen() public {
        freezeBySilence();
        vm.expectRevert(DepositSeen.selector);
        settlement.escapeUnseen(alice);
        vm.expectRevert(DepositSeen.selector);
        settlement.escapeUnseen(stranger);
    }

    function test_bothWaysOutTogetherPayOnce() public {
        // Carol earned before she ever deposited: she has a leaf, and her deposit is unseen.
        ledger.spend(alice, carol, 50e18);
        activateLedger();
        settlement.deposit(carol, 20e18);
        freezeBySilence();
        settlement.escapeUnseen(carol);
        vm.assertEq(token.balanceOf(carol), 20e18, "her deposit");
        escape(carol);
        vm.assertEq(token.balanceOf(carol), 70e18, "and what she earned");
        vm.expectRevert(DepositSeen.selector);
        settlement.escapeUnseen(alice);
        vm.expectRevert(NothingToClaim.selector);
        settlement.escapeUnseen(carol);
    }

    function test_withoutAnyBatchDepositsComeBack() public {
        settlement = deploy(settlement.TOKEN());
        token.approve(address(settlement), type(uint256).max);
        settlement.deposit(alice, 5);
        settlement.deposit(bob, 6);
        skip(ESCAPE_AFTER + 1);
        settlement.freeze(address(0));
        Claim memory item = ledger.claimOf(1, alice);
        vm.expectRevert(NotFrozen.selector);
        settlement.escape(item.leaf, item.proof);
        settlement.escapeUnseen(alice);
        settlement.escapeUnseen(bob);
        vm.assertEq(token.balanceOf(alice), 5, "alice");
        vm.assertEq(token.balanceOf(address(settlement)), 0, "all of it");
    }

    function test_noPauseStopsLeaving() public {
        vm.prank(guardian);
        settlement.pause(7);
        _requestExit(alice);
        freezeBySilence();
        escape(alice);
        escape(bob);
        vm.assertEq(token.balanceOf(address(settlement)), 0, "all of it");
    }

    function test_escapesNeverExceedTheDeposits() public {
        // A false root that nobody vetoed: each leaf takes all. The first gets it, nothing is created.
        Account memory greedy = Account(stranger, 0, 1_000e18, 0);
        Account memory more = Account(bob, 0, 1_000e18, 0);
        Account memory ahead = Account(carol, 0, 0, 1);
        Header memory header = ledger.seal();
        bytes32[] memory proof = new bytes32[](2);
        proof[0] = settlement.accountLeaf(more);
        proof[1] = settlement.accountLeaf(ahead);
        header.accountsRoot = Tree.parent(Tree.parent(settlement.accountLeaf(greedy), proof[0]), proof[1]);
        commit(header);
        skip(WINDOW);
        freezeBySilence();
        settlement.escape(greedy, proof);
        proof[0] = settlement.accountLeaf(greedy);
        vm.expectRevert(OverPaid.selector);
        settlement.escape(more, proof);
        bytes32[] memory short = new bytes32[](1);
        short[0] = Tree.parent(settlement.accountLeaf(greedy), settlement.accountLeaf(more));
        vm.expectRevert(Unfunded.selector);
        settlement.escape(ahead, short);
    }

    function _requestExit(address person) private {
        vm.prank(person);
        settlement.requestExit();
    }

    /// @dev Releases all that `person` holds, a day's cap at a time.
    function _serve(address person) private {
        ledger.release(person, 400e18);
        activateLedger();
        ledger.release(person, 490e18);
        activateLedger();
        skip(1 days);
        ledger.release(person, ledger.book(person).available);
        activateLedger();
    }

    /// @dev Commits empty batches for `time`, as an idle operator does that ignores exits.
    function _keepCommitting(uint256 time) private {
        uint256 end = block.timestamp + time;
        while (block.timestamp + ESCAPE_AFTER / 4 < end) {
            skip(ESCAPE_AFTER / 4);
            commitLedger();
        }
        vm.warp(end);
    }

    function _refuseAnswer(uint64 id, address person, bytes4 reason) private {
        Claim memory item = ledger.claimOf(id, person);
        vm.expectRevert(reason);
        settlement.answerExit(id, item.leaf, item.proof);
    }

    function _escapeAll() private {
        escape(alice);
        escape(bob);
        vm.assertEq(token.balanceOf(address(settlement)), 0, "to the base unit");
    }
}
