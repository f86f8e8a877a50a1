// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice Merkle trees as @openzeppelin/merkle-tree builds them: leaves sorted, then laid out from the end of a flat array
/// in which the children of node i are 2i+1 and 2i+2.
library Tree {
    function root(bytes32[] memory leaves) internal pure returns (bytes32) {
        return build(leaves)[0];
    }

    function proof(bytes32[] memory leaves, bytes32 leaf) internal pure returns (bytes32[] memory path) {
        bytes32[] memory nodes = build(leaves);
        uint256 place = nodes.length - 1;
        while (nodes[place] != leaf) --place;
        path = new bytes32[](32);
        uint256 depth;
        while (place != 0) {
            path[depth++] = nodes[place % 2 == 1 ? place + 1 : place - 1];
            place = (place - 1) / 2;
        }
        assembly ("memory-safe") {
            mstore(path, depth)
        }
    }

    function build(bytes32[] memory leaves) internal pure returns (bytes32[] memory nodes) {
        bytes32[] memory sorted = sort(leaves);
        uint256 size = 2 * sorted.length - 1;
        nodes = new bytes32[](size);
        for (uint256 i; i < sorted.length; ++i) {
            nodes[size - 1 - i] = sorted[i];
        }
        for (uint256 i = size - sorted.length; i != 0; --i) {
            nodes[i - 1] = parent(nodes[2 * i - 1], nodes[2 * i]);
        }
    }

    function parent(bytes32 a, bytes32 b) internal pure returns (bytes32) {
        return a < b ? keccak256(abi.encodePacked(a, b)) : keccak256(abi.encodePacked(b, a));
    }

    function sort(bytes32[] memory values) private pure returns (bytes32[] memory sorted) {
        sorted = new bytes32[](values.length);
        for (uint256 i; i < values.length; ++i) {
            uint256 place = i;
            for (; place != 0 && sorted[place - 1] > values[i]; --place) {
                sorted[place] = sorted[place - 1];
            }
            sorted[place] = values[i];
        }
    }
}
