// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

// The contract that holds {SettlementControl-ADMIN} in a deployment. Imported so that it is compiled and its bytecode is
// among our artifacts; there is nothing of ours in it.
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
