// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ComptoirToken} from "../../src/ComptoirToken.sol";
import {Settlement} from "../../src/Settlement.sol";
import {Account, Claim, Header, Roles} from "../../src/SettlementTypes.sol";
import {Ledger} from "./Ledger.sol";
import {vm} from "./Vm.sol";

/// @notice Random histories of an honest operator and its accounts, of a thief that holds the same settler key, and of a
/// guardian that is awake or is not. What a step does is allowed by the rules or its refusal is asserted, so that no step
/// reverts.
contract Handler {
    ComptoirToken private immutable TOKEN;
    Settlement private immutable SETTLEMENT;
    Ledger private immutable LEDGER;
    address private immutable ADMIN;
    address private immutable SETTLER;
    address private immutable GUARDIAN;
    bool private immutable AWAKE;

    address public thief = address(0x7417EF);

    /// @notice Everybody who ever deposited or has a leaf, credited by the ledger or not yet.
    address[] public everybody;
    mapping(address account => uint256) public paidBefore;

    mapping(uint64 id => Account) private _loot;
    bool public robbed;
    uint256 public unclaimedWhenRobbed;
    uint256 public dayWhenRobbed;

    /// @notice How often each thing happened, to see that the histories are not empty.
    mapping(string what => uint256) public times;

    constructor(ComptoirToken token, Settlement settlement, Ledger ledger, Roles memory roles, bool awake) {
        (TOKEN, SETTLEMENT, LEDGER, AWAKE) = (token, settlement, ledger, awake);
        (ADMIN, SETTLER, GUARDIAN) = (roles.admin, roles.settler, roles.guardian);
        for (uint256 i; i < ledger.count(); ++i) {
            everybody.push(ledger.people(i));
        }
    }

    // ---- accounts

    function deposit(uint256 who, uint128 amount) external {
        _deposit(everybody[who % everybody.length], amount);
    }

    function depositOfANewcomer(uint128 amount) external {
        if (everybody.length >= 8 || !_open(SETTLEMENT.PAUSE_DEPOSITS())) return;
        address newcomer = address(uint160(0x2E3C0000 + everybody.length));
        everybody.push(newcomer);
        LEDGER.expect(newcomer);
        _deposit(newcomer, amount);
        times["newcomer"]++;
    }

    function claim(uint256 who, uint64 back) external {
        (uint64 id, Claim memory item) = _item(who, back);
        if (id == 0) return;
        address account = item.leaf.account;
        uint256 owed = _owed(item.leaf);
        uint256 balance = TOKEN.balanceOf(account);
        bool due = owed != 0 && !_isPaused(SETTLEMENT.PAUSE_CLAIMS()) && SETTLEMENT.isActive(id)
            && SETTLEMENT.totalClaimed() + owed <= SETTLEMENT.committedBatch(id).totalPayable;
        try SETTLEMENT.claim(id, item.leaf, item.proof) {
            vm.assertTrue(due, "a claim that is not due is paid");
            vm.assertEq(TOKEN.balanceOf(account), balance + owed, "a claim pays what is owed");
            times["claim"]++;
        } catch {
            vm.assertTrue(!due, "a claim that is due is refused");
        }
        _remember();
    }

    function claimMany(uint64 back) external {
        (uint64 id,) = _item(0, back);
        if (id == 0 || !SETTLEMENT.isActive(id)) return;
        (Account[] memory accounts,) = LEDGER.snapshotOf(id);
        Claim[] memory items = new Claim[](accounts.length);
        for (uint256 i; i < accounts.length; ++i) {
            items[i] = LEDGER.claimOf(id, accounts[i].account);
        }
        uint256 balance = TOKEN.balanceOf(address(SETTLEMENT));
        try SETTLEMENT.claimMany(id, items) returns (uint256[] memory amounts) {
            for (uint256 i; i < amounts.length; ++i) {
                balance -= amounts[i];
            }
            vm.assertEq(TOKEN.balanceOf(address(SETTLEMENT)), balance, "what is reported is what was paid");
            times["claimMany"]++;
        } catch {}
        _remember();
    }

    function requestExit(uint256 who) external {
        address account = everybody[who % everybody.length];
        (uint128 deposited,, uint40 requestedAt,) = SETTLEMENT.depositors(account);
        if (SETTLEMENT.frozen() || requestedAt != 0 || deposited == 0) return;
        vm.prank(account);
        SETTLEMENT.requestExit();
        times["exit"]++;
    }

    // ---- the honest operator

    function credit() external {
        LEDGER.credit();
    }

    /// @dev Nothing is spent for an account that is leaving.
    function spend(uint256 from, uint256 to, uint128 amount) external {
        address payer = LEDGER.people(from % LEDGER.count());
        if (_isLeaving(payer)) return;
        LEDGER.spend(payer, LEDGER.people(to % LEDGER.count()), _within(amount, LEDGER.book(payer).available));
    }

    function release(uint256 who, uint128 amount) external {
        address account = LEDGER.people(who % LEDGER.count());
        _release(account, _within(amount, LEDGER.book(account).available));
    }

    /// @dev A seal releases what those who are leaving hold, as far as the caps allow.
    function commit(bool credited) external {
        _guard();
        if (!_canCommit() || !LEDGER.isOurs(SETTLEMENT.lastBatch())) return;
        if (_growth() > SETTLEMENT.releasable()) LEDGER.reopen();
        if (credited) LEDGER.credit();
        for (uint256 i; i < LEDGER.count(); ++i) {
            address account = LEDGER.people(i);
            if (_isLeaving(account)) _release(account, LEDGER.book(account).available);
        }
        Header memory header = LEDGER.seal();
        vm.prank(SETTLER);
        SETTLEMENT.commitBatch(header);
        times["commit"]++;
    }

    function answerExit(uint256 who) external {
        (uint64 id, Claim memory item) = _item(who, 0);
        if (id == 0) return;
        (uint128 deposited,, uint40 requestedAt,) = SETTLEMENT.depositors(item.leaf.account);
        bool due = !SETTLEMENT.frozen() && SETTLEMENT.isActive(id) && requestedAt != 0
            && SETTLEMENT.committedBatch(id).committedAt > requestedAt && item.leaf.available == 0
            && item.leaf.depositsSeen == deposited;
        try SETTLEMENT.answerExit(id, item.leaf, item.proof) {
            vm.assertTrue(due, "an answer that is none is taken");
            times["answer"]++;
        } catch {
            vm.assertTrue(!due, "an answer is refused");
        }
    }

    // ---- the guardian

    /// @dev A false alarm: an honest batch is vetoed.
    function vetoHonest() external {
        uint64 id = SETTLEMENT.lastBatch();
        if (SETTLEMENT.frozen() || id == 0 || SETTLEMENT.isActive(id) || !LEDGER.isOurs(id)) return;
        vm.prank(GUARDIAN);
        SETTLEMENT.cancelBatch(id);
        LEDGER.reopen();
        times["veto"]++;
    }

    function pause(uint256 seed) external {
        (, uint64 until) = SETTLEMENT.paused();
        if (_roll(seed, 10) != 0 || (until != 0 && block.timestamp < until + SETTLEMENT.PAUSE_COOLDOWN())) return;
        vm.prank(GUARDIAN);
        SETTLEMENT.pause(uint8(1 + _roll(~seed, 7)));
        times["pause"]++;
    }

    function unpause(uint256 seed) external {
        (uint8 bits,) = SETTLEMENT.paused();
        if (bits == 0 || _roll(seed, 3) != 0) return;
        vm.prank(ADMIN);
        SETTLEMENT.unpause();
    }

    // ---- the thief, who holds the settler's key

    /// @dev Commits a root under which the thief owns everything, with as much of it payable as the caps allow. Bides its
    /// time where nobody looks: a theft at once would find nothing.
    function steal(uint128 growth, bool empty) external {
        if (!_canCommit() || (!AWAKE && !robbed && _roll(growth, 6) != 0)) return;
        uint64 last = SETTLEMENT.lastBatch();
        Header memory header = _falseHeader(last, _within(growth, SETTLEMENT.releasable()));
        Account memory loot = Account(thief, header.totalPayable, empty ? 0 : header.totalAvailable, 0);
        header.accountsRoot = SETTLEMENT.accountLeaf(loot);
        if (!robbed) {
            robbed = true;
            unclaimedWhenRobbed = SETTLEMENT.committedBatch(last).totalPayable - SETTLEMENT.totalClaimed();
            dayWhenRobbed = block.timestamp / 1 days;
        }
        vm.prank(SETTLER);
        SETTLEMENT.commitBatch(header);
        _loot[last + 1] = loot;
        times["false root"]++;
    }

    function stealByClaim(uint64 back) external {
        uint64 id = _recent(back);
        try SETTLEMENT.claim(id, _loot[id], new bytes32[](0)) {
            times["theft"]++;
        } catch {}
        _remember();
    }

    /// @dev Headers that break one rule each, signed with the right key.
    function commitAgainstTheRules(uint8 rule, uint128 by) external {
        if (!_canCommit()) return;
        uint64 last = SETTLEMENT.lastBatch();
        Header memory header = _falseHeader(last, 0);
        header.accountsRoot = keccak256("accounts");
        by = _within(by, type(uint32).max) + 1;
        rule %= 9;
        if (rule == 0) {
            (header.totalPayable, header.depositsSeen) = (header.totalPayable + by, header.depositsSeen + by);
        }
        if (rule == 1) header.totalAvailable += by;
        if (rule == 2) header.id += uint64(by);
        if (rule == 3) header.generation += 1;
        if (rule == 4) header.prevHash = keccak256(abi.encode(by));
        if (rule == 5) header.depositSeqSeen += uint64(by);
        if (rule == 6) header.accountsRoot = 0;
        if (rule == 7) {
            uint128 growth = SETTLEMENT.releasable() + by;
            header.totalPayable += growth;
            unchecked {
                header.totalAvailable -= growth; // wraps where there is not so much: refused all the more
            }
        }
        if (rule == 8) {
            if (header.totalPayable == 0) return;
            (header.totalPayable, header.totalAvailable) = (header.totalPayable - 1, header.totalAvailable + 1);
        }
        vm.prank(SETTLER);
        try SETTLEMENT.commitBatch(header) {
            vm.assertTrue(false, "a commit against the rules");
        } catch {}
    }

    // ---- time

    function wait(uint256 seed) external {
        uint256 roll = _roll(seed, 32);
        if (roll == 0) _wait(_roll(~seed, 1 days));
        else if (roll < 4) _wait(_roll(~seed, 50 minutes));
        else _wait(1 + _roll(~seed, 40));
    }

    function freeze(uint256 who) external {
        if (SETTLEMENT.frozen()) return;
        address account = everybody[who % everybody.length];
        (,,, uint40 dueAt) = SETTLEMENT.depositors(account);
        bool due = (dueAt != 0 && block.timestamp > dueAt)
            || block.timestamp > SETTLEMENT.lastCommitAt() + SETTLEMENT.escapeAfter();
        try SETTLEMENT.freeze(account) {
            vm.assertTrue(due, "an early freeze");
            times["freeze"]++;
        } catch {
            vm.assertTrue(!due, "a freeze is refused");
        }
    }

    function escape(uint256 who) external {
        if (AWAKE) _escape(everybody[who % everybody.length]);
        _remember();
    }

    /// @notice Ends the history: freezes, and everybody who is left escapes.
    function finish() external {
        if (!SETTLEMENT.frozen()) {
            _wait(SETTLEMENT.escapeAfter() + 1);
            SETTLEMENT.freeze(address(0));
        }
        for (uint256 i; i < everybody.length; ++i) {
            _escape(everybody[i]);
        }
    }

    /// @notice What an account was to receive in all, by the ledger's frozen batch and the deposits it had not seen.
    function entitlement(address account) public view returns (uint256) {
        (uint128 deposited,,,) = SETTLEMENT.depositors(account);
        (Account[] memory accounts,) = LEDGER.snapshotOf(SETTLEMENT.frozenBatch());
        for (uint256 i; i < accounts.length; ++i) {
            if (accounts[i].account != account) continue;
            return uint256(accounts[i].payable_) + accounts[i].available + deposited - accounts[i].depositsSeen;
        }
        return deposited;
    }

    function count() external view returns (uint256) {
        return everybody.length;
    }

    // ---- private

    function _wait(uint256 time) private {
        _guard();
        vm.warp(block.timestamp + time);
    }

    /// @dev A guardian that is awake vetoes every false root before any time passes.
    function _guard() private {
        uint64 last = SETTLEMENT.lastBatch();
        while (AWAKE && !SETTLEMENT.frozen() && !LEDGER.isOurs(last)) {
            vm.prank(GUARDIAN);
            SETTLEMENT.cancelBatch(last--);
        }
    }

    function _release(address account, uint128 amount) private {
        uint256 room = _room();
        LEDGER.release(account, amount < room ? amount : uint128(room));
    }

    function _deposit(address account, uint128 amount) private {
        (,, uint40 requestedAt,) = SETTLEMENT.depositors(account);
        if (requestedAt != 0 || !_open(SETTLEMENT.PAUSE_DEPOSITS())) return;
        TOKEN.approve(address(SETTLEMENT), type(uint256).max);
        SETTLEMENT.deposit(account, 1 + _within(amount, 700e18));
        times["deposit"]++;
    }

    function _escape(address account) private {
        if (!SETTLEMENT.frozen()) return;
        uint64 id = SETTLEMENT.frozenBatch();
        bool hasLeaf;
        (Account[] memory accounts,) = LEDGER.snapshotOf(id);
        for (uint256 i; i < accounts.length && id != 0; ++i) {
            hasLeaf = hasLeaf || accounts[i].account == account;
        }
        if (SETTLEMENT.claimed(account) == entitlement(account)) return;
        if (hasLeaf) {
            Claim memory item = LEDGER.claimOf(id, account);
            SETTLEMENT.escape(item.leaf, item.proof);
        } else {
            SETTLEMENT.escapeUnseen(account);
        }
        times["escape"]++;
    }

    function _remember() private {
        for (uint256 i; i < everybody.length; ++i) {
            uint256 paid = SETTLEMENT.claimed(everybody[i]);
            vm.assertGe(paid, paidBefore[everybody[i]], "what was paid falls");
            paidBefore[everybody[i]] = paid;
        }
    }

    function _isLeaving(address account) private view returns (bool) {
        (,, uint40 requestedAt,) = SETTLEMENT.depositors(account);
        return requestedAt != 0;
    }

    /// @dev Someone's leaf in one of the last batches, if that is one of ours; else zero.
    function _item(uint256 who, uint64 back) private view returns (uint64 id, Claim memory item) {
        id = _recent(back);
        if (id == 0 || SETTLEMENT.batchHash(id) == 0 || !LEDGER.isOurs(id)) return (0, item);
        (Account[] memory accounts,) = LEDGER.snapshotOf(id);
        item = LEDGER.claimOf(id, accounts[who % accounts.length].account);
    }

    /// @dev Mostly the latest active batch, else one of the last four.
    function _recent(uint64 back) private view returns (uint64 id) {
        id = SETTLEMENT.lastBatch();
        if (_roll(back, 4) == 0) return id > back % 4 ? id - back % 4 : id;
        while (id != 0 && !SETTLEMENT.isActive(id)) --id;
    }

    function _owed(Account memory leaf) private view returns (uint256) {
        uint256 paid = SETTLEMENT.claimed(leaf.account);
        return leaf.payable_ > paid ? leaf.payable_ - paid : 0;
    }

    function _falseHeader(uint64 last, uint128 growth) private view returns (Header memory header) {
        header.id = last + 1;
        header.generation = SETTLEMENT.generation();
        header.receiptCount = 1;
        header.depositSeqSeen = SETTLEMENT.depositSeq();
        header.depositsSeen = SETTLEMENT.totalDeposited();
        uint128 before = SETTLEMENT.committedBatch(last).totalPayable;
        growth = _within(growth, header.depositsSeen - before);
        header.totalPayable = before + growth;
        header.totalAvailable = header.depositsSeen - header.totalPayable;
        header.prevHash = SETTLEMENT.batchHash(last);
        header.receiptsRoot = keccak256("false receipts");
        header.dataHash = keccak256("false data");
    }

    function _growth() private view returns (uint128) {
        return LEDGER.totalPayable() - SETTLEMENT.committedBatch(SETTLEMENT.lastBatch()).totalPayable;
    }

    /// @dev How much more may be released before the next seal.
    function _room() private view returns (uint256) {
        uint64 last = SETTLEMENT.lastBatch();
        if (!LEDGER.isOurs(last)) return 0;
        uint128 growth = _growth();
        uint128 releasable = SETTLEMENT.releasable();
        return releasable > growth ? releasable - growth : 0;
    }

    function _canCommit() private view returns (bool) {
        uint64 next = SETTLEMENT.lastBatch() + 1;
        return _open(SETTLEMENT.PAUSE_COMMITS()) && (next < 64 || SETTLEMENT.isActive(next - 63));
    }

    function _open(uint8 bit) private view returns (bool) {
        return !SETTLEMENT.frozen() && !_isPaused(bit);
    }

    function _isPaused(uint8 bit) private view returns (bool) {
        (uint8 bits,) = SETTLEMENT.paused();
        return bits & bit != 0;
    }

    /// @dev Evenly below `sides`; fuzzed numbers are far from it.
    function _roll(uint256 seed, uint256 sides) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(seed))) % sides;
    }

    function _within(uint128 value, uint128 most) private pure returns (uint128) {
        return most == type(uint128).max ? value : value % (most + 1);
    }
}
