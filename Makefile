# The commands of the project. Continuous integration runs `make test`, nothing else.
.DEFAULT_GOAL := help
.PHONY: help demo test check fmt guests bench deb clean
SHELL := /bin/bash

# In CI the checkout is new every time; what was compiled is kept beside it.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sedge/target
export CARGO_INCREMENTAL ?= 0
endif

help: ## Show this list.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## Build everything and run it, with sensors and an upstream. ARGS="--messages 20000 --json"
	@wasm=$$(scripts/need.sh cargo cc wasm) && eval "$$wasm" && \
		cargo build --release --package sedge --bin sedge >&2 && \
		sedge="$(or $(CARGO_TARGET_DIR),target)/release/sedge" && \
		for function in examples/*/function.toml; do \
			"$$sedge" build "$${function%/function.toml}" >&2 || exit; done && \
		"$$sedge" demo $(ARGS)

test: ## Everything that must hold before a change is merged.
	@scripts/test.sh

check: ## The part of it that takes seconds: formats, lints, unit tests.
	@scripts/test.sh check

fmt: ## Format the code.
	cargo fmt --all
	@for workspace in examples tests/guests; do \
		cargo fmt --all --manifest-path $$workspace/Cargo.toml; done

guests: ## Compile the example functions.
	@wasm=$$(scripts/need.sh cargo cc wasm) && eval "$$wasm" && scripts/guests.sh build

bench: ## Measure a release build against its goals. ARGS="--quick"
	@wasm=$$(scripts/need.sh cargo cc wasm mosquitto) && eval "$$wasm" && \
		cargo bench --package sedge --bench sedge -- $(ARGS)

deb: ## Build a Debian package in target/debian. TARGET=x86_64-unknown-linux-gnu PROFILE=dist
	@wasm=$$(scripts/need.sh cargo cc wasm deb) && eval "$$wasm" && cross/deb.sh "$(TARGET)" "$(or $(PROFILE),dist)"

clean: ## Remove what was compiled.
	cargo clean
