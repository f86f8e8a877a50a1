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
    for figure in [
        "25 tokens were held, and charged with the first byte that was served",
        "2 files pulled: the bytes that the seller published, under the same root",
        "(payment_required)",
        "4 tokens for the data beside the work",
        // 95 % of 25 and of 4.
        "seller received 27.55 tokens",
        "10.001 tokens were charged, in ",
        " receipts hold",
    ] {
        assert!(story.contains(figure), "no {figure:?} in {story}");
    }
}
