#!/usr/bin/env bash
# Builds a Debian package: deb.sh [TARGET] [PROFILE]. Prints its path.
# The pages and the functions in it are made by this machine's own build; they are the same for every board.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

host=$(rustc -vV | sed -n 's/^host: //p')
target=${1:-$host}
profile=${2:-dist}
tools=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools

case $target in
    x86_64-*-linux-* | aarch64-*-linux-*) variant=(--variant native) ;;
    arm*-*-linux-*) variant=() ;;
    *) fail "there is no package for $target: use aarch64-, armv7-, arm- or x86_64-unknown-linux-*" ;;
esac
# A target of its own folder would compile everything again for the machine itself.
for_target=() quick=()
[ "$target" = "$host" ] || for_target=(--target "$target")

# Not for boards: it is made to be tried.
[ "$profile" != dev ] || quick=(--fast)

cargo run --quiet --package sedge --example pages -- host/debian/pages >&2
scripts/guests.sh build >&2
cargo build --package sedge --bin sedge --profile "$profile" "${for_target[@]}" >&2
"$tools/bin/cargo-deb" --package sedge --no-build --profile "$profile" "${for_target[@]}" "${variant[@]}" "${quick[@]}" \
    --output target/debian/
