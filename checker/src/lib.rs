//! Reads a file of a stranger as what it says it is, in a child process behind walls: one that takes over the reader, or makes it use up
//! what it has, is refused and reaches nothing.
//!
//! The child has no file and no network. It asks for ranges of the file's bytes on its standard output, gets them on its standard input, and
//! ends with what it found.

pub mod child;
mod formats;
mod message;
mod parent;
mod source;

pub use comptoir_sandbox::{Features, Sandbox};
pub use parent::{CheckError, Checker, Verdict};
