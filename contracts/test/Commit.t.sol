// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {
    AlreadyActive,
    BatchCancelled,
    BatchCommitted,
    Committed,
    Header,
    IsFrozen,
    NotNewest,
    OutOfOrder,
    OverCap,
    RingFull,
    Shrinking,
    Unbalanced,
    Unfunded,
    WrongGeneration,
    WrongParent,
    ZeroRoot
} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {vm} from "./support/Vm.sol";

contract CommitTest is Fixture {
    function setUp() public override {
        super.setUp();
        fund(alice, 10_000e18);
    }

    function test_aCommitIsKeptAndReportedInFull() public {
        ledger.release(alice, 100e18);
        Header memory header = ledger.seal();
        bytes32 hash = keccak256(abi.encode(settlement.DOMAIN_SEPARATOR(), header));
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit BatchCommitted(events + 1, 1, hash, uint64(block.timestamp) + WINDOW, header);
        commit(header);
        vm.assertEq(settlement.batchHash(1), hash, "hash");
        Committed memory batch = settlement.committedBatch(1);
        vm.assertEq(batch.hash, hash, "hash");
        vm.assertEq(batch.accountsRoot, header.accountsRoot, "accounts root");
        vm.assertEq(batch.totalPayable, 100e18, "total payable");
        vm.assertEq(batch.committedAt, block.timestamp, "time");
        vm.assertEq(batch.activeAt, block.timestamp + WINDOW, "active at");
        vm.assertEq(batch.depositSeqSeen, 1, "deposits seen");
        vm.assertEq(settlement.lastCommitAt(), block.timestamp, "last commit");
    }

    function test_aBatchIsActiveFromTheEndOfItsWindow() public {
        commitLedger();
        skip(WINDOW - 1);
        vm.assertTrue(!settlement.isActive(1), "in its window");
        skip(1);
        vm.assertTrue(settlement.isActive(1), "past its window");
        vm.assertTrue(!settlement.isActive(0) && !settlement.isActive(2), "unknown batches");
    }

    function test_onlyTheSettlerCommits() public {
        Header memory header = ledger.seal();
        address[3] memory others = [stranger, admin, guardian];
        for (uint256 i; i < others.length; ++i) {
            vm.expectRevert(
                abi.encodeWithSelector(
                    IAccessControl.AccessControlUnauthorizedAccount.selector, others[i], settlement.SETTLER()
                )
            );
            vm.prank(others[i]);
            settlement.commitBatch(header);
        }
    }

    function test_theIdIsTheNextOne() public {
        Header memory header = ledger.seal();
        header.id = 0;
        _refuse(header, abi.encodeWithSelector(OutOfOrder.selector, 1));
        header.id = 2;
        _refuse(header, abi.encodeWithSelector(OutOfOrder.selector, 1));
        header.id = 1;
        commit(header);
        _refuse(header, abi.encodeWithSelector(OutOfOrder.selector, 2));
    }

    function test_theParentIsTheLastBatch() public {
        Header memory header = ledger.seal();
        header.prevHash = keccak256("another");
        _refuse(header, abi.encodeWithSelector(WrongParent.selector, bytes32(0)));
        header = commitLedger();
        Header memory next = ledger.seal();
        next.prevHash = header.prevHash;
        _refuse(next, abi.encodeWithSelector(WrongParent.selector, settlement.batchHash(1)));
    }

    function test_theGenerationIsTheCurrentOne() public {
        Header memory header = ledger.seal();
        header.generation = 1;
        _refuse(header, abi.encodeWithSelector(WrongGeneration.selector, 0));
    }

    function test_payableAndAvailableAddUpToDepositsSeen() public {
        Header memory header = ledger.seal();
        header.totalAvailable -= 1;
        _refuse(header, abi.encodeWithSelector(Unbalanced.selector));
        header.totalAvailable += 2;
        _refuse(header, abi.encodeWithSelector(Unbalanced.selector));
    }

    function test_theBalanceIsNotFooledByOverflow() public {
        Header memory header = ledger.seal();
        header.totalPayable = type(uint128).max;
        header.totalAvailable = header.depositsSeen + 1;
        _refuse(header, abi.encodeWithSelector(Unbalanced.selector));
    }

    function test_depositsSeenWereDeposited() public {
        Header memory header = ledger.seal();
        header.depositsSeen += 1;
        header.totalAvailable += 1;
        _refuse(header, abi.encodeWithSelector(Unfunded.selector));
        header = ledger.seal();
        header.depositSeqSeen += 1;
        _refuse(header, abi.encodeWithSelector(Unfunded.selector));
    }

    function test_payablesAndDepositsSeenNeverShrink() public {
        ledger.release(alice, 100e18);
        commitLedger();
        Header memory header = ledger.seal();
        header.totalPayable -= 1;
        header.totalAvailable += 1;
        _refuse(header, abi.encodeWithSelector(Shrinking.selector));
        header = ledger.seal();
        header.depositSeqSeen = 0;
        _refuse(header, abi.encodeWithSelector(Shrinking.selector));
    }

    function test_noRootNorDataHashIsZero() public {
        Header memory header = ledger.seal();
        header.receiptsRoot = 0;
        _refuse(header, abi.encodeWithSelector(ZeroRoot.selector));
        header = ledger.seal();
        header.accountsRoot = 0;
        _refuse(header, abi.encodeWithSelector(ZeroRoot.selector));
        header = ledger.seal();
        header.dataHash = 0;
        _refuse(header, abi.encodeWithSelector(ZeroRoot.selector));
    }

    function test_noCommitAfterAFreeze() public {
        freezeBySilence();
        _refuse(ledger.seal(), abi.encodeWithSelector(IsFrozen.selector));
    }

    // ---- caps

    function test_oneBatchReleasesAtMostItsCap() public {
        ledger.release(alice, PER_BATCH + 1);
        _refuse(ledger.seal(), abi.encodeWithSelector(OverCap.selector, PER_BATCH));
        vm.assertEq(settlement.releasable(), PER_BATCH, "releasable");
    }

    function test_oneDayReleasesAtMostItsBucket() public {
        ledger.release(alice, PER_BATCH);
        commitLedger();
        ledger.release(alice, PER_BATCH - 1);
        commitLedger();
        vm.assertEq(settlement.releasable(), 1, "left today");
        ledger.release(alice, 2);
        Header memory header = ledger.seal();
        _refuse(header, abi.encodeWithSelector(OverCap.selector, 1));
        vm.warp(block.timestamp / 1 days * 1 days + 1 days - 1);
        _refuse(header, abi.encodeWithSelector(OverCap.selector, 1));
        skip(1);
        vm.assertEq(settlement.releasable(), PER_BATCH, "a new day");
        commit(header);
        ledger.release(alice, PER_BATCH);
        commitLedger();
        vm.assertEq(settlement.releasable(), PER_DAY - PER_BATCH - 2, "left of the new day");
    }

    function test_aVetoPutsBackWhatTheBatchTookFromTheDay() public {
        ledger.release(alice, 300e18);
        commitLedger();
        cancel(1);
        vm.assertEq(settlement.releasable(), PER_BATCH, "batch cap");
        ledger.reopen();
        for (uint64 id = 1; id <= 2; ++id) {
            ledger.release(alice, PER_BATCH);
            commitLedger();
        }
        vm.assertEq(settlement.releasable(), 0, "the whole day, not a unit more");
    }

    function test_aVetoTheNextDayPutsNothingBack() public {
        vm.warp(block.timestamp + 1 days - 1);
        ledger.release(alice, 300e18);
        commitLedger();
        skip(1);
        ledger.release(alice, 200e18);
        commitLedger();
        cancel(2);
        cancel(1);
        ledger.reopen();
        for (uint64 id = 1; id <= 2; ++id) {
            ledger.release(alice, PER_BATCH);
            commitLedger();
        }
        vm.assertEq(settlement.releasable(), 0, "one day's bucket");
    }

    // ---- veto

    function test_aVetoRemovesTheNewestBatchAndStartsANewGeneration() public {
        commitLedger();
        uint64 committedAt = settlement.lastCommitAt();
        skip(1);
        commitLedger();
        bytes32 hash = settlement.batchHash(2);
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit BatchCancelled(events + 1, 2, hash, 1);
        cancel(2);
        vm.assertEq(settlement.lastBatch(), 1, "last batch");
        vm.assertEq(settlement.batchHash(2), 0, "hash");
        vm.assertEq(settlement.lastCommitAt(), committedAt, "a vetoed batch does not break a silence");
        skip(WINDOW);
        vm.assertTrue(!settlement.isActive(2), "a vetoed batch is never active");
        commitLedger();
        vm.assertEq(settlement.lastBatch(), 2, "its number is taken again");
    }

    function test_aCommitSignedBeforeAVetoCannotComeBack() public {
        Header memory header = commitLedger();
        cancel(1);
        _refuse(header, abi.encodeWithSelector(WrongGeneration.selector, 1));
    }

    function test_onlyTheGuardianVetoes() public {
        commitLedger();
        address[3] memory others = [stranger, admin, settler];
        for (uint256 i; i < others.length; ++i) {
            vm.expectRevert(
                abi.encodeWithSelector(
                    IAccessControl.AccessControlUnauthorizedAccount.selector, others[i], settlement.GUARDIAN()
                )
            );
            vm.prank(others[i]);
            settlement.cancelBatch(1);
        }
    }

    function test_vetoesGoNewestFirst() public {
        commitLedger();
        commitLedger();
        vm.expectRevert(abi.encodeWithSelector(NotNewest.selector, 2));
        cancel(1);
        vm.expectRevert(abi.encodeWithSelector(NotNewest.selector, 2));
        cancel(3);
        cancel(2);
        cancel(1);
        vm.expectRevert(abi.encodeWithSelector(NotNewest.selector, 0));
        cancel(0);
    }

    function test_anActiveBatchCannotBeVetoed() public {
        commitLedger();
        skip(WINDOW - 1);
        commitLedger();
        cancel(2);
        skip(1);
        vm.expectRevert(AlreadyActive.selector);
        cancel(1);
    }

    function test_noVetoAfterAFreeze() public {
        commitLedger();
        freezeBySilence();
        vm.expectRevert(IsFrozen.selector);
        cancel(1);
    }

    // ---- the ring

    function test_fastBatchesCannotPushEveryActiveOneOut() public {
        for (uint64 id = 1; id < 64; ++id) {
            commitLedger();
        }
        Header memory header = ledger.seal();
        _refuse(header, abi.encodeWithSelector(RingFull.selector));
        skip(WINDOW);
        commit(header);
        vm.assertTrue(settlement.isActive(1), "the oldest is still there");
        for (uint64 id = 65; id <= 126; ++id) {
            commitLedger();
        }
        vm.assertTrue(settlement.isActive(63), "the newest active one is still there");
        _refuse(ledger.seal(), abi.encodeWithSelector(RingFull.selector));
    }

    function test_theRingKeepsSixtyFourBatches() public {
        for (uint64 id = 1; id <= 70; ++id) {
            activateLedger();
        }
        vm.assertTrue(settlement.batchHash(7) != 0 && settlement.isActive(7), "the oldest kept");
        vm.assertTrue(settlement.batchHash(6) == 0 && !settlement.isActive(6), "gone");
        vm.assertEq(settlement.committedBatch(6).activeAt, 0, "gone");
    }

    function test_aVetoDoesNotBringAnOverwrittenBatchBack() public {
        for (uint64 id = 1; id <= 70; ++id) {
            activateLedger();
        }
        commitLedger();
        cancel(71);
        vm.assertEq(settlement.lastBatch(), 70, "last batch");
        vm.assertTrue(settlement.batchHash(7) == 0 && !settlement.isActive(7), "its place was taken by batch 71");
        vm.assertTrue(settlement.isActive(8), "the next oldest");
        commitLedger();
    }

    function _refuse(Header memory header, bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(settler);
        settlement.commitBatch(header);
    }
}
