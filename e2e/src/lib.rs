//! Whole-system tests: they start the real binaries, which `make build` has made.
