# The two commands of a fresh clone: `make demo` and `make test`.
.PHONY: help setup build demo up test check fmt generate clean

CARGO_NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
COMPTOIR := target/debug/comptoir

help:
	@echo 'make demo      install what is needed, build, and run the main job from deposit to claim'
	@echo 'make up        the same service, kept running'
	@echo 'make test      every test, with one verdict'
	@echo 'make check     formatting, lints and generated files'
	@echo 'make generate  rewrite openapi/ and .sqlx/'

setup:
	@scripts/setup

build: setup
	cargo build --package comptoir-cli --package comptoir-worker

demo: build
	$(COMPTOIR) demo

up: build
	$(COMPTOIR) up

test: build
	@scripts/test

check: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	@scripts/generate --check

fmt:
	cargo fmt --all

generate: setup
	@scripts/generate

clean:
	cargo clean
