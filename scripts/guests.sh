#!/usr/bin/env bash
# Compiles (guests.sh build) or tests (guests.sh test) every example function.
set -euo pipefail
cd "$(dirname "$0")/.."
shopt -s nullglob

# One folder for all of them: they share their dependencies.
target=${CARGO_TARGET_DIR:-$PWD/target}/guests

for manifest in examples/*/Cargo.toml; do
    folder=$(dirname "$manifest")
    case $1 in
        build) cargo run --quiet --package sedge -- build "$folder" ;;
        test) cargo test --quiet --manifest-path "$manifest" --target-dir "$target" ;;
        lint)
            cargo fmt --check --manifest-path "$manifest"
            cargo clippy --quiet --manifest-path "$manifest" --target-dir "$target" --all-targets -- -D warnings
            ;;
    esac
done
