//! The settlement contract, read by hand: selectors, words and topics, no generated bindings.

use serde_json::{Value, json};

use crate::{
    hash::{keccak, right, word},
    header::{Committed, Header},
    leaf::Domain,
    rpc::{Node, RpcError, count},
    value::{Address, Deposit, Hash, hex},
    words::Words,
};

/// Batches that the contract keeps.
pub const RING: u64 = 64;
/// Commits stop while this bit is paused.
pub const PAUSE_COMMITS: u8 = 2;
/// Claims stop while this bit is paused.
pub const PAUSE_CLAIMS: u8 = 4;
/// Headers that are asked for with one question.
const HEADERS_MAX: u64 = 100;
/// Blocks whose logs are asked for at once, at first.
const SPAN_MAX: u64 = 100_000;

const COMMITTED: &str = "BatchCommitted(uint64,uint64,bytes32,uint64,(uint64,uint32,uint64,uint64,uint128,uint128,uint128,bytes32,bytes32,bytes32,bytes32))";
const DEPOSITED: &str = "Deposited(uint64,address,address,uint64,uint256)";
const EXIT_REQUESTED: &str = "ExitRequested(uint64,address,uint64)";

/// A block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// Wei for a unit of gas.
    pub base_fee_wei: u128,
}

/// What the contract keeps of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The header's hash; zero without a batch.
    pub hash: Hash,
    /// The root of its accounts.
    pub accounts_root: Hash,
    /// When it was committed.
    pub committed_at: u64,
    /// When its window ends.
    pub active_at: u64,
    /// The last deposit that it has seen.
    pub deposit_seq_seen: u64,
}

/// Where the contract is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// The newest batch that stands.
    pub last_batch: u64,
    /// Cancellations so far.
    pub generation: u64,
    /// The bits that are paused now.
    pub paused: u8,
    /// Has it stopped for good?
    pub frozen: bool,
    /// The batch that escapes are paid from, once it has.
    pub frozen_batch: u64,
    /// When the last batch that stands was committed, or the contract deployed.
    pub last_commit_at: u64,
    /// Seconds of silence after which anyone may freeze.
    pub escape_after: u64,
    /// Seconds in which a batch can be vetoed.
    pub window: u64,
}

/// What the contract knows of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depositor {
    /// All its deposits.
    pub deposited: u128,
    /// The number of the first, zero before it.
    pub first_deposit_seq: u64,
    /// When its open exit was requested, zero without one.
    pub exit_requested_at: u64,
    /// When anyone may freeze over it, zero without one.
    pub exit_due_at: u64,
    /// All that it was ever paid.
    pub claimed: u128,
}

/// A settlement contract seen through a node.
#[derive(Debug)]
pub struct Contract {
    node: Node,
    address: Address,
    chain_id: u64,
    /// The block before its deployment, or any earlier one.
    from_block: u64,
}

impl Contract {
    /// Asks the node which chain it is on, and that the contract is there.
    ///
    /// # Errors
    /// When the node does not answer, or has no such contract.
    pub async fn open(node: Node, address: Address, from_block: u64) -> Result<Self, RpcError> {
        let chain_id = count(&node.ask("eth_chainId", json!([])).await?)?;
        let code = node
            .ask("eth_getCode", json!([address.to_string(), "latest"]))
            .await?;
        if code.as_str().is_none_or(|code| code.len() <= 2) {
            return Err(RpcError::Malformed("no contract at that address"));
        }
        Ok(Self {
            node,
            address,
            chain_id,
            from_block,
        })
    }

