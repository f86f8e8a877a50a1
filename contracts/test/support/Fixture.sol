// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ComptoirToken} from "../../src/ComptoirToken.sol";
import {Settlement} from "../../src/Settlement.sol";
import {Account, Caps, Claim, Header, Roles, Windows} from "../../src/SettlementTypes.sol";
import {Ledger} from "./Ledger.sol";
import {vm} from "./Vm.sol";

/// @notice A token, a settlement on development windows, and an honest operator's ledger of four people.
abstract contract Fixture {
    uint32 internal constant WINDOW = 20;
    uint32 internal constant ESCAPE_AFTER = 1 hours;
    uint32 internal constant EXIT_DEADLINE = 1 hours;
    uint128 internal constant PER_BATCH = 500e18;
    uint128 internal constant PER_DAY = 1_000e18;

    address internal admin = address(0xAD317);
    address internal settler = address(0x5E771E);
    address internal guardian = address(0x6A6D1A);
    address internal stranger = address(0xBAD);

    address internal alice = address(0xA11CE);
    address internal bob = address(0xB0B);
    address internal carol = address(0xCA401);
    address internal platform = address(0xF1A7);

    ComptoirToken internal token;
    Settlement internal settlement;
    Ledger internal ledger;

    function setUp() public virtual {
        vm.warp(1_800_000_000 - 1_800_000_000 % 1 days); // midnight: a day's bucket is not cut by the clock
        token = new ComptoirToken(address(this), address(this), 1e30, 1e30);
        settlement = deploy(IERC20(address(token)));
        token.approve(address(settlement), type(uint256).max);
        ledger = new Ledger(settlement, people());
    }

    function deploy(IERC20 asset) internal returns (Settlement) {
        return new Settlement(
            asset,
            Roles(admin, settler, guardian),
            Windows(WINDOW, ESCAPE_AFTER, EXIT_DEADLINE),
            Caps(PER_BATCH, PER_DAY)
        );
    }

    function people() internal view returns (address[] memory list) {
        list = new address[](4);
        (list[0], list[1], list[2], list[3]) = (alice, bob, carol, platform);
    }

    function skip(uint256 time) internal {
        vm.warp(block.timestamp + time);
    }

    /// @dev Deposits for `account` and credits it in the ledger.
    function fund(address account, uint128 amount) internal {
        settlement.deposit(account, amount);
        ledger.credit();
    }

    function commit(Header memory header) internal {
        vm.prank(settler);
        settlement.commitBatch(header);
    }

    /// @dev Seals the ledger and commits it.
    function commitLedger() internal returns (Header memory header) {
        header = ledger.seal();
        commit(header);
    }

    /// @dev Seals the ledger, commits it, and lets its window pass.
    function activateLedger() internal returns (Header memory header) {
        header = commitLedger();
        skip(WINDOW);
    }

    function cancel(uint64 id) internal {
        vm.prank(guardian);
        settlement.cancelBatch(id);
    }

    function claim(uint64 id, address person) internal {
        Claim memory item = ledger.claimOf(id, person);
        settlement.claim(id, item.leaf, item.proof);
    }

    function escape(address person) internal {
        Claim memory item = ledger.claimOf(settlement.frozenBatch(), person);
        settlement.escape(item.leaf, item.proof);
    }

    /// @dev Lets the settler be silent for too long and freezes.
    function freezeBySilence() internal {
        vm.warp(settlement.lastCommitAt() + ESCAPE_AFTER + 1);
        settlement.freeze(address(0));
    }
}
