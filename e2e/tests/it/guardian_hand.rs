//! The guardian's transactions on a chain that does not take them: they offer more, up to the ceiling, under one nonce.

use std::time::Duration;

use alloy::{
    consensus::Transaction as _,
    primitives::{B256, Bytes, U256},
    providers::Provider as _,
    signers::local::PrivateKeySigner,
    sol_types::SolCall as _,
};
use comptoir_audit::{Address, chain::Contract, rpc::Node};
use comptoir_cli::guardian::act::{Hand, Outcome, Refusal, cancel};
use comptoir_contracts_bindings::Settlement::{self, commitBatchCall};
use comptoir_devchain::Anvil;
use comptoir_domain::settlement::file::{self, Opening};
use comptoir_settler::{
    chain::to_contract,
    deploy::{self, Caps, Deployed, Deployment, Sender, Token, Windows},
    fees::{FeePolicy, Fees},
};
use serde_json::json;

const GWEI: u128 = 1_000_000_000;
const ETHER: u128 = 1_000_000_000 * GWEI;
const POLICY: FeePolicy = FeePolicy {
    tip_floor_wei: GWEI,
    ceiling_wei: 4 * GWEI,
    spend_per_day_wei: u128::MAX,
    bump_after_blocks: 4,
};

struct Stage {
    anvil: Anvil,
    contract: Contract,
    deployed: Deployed,
    guardian: PrivateKeySigner,
}

impl Stage {
    /// A contract with one batch, which can be vetoed for hours, on a chain that mines when it is told to.
    async fn new() -> Self {
        let anvil = Anvil::start(&[]).await;
        let [payer, admin, settler, guardian] = [(); 4].map(|()| PrivateKeySigner::random());
        for key in [&payer, &settler, &guardian] {
            anvil.set_ether(key.address(), ETHER).await;
        }
        let plan = Deployment {
            token: Token::New {
                holder: payer.address(),
                initial_supply: U256::from(1),
                cap: U256::from(1),
            },
            admin: admin.address(),
            timelock_delay: Duration::from_hours(48),
            settler: settler.address(),
            guardian: guardian.address(),
            windows: Windows::MAINNET,
            caps: Caps {
                per_batch: 1,
                per_day: 1,
            },
        };
        let deployed = deploy::deploy(anvil.url.clone(), payer, &plan).await;
        let deployed = deployed.unwrap();
        let opening = Opening {
            chain_id: deployed.chain_id,
            contract: deployed.settlement,
            id: 1,
            generation: 0,
            deposit_seq_seen: 0,
            prev_hash: B256::ZERO,
            audit_head: None,
        };
        let (sealed, _) = file::seal(&opening, Vec::new(), Vec::new()).unwrap();
        let header = to_contract(&sealed.header);
        let calldata = commitBatchCall { header }.abi_encode().into();
        let sender = Sender::new(anvil.url.clone(), settler).unwrap();
        sender.call(deployed.settlement, calldata).await.unwrap();
        anvil.hold_back().await;
        let address = Address(deployed.settlement.into_array());
        let node = Node::new(anvil.url.clone()).unwrap();
        Self {
            contract: Contract::open(node, address, 0).await.unwrap(),
            anvil,
            deployed,
            guardian,
        }
    }

    fn hand(&self) -> Hand {
        Hand::new(self.guardian.clone(), POLICY)
    }

    async fn act(&self, hand: &mut Hand, calldata: Bytes) -> Outcome {
        let head = self.contract.head().await.unwrap();
        hand.act(&self.contract, calldata, &head).await.unwrap()
    }

    /// What a transaction that waits or was mined offers, and its nonce.
    async fn offer(&self, hash: B256) -> (u64, Fees) {
        let found = self.anvil.node.get_transaction_by_hash(hash).await;
        let found = found.unwrap().unwrap();
        let fees = Fees {
            cap_wei: found.max_fee_per_gas(),
            tip_wei: found.max_priority_fee_per_gas().unwrap(),
        };
        (found.nonce(), fees)
    }

    /// A block that does not take what waits.
    async fn block_without_it(&self) {
        self.anvil.drop_transactions().await;
        self.anvil.mine(1).await;
    }

