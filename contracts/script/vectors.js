// Usage: node script/vectors.js [FOLDER]
// Writes leaves.json and merkle.json: what the contracts, the settler and the auditor must all agree on. The hashes here
// follow EIP-712 and ABI encoding independently of the contracts; the trees are made by @openzeppelin/merkle-tree.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { keccak256 } = require("ethereum-cryptography/keccak");
const { sha256 } = require("ethereum-cryptography/sha256");
const { SimpleMerkleTree } = require("@openzeppelin/merkle-tree");

const SIZES = [1, 2, 3, 4, 5, 7, 8, 33];
const TYPES = {
  EIP712Domain: "string name,string version,uint256 chainId,address verifyingContract",
  Account: "address account,uint128 payable,uint128 available,uint128 depositsSeen",
  Split: "address payee,uint128 amount",
  Receipt:
    "uint64 batchId,uint64 index,bytes16 receiptId,uint8 kind,address payer,uint128 gross,bytes32 splitsHash," +
    "bytes32 inputHash,bytes32 resultHash,bytes32 meterHash,bytes32 verdictHash",
  Header:
    "uint64 id,uint32 generation,uint64 receiptCount,uint64 depositSeqSeen,uint128 totalPayable," +
    "uint128 totalAvailable,uint128 depositsSeen,bytes32 prevHash,bytes32 receiptsRoot,bytes32 accountsRoot,bytes32 dataHash",
};

const hex = (bytes) => `0x${Buffer.from(bytes).toString("hex")}`;
const bytes = (text) => Buffer.from(text.slice(2), "hex");
const keccak = (...parts) => hex(keccak256(Buffer.concat(parts)));
const keccakText = (text) => keccak(Buffer.from(text));

/** A value of a static type as one 32-byte word: numbers and addresses to the right, fixed bytes to the left. */
function word(type, value) {
  if (type === "string") return bytes(keccakText(value));
  if (type.startsWith("bytes")) return Buffer.concat([bytes(value), Buffer.alloc(32)], 32);
  return bytes(`0x${BigInt(value).toString(16).padStart(64, "0")}`);
}

const words = (name, value) =>
  TYPES[name].split(",").map((member) => {
    const [type, field] = member.split(" ");
    return word(type, value[field]);
  });

const hashStruct = (name, value) => keccak(bytes(keccakText(`${name}(${TYPES[name]})`)), ...words(name, value));

function leaf(domain, name, value) {
  const structHash = hashStruct(name, value);
  const digest = keccak(Buffer.from([0x19, 0x01]), bytes(domain), bytes(structHash));
  return { structHash, digest, leaf: keccak(bytes(digest)) };
}

const address = (seed) => keccakText(`address ${seed}`).slice(0, 42);

function receipt(domain, batchId, index, kind, amounts) {
  const splits = amounts.map((amount, i) => ({ payee: address(`payee ${i}`), amount: String(amount) }));
  const fields = {
    batchId: String(batchId),
    index: String(index),
    receiptId: keccakText(`receipt ${batchId} ${index}`).slice(0, 34),
    kind,
    payer: address(`payer ${index}`),
    gross: String(amounts.reduce((sum, amount) => sum + amount, 0n)),
    splitsHash: keccak(...splits.map((split) => bytes(hashStruct("Split", split)))),
    inputHash: keccakText(`input ${index}`),
    resultHash: keccakText(`result ${index}`),
    meterHash: keccakText(`meter ${index}`),
    verdictHash: keccakText(`verdict ${index}`),
  };
  return { ...fields, splits, ...leaf(domain, "Receipt", fields) };
}

function account(domain, seed, payable, available, depositsSeen) {
  const fields = {
    account: address(seed),
    payable: String(payable),
    available: String(available),
    depositsSeen: String(depositsSeen),
  };
  return { ...fields, ...leaf(domain, "Account", fields) };
}

/** Adds each item's proof and returns the root. */
function prove(items) {
  const tree = SimpleMerkleTree.of(items.map((item) => item.leaf));
  for (const item of items) item.proof = tree.getProof(item.leaf);
  return tree.root;
}

function leavesDocument() {
  const chainId = 11155111;
  const contract = address("settlement");
  const domain = hashStruct("EIP712Domain", {
    name: "Comptoir Settlement",
    version: "1",
    chainId,
    verifyingContract: contract,
  });
  const emptyRoot = keccakText("comptoir.empty");
  const top = (1n << 128n) - 1n;
  const batchId = (1n << 64n) - 2n;
  const receipts = [
    receipt(domain, batchId, 0, 0, [850000000000000000n, 100000000000000000n, 50000000000000000n]),
    receipt(domain, batchId, 1, 1, [1n]),
    receipt(domain, batchId, 2, 255, [0n, top]),
    receipt(domain, batchId, 3, 2, []),
    receipt(domain, batchId, 4, 2, [7n, 7n]),
  ];
  const accounts = [
    account(domain, "depositor", 0n, 600n * 10n ** 18n, 1000n * 10n ** 18n),
    account(domain, "provider", 300n * 10n ** 18n, 50n * 10n ** 18n, 0n),
    account(domain, "platform", 49999999999999999999n, 1n, 0n),
    account(domain, "nothing", 0n, 0n, 0n),
    account(domain, "top", top, top, top),
  ];
  const header = {
    id: String(batchId),
    generation: 3,
    receiptCount: String(receipts.length),
    depositSeqSeen: "41",
    totalPayable: "349999999999999999999",
    totalAvailable: "650000000000000000001",
    depositsSeen: "1000000000000000000000",
    prevHash: keccakText("previous header"),
    receiptsRoot: prove(receipts),
    accountsRoot: prove(accounts),
    dataHash: hex(sha256(Buffer.from("leaf file"))),
  };
  const headerHash = keccak(bytes(domain), ...words("Header", header));
  const next = { ...header, id: String(batchId + 1n), receiptCount: "0", prevHash: headerHash, receiptsRoot: emptyRoot };
  return {
    chainId,
    contract,
    domainSeparator: domain,
    emptyRoot,
    receipts,
    accounts,
    header: { ...header, hash: headerHash },
    emptyHeader: { ...next, hash: keccak(bytes(domain), ...words("Header", next)) },
  };
}

function merkleDocument() {
  return SIZES.map((size) => {
    const items = Array.from({ length: size }, (_, i) => ({ leaf: keccakText(`leaf ${i} of ${size}`) }));
    const root = prove(items);
    return { size, root, leaves: items.map((item) => item.leaf), proofs: items.map((item) => item.proof) };
  });
}

const folder = process.argv[2] ?? path.join(__dirname, "..", "test", "vectors");
for (const [name, document] of Object.entries({ leaves: leavesDocument(), merkle: merkleDocument() })) {
  fs.writeFileSync(path.join(folder, `${name}.json`), `${JSON.stringify(document, null, 1)}\n`);
}
