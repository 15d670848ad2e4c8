#!/usr/bin/env bash
# Compiles (guests.sh build), tests (test) or lints (lint) the example functions and the functions of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

# Separate workspaces, since the target differs. They share one target folder, because they share the SDK.
target=${CARGO_TARGET_DIR:-$PWD/target}/guests
workspaces=(examples/Cargo.toml tests/guests/Cargo.toml)

case $1 in
    build)
        for manifest in examples/*/function.toml; do
            cargo run --quiet --package sedge -- build "$(dirname "$manifest")"
        done
        ;;
    test)
        cargo test --manifest-path examples/Cargo.toml --target-dir "$target"
        ;;
    lint)
        for workspace in "${workspaces[@]}"; do
            cargo fmt --all --check --manifest-path "$workspace"
            cargo clippy --quiet --workspace --manifest-path "$workspace" --target-dir "$target" -- -D warnings
        done
        ;;
    *)
        printf 'usage: guests.sh build|test|lint\n' >&2
        exit 2
        ;;
esac
