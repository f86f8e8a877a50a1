// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Leaves} from "../src/Leaves.sol";
import {Settlement} from "../src/Settlement.sol";
import {Account, Caps, Header, Receipt, Roles, Split, Windows} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {Tree} from "./support/Tree.sol";
import {vm} from "./support/Vm.sol";

/// @notice The contract agrees with the vectors, which `script/vectors.js` makes without it.
contract VectorsTest is Fixture {
    string private _json;
    bytes32 private _receiptsRoot;
    bytes32 private _accountsRoot;

    function setUp() public override {
        super.setUp();
        _json = vm.readFile("test/vectors/leaves.json");
        vm.chainId(_uint(".chainId"));
        settlement = _deployAt(vm.parseJsonAddress(_json, ".contract"));
        _receiptsRoot = _word(".header.receiptsRoot");
        _accountsRoot = _word(".header.accountsRoot");
    }

    function test_theDomainIsNameVersionChainAndContract() public view {
        vm.assertEq(settlement.DOMAIN_SEPARATOR(), _word(".domainSeparator"), "domain separator");
        vm.assertEq(Leaves.EMPTY_ROOT, _word(".emptyRoot"), "root of no receipts");
    }

    function test_receiptLeavesAndSplitsHashAsTheVectorsSay() public view {
        uint256 count;
        for (; vm.keyExistsJson(_json, _item("receipts", count)); ++count) {
            string memory item = _item("receipts", count);
            Receipt memory receipt = _receipt(item);
            vm.assertEq(settlement.splitsHash(_splits(item)), receipt.splitsHash, "splits");
            bytes32 leaf = settlement.receiptLeaf(receipt);
            vm.assertEq(leaf, _word(string.concat(item, ".leaf")), "receipt");
            vm.assertTrue(MerkleProof.verify(_proof(item), _receiptsRoot, leaf), "receipt's proof");
        }
        vm.assertEq(count, 5, "receipts");
    }

    function test_accountLeavesHashAsTheVectorsSay() public view {
        uint256 count;
        for (; vm.keyExistsJson(_json, _item("accounts", count)); ++count) {
            string memory item = _item("accounts", count);
            bytes32 leaf = settlement.accountLeaf(
                Account({
                    account: vm.parseJsonAddress(_json, string.concat(item, ".account")),
                    payable_: uint128(_uint(string.concat(item, ".payable"))),
                    available: uint128(_uint(string.concat(item, ".available"))),
                    depositsSeen: uint128(_uint(string.concat(item, ".depositsSeen")))
                })
            );
            vm.assertEq(leaf, _word(string.concat(item, ".leaf")), "account");
            vm.assertTrue(MerkleProof.verify(_proof(item), _accountsRoot, leaf), "account's proof");
        }
        vm.assertEq(count, 5, "accounts");
    }

    function test_headersHashAsTheVectorsSay() public view {
        vm.assertEq(settlement.headerHash(_header(".header")), _word(".header.hash"), "header");
        vm.assertEq(
            settlement.headerHash(_header(".emptyHeader")), _word(".emptyHeader.hash"), "header without receipts"
        );
    }

    function test_treesAreOpenZeppelins() public view {
        string memory json = vm.readFile("test/vectors/merkle.json");
        uint256 trees;
        for (; vm.keyExistsJson(json, string.concat("$[", vm.toString(trees), "]")); ++trees) {
            string memory item = string.concat("$[", vm.toString(trees), "]");
            bytes32[] memory leaves = vm.parseJsonBytes32Array(json, string.concat(item, ".leaves"));
            bytes32 root = vm.parseJsonBytes32(json, string.concat(item, ".root"));
            vm.assertEq(leaves.length, vm.parseJsonUint(json, string.concat(item, ".size")), "size");
            vm.assertEq(Tree.root(leaves), root, "root");
            for (uint256 i; i < leaves.length; ++i) {
                string memory key = string.concat(item, ".proofs[", vm.toString(i), "]");
                bytes32[] memory proof = vm.parseJsonBytes32Array(json, key);
                vm.assertTrue(MerkleProof.verify(proof, root, leaves[i]), "proof");
                vm.assertEq(keccak256(abi.encode(proof)), keccak256(abi.encode(Tree.proof(leaves, leaves[i]))), "path");
            }
        }
        vm.assertEq(trees, 8, "trees");
    }

    /// @dev Runs the creation code item `target`, which the domain separator depends on.
    function _deployAt(address target) private returns (Settlement) {
        bytes memory arguments = abi.encode(
            IERC20(address(token)),
            Roles(admin, settler, guardian),
            Windows(WINDOW, ESCAPE_AFTER, EXIT_DEADLINE),
            Caps(PER_BATCH, PER_DAY)
        );
        vm.etch(target, abi.encodePacked(type(Settlement).creationCode, arguments));
        (bool ok, bytes memory code) = target.call("");
        vm.assertTrue(ok, "creation");
        vm.etch(target, code);
        return Settlement(target);
    }

    function _receipt(string memory item) private view returns (Receipt memory receipt) {
        receipt.batchId = uint64(_uint(string.concat(item, ".batchId")));
        receipt.index = uint64(_uint(string.concat(item, ".index")));
        receipt.receiptId = bytes16(vm.parseJsonBytes(_json, string.concat(item, ".receiptId")));
        receipt.kind = uint8(_uint(string.concat(item, ".kind")));
        receipt.payer = vm.parseJsonAddress(_json, string.concat(item, ".payer"));
        receipt.gross = uint128(_uint(string.concat(item, ".gross")));
        receipt.splitsHash = _word(string.concat(item, ".splitsHash"));
        receipt.inputHash = _word(string.concat(item, ".inputHash"));
        receipt.resultHash = _word(string.concat(item, ".resultHash"));
        receipt.meterHash = _word(string.concat(item, ".meterHash"));
        receipt.verdictHash = _word(string.concat(item, ".verdictHash"));
    }

    function _splits(string memory item) private view returns (Split[] memory splits) {
        uint256 count;
        while (vm.keyExistsJson(_json, _splitAt(item, count))) ++count;
        splits = new Split[](count);
        for (uint256 i; i < count; ++i) {
            splits[i].payee = vm.parseJsonAddress(_json, string.concat(_splitAt(item, i), ".payee"));
            splits[i].amount = uint128(_uint(string.concat(_splitAt(item, i), ".amount")));
        }
    }

    function _header(string memory item) private view returns (Header memory header) {
        header.id = uint64(_uint(string.concat(item, ".id")));
        header.generation = uint32(_uint(string.concat(item, ".generation")));
        header.receiptCount = uint64(_uint(string.concat(item, ".receiptCount")));
        header.depositSeqSeen = uint64(_uint(string.concat(item, ".depositSeqSeen")));
        header.totalPayable = uint128(_uint(string.concat(item, ".totalPayable")));
        header.totalAvailable = uint128(_uint(string.concat(item, ".totalAvailable")));
        header.depositsSeen = uint128(_uint(string.concat(item, ".depositsSeen")));
        header.prevHash = _word(string.concat(item, ".prevHash"));
        header.receiptsRoot = _word(string.concat(item, ".receiptsRoot"));
        header.accountsRoot = _word(string.concat(item, ".accountsRoot"));
        header.dataHash = _word(string.concat(item, ".dataHash"));
    }

    function _proof(string memory item) private view returns (bytes32[] memory) {
        return vm.parseJsonBytes32Array(_json, string.concat(item, ".proof"));
    }

    function _uint(string memory key) private view returns (uint256) {
        return vm.parseJsonUint(_json, key);
    }

    function _word(string memory key) private view returns (bytes32) {
        return vm.parseJsonBytes32(_json, key);
    }

    function _item(string memory list, uint256 i) private pure returns (string memory) {
        return string.concat(".", list, "[", vm.toString(i), "]");
    }

    function _splitAt(string memory item, uint256 i) private pure returns (string memory) {
        return string.concat(item, ".splits[", vm.toString(i), "]");
    }
}