    async fn generation(&self) -> u32 {
        let settlement = Settlement::new(self.deployed.settlement, &self.anvil.node);
        settlement.generation().call().await.unwrap()
    }
}

fn sent(outcome: &Outcome) -> B256 {
    match outcome {
        Outcome::Sent(hash) => *hash,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stuck_veto_offers_more_until_the_ceiling_and_is_sent_until_it_is_mined() {
    let stage = Stage::new().await;
    let mut hand = stage.hand();
    let veto = || cancel(1);
    let first = sent(&stage.act(&mut hand, veto()).await);
    let (nonce, offered) = stage.offer(first).await;
    let same_block = stage.act(&mut hand, veto()).await;
    assert!(matches!(same_block, Outcome::Waiting), "{same_block:?}");
    for _ in 1..POLICY.bump_after_blocks {
        stage.block_without_it().await;
        assert_eq!(
            sent(&stage.act(&mut hand, veto()).await),
            first,
            "the same bytes"
        );
    }

    stage.block_without_it().await;
    let second = sent(&stage.act(&mut hand, veto()).await);
    let (same_nonce, more) = stage.offer(second).await;
    assert_eq!(same_nonce, nonce);
    let risen = |wei: u128| wei + wei.div_ceil(8) + 1;
    assert!(more.cap_wei >= risen(offered.cap_wei) && more.tip_wei >= risen(offered.tip_wei));
    assert!(more.cap_wei <= POLICY.ceiling_wei, "{more:?}");

    let mut last = second;
    let mut at_ceiling = 0;
    for _ in 0..10 * POLICY.bump_after_blocks {
        stage.block_without_it().await;
        match stage.act(&mut hand, veto()).await {
            Outcome::Sent(hash) => last = hash,
            Outcome::AtCeiling => at_ceiling += 1,
            other => panic!("{other:?}"),
        }
        let (_, offered) = stage.offer(last).await;
        assert!(offered.cap_wei <= POLICY.ceiling_wei, "{offered:?}");
    }
    assert!(at_ceiling > 0, "it never came to the ceiling");
    assert_eq!(stage.generation().await, 0);

    stage.anvil.mine(1).await;
    assert_eq!(stage.generation().await, 1);
    let mined = stage
        .anvil
        .node
        .get_transaction_receipt(last)
        .await
        .unwrap();
    assert!(mined.unwrap().status());
    let again = stage.act(&mut hand, veto()).await;
    assert!(
        matches!(again, Outcome::Refused(Refusal::Other(_))),
        "{again:?}"
    );
    assert_eq!(
        stage.anvil.nonce_of(stage.guardian.address()).await,
        nonce + 1
    );
}

#[tokio::test]
async fn a_guardian_that_was_restarted_outbids_what_it_had_sent() {
    let stage = Stage::new().await;
    let mut before = stage.hand();
    let first = sent(&stage.act(&mut before, cancel(1)).await);
    let (nonce, offered) = stage.offer(first).await;
    // The base fee falls, so that the same veto would offer less now: a node does not take it for a replacement.
    stage.anvil.drop_transactions().await;
    stage.anvil.mine(8).await;
    let raw = alloy::hex::encode_prefixed(before.raw().unwrap());
    stage
        .anvil
        .ask("eth_sendRawTransaction", json!([raw]))
        .await;
    let mut after = stage.hand();
    let mut refused = 0;
    let outbid = loop {
        let hash = sent(&stage.act(&mut after, cancel(1)).await);
        let known = stage.anvil.node.get_transaction_by_hash(hash).await;
        if known.unwrap().is_some() {
            break hash;
        }
        refused += 1;
        assert!(refused < 20, "it does not come to a higher offer");
    };
    assert!(refused > 0, "the node took a lower offer for a replacement");
    let (same_nonce, more) = stage.offer(outbid).await;
    assert_eq!(same_nonce, nonce);
    assert!(more.tip_wei > offered.tip_wei && more.cap_wei <= POLICY.ceiling_wei);
    stage.anvil.mine(1).await;
    assert_eq!(stage.generation().await, 1);
}
