// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Leaves} from "./Leaves.sol";
import {SettlementControl} from "./SettlementControl.sol";
import "./SettlementTypes.sol";

/// @title Settlement of one token for one operator
/// @notice Tokens come in by {deposit} and go out by {claim} or {escape}, and by nothing else. In between the operator keeps
/// a ledger off-chain and commits to all of it, batch by batch: a few hashes and three sums, whatever the number of accounts.
///
/// Promised, whoever holds the keys:
/// - payables and balances committed to never exceed what was deposited, and what is paid never exceeds the payables;
/// - a claim pays its account and nobody else, and no amount twice;
/// - a batch pays nothing before its window has passed, in which the guardian can veto it;
/// - payables grow by no more than the caps per batch and per day;
/// - an operator that falls silent or leaves an exit unanswered can be frozen by anyone; then each account takes what the
///   latest active batch says is its own and the deposits that batch had not seen. No pause stops this.
///
/// Not promised:
/// - that the leaves inside the sums are right. For that there are the published leaf file (`dataHash`), the window, and a
///   guardian that recomputes the one in the other. With a guardian awake a stolen settler key takes nothing. Without one it
///   takes at most what is payable and unclaimed plus one bucket per day, and once a false root is frozen, everything;
/// - anything against an ADMIN that turns hostile, beyond the notice that its timelock gives;
/// - anything about tokens that change balances on their own. A fee on transfer is borne by whoever is paid.
contract Settlement is SettlementControl, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice Batches that claims can be proven against, and that a veto can go back.
    uint64 public constant RING = 64;

    IERC20 public immutable TOKEN;

    /// @notice EIP-712 domain of this contract at its deployment. See {Leaves}.
    bytes32 public immutable DOMAIN_SEPARATOR;

    // One slot.
    uint128 public totalDeposited;
    uint128 public totalClaimed;

    /// @notice Batch that escapes are paid from: the latest active one when the contract was frozen.
    uint64 public frozenBatch;

    Committed[64] private _ring;

    mapping(address account => Depositor) public depositors;

    /// @notice All that an account was ever paid.
    mapping(address account => uint256) public claimed;

    constructor(IERC20 token, Roles memory roles, Windows memory windows, Caps memory caps_)
        SettlementControl(roles, windows, caps_)
    {
        if (address(token).code.length == 0) revert InvalidAddress(address(token));
        TOKEN = token;
        DOMAIN_SEPARATOR = Leaves.domainSeparator(block.chainid, address(this));
        // There is no batch 0; its place holds when silence began until batch 64 takes it.
        _ring[0].committedAt = uint40(block.timestamp);
    }

    // ------------------------------------------------------------------------------------------------------- deposits

    /// @notice Takes `amount` from the caller and credits `account` with what arrived. The credit is the account's: the
    /// caller has no way to take it back.
    function deposit(address account, uint256 amount) external nonReentrant {
        _deposit(account, amount);
    }

    /// @notice {deposit} with the caller's permit. A permit that fails, because somebody else has already spent it, is no
    /// reason to fail as long as the allowance is there.
    function depositWithPermit(address account, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        nonReentrant
    {
        try IERC20Permit(address(TOKEN)).permit(msg.sender, address(this), amount, deadline, v, r, s) {} catch {}
        _deposit(account, amount);
    }

    // -------------------------------------------------------------------------------------------------------- batches

    /// @notice Commits to the next batch. It becomes active when the window has passed.
    function commitBatch(Header calldata header) external onlyRole(SETTLER) {
        _requireNotPaused(PAUSE_COMMITS);
        if (frozen) revert IsFrozen();
        uint64 last = lastBatch;
        if (header.id != last + 1) revert OutOfOrder(last + 1);
        if (header.generation != generation) revert WrongGeneration(generation);
        Committed storage parent = _ring[last % RING];
        if (header.prevHash != parent.hash) revert WrongParent(parent.hash);
        if (header.receiptsRoot == 0 || header.accountsRoot == 0 || header.dataHash == 0) revert ZeroRoot();
        if (uint256(header.totalPayable) + header.totalAvailable != header.depositsSeen) revert Unbalanced();
        if (header.depositsSeen > totalDeposited || header.depositSeqSeen > depositSeq) revert Unfunded();
        uint128 payableBefore = parent.totalPayable;
        if (header.totalPayable < payableBefore || header.depositSeqSeen < parent.depositSeqSeen) revert Shrinking();
        // Else 64 batches within one window would leave nothing to claim from, and nothing to escape to.
        if (header.id >= RING && !isActive(header.id - RING + 1)) revert RingFull();
        _spendCaps(header.totalPayable - payableBefore);

        bytes32 hash = Leaves.headerHash(DOMAIN_SEPARATOR, header);
        uint40 activeAt = uint40(block.timestamp) + window;
        _ring[header.id % RING] = Committed({
            hash: hash,
            accountsRoot: header.accountsRoot,
            totalPayable: header.totalPayable,
            committedAt: uint40(block.timestamp),
            activeAt: activeAt,
            depositSeqSeen: uint40(header.depositSeqSeen) // at most depositSeq, which is a uint40
        });
        lastBatch = header.id;
        emit BatchCommitted(_nextEvent(), header.id, hash, activeAt, header);
    }

    /// @notice Vetoes the newest batch before it is active. To reach an older one, veto those after it first.
    function cancelBatch(uint64 id) external onlyRole(GUARDIAN) {
        if (frozen) revert IsFrozen();
        if (id == 0 || id != lastBatch) revert NotNewest(lastBatch);
        Committed memory batch = _ring[id % RING];
        if (block.timestamp >= batch.activeAt) revert AlreadyActive();
        _unspendCaps(batch.totalPayable - _ring[(id - 1) % RING].totalPayable, batch.committedAt);
        delete _ring[id % RING];
        lastBatch = id - 1;
        emit BatchCancelled(_nextEvent(), id, batch.hash, ++generation);
    }

    // --------------------------------------------------------------------------------------------------------- claims

    /// @notice Pays the account of `leaf` what the active batch `id` says was released to it and was not paid before.
    /// Anyone may call it; only the account is paid.
    function claim(uint64 id, Account calldata leaf, bytes32[] calldata proof) external nonReentrant {
        Committed storage batch = _claimable(id);
        _requireLeaf(batch.accountsRoot, leaf, proof);
        uint256 amount = _owed(leaf.account, leaf.payable_);
        if (amount == 0) revert NothingToClaim();
        if (totalClaimed + amount > batch.totalPayable) revert OverPaid();
        _book(leaf.account, amount);
        TOKEN.safeTransfer(leaf.account, amount);
        emit Claimed(_nextEvent(), leaf.account, id, amount, leaf.payable_);
    }

    /// @notice {claim} for many accounts of one batch. An element that cannot be paid (a wrong proof, nothing owed, a token
    /// that refuses this recipient) is skipped, changes nothing, and cannot hold up the others.
    /// @return amounts what each element was paid, zero for those skipped. Reverts when that is all of them.
    function claimMany(uint64 id, Claim[] calldata claims) external nonReentrant returns (uint256[] memory amounts) {
        Committed storage batch = _claimable(id);
        bytes32 root = batch.accountsRoot;
        uint256 ceiling = batch.totalPayable;
        amounts = new uint256[](claims.length);
        bool paid;
        for (uint256 i; i < claims.length; ++i) {
            Account calldata leaf = claims[i].leaf;
            if (!_isLeaf(root, leaf, claims[i].proof)) continue;
            uint256 amount = _owed(leaf.account, leaf.payable_);
            if (amount == 0 || totalClaimed + amount > ceiling) continue;
            _book(leaf.account, amount);
            if (!TOKEN.trySafeTransfer(leaf.account, amount)) {
                _unbook(leaf.account, amount);
                continue;
            }
            amounts[i] = amount;
            paid = true;
            emit Claimed(_nextEvent(), leaf.account, id, amount, leaf.payable_);
        }
        if (!paid) revert NothingToClaim();
    }

    // -------------------------------------------------------------------------------------------------------- leaving

    /// @notice Asks the operator to release all that the caller holds. Until that is answered nobody can deposit for the
    /// caller; a dust deposit would make every answer stale. Only for accounts that deposited or were paid before: a
    /// stranger cannot start the clock.
    function requestExit() external nonReentrant {
        if (frozen) revert IsFrozen();
        Depositor storage depositor = depositors[msg.sender];
        if (depositor.deposited == 0 && claimed[msg.sender] == 0) revert NothingToExit();
        if (depositor.exitRequestedAt != 0) revert ExitOpen();
        uint40 dueAt = uint40(block.timestamp) + exitDeadline;
        depositor.exitRequestedAt = uint40(block.timestamp);
        depositor.exitDueAt = dueAt;
        emit ExitRequested(_nextEvent(), msg.sender, dueAt);
    }

    /// @notice Closes the exit of `leaf`'s account: an active batch younger than the request shows that all its deposits
    /// were seen and that nothing is left that was not released.
    function answerExit(uint64 id, Account calldata leaf, bytes32[] calldata proof) external nonReentrant {
        if (frozen) revert IsFrozen();
        if (!isActive(id)) revert NotActive();
        Committed storage batch = _ring[id % RING];
        Depositor storage depositor = depositors[leaf.account];
        if (depositor.exitRequestedAt == 0) revert ExitNotOpen();
        if (batch.committedAt <= depositor.exitRequestedAt) revert AnswerTooOld();
        _requireLeaf(batch.accountsRoot, leaf, proof);
        if (leaf.available != 0 || leaf.depositsSeen != depositor.deposited) revert ExitNotServed();
        depositor.exitRequestedAt = 0;
        depositor.exitDueAt = 0;
        emit ExitAnswered(_nextEvent(), leaf.account, id);
    }

    /// @notice Stops deposits and commits for good and opens {escape}, once nothing was committed for `escapeAfter`, or the
    /// exit of `unanswered` is overdue (zero: silence alone). Vetoed batches do not break a silence.
    function freeze(address unanswered) external nonReentrant {
        if (frozen) revert IsFrozen();
        uint40 dueAt = depositors[unanswered].exitDueAt;
        bool overdue = dueAt != 0 && block.timestamp > dueAt;
        if (!overdue && block.timestamp <= lastCommitAt() + escapeAfter) revert TooEarly();
        uint64 id = lastBatch;
        // Only the newest batches can be inactive, and an active one is always left in the ring (see {commitBatch}).
        while (id != 0 && !isActive(id)) --id;
        frozen = true;
        frozenBatch = id;
        emit Frozen(_nextEvent(), id, overdue ? unanswered : address(0));
    }

    /// @notice After a freeze, pays the account of `leaf` all that the frozen batch says is its own, released or not, and
    /// its deposits which that batch had not seen, less what it was paid before. Anyone may call it; only the account is
    /// paid.
    function escape(Account calldata leaf, bytes32[] calldata proof) external nonReentrant {
        uint64 id = frozenBatch;
        if (!frozen || id == 0) revert NotFrozen();
        _requireLeaf(_ring[id % RING].accountsRoot, leaf, proof);
        uint256 deposited = depositors[leaf.account].deposited;
        if (leaf.depositsSeen > deposited) revert Unfunded();
        _escape(leaf.account, uint256(leaf.payable_) + leaf.available + (deposited - leaf.depositsSeen));
    }

    /// @notice After a freeze, pays an account whose first deposit came after all that the frozen batch had seen its
    /// deposits, less what it was paid before. For accounts that may have no leaf; {escape} pays those that have one in full.
    function escapeUnseen(address account) external nonReentrant {
        if (!frozen) revert NotFrozen();
        Depositor storage depositor = depositors[account];
        uint64 id = frozenBatch;
        if (id != 0 && depositor.firstDepositSeq <= _ring[id % RING].depositSeqSeen) revert DepositSeen();
        _escape(account, depositor.deposited);
    }

    // -------------------------------------------------------------------------------------------------------- surplus

    /// @notice Tokens here that nobody has a claim on: sent without a deposit.
    function surplus() public view returns (uint256) {
        uint256 balance = TOKEN.balanceOf(address(this));
        uint256 owed = totalDeposited - totalClaimed;
        return balance > owed ? balance - owed : 0;
    }

    /// @notice Sends surplus away. There is no way to move any other token of this contract but to its owner.
    function rescue(address to, uint256 amount) external onlyRole(ADMIN) nonReentrant {
        uint256 most = surplus();
        if (amount > most) revert OverSurplus(most);
        TOKEN.safeTransfer(to, amount);
        emit Rescued(_nextEvent(), to, amount);
    }

    // ---------------------------------------------------------------------------------------------------------- views

    /// @notice Whether `receipt` is in the batch of `header` and that batch is in the ring, active or not. For a batch that
    /// has left the ring, take its header from {BatchCommitted} and follow `prevHash` up to one that is still here.
    function verifyReceipt(Header calldata header, Receipt calldata receipt, bytes32[] calldata proof)
        external
        view
        returns (bool)
    {
        return batchHash(header.id) == Leaves.headerHash(DOMAIN_SEPARATOR, header) && receipt.batchId == header.id
            && receipt.index < header.receiptCount
            && MerkleProof.verifyCalldata(proof, header.receiptsRoot, Leaves.receiptLeaf(DOMAIN_SEPARATOR, receipt));
    }

    /// @notice Whether claims can be proven against batch `id`: committed, not cancelled, past its window, in the ring, and
    /// not younger than the frozen one.
    function isActive(uint64 id) public view returns (bool) {
        if (!_inRing(id) || (frozen && id > frozenBatch)) return false;
        uint40 activeAt = _ring[id % RING].activeAt;
        return activeAt != 0 && block.timestamp >= activeAt;
    }

    /// @notice What is kept of batch `id`; all zero when it is unknown, cancelled or has left the ring.
    function committedBatch(uint64 id) external view returns (Committed memory committed) {
        if (_inRing(id)) committed = _ring[id % RING];
    }

    /// @notice Hash of batch `id`; zero when it is unknown, cancelled or has left the ring.
    function batchHash(uint64 id) public view returns (bytes32) {
        return _inRing(id) ? _ring[id % RING].hash : bytes32(0);
    }

    /// @notice When the last batch that stands was committed, or the contract was deployed.
    function lastCommitAt() public view returns (uint64) {
        return _ring[lastBatch % RING].committedAt;
    }

    /// @notice See {Leaves-headerHash}.
    function headerHash(Header calldata header) external view returns (bytes32) {
        return Leaves.headerHash(DOMAIN_SEPARATOR, header);
    }

    /// @notice See {Leaves-accountLeaf}.
    function accountLeaf(Account calldata account) external view returns (bytes32) {
        return Leaves.accountLeaf(DOMAIN_SEPARATOR, account);
    }

    /// @notice See {Leaves-receiptLeaf}.
    function receiptLeaf(Receipt calldata receipt) external view returns (bytes32) {
        return Leaves.receiptLeaf(DOMAIN_SEPARATOR, receipt);
    }

    /// @notice See {Leaves-splitsHash}.
    function splitsHash(Split[] calldata splits) external pure returns (bytes32) {
        return Leaves.splitsHash(splits);
    }

    // -------------------------------------------------------------------------------------------------------- private

    function _deposit(address account, uint256 amount) private {
        _requireNotPaused(PAUSE_DEPOSITS);
        if (frozen) revert IsFrozen();
        if (account == address(0) || account == address(this)) revert InvalidAddress(account);
        Depositor storage depositor = depositors[account];
        if (depositor.exitRequestedAt != 0) revert ExitOpen();

        uint256 before = TOKEN.balanceOf(address(this));
        TOKEN.safeTransferFrom(msg.sender, address(this), amount);
        uint128 arrived = SafeCast.toUint128(TOKEN.balanceOf(address(this)) - before);
        if (arrived == 0) revert NothingDeposited();

        uint40 seq = ++depositSeq;
        totalDeposited += arrived;
        depositor.deposited += arrived;
        if (depositor.firstDepositSeq == 0) depositor.firstDepositSeq = seq;
        emit Deposited(_nextEvent(), account, msg.sender, seq, arrived);
    }

    function _claimable(uint64 id) private view returns (Committed storage) {
        _requireNotPaused(PAUSE_CLAIMS);
        if (!isActive(id)) revert NotActive();
        return _ring[id % RING];
    }

    function _escape(address account, uint256 cumulative) private {
        uint256 amount = _owed(account, cumulative);
        if (amount == 0) revert NothingToClaim();
        if (totalClaimed + amount > totalDeposited) revert OverPaid();
        _book(account, amount);
        TOKEN.safeTransfer(account, amount);
        emit Escaped(_nextEvent(), account, amount, cumulative);
    }

    function _owed(address account, uint256 cumulative) private view returns (uint256) {
        uint256 was = claimed[account];
        return cumulative > was ? cumulative - was : 0;
    }

    /// @dev The caller has checked that `totalClaimed + amount` is within a uint128.
    function _book(address account, uint256 amount) private {
        claimed[account] += amount;
        totalClaimed += uint128(amount);
    }

    function _unbook(address account, uint256 amount) private {
        claimed[account] -= amount;
        totalClaimed -= uint128(amount);
    }

    function _requireLeaf(bytes32 root, Account calldata leaf, bytes32[] calldata proof) private view {
        if (!_isLeaf(root, leaf, proof)) revert BadProof();
    }

    function _isLeaf(bytes32 root, Account calldata leaf, bytes32[] calldata proof) private view returns (bool) {
        return MerkleProof.verifyCalldata(proof, root, Leaves.accountLeaf(DOMAIN_SEPARATOR, leaf));
    }

    function _inRing(uint64 id) private view returns (bool) {
        uint64 last = lastBatch;
        return id != 0 && id <= last && last - id < RING;
    }
}
