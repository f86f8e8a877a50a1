# The two commands of a fresh clone: `make demo` and `make test`.
.PHONY: help setup build demo up test check bench fmt generate clean schemathesis fuzz minilm

COMPTOIR := target/debug/comptoir

help:
	@echo 'make demo      install what is needed, build, and run the main job from deposit to claim'
	@echo 'make up        the same service, kept running'
	@echo 'make test      every test, with one verdict'
	@echo 'make check     formatting, lints and generated files'
	@echo 'make bench     lists the benchmarks; make bench NAME=x runs one beside its reference'
	@echo 'make schemathesis  generated requests against both OpenAPI documents'
	@echo 'make fuzz      lists readers of foreign bytes; make fuzz NAME=x [RUNS=n] searches for what one does not survive'
	@echo 'make minilm    all-MiniLM-L6-v2 as a program of ours, in target/minilm (PyTorch from PyPI, 2.5 GB)'
	@echo 'make generate  rewrite openapi/ and .sqlx/'

setup:
	@scripts/setup

# Always the whole workspace: cargo compiles dependencies anew for each selection of packages.
build: setup
	cargo build --workspace

demo: build
	$(COMPTOIR) demo

up: build
	$(COMPTOIR) up

test: build
	@scripts/test

check: build
	cargo fmt --all --check
	@scripts/generate --check

# Only `runner` and `hosting` link libtorch, and they need no services.
bench: build
	@scripts/bench $(NAME)

# Without PyPI it says so, and nothing fails.
minilm:
	@scripts/minilm

schemathesis: build
	scripts/schemathesis

# The stable compiler is enough. What it finds lies in target/fuzz/found.
fuzz:
	@RUNS=$(RUNS) scripts/fuzz $(NAME)

fmt:
	cargo fmt --all

generate: build
	@scripts/generate

clean:
	cargo clean
