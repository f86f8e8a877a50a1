//! A deployment has three roles on three keys, and the deployer none.

use comptoir_contracts_bindings::{Settlement, TimelockController};
use comptoir_devchain::Anvil;
use comptoir_settler::deploy::{self, DeployError, Deployment};

use crate::harness::{Key, World};

#[tokio::test]
async fn two_roles_on_one_key_are_refused_before_anything_is_sent() {
    let anvil = Anvil::start(&[]).await;
    for twice in [Key::Admin, Key::Settler, Key::Deployer] {
        let plan = Deployment {
            guardian: twice.address(),
            ..World::plan()
        };
        let refused = deploy::deploy(anvil.url.clone(), Key::Deployer.signer(), &plan).await;
        assert!(matches!(refused, Err(DeployError::KeysOverlap(key)) if key == twice.address()));
    }
    assert_eq!(
        anvil.ask("eth_blockNumber", serde_json::json!([])).await,
        "0x0"
    );
}

#[tokio::test]
async fn the_deployer_keeps_nothing_and_the_timelock_answers_to_the_admin_alone() {
    let anvil = Anvil::start(&[]).await;
    let deployed = deploy::deploy(anvil.url.clone(), Key::Deployer.signer(), &World::plan())
        .await
        .unwrap();
    let contract = Settlement::new(deployed.settlement, &anvil.node);
    let settler = contract.SETTLER().call().await.unwrap();
    assert!(
        contract
            .hasRole(settler, Key::Settler.address())
            .call()
            .await
            .unwrap()
    );
    assert!(
        !contract
            .hasRole(settler, Key::Deployer.address())
            .call()
            .await
            .unwrap()
    );
    let timelock = TimelockController::new(deployed.timelock, &anvil.node);
    let proposer = timelock.PROPOSER_ROLE().call().await.unwrap();
    assert!(
        timelock
            .hasRole(proposer, Key::Admin.address())
            .call()
            .await
            .unwrap()
    );
    assert!(
        !timelock
            .hasRole(proposer, Key::Deployer.address())
            .call()
            .await
            .unwrap()
    );
    let root = timelock.DEFAULT_ADMIN_ROLE().call().await.unwrap();
    assert!(
        timelock
            .hasRole(root, deployed.timelock)
            .call()
            .await
            .unwrap()
    );
    assert!(
        !timelock
            .hasRole(root, Key::Deployer.address())
            .call()
            .await
            .unwrap()
    );
    assert_eq!((deployed.decimals, deployed.symbol.as_str()), (18, "CPTR"));
}