    /// EIP-155 id of the chain.
    #[must_use]
    pub const fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The contract's address.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.address
    }

    /// The node that it is seen through.
    #[must_use]
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// The newest block.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn head(&self) -> Result<Block, RpcError> {
        let block = self
            .node
            .ask("eth_getBlockByNumber", json!(["latest", false]))
            .await?;
        block_of(&block)?.ok_or(RpcError::Malformed("no newest block"))
    }

    /// The block of a number, if the chain has it.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn block_at(&self, number: u64) -> Result<Option<Block>, RpcError> {
        let number = format!("{number:#x}");
        let block = self
            .node
            .ask("eth_getBlockByNumber", json!([number, false]))
            .await?;
        block_of(&block)
    }

    /// Where the contract is, at a block.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn state(&self, at: Hash) -> Result<State, RpcError> {
        let one = async |call: &str| self.call(call, &[], at).await?.count(0);
        Ok(State {
            last_batch: one("lastBatch()").await?,
            generation: one("generation()").await?,
            paused: u8::try_from(one("paused()").await?)
                .map_err(|_| RpcError::Malformed("no pause bits"))?,
            frozen: one("frozen()").await? != 0,
            frozen_batch: one("frozenBatch()").await?,
            last_commit_at: one("lastCommitAt()").await?,
            escape_after: one("escapeAfter()").await?,
            window: one("window()").await?,
        })
    }

    /// What the contract keeps of a batch, at a block.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn slot(&self, id: u64, at: Hash) -> Result<Slot, RpcError> {
        let words = self
            .call("committedBatch(uint64)", &[word(id.into())], at)
            .await?;
        Ok(Slot {
            hash: words.hash(0)?,
            accounts_root: words.hash(1)?,
            committed_at: words.count(3)?,
            active_at: words.count(4)?,
            deposit_seq_seen: words.count(5)?,
        })
    }

    /// What the contract knows of an account, at a block.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn depositor(&self, account: Address, at: Hash) -> Result<Depositor, RpcError> {
        let account = [right(&account.0)];
        let words = self.call("depositors(address)", &account, at).await?;
        let claimed = self.call("claimed(address)", &account, at).await?;
        Ok(Depositor {
            deposited: words.number(0)?,
            first_deposit_seq: words.count(1)?,
            exit_requested_at: words.count(2)?,
            exit_due_at: words.count(3)?,
            claimed: claimed.number(0)?,
        })
    }

    /// Does an account hold a role, at a block? A role is named by the hash of its name.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn has_role(&self, role: &str, account: Address, at: Hash) -> Result<bool, RpcError> {
        let arguments = [keccak(&[role.as_bytes()]).0, right(&account.0)];
        let words = self
            .call("hasRole(bytes32,address)", &arguments, at)
            .await?;
        Ok(words.count(0)? != 0)
    }

    /// What the contract holds of its token, at a block.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn balance(&self, at: Hash) -> Result<u128, RpcError> {
        let token = self.call("TOKEN()", &[], at).await?.address(0)?;
        let own = [right(&self.address.0)];
        self.call_to(token, "balanceOf(address)", &own, at)
            .await?
            .number(0)
    }

    /// The header that stands under a number, as [`Self::lineage`] finds it.
    ///
    /// # Errors
    /// When the node does not answer, or leaves out an event.
    pub async fn committed(&self, id: u64, at: &Block) -> Result<Option<Committed>, RpcError> {
        let found = self.lineage(id, id, at).await?;
        Ok(found.and_then(|mut found| found.pop()))
    }

    /// The headers that stand under some numbers, oldest first: the newest by the hash that the contract holds, or, once the
    /// batch has left the ring, by the chain of parents that leads to it, and the others by that chain. Each header is hashed
    /// again, so a node can leave one out but not make one up. `None` where the contract has no such batches.
    ///
    /// # Errors
    /// When the node does not answer, or leaves out an event.
    pub async fn lineage(
        &self,
        from: u64,
        to: u64,
        at: &Block,
    ) -> Result<Option<Vec<Committed>>, RpcError> {
        let last = self.state(at.hash).await?.last_batch;
        if from == 0 || from > to || to > last {
            return Ok(None);
        }
        let mut number = to.max(last.saturating_sub(RING - 1));
        let mut hash = self.slot(number, at.hash).await?.hash;
        let mut found = Vec::new();
        while number >= from {
            let low = number.saturating_sub(HEADERS_MAX - 1).max(from);
            let headers = self.headers(low, number, at.number).await?;
            while number >= low {
                let header = headers.iter().find(|(found, _)| *found == hash);
                let header = header.filter(|(_, header)| header.id == number);
                let (_, header) =
                    header.ok_or(RpcError::Malformed("no event of a batch that stands"))?;
                if number <= to {
                    found.push(Committed {
                        chain_id: self.chain_id,
                        contract: self.address,
                        header: *header,
                        hash,
                    });
                }
                hash = header.prev_hash;
                number -= 1;
            }
        }
        found.reverse();
        Ok(Some(found))
    }

    /// Every header that was ever committed under some numbers, by its own hash.
    async fn headers(
        &self,
        from: u64,
        to: u64,
        head: u64,
    ) -> Result<Vec<(Hash, Header)>, RpcError> {
        let domain = Domain::new(self.chain_id, self.address);
        let ids: Vec<_> = (from..=to)
            .map(|id| Hash(word(id.into())).to_string())
            .collect();
        let topics = json!([topic(COMMITTED), null, ids]);
        let logs = self.logs(topics, self.from_block, head).await?;
        let header = |log: &Value| {
            let words = Words::of_log(log)?;
            let header = words.header(1)?;
            Ok((header.hash(&domain), header))
        };
        logs.iter().map(header).collect()
    }

    /// The deposits of some blocks, by number.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn deposits(&self, from: u64, to: u64) -> Result<Vec<Deposit>, RpcError> {
        let logs = self
            .logs(json!([topic(DEPOSITED)]), from.max(self.from_block), to)
            .await?;
        let mut deposits = Vec::with_capacity(logs.len());
        for log in &logs {
            let words = Words::of_log(log)?;
            deposits.push(Deposit {
                seq: words.count(0)?,
                account: Words::of_topic(log, 2)?.address(0)?,
                amount: words.number(1)?,
            });
        }
        deposits.sort_unstable_by_key(|deposit| deposit.seq);
        Ok(deposits)
    }

    /// Every account that ever asked to leave.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn exits(&self, to: u64) -> Result<Vec<Address>, RpcError> {
        let logs = self
            .logs(json!([topic(EXIT_REQUESTED)]), self.from_block, to)
            .await?;
        let mut accounts = Vec::new();
        for log in &logs {
            accounts.push(Words::of_topic(log, 2)?.address(0)?);
        }
        accounts.sort_unstable();
        accounts.dedup();
        Ok(accounts)
    }

    /// Logs of a range of blocks. A node that refuses the range is asked for half of it, down to single blocks.
    async fn logs(&self, topics: Value, from: u64, to: u64) -> Result<Vec<Value>, RpcError> {
        let mut logs = Vec::new();
        let (mut next, mut span) = (from, SPAN_MAX);
        while next <= to {
            let last = to.min(next.saturating_add(span - 1));
            let filter = json!([{
                "address": self.address.to_string(),
                "topics": topics,
                "fromBlock": format!("{next:#x}"),
                "toBlock": format!("{last:#x}"),
            }]);
            match self.node.ask("eth_getLogs", filter).await {
                Ok(Value::Array(found)) => {
                    logs.extend(found);
                    next = last + 1;
                }
                Ok(_) => return Err(RpcError::Malformed("no list of logs")),
                Err(RpcError::Refused { .. } | RpcError::TooLong(_)) if span > 1 => span /= 2,
                Err(error) => return Err(error),
            }
        }
        let ours = |log: &Value| {
            log["address"].as_str().and_then(Address::parse_any_case) == Some(self.address)
        };
        if logs.iter().all(ours) {
            Ok(logs)
        } else {
            Err(RpcError::Malformed("a log of another contract"))
        }
    }

    async fn call(&self, name: &str, arguments: &[[u8; 32]], at: Hash) -> Result<Words, RpcError> {
        self.call_to(self.address, name, arguments, at).await
    }

    async fn call_to(
        &self,
        to: Address,
        name: &str,
        arguments: &[[u8; 32]],
        at: Hash,
    ) -> Result<Words, RpcError> {
        let selector = &keccak(&[name.as_bytes()]).0[..4];
        let data = format!("0x{}{}", hex(selector), hex(arguments.as_flattened()));
        let request = json!({ "to": to.to_string(), "data": data });
        let block = json!({ "blockHash": at.to_string() });
        let answer = self.node.ask("eth_call", json!([request, block])).await?;
        Words::parse(answer.as_str())
    }
}

fn block_of(block: &Value) -> Result<Option<Block>, RpcError> {
    if block.is_null() {
        return Ok(None);
    }
    let hash = block["hash"].as_str().and_then(Hash::parse);
    Ok(Some(Block {
        number: count(&block["number"])?,
        hash: hash.ok_or(RpcError::Malformed("no hash of a block"))?,
        timestamp: count(&block["timestamp"])?,
        base_fee_wei: crate::rpc::quantity(&block["baseFeePerGas"]).unwrap_or_default(),
    }))
}

fn topic(signature: &str) -> String {
    keccak(&[signature.as_bytes()]).to_string()
}
