// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Capped} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Capped.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title The token that compute, data and models are paid with
/// @notice 18 decimals, permit (EIP-2612), no fee, no hook, no pause. Only the owner mints, never above the cap. An owner
/// that renounces ends minting for good.
contract ComptoirToken is ERC20Capped, ERC20Permit, Ownable2Step {
    /// @param owner who may mint from now on
    /// @param holder who receives the initial supply
    /// @param initialSupply in base units, may be zero
    /// @param cap_ in base units, for all time
    constructor(address owner, address holder, uint256 initialSupply, uint256 cap_)
        ERC20("Comptoir", "CPTR")
        ERC20Permit("Comptoir")
        ERC20Capped(cap_)
        Ownable(owner)
    {
        _mint(holder, initialSupply);
    }

    function mint(address to, uint256 amount) external onlyOwner {
        _mint(to, amount);
    }

    function _update(address from, address to, uint256 amount) internal override(ERC20, ERC20Capped) {
        super._update(from, to, amount);
    }
}
