//! The migrations are part of the crate: a change of theirs compiles it anew.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
