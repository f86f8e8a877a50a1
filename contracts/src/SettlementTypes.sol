// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

// Everything that crosses the boundary of {Settlement}: what is committed, what is proven, what is reported.

/// @notice What a batch commits to. Its hash is `keccak256(abi.encode(DOMAIN_SEPARATOR, header))`.
/// @param id number of the batch, counted from 1 without gaps
/// @param generation number of cancellations before it, so that a commit signed before a veto cannot come back after it
/// @param receiptCount receipts under `receiptsRoot`
/// @param depositSeqSeen last deposit (by {Deposited}'s `depositSeq`) that the batch's accounts have been credited with
/// @param totalPayable sum of `payable_` over all accounts
/// @param totalAvailable sum of `available` over all accounts
/// @param depositsSeen sum of `depositsSeen` over all accounts
/// @param prevHash hash of the header before it, zero for the first
/// @param receiptsRoot Merkle root of the batch's receipts; `keccak256("comptoir.empty")` when it has none
/// @param accountsRoot Merkle root of all accounts
/// @param dataHash SHA-256 of the published leaf file from which both roots can be recomputed
struct Header {
    uint64 id;
    uint32 generation;
    uint64 receiptCount;
    uint64 depositSeqSeen;
    uint128 totalPayable;
    uint128 totalAvailable;
    uint128 depositsSeen;
    bytes32 prevHash;
    bytes32 receiptsRoot;
    bytes32 accountsRoot;
    bytes32 dataHash;
}

/// @notice One account of a batch. In the EIP-712 type the second member is named `payable`, a word Solidity reserves.
/// @param account address that is paid, and the only one that is
/// @param payable_ all that was ever released to it, cumulative
/// @param available what it still holds off-chain, held budgets included
/// @param depositsSeen deposits credited to it so far, cumulative
struct Account {
    address account;
    uint128 payable_;
    uint128 available;
    uint128 depositsSeen;
}

/// @notice One share of a receipt.
struct Split {
    address payee;
    uint128 amount;
}

/// @notice One charge of a batch: a completed job, a purchase, a usage window.
/// @param splitsHash hash of its `Split[]` as EIP-712 encodes arrays, see {Leaves-splitsHash}
/// @param inputHash salted hash of what was computed on
/// @param resultHash salted hash of what came out
/// @param meterHash hash of the metered quantities and prices
/// @param verdictHash hash of the verification verdict's kind and evidence
struct Receipt {
    uint64 batchId;
    uint64 index;
    bytes16 receiptId;
    uint8 kind;
    address payer;
    uint128 gross;
    bytes32 splitsHash;
    bytes32 inputHash;
    bytes32 resultHash;
    bytes32 meterHash;
    bytes32 verdictHash;
}

/// @notice What the contract keeps of a batch: three slots, reused every 64 batches. An empty one has `activeAt` zero.
struct Committed {
    bytes32 hash;
    bytes32 accountsRoot;
    uint128 totalPayable;
    uint40 committedAt;
    uint40 activeAt;
    uint40 depositSeqSeen;
}

/// @notice What is known of an account that deposited or asked to leave.
/// @param deposited sum of its deposits, cumulative
/// @param firstDepositSeq sequence number of its first deposit, zero before it
/// @param exitRequestedAt when its open exit was requested, zero without one
/// @param exitDueAt after this an open exit lets anyone freeze
struct Depositor {
    uint128 deposited;
    uint40 firstDepositSeq;
    uint40 exitRequestedAt;
    uint40 exitDueAt;
}

/// @notice One element of {Settlement-claimMany}.
struct Claim {
    Account leaf;
    bytes32[] proof;
}

/// @notice Three keys, which must differ. `admin` is meant to be a timelock of at least 48 hours.
struct Roles {
    address admin;
    address settler;
    address guardian;
}

/// @notice All in seconds.
/// @param window from a commit until its batch becomes active; the guardian's time for a veto
/// @param escapeAfter silence of the settler after which anyone can freeze
/// @param exitDeadline from an exit's request until anyone can freeze for it
struct Windows {
    uint32 window;
    uint32 escapeAfter;
    uint32 exitDeadline;
}

/// @notice How far `totalPayable` may grow, in base units.
struct Caps {
    uint128 perBatch;
    uint128 perDay;
}

