use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
};

use nix::sys::signal::Signal;

use crate::node::{Node, reachable_folder, up};

/// Ids of Postgres, Redis, anvil and the guardian, which a running node has on record.
fn children(folder: &Path) -> Vec<i64> {
    ["postgres.pid", "redis.pid", "anvil.pid", "guardian.pid"]
        .into_iter()
        .filter_map(|name| fs::read(folder.join(name)).ok())
        .map(|record| serde_json::from_slice::<serde_json::Value>(&record).unwrap())
        .map(|record| record["pid"].as_i64().unwrap())
        .collect()
}

/// A process that ended and waits to be collected has no command line.
fn runs(pid: i64) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn refused(output: &Output, says: &str) {
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it started");
    assert!(trouble.contains(says), "{trouble}");
}

#[test]
fn a_folder_in_use_is_refused_and_its_node_lives_on() {
    let folder = reachable_folder();
    let node_folder = folder.path().join("node");
    let mut node = Node::start(&node_folder);
    let children = children(&node_folder);

    for reset in [&[][..], &["--reset"]] {
        let second = up(&node_folder)
            .args(reset)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        refused(&second, "another `comptoir up` uses this folder");
    }

    assert!(node.answers());
    assert_eq!(children.len(), 4);
    assert!(children.iter().all(|&pid| runs(pid)), "{children:?}");
    node.end(Signal::SIGTERM);
    assert!(!children.iter().any(|&pid| runs(pid)), "{children:?}");
}

#[test]
fn a_killed_node_starts_again_with_what_it_knew() {
    let folder = reachable_folder();
    let node_folder = folder.path().join("node");
    let mut killed = Node::start(&node_folder);
    let left = children(&node_folder);
    killed.end(Signal::SIGKILL);
    assert!(left.iter().all(|&pid| runs(pid)), "{left:?}");

    let mut next = Node::start(&node_folder);

    assert!(next.answers());
    assert_eq!(next.contract, killed.contract);
    assert!(!left.iter().any(|&pid| runs(pid)), "{left:?}");
    next.end(Signal::SIGTERM);
}

#[test]
fn a_folder_that_no_node_made_is_not_reset() {
    let folder = reachable_folder();
    let precious = folder.path().join("precious");
    fs::write(&precious, "mine").unwrap();

    let output = up(folder.path())
        .arg("--reset")
        .stderr(Stdio::piped())
        .output()
        .unwrap();

    refused(&output, "was not made by `comptoir up`");
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(names, ["precious"]);
    assert_eq!(fs::read_to_string(precious).unwrap(), "mine");
}
