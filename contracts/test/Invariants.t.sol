// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Roles} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {Handler} from "./support/Handler.sol";
import {vm} from "./support/Vm.sol";

/// @notice What holds after every step of every history, whoever holds the settler's key.
abstract contract Invariants is Fixture {
    Handler internal handler;

    function setUpHandler(bool awake) internal {
        super.setUp();
        handler = new Handler(token, settlement, ledger, Roles(admin, settler, guardian), awake);
        require(token.transfer(address(handler), token.balanceOf(address(this))));
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[26] memory list = [
            Handler.deposit.selector,
            Handler.deposit.selector,
            Handler.depositOfANewcomer.selector,
            Handler.claim.selector,
            Handler.claim.selector,
            Handler.claimMany.selector,
            Handler.requestExit.selector,
            Handler.credit.selector,
            Handler.spend.selector,
            Handler.release.selector,
            Handler.release.selector,
            Handler.commit.selector,
            Handler.commit.selector,
            Handler.commit.selector,
            Handler.answerExit.selector,
            Handler.answerExit.selector,
            Handler.vetoHonest.selector,
            Handler.pause.selector,
            Handler.steal.selector,
            Handler.stealByClaim.selector,
            Handler.commitAgainstTheRules.selector,
            Handler.wait.selector,
            Handler.wait.selector,
            Handler.unpause.selector,
            Handler.freeze.selector,
            Handler.escape.selector
        ];
        targets = new FuzzSelector[](1);
        targets[0].addr = address(handler);
        targets[0].selectors = new bytes4[](list.length);
        for (uint256 i; i < list.length; ++i) {
            targets[0].selectors[i] = list[i];
        }
    }

    function checkMoney() internal view {
        uint256 balance = token.balanceOf(address(settlement));
        vm.assertGe(balance, settlement.totalDeposited() - settlement.totalClaimed(), "solvent");
        vm.assertEq(settlement.surplus(), 0, "nothing comes loose");
        uint256 paid = settlement.claimed(handler.thief());
        for (uint256 i; i < handler.count(); ++i) {
            paid += settlement.claimed(handler.everybody(i));
        }
        vm.assertEq(paid, settlement.totalClaimed(), "the parts are the whole");
        if (settlement.frozen()) return;
        uint256 totalPayable = settlement.committedBatch(settlement.lastBatch()).totalPayable;
        vm.assertLe(settlement.totalClaimed(), totalPayable, "claimed <= payable");
        vm.assertLe(totalPayable, settlement.totalDeposited(), "payable <= deposited");
    }
}

/// @notice A stolen settler key, and a guardian that vetoes every false root inside its window: nothing is lost.
contract GuardedInvariants is Invariants {
    function setUp() public override {
        setUpHandler(true);
    }

    function invariant_aGuardedSettlementLosesNothing() external view {
        checkMoney();
        vm.assertEq(token.balanceOf(handler.thief()), 0, "the thief");
    }

    /// @dev At the end of each history everybody leaves, with exactly what the ledger says is theirs.
    function afterInvariant() external {
        handler.finish();
        for (uint256 i; i < handler.count(); ++i) {
            address account = handler.everybody(i);
            vm.assertEq(settlement.claimed(account), handler.entitlement(account), "entitlement");
            vm.assertEq(token.balanceOf(account), settlement.claimed(account), "paid");
        }
        vm.assertEq(token.balanceOf(address(settlement)), 0, "all escapes together are the balance, to the base unit");
    }
}

/// @notice A stolen settler key, and nobody who looks: the loss has a bound.
contract UnguardedInvariants is Invariants {
    function setUp() public override {
        setUpHandler(false);
    }

    function invariant_anUnguardedSettlementLosesTheUnclaimedAndOneBucketPerDay() external view {
        checkMoney();
        if (settlement.frozen() || !handler.robbed()) return;
        uint256 numberOfDays = block.timestamp / 1 days - handler.dayWhenRobbed() + 1;
        uint256 bound = handler.unclaimedWhenRobbed() + PER_DAY * numberOfDays;
        vm.assertLe(token.balanceOf(handler.thief()), bound, "the thief");
    }
}
