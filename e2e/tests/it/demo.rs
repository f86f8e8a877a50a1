use std::process::Command;

use crate::harness::{binary, checkout};

#[test]
fn the_main_job_runs_from_deposit_to_claim() {
    let told = Command::new(binary("comptoir"))
        .current_dir(checkout())
        .arg("demo")
        .arg("--worker")
        .arg(binary("comptoir-worker"))
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .env_remove("ETH_RPC_URL")
        .output()
        .unwrap();
    let story = String::from_utf8_lossy(&told.stdout);
    let trouble = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{story}\n{trouble}");
    assert!(
        story.contains("VERDICT: the main job ran from deposit to claim"),
        "{story}"
    );
}
