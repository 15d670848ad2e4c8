#!/usr/bin/env bash
# Runs each fuzz target for a minute: fuzz.sh [TARGET|all] [SECONDS] [SEED]
# An input that breaks a rule is written to the current folder; with its fix it goes to host/fuzz/corpus/TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo run --quiet --package sedge-fuzz -- "$@"
