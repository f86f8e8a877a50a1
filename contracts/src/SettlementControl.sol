// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {
    Caps,
    CapRaised,
    CapsChanged,
    InvalidAddress,
    InvalidPause,
    InvalidWindows,
    IsPaused,
    OverCap,
    Paused,
    PauseTooSoon,
    Roles,
    RolesOverlap,
    Unpaused,
    Windows,
    WindowsChanged
} from "./SettlementTypes.sol";

/// @title Who may change what about a settlement, and how far
/// @notice Three roles on three keys. ADMIN (a timelock of at least 48 hours) grants roles, sets caps and windows, and lifts
/// a pause. SETTLER commits batches. GUARDIAN vetoes them, pauses, and lowers caps, all at once. One account never holds two
/// of them. Whoever deploys the contract holds none unless named.
///
/// Not promised: that the guardian is awake, or that ADMIN is a timelock. The deployment has to see to both.
abstract contract SettlementControl is AccessControl {
    bytes32 public constant ADMIN = DEFAULT_ADMIN_ROLE;
    bytes32 public constant SETTLER = keccak256("SETTLER");
    bytes32 public constant GUARDIAN = keccak256("GUARDIAN");

    /// @notice Bits of {pause}. Claims paused are delayed, not lost. Exits, the freeze and escapes have no bit.
    uint8 public constant PAUSE_DEPOSITS = 1;
    uint8 public constant PAUSE_COMMITS = 2;
    uint8 public constant PAUSE_CLAIMS = 4;
    uint8 private constant PAUSE_ALL = PAUSE_DEPOSITS | PAUSE_COMMITS | PAUSE_CLAIMS;

    /// @notice A pause ends by itself after this time.
    uint40 public constant PAUSE_LENGTH = 7 days;
    /// @notice After a pause has ended, everything runs for at least this long.
    uint40 public constant PAUSE_COOLDOWN = 1 days;

    /// @notice No ADMIN may set windows longer than these: leaving must stay possible.
    uint32 public constant WINDOW_MAX = 7 days;
    uint32 public constant ESCAPE_AFTER_MAX = 30 days;
    uint32 public constant EXIT_DEADLINE_MAX = 60 days;

    // One slot, read by everything and written by every event.
    uint64 public lastBatch;
    uint64 public eventSeq;
    uint40 public depositSeq;
    uint32 public generation;
    uint40 internal _pausedUntil;
    uint8 internal _pauseBits;
    bool public frozen;

    // One slot, written by a commit.
    uint128 internal _dayUsed;
    uint32 internal _day;
    uint32 public window;
    uint32 public escapeAfter;
    uint32 public exitDeadline;

    /// @notice How far `totalPayable` may grow: by one batch, and by all batches of one day (UTC).
    Caps public caps;

    constructor(Roles memory roles, Windows memory windows, Caps memory caps_) {
        _grantRole(ADMIN, roles.admin);
        _grantRole(SETTLER, roles.settler);
        _grantRole(GUARDIAN, roles.guardian);
        _setWindows(windows);
        _setCaps(caps_);
    }

    /// @notice Sets how far payables may grow, from the next commit on.
    function setCaps(Caps calldata caps_) external onlyRole(ADMIN) {
        _setCaps(caps_);
    }

    /// @notice Lowers one cap or both, at once. Zero stops every release, and with it the answering of exits.
    function lowerCaps(Caps calldata caps_) external onlyRole(GUARDIAN) {
        if (caps_.perBatch > caps.perBatch || caps_.perDay > caps.perDay) revert CapRaised();
        _setCaps(caps_);
    }

    /// @notice Sets the windows. Batches and exits under way keep theirs; the silence allowed changes at once.
    function setWindows(Windows calldata windows) external onlyRole(ADMIN) {
        _setWindows(windows);
    }

    /// @notice Stops the operations named by `bits` until {PAUSE_LENGTH} has passed. During a pause more bits can be added,
    /// which does not prolong it; after one, {PAUSE_COOLDOWN} has to pass before the next.
    function pause(uint8 bits) external onlyRole(GUARDIAN) {
        if (bits == 0 || bits & ~PAUSE_ALL != 0) revert InvalidPause(bits);
        uint40 until = _pausedUntil;
        if (block.timestamp < until) {
            bits |= _pauseBits;
        } else {
            if (until != 0 && block.timestamp < until + PAUSE_COOLDOWN) revert PauseTooSoon(until + PAUSE_COOLDOWN);
            until = uint40(block.timestamp) + PAUSE_LENGTH;
            _pausedUntil = until;
        }
        _pauseBits = bits;
        emit Paused(_nextEvent(), bits, until);
    }

    /// @notice Ends a pause early. The cool-down counts from now.
    function unpause() external onlyRole(ADMIN) {
        if (block.timestamp >= _pausedUntil) revert InvalidPause(0);
        _pausedUntil = uint40(block.timestamp);
        emit Unpaused(_nextEvent());
    }

    /// @notice Bits that are paused now, and until when.
    function paused() external view returns (uint8 bits, uint64 until) {
        return block.timestamp < _pausedUntil ? (_pauseBits, _pausedUntil) : (0, _pausedUntil);
    }

    /// @notice By how much the `totalPayable` of a batch committed now may exceed that of the last one.
    function releasable() public view returns (uint128) {
        uint128 used = _today() == _day ? _dayUsed : 0;
        uint128 left = caps.perDay > used ? caps.perDay - used : 0;
        return left < caps.perBatch ? left : caps.perBatch;
    }

    /// @dev Takes `growth` out of today's bucket.
    function _spendCaps(uint128 growth) internal {
        uint128 allowed = releasable();
        if (growth > allowed) revert OverCap(allowed);
        uint32 today = _today();
        _dayUsed = today == _day ? _dayUsed + growth : growth;
        _day = today;
    }

    /// @dev Puts back what a cancelled batch had taken, if its day is the bucket's.
    function _unspendCaps(uint128 growth, uint40 committedAt) internal {
        if (committedAt / 1 days == _day) _dayUsed -= growth;
    }

    function _nextEvent() internal returns (uint64) {
        return ++eventSeq;
    }

    function _requireNotPaused(uint8 bit) internal view {
        if (_pauseBits & bit != 0 && block.timestamp < _pausedUntil) revert IsPaused(bit);
    }

    /// @dev Every way to a role comes through here.
    function _grantRole(bytes32 role, address account) internal override returns (bool) {
        if (account == address(0) || account == address(this)) revert InvalidAddress(account);
        if (
            (role != ADMIN && hasRole(ADMIN, account)) || (role != SETTLER && hasRole(SETTLER, account))
                || (role != GUARDIAN && hasRole(GUARDIAN, account))
        ) revert RolesOverlap(account);
        return super._grantRole(role, account);
    }

    function _setCaps(Caps memory caps_) private {
        caps = caps_;
        emit CapsChanged(_nextEvent(), caps_.perBatch, caps_.perDay);
    }

    function _setWindows(Windows memory windows) private {
        if (
            windows.window == 0 || windows.window > WINDOW_MAX || windows.escapeAfter <= windows.window
                || windows.escapeAfter > ESCAPE_AFTER_MAX || windows.exitDeadline <= windows.window
                || windows.exitDeadline > EXIT_DEADLINE_MAX
        ) revert InvalidWindows();
        window = windows.window;
        escapeAfter = windows.escapeAfter;
        exitDeadline = windows.exitDeadline;
        emit WindowsChanged(_nextEvent(), windows.window, windows.escapeAfter, windows.exitDeadline);
    }

    function _today() private view returns (uint32) {
        return uint32(block.timestamp / 1 days);
    }
}
