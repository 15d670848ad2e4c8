# The commands of the project. Continuous integration runs `make test`, nothing else.
.DEFAULT_GOAL := help
.PHONY: help demo test check sim attack page fmt guests bench cross cross-all deb boot clean
SHELL := /bin/bash

# In CI each checkout is new; compiled files are kept outside of it.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sedge/target
export CARGO_INCREMENTAL ?= 0
endif

help: ## Show this list.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## Build everything and run it, with sensors and an upstream. ARGS="--messages 20000 --json"
	@wasm=$$(scripts/need.sh cargo cc wasm) && eval "$$wasm" && \
		cargo build --profile demo --package sedge --bin sedge >&2 && \
		sedge="$(or $(CARGO_TARGET_DIR),target)/demo/sedge" && \
		for function in examples/*/function.toml; do \
			"$$sedge" build "$${function%/function.toml}" >&2 || exit; done && \
		"$$sedge" demo $(ARGS)

test: ## Run all tests. Must pass before a change is merged.
	@scripts/test.sh

check: ## The quick part of the tests: formats, lints, unit tests.
	@scripts/test.sh check

sim: ## Simulate boards with faults. ARGS="--seeds 10000"
	@scripts/need.sh cargo cc && cargo run --quiet --profile sim --package sedge-sim -- $(ARGS)

attack: ## Attack a board's memory, disk, time and log beside a victim. Prints a table. SECONDS=30
	@wasm=$$(scripts/need.sh cargo cc wasm mosquitto) && eval "$$wasm" && SEDGE_ATTACK_SECONDS="$(or $(SECONDS),30)" \
		cargo test --release --package sedge --test it -- attack --ignored --nocapture --test-threads 1

page: ## Open the page on the board in a real browser and check every view. PICTURES=DIR keeps pictures.
	@wasm=$$(scripts/need.sh cargo cc wasm mosquitto) && eval "$$wasm" && scripts/page.sh

fmt: ## Format the code.
	cargo fmt --all
	@for workspace in examples tests/guests; do \
		cargo fmt --all --manifest-path $$workspace/Cargo.toml; done

guests: ## Compile the example functions.
	@wasm=$$(scripts/need.sh cargo cc wasm) && eval "$$wasm" && scripts/guests.sh build

bench: ## Measure a release build against its goals. ARGS="--quick"
	@wasm=$$(scripts/need.sh cargo cc wasm mosquitto) && eval "$$wasm" && \
		cargo bench --package sedge --bench sedge --features bench -- $(ARGS)

cross: ## Compile for a board, into target/$(TARGET)/dist. TARGET=aarch64-unknown-linux-gnu RUNTIME_ONLY=1 PROFILE=dist
	@scripts/need.sh cargo cc && cross/build.sh "$(TARGET)" "$(or $(PROFILE),dist)" $(if $(RUNTIME_ONLY),runtime)

cross-all: ## Build, test and package both builds for every board. Takes hours.
	@wasm=$$(scripts/need.sh cargo cc wasm deb) && eval "$$wasm" && cross/boards.sh "$(or $(PROFILE),dist)" full runtime -- \
		aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf arm-unknown-linux-musleabihf \
		x86_64-unknown-linux-gnu aarch64-unknown-linux-musl

deb: ## Build a Debian package in target/debian. TARGET=aarch64-unknown-linux-gnu RUNTIME_ONLY=1 PROFILE=dist
	@wasm=$$(scripts/need.sh cargo cc wasm deb) && eval "$$wasm" && \
		cross/deb.sh "$(TARGET)" "$(or $(PROFILE),dist)" $(if $(RUNTIME_ONLY),runtime)

boot: ## Boot an emulated board with that package, cut its power, attack it. TARGET=armv7-unknown-linux-gnueabihf
	@wasm=$$(scripts/need.sh cargo cc wasm deb) && eval "$$wasm" && \
		package=$$(cross/deb.sh "$(TARGET)" "$(or $(PROFILE),dist)" $(if $(RUNTIME_ONLY),runtime)) && cross/boot-deb.sh "$$package"

clean: ## Remove compiled files.
	cargo clean
