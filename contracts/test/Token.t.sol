// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {ERC20Capped} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Capped.sol";
import {ComptoirToken} from "../src/ComptoirToken.sol";
import {vm} from "./support/Vm.sol";

contract TokenTest {
    address private _owner = address(0x1);
    address private _holder = address(0x2);
    ComptoirToken private _token = new ComptoirToken(_owner, _holder, 600, 1_000);

    function test_theHolderReceivesTheInitialSupply() public view {
        vm.assertEq(_token.totalSupply(), 600, "supply");
        vm.assertEq(_token.balanceOf(_holder), 600, "holder");
        vm.assertEq(_token.decimals(), 18, "decimals");
    }

    function test_onlyTheOwnerMints() public {
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, _holder));
        vm.prank(_holder);
        _token.mint(_holder, 1);
        vm.prank(_owner);
        _token.mint(_holder, 400);
        vm.assertEq(_token.balanceOf(_holder), 1_000, "minted");
    }

    function test_theCapIsNeverExceeded() public {
        vm.expectRevert(abi.encodeWithSelector(ERC20Capped.ERC20ExceededCap.selector, 1_001, 1_000));
        vm.prank(_owner);
        _token.mint(_holder, 401);
        vm.expectRevert(abi.encodeWithSelector(ERC20Capped.ERC20ExceededCap.selector, 6, 5));
        new ComptoirToken(_owner, _holder, 6, 5);
    }

    function test_anOwnerThatRenouncesEndsMinting() public {
        vm.prank(_owner);
        _token.renounceOwnership();
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, _owner));
        vm.prank(_owner);
        _token.mint(_holder, 1);
    }

    function test_ownershipMovesInTwoSteps() public {
        vm.prank(_owner);
        _token.transferOwnership(_holder);
        vm.assertEq(_token.owner(), _owner, "not yet");
        vm.prank(_holder);
        _token.acceptOwnership();
        vm.assertEq(_token.owner(), _holder, "accepted");
    }
}
