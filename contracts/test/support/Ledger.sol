// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Settlement} from "../../src/Settlement.sol";
import {Account, Claim, Header} from "../../src/SettlementTypes.sol";
import {Tree} from "./Tree.sol";

/// @notice What an honest operator keeps off-chain: who holds what, and for each batch the leaves it was made of.
contract Ledger {
    Settlement public immutable SETTLEMENT;

    address[] public people;
    address[] private _newcomers;
    mapping(address person => Account) internal _book;
    uint64 public depositSeqSeen;

    struct Snapshot {
        Account[] accounts;
        uint64 depositSeqSeen;
        bytes32 hash;
    }

    /// @dev By batch id; of a cancelled batch until its id is sealed again.
    mapping(uint64 id => Snapshot) internal _snapshots;

    constructor(Settlement settlement, address[] memory people_) {
        SETTLEMENT = settlement;
        people = people_;
        for (uint256 i; i < people_.length; ++i) {
            _book[people_[i]].account = people_[i];
        }
    }

    function count() external view returns (uint256) {
        return people.length;
    }

    function book(address person) external view returns (Account memory) {
        return _book[person];
    }

    /// @notice An account that gets a leaf once its first deposit is credited.
    function expect(address newcomer) external {
        _newcomers.push(newcomer);
    }

    /// @notice Credits every deposit the contract knows of.
    function credit() external {
        while (_newcomers.length != 0) {
            address newcomer = _newcomers[_newcomers.length - 1];
            _newcomers.pop();
            people.push(newcomer);
            _book[newcomer].account = newcomer;
        }
        for (uint256 i; i < people.length; ++i) {
            Account storage account = _book[people[i]];
            (uint128 deposited,,,) = SETTLEMENT.depositors(people[i]);
            account.available += deposited - account.depositsSeen;
            account.depositsSeen = deposited;
        }
        depositSeqSeen = SETTLEMENT.depositSeq();
    }

    function spend(address from, address to, uint128 amount) external {
        _book[from].available -= amount;
        _book[to].available += amount;
    }

    function release(address person, uint128 amount) external {
        _book[person].available -= amount;
        _book[person].payable_ += amount;
    }

    /// @notice Remembers the book as batch `id` and returns the header that commits to it.
    function seal() external returns (Header memory header) {
        uint64 last = SETTLEMENT.lastBatch();
        Snapshot storage snapshot = _snapshots[last + 1];
        delete snapshot.accounts;
        for (uint256 i; i < people.length; ++i) {
            Account storage account = _book[people[i]];
            snapshot.accounts.push(account);
            header.totalPayable += account.payable_;
            header.totalAvailable += account.available;
            header.depositsSeen += account.depositsSeen;
        }
        snapshot.depositSeqSeen = depositSeqSeen;
        header.id = last + 1;
        header.generation = SETTLEMENT.generation();
        header.receiptCount = 1;
        header.depositSeqSeen = depositSeqSeen;
        header.prevHash = SETTLEMENT.batchHash(last);
        header.receiptsRoot = keccak256("receipts");
        header.accountsRoot = Tree.root(leavesOf(last + 1));
        header.dataHash = keccak256("data");
        snapshot.hash = SETTLEMENT.headerHash(header);
    }

    /// @notice After a veto: what was released since the last batch that stands is available again.
    function reopen() external {
        Snapshot storage snapshot = _snapshots[SETTLEMENT.lastBatch()];
        for (uint256 i; i < people.length; ++i) {
            Account storage account = _book[people[i]];
            uint128 stands = i < snapshot.accounts.length ? snapshot.accounts[i].payable_ : 0;
            account.available += account.payable_ - stands;
            account.payable_ = stands;
        }
    }

    /// @notice All that was released so far.
    function totalPayable() external view returns (uint128 total) {
        for (uint256 i; i < people.length; ++i) {
            total += _book[people[i]].payable_;
        }
    }

    /// @notice Whether batch `id`, as committed, is one of ours.
    function isOurs(uint64 id) external view returns (bool) {
        return id == 0 || SETTLEMENT.batchHash(id) == _snapshots[id].hash;
    }

    function leavesOf(uint64 id) public view returns (bytes32[] memory leaves) {
        Account[] memory accounts = _snapshots[id].accounts;
        leaves = new bytes32[](accounts.length);
        for (uint256 i; i < accounts.length; ++i) {
            leaves[i] = SETTLEMENT.accountLeaf(accounts[i]);
        }
    }

    function snapshotOf(uint64 id) external view returns (Account[] memory accounts, uint64 depositSeqSeen_) {
        return (_snapshots[id].accounts, _snapshots[id].depositSeqSeen);
    }

    function claimOf(uint64 id, address person) external view returns (Claim memory claim) {
        Account[] memory accounts = _snapshots[id].accounts;
        for (uint256 i; i < accounts.length; ++i) {
            if (accounts[i].account == person) claim.leaf = accounts[i];
        }
        claim.proof = Tree.proof(leavesOf(id), SETTLEMENT.accountLeaf(claim.leaf));
    }
}