// Each event's `eventSeq` is the one before it plus one, over all of these events together: an indexer that holds
// 1..n has missed nothing up to n.

event Deposited(
    uint64 indexed eventSeq, address indexed account, address indexed from, uint64 depositSeq, uint256 amount
);
event BatchCommitted(uint64 indexed eventSeq, uint64 indexed id, bytes32 indexed hash, uint64 activeAt, Header header);
/// @param generation the one that commits have to carry from now on
event BatchCancelled(uint64 indexed eventSeq, uint64 indexed id, bytes32 indexed hash, uint32 generation);
/// @param cumulative all that the account was ever paid, this payment included
event Claimed(uint64 indexed eventSeq, address indexed account, uint64 indexed id, uint256 amount, uint256 cumulative);
/// @param cumulative all that the account was ever paid, this payment included
event Escaped(uint64 indexed eventSeq, address indexed account, uint256 amount, uint256 cumulative);
event ExitRequested(uint64 indexed eventSeq, address indexed account, uint64 dueAt);
event ExitAnswered(uint64 indexed eventSeq, address indexed account, uint64 indexed id);
/// @param id batch that escapes are paid from, zero when none was ever active
/// @param unanswered account whose exit was overdue, zero when the settler was silent
event Frozen(uint64 indexed eventSeq, uint64 indexed id, address indexed unanswered);
event Paused(uint64 indexed eventSeq, uint8 bits, uint64 until);
event Unpaused(uint64 indexed eventSeq);
event CapsChanged(uint64 indexed eventSeq, uint128 perBatch, uint128 perDay);
event WindowsChanged(uint64 indexed eventSeq, uint32 window, uint32 escapeAfter, uint32 exitDeadline);
event Rescued(uint64 indexed eventSeq, address indexed to, uint256 amount);

/// A role, an account or the token is zero or otherwise not usable.
error InvalidAddress(address account);
/// One key may hold one role only.
error RolesOverlap(address account);
/// A window is zero, longer than allowed, or leaves no time to answer.
error InvalidWindows();
/// The guardian may lower caps, never raise them.
error CapRaised();
/// Unknown or no pause bits.
error InvalidPause(uint8 bits);
/// The guardian may not renew a pause before {SettlementControl-PAUSE_COOLDOWN} has passed.
error PauseTooSoon(uint64 allowedAt);
/// The operation is paused.
error IsPaused(uint8 bit);
/// The contract is frozen: only claims up to the frozen batch and escapes are left.
error IsFrozen();
/// The contract is not frozen, or there is no batch to escape from.
error NotFrozen();
/// Nothing arrived.
error NothingDeposited();
/// The account has an open exit.
error ExitOpen();
/// The account has no open exit.
error ExitNotOpen();
/// The account never deposited nor claimed.
error NothingToExit();
/// The batch answered with is not younger than the request.
error AnswerTooOld();
/// The leaf answered with still has something available, or has not seen all deposits.
error ExitNotServed();
/// The header's id is not the next one.
error OutOfOrder(uint64 expected);
/// The header was made before a cancellation.
error WrongGeneration(uint32 expected);
/// The header does not continue the last batch.
error WrongParent(bytes32 expected);
/// A root or the data hash is zero.
error ZeroRoot();
/// `totalPayable + totalAvailable != depositsSeen`.
error Unbalanced();
/// The header has seen deposits that never arrived.
error Unfunded();
/// `totalPayable` or `depositSeqSeen` is below the last batch's.
error Shrinking();
/// `totalPayable` grows by more than the caps allow now.
error OverCap(uint256 allowed);
/// Batches come so fast that no active one would be left to claim from.
error RingFull();
/// The batch is not the newest one.
error NotNewest(uint64 newest);
/// The batch is active, so it is too late for a veto.
error AlreadyActive();
/// The batch is unknown, cancelled, left the ring, is in its window, or is younger than the frozen one.
error NotActive();
/// The leaf is not under the root.
error BadProof();
/// All of it was paid before.
error NothingToClaim();
/// Paying this would exceed all that was ever released, or deposited.
error OverPaid();
/// Neither silence nor an overdue exit.
error TooEarly();
/// The account's first deposit is in the frozen batch: {Settlement-escape} with its leaf.
error DepositSeen();
/// More than what nobody has a claim on.
error OverSurplus(uint256 surplus);
