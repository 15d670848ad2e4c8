#!/usr/bin/env bash
# Tests the page in a real browser. Needs chromium, node and npm; `page.sh obstacle` prints what is missing.
# PICTURES=DIR keeps a picture of each view.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in chromium node npm mosquitto mosquitto_pub; do
    command -v "$program" >/dev/null && continue
    [ "${1:-}" != obstacle ] || { printf '%s is not installed\n' "$program"; exit 0; }
    printf 'page.sh: %s is not installed: apt-get install %s\n' "$program" "${program/mosquitto_pub/mosquitto-clients}" >&2
    exit 1
done
modules=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools/page
if ! [ -d "$modules/node_modules/axe-core" ]; then
    mkdir -p "$modules"
    npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$modules" playwright-core@1.64.1 axe-core@4 >/dev/null 2>"$modules/log" || {
        [ "${1:-}" != obstacle ] || { printf 'playwright-core and axe-core cannot be fetched\n'; exit 0; }
        cat "$modules/log" >&2
        exit 1
    }
fi
[ "${1:-}" != obstacle ] || exit 0

cargo build --quiet --package sedge --bin sedge
sedge=${CARGO_TARGET_DIR:-target}/debug/sedge
for function in count misbehave; do
    "$sedge" build "tests/guests/$function" >/dev/null
done
node tests/page/check.mjs "$sedge" "$PWD/tests/guests" "$modules" ${PICTURES:+"$PICTURES"}
