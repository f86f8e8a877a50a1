// Usage: node script/artifacts.js FOLDER CONTRACT...
// Writes what the Rust bindings need of forge's artifacts, ABI and creation bytecode, one file per contract.
"use strict";
const fs = require("node:fs");
const path = require("node:path");

const [folder, ...contracts] = process.argv.slice(2);
const out = path.join(__dirname, "..", "out");

for (const contract of contracts) {
  const source = fs.readdirSync(out).find((file) => fs.existsSync(path.join(out, file, `${contract}.json`)));
  if (!source) throw new Error(`forge made no artifact of ${contract}`);
  const { abi, bytecode } = JSON.parse(fs.readFileSync(path.join(out, source, `${contract}.json`), "utf8"));
  if (!/^0x([0-9a-f]{2})+$/.test(bytecode.object)) throw new Error(`${contract} needs linking`);
  const artifact = { abi, bytecode: { object: bytecode.object } };
  fs.writeFileSync(path.join(folder, `${contract}.json`), `${JSON.stringify(artifact, null, 1)}\n`);
  console.log(`contracts: ${contract}, ${(bytecode.object.length - 2) / 2} bytes`);
}
