// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Settlement} from "../src/Settlement.sol";
import {
    CapRaised,
    Caps,
    CapsChanged,
    Header,
    InvalidAddress,
    InvalidPause,
    InvalidWindows,
    IsPaused,
    OverCap,
    Paused,
    PauseTooSoon,
    Roles,
    RolesOverlap,
    Unpaused,
    Windows,
    WindowsChanged
} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {Vm, vm} from "./support/Vm.sol";

contract ControlTest is Fixture {
    // ---- roles

    function test_theDeployerHoldsNoRole() public view {
        vm.assertTrue(!settlement.hasRole(settlement.ADMIN(), address(this)), "admin");
        vm.assertTrue(!settlement.hasRole(settlement.SETTLER(), address(this)), "settler");
        vm.assertTrue(!settlement.hasRole(settlement.GUARDIAN(), address(this)), "guardian");
        vm.assertTrue(settlement.hasRole(settlement.ADMIN(), admin), "the admin named");
        vm.assertTrue(settlement.hasRole(settlement.SETTLER(), settler), "the settler named");
        vm.assertTrue(settlement.hasRole(settlement.GUARDIAN(), guardian), "the guardian named");
    }

    function test_theRolesAreThreeKeysAtDeployment() public {
        _refuseRoles(Roles(settler, settler, guardian), abi.encodeWithSelector(RolesOverlap.selector, settler));
        _refuseRoles(Roles(guardian, settler, guardian), abi.encodeWithSelector(RolesOverlap.selector, guardian));
        _refuseRoles(Roles(admin, settler, settler), abi.encodeWithSelector(RolesOverlap.selector, settler));
        _refuseRoles(Roles(address(0), settler, guardian), abi.encodeWithSelector(InvalidAddress.selector, address(0)));
        _refuseRoles(Roles(admin, address(0), guardian), abi.encodeWithSelector(InvalidAddress.selector, address(0)));
        _refuseRoles(Roles(admin, settler, address(0)), abi.encodeWithSelector(InvalidAddress.selector, address(0)));
    }

    function test_theRolesStayThreeKeys() public {
        bytes32[3] memory roles = [settlement.ADMIN(), settlement.SETTLER(), settlement.GUARDIAN()];
        address[3] memory holders = [admin, settler, guardian];
        for (uint256 role; role < 3; ++role) {
            for (uint256 holder; holder < 3; ++holder) {
                if (role == holder) continue;
                vm.expectRevert(abi.encodeWithSelector(RolesOverlap.selector, holders[holder]));
                vm.prank(admin);
                settlement.grantRole(roles[role], holders[holder]);
            }
        }
    }

    function test_aKeyIsReplacedByTheAdmin() public {
        bytes32 role = settlement.SETTLER();
        vm.prank(admin);
        settlement.revokeRole(role, settler);
        Header memory header = ledger.seal();
        vm.expectRevert(abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, settler, role));
        commit(header);
        vm.prank(admin);
        settlement.grantRole(role, stranger);
        vm.prank(stranger);
        settlement.commitBatch(header);
    }

    function test_onlyTheAdminGrantsRoles() public {
        bytes32 role = settlement.SETTLER();
        _refuseOthers(admin, settlement.ADMIN(), abi.encodeCall(IAccessControl.grantRole, (role, address(0x9))));
        _refuseOthers(admin, settlement.ADMIN(), abi.encodeCall(IAccessControl.revokeRole, (role, settler)));
    }

    function test_whatIsTheAdminsIsNobodyElses() public {
        bytes32 role = settlement.ADMIN();
        _refuseOthers(admin, role, abi.encodeCall(settlement.setCaps, (Caps(1, 1))));
        _refuseOthers(admin, role, abi.encodeCall(settlement.setWindows, (Windows(1, 2, 2))));
        _refuseOthers(admin, role, abi.encodeCall(settlement.unpause, ()));
        _refuseOthers(admin, role, abi.encodeCall(settlement.rescue, (stranger, 0)));
    }

    function test_whatIsTheGuardiansIsNobodyElses() public {
        bytes32 role = settlement.GUARDIAN();
        _refuseOthers(guardian, role, abi.encodeCall(settlement.lowerCaps, (Caps(1, 1))));
        _refuseOthers(guardian, role, abi.encodeCall(settlement.pause, (1)));
        _refuseOthers(guardian, role, abi.encodeCall(settlement.cancelBatch, (1)));
    }

    function test_theTokenIsAContract() public {
        vm.expectRevert(abi.encodeWithSelector(InvalidAddress.selector, stranger));
        deploy(IERC20(stranger));
    }

    function test_aTimelockCanBeTheAdmin() public {
        address[] memory proposers = new address[](1);
        proposers[0] = stranger;
        TimelockController timelock = new TimelockController(48 hours, proposers, proposers, address(0));
        admin = address(timelock);
        settlement = deploy(IERC20(address(token)));
        bytes memory change = abi.encodeCall(settlement.setCaps, (Caps(7, 9)));
        vm.prank(stranger);
        timelock.schedule(address(settlement), 0, change, 0, 0, 48 hours);
        skip(48 hours - 1);
        vm.expectRevert();
        vm.prank(stranger);
        timelock.execute(address(settlement), 0, change, 0, 0);
        skip(1);
        vm.prank(stranger);
        timelock.execute(address(settlement), 0, change, 0, 0);
        (uint128 perBatch, uint128 perDay) = settlement.caps();
        vm.assertTrue(perBatch == 7 && perDay == 9, "changed after the delay");
    }

    // ---- caps

    function test_theAdminSetsCaps() public {
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit CapsChanged(events + 1, PER_BATCH * 2, PER_DAY * 2);
        vm.prank(admin);
        settlement.setCaps(Caps(PER_BATCH * 2, PER_DAY * 2));
        vm.assertEq(settlement.releasable(), PER_BATCH * 2, "at once");
    }

    function test_theGuardianOnlyLowersCaps() public {
        vm.expectRevert(CapRaised.selector);
        _lower(PER_BATCH + 1, PER_DAY);
        vm.expectRevert(CapRaised.selector);
        _lower(PER_BATCH, PER_DAY + 1);
        vm.expectRevert(CapRaised.selector);
        _lower(0, PER_DAY + 1);
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit CapsChanged(events + 1, 10, PER_DAY);
        _lower(10, PER_DAY);
        fund(alice, 100);
        ledger.release(alice, 11);
        Header memory header = ledger.seal();
        vm.expectRevert(abi.encodeWithSelector(OverCap.selector, 10));
        commit(header);
    }

    function test_aDayAlreadyBeyondALoweredCapReleasesNothingMore() public {
        fund(alice, 1_000e18);
        ledger.release(alice, 400e18);
        commitLedger();
        _lower(PER_BATCH, 300e18);
        vm.assertEq(settlement.releasable(), 0, "nothing");
        commitLedger();
        cancel(2);
        cancel(1);
        vm.assertEq(settlement.releasable(), 300e18, "the lowered bucket");
    }

    // ---- windows

    function test_windowsThatLeaveNoTimeAreRefused() public {
        _refuseWindows(0, 2, 2);
        _refuseWindows(10, 10, 11);
        _refuseWindows(10, 11, 10);
        _refuseWindows(7 days + 1, 30 days, 60 days);
        _refuseWindows(10, 30 days + 1, 60 days);
        _refuseWindows(10, 30 days, 60 days + 1);
        vm.prank(admin);
        settlement.setWindows(Windows(7 days, 30 days, 60 days));
    }

    function test_windowsUnderWayKeepTheirTimes() public {
        fund(alice, 100e18);
        commitLedger();
        vm.prank(alice);
        settlement.requestExit();
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit WindowsChanged(events + 1, 6 hours, 14 days, 21 days);
        vm.prank(admin);
        settlement.setWindows(Windows(6 hours, 14 days, 21 days));
        skip(WINDOW);
        vm.assertTrue(settlement.isActive(1), "by the window it was committed with");
        commitLedger();
        vm.assertEq(settlement.committedBatch(2).activeAt, block.timestamp + 6 hours, "by the new one");
        skip(EXIT_DEADLINE);
        settlement.freeze(alice);
    }

    // ---- pause

    function test_aPauseStopsWhatItsBitsSay() public {
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit Paused(events + 1, 1, uint64(block.timestamp) + 7 days);
        _pause(settlement.PAUSE_DEPOSITS());
        vm.expectRevert(abi.encodeWithSelector(IsPaused.selector, 1));
        settlement.deposit(alice, 1);
        commitLedger();
        _pause(settlement.PAUSE_COMMITS());
        Header memory header = ledger.seal();
        vm.expectRevert(abi.encodeWithSelector(IsPaused.selector, 2));
        commit(header);
        vm.expectRevert(abi.encodeWithSelector(IsPaused.selector, 1));
        settlement.deposit(alice, 1);
        (uint8 bits,) = settlement.paused();
        vm.assertEq(bits, 3, "both");
    }

    function test_aPauseEndsByItself() public {
        _pause(7);
        skip(7 days - 1);
        vm.expectRevert(abi.encodeWithSelector(IsPaused.selector, 1));
        settlement.deposit(alice, 1);
        skip(1);
        settlement.deposit(alice, 1);
        commitLedger();
        (uint8 bits,) = settlement.paused();
        vm.assertEq(bits, 0, "over");
    }

    function test_addingBitsDoesNotProlongAPause() public {
        _pause(1);
        uint64 until = uint64(block.timestamp) + 7 days;
        skip(6 days);
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit Paused(events + 1, 5, until);
        _pause(4);
        skip(1 days);
        settlement.deposit(alice, 1);
    }

    function test_aPauseIsNotRenewedBeforeEverythingRanForADay() public {
        _pause(7);
        skip(7 days);
        uint64 allowedAt = uint64(block.timestamp) + 1 days;
        vm.expectRevert(abi.encodeWithSelector(PauseTooSoon.selector, allowedAt));
        _pause(7);
        vm.warp(allowedAt - 1);
        vm.expectRevert(abi.encodeWithSelector(PauseTooSoon.selector, allowedAt));
        _pause(1);
        skip(1);
        _pause(2);
        (uint8 bits,) = settlement.paused();
        vm.assertEq(bits, 2, "old bits are gone");
    }

    function test_theAdminEndsAPause() public {
        vm.expectRevert(abi.encodeWithSelector(InvalidPause.selector, 0));
        vm.prank(admin);
        settlement.unpause();
        _pause(7);
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit Unpaused(events + 1);
        vm.prank(admin);
        settlement.unpause();
        settlement.deposit(alice, 1);
        vm.expectRevert(abi.encodeWithSelector(PauseTooSoon.selector, block.timestamp + 1 days));
        _pause(1);
    }

    function test_unknownPauseBitsAreRefused() public {
        vm.expectRevert(abi.encodeWithSelector(InvalidPause.selector, 0));
        _pause(0);
        vm.expectRevert(abi.encodeWithSelector(InvalidPause.selector, 8));
        _pause(8);
        vm.expectRevert(abi.encodeWithSelector(InvalidPause.selector, 255));
        _pause(255);
    }

    // ---- events

    function test_eventsAreNumberedWithoutGaps() public {
        vm.recordLogs();
        settlement = deploy(IERC20(address(token)));
        token.approve(address(settlement), type(uint256).max);
        settlement.deposit(alice, 100);
        _pause(1);
        vm.prank(admin);
        settlement.unpause();
        _lower(PER_BATCH - 1, PER_DAY);
        vm.prank(alice);
        settlement.requestExit();
        Header memory header;
        (header.id, header.totalAvailable, header.depositsSeen) = (1, 100, 100);
        (header.receiptsRoot, header.accountsRoot, header.dataHash) = ("r", "a", "d");
        commit(header);
        cancel(1);
        skip(ESCAPE_AFTER + 1);
        settlement.freeze(address(0));
        settlement.escapeUnseen(alice);
        uint256 seen;
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].emitter != address(settlement) || _isRoleEvent(logs[i].topics[0])) continue;
            vm.assertEq(uint256(logs[i].topics[1]), ++seen, "dense");
        }
        vm.assertEq(seen, 11, "all of them");
        vm.assertEq(settlement.eventSeq(), seen, "the contract counts the same");
    }

    function _isRoleEvent(bytes32 topic) private pure returns (bool) {
        return topic == IAccessControl.RoleGranted.selector;
    }

    function _pause(uint8 bits) private {
        vm.prank(guardian);
        settlement.pause(bits);
    }

    function _lower(uint128 perBatch, uint128 perDay) private {
        vm.prank(guardian);
        settlement.lowerCaps(Caps(perBatch, perDay));
    }

    function _refuseRoles(Roles memory roles, bytes memory reason) private {
        vm.expectRevert(reason);
        new Settlement(
            IERC20(address(token)), roles, Windows(WINDOW, ESCAPE_AFTER, EXIT_DEADLINE), Caps(PER_BATCH, PER_DAY)
        );
    }

    function _refuseWindows(uint32 window, uint32 escapeAfter, uint32 exitDeadline) private {
        vm.expectRevert(InvalidWindows.selector);
        vm.prank(admin);
        settlement.setWindows(Windows(window, escapeAfter, exitDeadline));
    }

    /// @dev Everybody but `holder` is refused for want of `role`.
    function _refuseOthers(address holder, bytes32 role, bytes memory call) private {
        address[4] memory others = [stranger, admin, settler, guardian];
        for (uint256 i; i < others.length; ++i) {
            if (others[i] == holder) continue;
            vm.prank(others[i]);
            (bool ok, bytes memory answer) = address(settlement).call(call);
            bytes memory refusal =
                abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, others[i], role);
            vm.assertTrue(!ok, "refused");
            vm.assertEq(keccak256(answer), keccak256(refusal), "for want of the role");
        }
    }
}
