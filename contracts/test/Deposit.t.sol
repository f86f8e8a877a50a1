// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Settlement} from "../src/Settlement.sol";
import {
    Account,
    Claim,
    Deposited,
    InvalidAddress,
    IsFrozen,
    NothingDeposited,
    OverSurplus
} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {FeeToken, ReentrantToken} from "./support/Tokens.sol";
import {vm} from "./support/Vm.sol";

contract DepositTest is Fixture {
    bytes32 private constant PERMIT_TYPEHASH =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    uint256 private constant PAYER_KEY = 0xC11E27;

    function test_aDepositIsCreditedToTheAccountAndNumbered() public {
        uint64 events = settlement.eventSeq();
        vm.expectEmit();
        emit Deposited(events + 1, alice, address(this), 1, 5);
        settlement.deposit(alice, 5);
        settlement.deposit(bob, 7);
        settlement.deposit(alice, 11);
        (uint128 deposited, uint40 firstSeq, uint40 requestedAt, uint40 dueAt) = settlement.depositors(alice);
        vm.assertEq(deposited, 16, "alice's deposits");
        vm.assertEq(firstSeq, 1, "alice's first deposit");
        vm.assertEq(uint256(requestedAt) + dueAt, 0, "no exit");
        (, firstSeq,,) = settlement.depositors(bob);
        vm.assertEq(firstSeq, 2, "bob's first deposit");
        vm.assertEq(settlement.depositSeq(), 3, "deposits");
        vm.assertEq(settlement.totalDeposited(), 23, "total");
    }

    function testFuzz_depositsAddUpPerAccountAndInTotal(uint96[8] calldata amounts, uint8 order) public {
        uint256[2] memory sums;
        for (uint256 i; i < amounts.length; ++i) {
            if (amounts[i] == 0) continue;
            uint256 whose = (order >> i) & 1;
            settlement.deposit(whose == 0 ? alice : bob, amounts[i]);
            sums[whose] += amounts[i];
        }
        (uint128 deposited,,,) = settlement.depositors(alice);
        vm.assertEq(deposited, sums[0], "alice's");
        (deposited,,,) = settlement.depositors(bob);
        vm.assertEq(deposited, sums[1], "bob's");
        vm.assertEq(settlement.totalDeposited(), sums[0] + sums[1], "total");
        vm.assertEq(token.balanceOf(address(settlement)), sums[0] + sums[1], "balance");
        vm.assertEq(settlement.surplus(), 0, "surplus");
    }

    function test_nothingDepositedIsRefused() public {
        vm.expectRevert(NothingDeposited.selector);
        settlement.deposit(alice, 0);
    }

    function test_noDepositForZeroOrForTheContract() public {
        vm.expectRevert(abi.encodeWithSelector(InvalidAddress.selector, address(0)));
        settlement.deposit(address(0), 1);
        vm.expectRevert(abi.encodeWithSelector(InvalidAddress.selector, address(settlement)));
        settlement.deposit(address(settlement), 1);
    }

    function test_noDepositAfterAFreeze() public {
        freezeBySilence();
        vm.expectRevert(IsFrozen.selector);
        settlement.deposit(alice, 1);
    }

    function test_aFeeOnTransferIsNotCredited() public {
        FeeToken fee = new FeeToken();
        settlement = deploy(IERC20(address(fee)));
        fee.approve(address(settlement), 10_000);
        settlement.deposit(alice, 10_000);
        (uint128 deposited,,,) = settlement.depositors(alice);
        vm.assertEq(deposited, 9_900, "what arrived");
        vm.assertEq(settlement.totalDeposited(), fee.balanceOf(address(settlement)), "covered");
    }

    // ---- permit

    function test_aPermitSavesTheApproval() public {
        address payer = vm.addr(PAYER_KEY);
        require(token.transfer(payer, 50));
        (uint8 v, bytes32 r, bytes32 s) = _permit(50, block.timestamp);
        vm.prank(payer);
        settlement.depositWithPermit(alice, 50, block.timestamp, v, r, s);
        vm.assertEq(settlement.totalDeposited(), 50, "deposited");
    }

    function test_aPermitSpentBySomebodyElseDoesNotStopTheDeposit() public {
        address payer = vm.addr(PAYER_KEY);
        require(token.transfer(payer, 50));
        (uint8 v, bytes32 r, bytes32 s) = _permit(50, block.timestamp);
        vm.prank(stranger);
        token.permit(payer, address(settlement), 50, block.timestamp, v, r, s);
        vm.prank(payer);
        settlement.depositWithPermit(alice, 50, block.timestamp, v, r, s);
        vm.assertEq(settlement.totalDeposited(), 50, "deposited");
    }

    function test_aPermitMovesNobodyElsesTokens() public {
        address payer = vm.addr(PAYER_KEY);
        require(token.transfer(payer, 50));
        (uint8 v, bytes32 r, bytes32 s) = _permit(50, block.timestamp);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(settlement), 0, 50)
        );
        vm.prank(stranger);
        settlement.depositWithPermit(stranger, 50, block.timestamp, v, r, s);
    }

    // ---- reentrancy

    function test_aTokenThatCallsBackFindsEveryWayOfMovingMoneyClosed() public {
        ReentrantToken reentrant = new ReentrantToken();
        settlement = deploy(IERC20(address(reentrant)));
        reentrant.approve(address(settlement), type(uint256).max);
        Account memory leaf;
        bytes32[] memory proof;
        bytes[10] memory calls = [
            abi.encodeCall(settlement.deposit, (alice, 1)),
            abi.encodeCall(settlement.depositWithPermit, (alice, 1, 0, 0, bytes32(0), bytes32(0))),
            abi.encodeCall(settlement.claim, (1, leaf, proof)),
            abi.encodeCall(settlement.claimMany, (1, new Claim[](0))),
            abi.encodeCall(settlement.requestExit, ()),
            abi.encodeCall(settlement.answerExit, (1, leaf, proof)),
            abi.encodeCall(settlement.freeze, (address(0))),
            abi.encodeCall(settlement.escape, (leaf, proof)),
            abi.encodeCall(settlement.escapeUnseen, (alice)),
            ""
        ];
        // rescue is the admin's, so let the token be the admin for this.
        vm.prank(admin);
        settlement.grantRole(bytes32(0), address(reentrant));
        calls[9] = abi.encodeCall(settlement.rescue, (alice, 0));
        for (uint256 i; i < calls.length; ++i) {
            reentrant.arm(address(settlement), calls[i]);
            settlement.deposit(alice, 10);
            vm.assertTrue(reentrant.called() && !reentrant.succeeded(), "call back");
            vm.assertEq(
                bytes32(reentrant.answer()),
                bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector),
                "refused by the guard"
            );
        }
        vm.assertEq(settlement.totalDeposited(), 100, "each deposit counted once");
        vm.assertEq(settlement.surplus(), 0, "surplus");
    }

    // ---- surplus

    function test_onlyWhatNobodyHasAClaimOnIsSurplus() public {
        settlement.deposit(alice, 1_000);
        vm.assertEq(settlement.surplus(), 0, "no surplus");
        require(token.transfer(address(settlement), 7));
        vm.assertEq(settlement.surplus(), 7, "surplus");
        vm.prank(admin);
        vm.expectRevert(abi.encodeWithSelector(OverSurplus.selector, 7));
        settlement.rescue(bob, 8);
        vm.prank(admin);
        settlement.rescue(bob, 7);
        vm.assertEq(token.balanceOf(bob), 7, "rescued");
        vm.assertEq(token.balanceOf(address(settlement)), 1_000, "deposits stay");
    }

    function _permit(uint256 amount, uint256 deadline) private view returns (uint8 v, bytes32 r, bytes32 s) {
        address payer = vm.addr(PAYER_KEY);
        bytes32 structHash =
            keccak256(abi.encode(PERMIT_TYPEHASH, payer, address(settlement), amount, token.nonces(payer), deadline));
        return vm.sign(PAYER_KEY, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
    }
}
