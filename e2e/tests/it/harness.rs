use std::path::{Path, PathBuf};

/// The top of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A binary that `make build` made, beside the tests.
pub fn binary(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let folder = tests.ancestors().nth(2).unwrap();
    let binary = folder.join(name);
    assert!(
        binary.is_file(),
        "{} is missing: run `make build`",
        binary.display()
    );
    binary
}
