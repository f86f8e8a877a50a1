use std::process::{Command, Output};

use crate::harness::{binary, checkout};

fn comptoir(arguments: &[&str]) -> Output {
    let empty = tempfile::tempdir().unwrap();
    Command::new(binary("comptoir"))
        .current_dir(checkout())
        .args(arguments)
        .env("COMPTOIR_PROFILE", empty.path().join("profile.json"))
        .env_remove("DATABASE_URL")
        .output()
        .unwrap()
}

fn ends_with(arguments: &[&str], code: i32, says: &str) {
    let output = comptoir(arguments);
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {trouble}");
    assert!(trouble.contains(says), "{arguments:?}: {trouble}");
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    ends_with(&["no-such-verb"], 2, "unrecognized subcommand");
    ends_with(&["balance"], 3, "run `comptoir login`");
    // Port 9 discards; on loopback nobody listens there.
    let nobody = [
        "--url",
        "http://127.0.0.1:9",
        "--api-key",
        "ck_test_x",
        "balance",
    ];
    ends_with(&nobody, 8, "does not answer");
    ends_with(&["migrate"], 1, "DATABASE_URL is not set");
}

#[test]
fn a_file_that_is_no_receipt_is_not_verified() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("receipt.json");
    std::fs::write(&file, "{}").unwrap();
    let file = file.to_str().unwrap();
    ends_with(
        &["verify", file, "--rpc", "http://127.0.0.1:9"],
        7,
        "not a receipt",
    );
}

#[test]
fn completions_and_documents_are_printed_without_any_service() {
    for arguments in [
        ["completions", "bash"],
        ["openapi", "api"],
        ["openapi", "scheduler"],
    ] {
        let output = comptoir(&arguments);
        assert!(
            output.status.success() && output.stdout.len() > 1_000,
            "{arguments:?}"
        );
    }
}
