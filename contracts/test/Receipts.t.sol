// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Settlement} from "../src/Settlement.sol";
import {Header, Receipt, Split} from "../src/SettlementTypes.sol";
import {Fixture} from "./support/Fixture.sol";
import {Tree} from "./support/Tree.sol";
import {vm} from "./support/Vm.sol";

contract ReceiptsTest is Fixture {
    Header[] private _headers;

    function setUp() public override {
        super.setUp();
        fund(alice, 1_000e18);
        _headers.push(); // batches count from 1
    }

    function test_aReceiptOfABatchInTheRingIsVerified() public {
        Header memory header = _commitReceipts(5);
        for (uint64 i; i < 5; ++i) {
            vm.assertTrue(settlement.verifyReceipt(header, _receipt(1, i), _proof(1, 5, i)), "in the batch");
        }
    }

    function test_aChangedReceiptIsNot() public {
        Header memory header = _commitReceipts(5);
        bytes32[] memory proof = _proof(1, 5, 2);
        Receipt memory receipt = _receipt(1, 2);
        receipt.gross += 1;
        vm.assertTrue(!settlement.verifyReceipt(header, receipt, proof), "gross");
        receipt = _receipt(1, 2);
        receipt.payer = stranger;
        vm.assertTrue(!settlement.verifyReceipt(header, receipt, proof), "payer");
        receipt = _receipt(1, 2);
        receipt.resultHash = keccak256("another result");
        vm.assertTrue(!settlement.verifyReceipt(header, receipt, proof), "result");
        receipt = _receipt(1, 2);
        receipt.receiptId = bytes16(uint128(receipt.receiptId) + 1);
        vm.assertTrue(!settlement.verifyReceipt(header, receipt, proof), "id");
        proof[0] = keccak256("sibling");
        vm.assertTrue(!settlement.verifyReceipt(header, _receipt(1, 2), proof), "proof");
    }

    function test_aChangedHeaderIsNot() public {
        Header memory header = _commitReceipts(5);
        header.receiptCount += 1;
        vm.assertTrue(!settlement.verifyReceipt(header, _receipt(1, 0), _proof(1, 5, 0)), "header");
    }

    function test_aReceiptOfAnotherBatchOrBeyondTheCountIsNot() public {
        // Roots that hold receipts which say they belong elsewhere.
        Header memory header = ledger.seal();
        header.receiptsRoot = settlement.receiptLeaf(_receipt(2, 0));
        commit(header);
        vm.assertTrue(!settlement.verifyReceipt(header, _receipt(2, 0), new bytes32[](0)), "another batch");
        header = ledger.seal();
        header.receiptsRoot = settlement.receiptLeaf(_receipt(2, 1));
        commit(header);
        vm.assertEq(header.receiptCount, 1, "one receipt, index 0");
        vm.assertTrue(!settlement.verifyReceipt(header, _receipt(2, 1), new bytes32[](0)), "beyond the count");
    }

    function test_aReceiptOfACancelledBatchIsNot() public {
        Header memory header = _commitReceipts(5);
        cancel(1);
        vm.assertTrue(!settlement.verifyReceipt(header, _receipt(1, 0), _proof(1, 5, 0)), "cancelled");
    }

    function test_aReceiptOfAnotherContractIsNot() public {
        Settlement there = deploy(IERC20(address(token)));
        vm.assertTrue(there.receiptLeaf(_receipt(1, 0)) != settlement.receiptLeaf(_receipt(1, 0)), "leaves");
        Header memory header = ledger.seal();
        vm.assertTrue(there.headerHash(header) != settlement.headerHash(header), "headers");
    }

    function test_receiptsThatLeftTheRingAreProvenByTheChainOfHeadersAtBatch70() public {
        for (uint64 id = 1; id <= 70; ++id) {
            _commitReceipts(3);
            skip(WINDOW);
        }
        Receipt memory receipt = _receipt(3, 1);
        bytes32[] memory proof = _proof(3, 3, 1);
        vm.assertTrue(!settlement.verifyReceipt(_headers[3], receipt, proof), "batch 3 has left the ring");
        vm.assertTrue(settlement.verifyReceipt(_headers[7], _receipt(7, 1), _proof(7, 3, 1)), "batch 7 has not");

        vm.assertTrue(_verifyByChain(3, 7, receipt, proof), "by the headers from 3 to 7");
        vm.assertTrue(_verifyByChain(3, 70, receipt, proof), "or to any other in the ring");
        vm.assertTrue(!_verifyByChain(3, 6, receipt, proof), "but not to one that has left it");
        _headers[5].dataHash = keccak256("another file");
        vm.assertTrue(!_verifyByChain(3, 7, receipt, proof), "nor over a header that was changed");
        receipt.gross += 1;
        vm.assertTrue(!_verifyByChain(3, 4, receipt, proof), "nor a receipt that was");
    }

    function test_splitsHashEachShareInOrder() public view {
        Split[] memory splits = new Split[](2);
        splits[0] = Split(alice, 85);
        splits[1] = Split(bob, 15);
        bytes32 hash = settlement.splitsHash(splits);
        (splits[0], splits[1]) = (splits[1], splits[0]);
        vm.assertTrue(settlement.splitsHash(splits) != hash, "order");
        vm.assertEq(settlement.splitsHash(new Split[](0)), keccak256(""), "none");
    }

    /// @dev What anybody does with the headers of {BatchCommitted}, down to one that the contract still holds.
    function _verifyByChain(uint64 id, uint64 inRing, Receipt memory receipt, bytes32[] memory proof)
        private
        view
        returns (bool)
    {
        for (uint64 next = id + 1; next <= inRing; ++next) {
            if (_headers[next].prevHash != settlement.headerHash(_headers[next - 1])) return false;
        }
        return settlement.batchHash(inRing) == settlement.headerHash(_headers[inRing])
            && MerkleProof.verify(proof, _headers[id].receiptsRoot, settlement.receiptLeaf(receipt));
    }

    function _commitReceipts(uint64 count) private returns (Header memory header) {
        header = ledger.seal();
        header.receiptCount = count;
        header.receiptsRoot = Tree.root(_leaves(header.id, count));
        commit(header);
        _headers.push(header);
    }

    function _proof(uint64 id, uint64 count, uint64 index) private view returns (bytes32[] memory) {
        return Tree.proof(_leaves(id, count), settlement.receiptLeaf(_receipt(id, index)));
    }

    function _leaves(uint64 id, uint64 count) private view returns (bytes32[] memory leaves) {
        leaves = new bytes32[](count);
        for (uint64 i; i < count; ++i) {
            leaves[i] = settlement.receiptLeaf(_receipt(id, i));
        }
    }

    function _receipt(uint64 id, uint64 index) private view returns (Receipt memory) {
        return Receipt({
            batchId: id,
            index: index,
            receiptId: bytes16(keccak256(abi.encode(id, index))),
            kind: 1,
            payer: alice,
            gross: 1e18 + index,
            splitsHash: keccak256("splits"),
            inputHash: keccak256("input"),
            resultHash: keccak256("result"),
            meterHash: keccak256("meter"),
            verdictHash: keccak256("verdict")
        });
    }
}
