#!/usr/bin/env bash
# Runs all tests, cheapest first. `test.sh check` stops after the unit tests.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools

stage() {
    local name=$1 TIMEFORMAT="-- $1: %1R s (processors: %1U s + %1S s)"
    shift
    printf '\n== %s\n' "$name"
    time "$@" || {
        printf '\n== failed: %s\n' "$name" >&2
        exit 1
    }
}

# A cold run must end within an hour on two cores. A stage that would start too late is skipped with all later ones.
# SEDGE_TEST_MINUTES=0 runs all.
is_late=
stage_before() {
    local minutes=$1
    shift
    if [ "${SEDGE_TEST_MINUTES:-}" != 0 ] && [ -n "${is_late:=$([ $((SECONDS - start)) -lt $((minutes * 60)) ] || echo yes)}" ]; then
        printf '\n== %s\nskipped: NOT tested, because this run already took %d minutes; run it again, or with SEDGE_TEST_MINUTES=0\n' \
            "$1" $(((SECONDS - start) / 60))
        return 0
    fi
    stage "$@"
}

documentation() {
    RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps --document-private-items
}

dependencies() {
    local deny=("$tools/bin/cargo-deny" --all-features)
    "${deny[@]}" check --hide-inclusion-graph bans licenses sources || return
    # The advisory database is a git repository. If it is unreachable, this check is skipped with a message.
    local log status=0
    log=$("${deny[@]}" check advisories 2>&1) || status=$?
    if [ "$status" != 0 ] && grep -q 'failed to fetch advisory database' <<<"$log"; then
        printf 'skipped: advisories were NOT checked, because the advisory database cannot be fetched from here:\n'
        grep -m 1 -A 3 'failed to fetch advisory database' <<<"$log"
        [ "${SEDGE_REQUIRE_ADVISORIES:-}" != 1 ] || return 1
        return 0
    fi
    printf '%s\n' "$log"
    return "$status"
}

# The same seeds in each run, so that a change is to blame for what breaks. A broken rule is printed with the command that
# replays it. `make sim ARGS="--seconds 600 --from N"` looks further.
campaign() {
    cargo run --quiet --profile sim --package sedge-sim -- --seeds 20000
}

# Each test starts processes; more tests than cores would only wait for each other. A test that hangs fails by its name.
black_box() {
    local log status=0 limit=(timeout)
    [ ! -t 0 ] || limit+=(--foreground)
    log=$(mktemp) || return
    "${limit[@]}" 1500 cargo test --package sedge --test '*' -- --test-threads "${SEDGE_TEST_THREADS:-2}" 2>&1 | tee "$log" || status=$?
    if [ "$status" = 124 ]; then
        printf 'ended after 25 minutes. Not ended were:\n' >&2
        sed -nE 's/^test (.*) has been running for over .*/\1/p' "$log" | while read -r name; do
            grep -q "^test $name \.\.\. " "$log" || printf '    %s\n' "$name" >&2
        done
    fi
    rm -f "$log"
    return "$status"
}

# Checks the unit file for errors and its exposure level (Mosquitto's unit has 9.6).
service() {
    local folder analyze=(systemd-analyze --no-pager)
    # Unknown keys are reported only on standard error. Messages about other units are ignored.
    verify() {
        local said status=0
        said=$("${analyze[@]}" --man=no verify "$1" 2>&1) || status=$?
        ! grep sedge <<<"$said" && return "$status"
    }
    folder=$(mktemp -d) || return
    # Outside the package the program of the unit does not exist.
    sed "s,/usr/bin/sedge,$(command -v true)," systemd/sedge.service >"$folder/sedge.service" &&
        verify "$folder/sedge.service" &&
        "${analyze[@]}" security --offline=true --threshold=12 "$folder/sedge.service" >"$folder/report"
    local status=$?
    if [ "$status" = 0 ]; then grep -h 'Overall exposure' "$folder/report"; else cat "$folder/report" 2>/dev/null; fi
    rm -rf "$folder"
    return "$status"
}

page() {
    local obstacle
    obstacle=$(scripts/page.sh obstacle) || return
    if [ -n "$obstacle" ]; then
        printf 'skipped: the page was NOT opened in a browser, because %s\n' "$obstacle"
        return 0
    fi
    scripts/page.sh
}

# Builds the package for this machine. If root may mount, installs, runs and purges it.
package() {
    local deb obstacle
    deb=$(cross/deb.sh '' dev) || return
    obstacle=$(cross/obstacle.sh tree) || return
    if [ -n "$obstacle" ]; then
        printf 'skipped: the package was built and NOT installed, because %s\n' "$obstacle"
        return 0
    fi
    cross/try-deb.sh "$deb" "$tools/bookworm"
}

# Targets that `make test` has time for. `make cross-all` builds all, with the optimisations of the shipped program.
boards=(aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf)

board_programs() {
    local target
    for target in "${boards[@]}"; do cross/build.sh "$target" cross || return; done
}

board_core() {
    local obstacle
    obstacle=$(cross/obstacle.sh tree-arm64 tree-armhf) || return
    if [ -n "$obstacle" ]; then
        printf 'skipped: the programs for boards were built and NOT tested, because %s\n' "$obstacle"
        return 0
    fi
    local programs=("${boards[@]/#/${CARGO_TARGET_DIR:-target}/}")
    scripts/foreign.sh "${programs[@]/%//cross/sedge}"
}

# Runs the commands of the page for the Raspberry Pi, with the package of the previous stage.
board_page() {
    local obstacle packages
    obstacle=$(cross/obstacle.sh tree-arm64) || return
    if [ -n "$obstacle" ]; then
        printf 'skipped: the commands of docs/raspberry-pi.md were NOT run, because %s\n' "$obstacle"
        return 0
    fi
    packages=$(ls -t target/debian/sedge_*_arm64.deb) || return
    scripts/follow-page.sh "${packages%%$'\n'*}" "$tools/bookworm-arm64"
}

start=$SECONDS
if [ "${1:-}" = check ]; then
    stage 'tools' scripts/need.sh cargo cc
else
    stage 'tools' scripts/need.sh cargo cc mosquitto deny systemd deb
    wasm=$(scripts/need.sh wasm)
    eval "$wasm"
fi
stage 'format' cargo fmt --all --check
stage 'lints' cargo clippy --quiet --workspace --all-targets -- -D warnings
if [ "${1:-}" = check ]; then
    stage 'unit tests' cargo test --quiet --workspace --lib --bins
    exit
fi
stage 'runtime-only build: lints' cargo clippy --quiet --workspace --exclude sedge-function --exclude sedge-fuzz --lib --bins --tests --no-default-features -- -D warnings
stage 'deliberate mistakes: lints' cargo clippy --quiet --package sedge-sim --features mistakes --all-targets -- -D warnings
stage 'dependencies' dependencies
stage 'service' service
stage 'documentation' documentation
stage 'JavaScript engine' cross/js-engine.sh --check
stage 'functions: lints' scripts/guests.sh lint
stage 'functions: build' scripts/guests.sh build
stage 'unit and property tests' cargo test --workspace --lib --bins
stage 'runtime-only build: unit tests' cargo test --workspace --exclude sedge-function --exclude sedge-fuzz --lib --no-default-features
# Tests of the core on simulated boards, and of SPECIFICATION.md.
stage 'simulated boards: tests' cargo test --package sedge-sim --tests
stage 'simulated boards: deliberate mistakes' cargo test --profile sim --package sedge-sim --features mistakes --test mistakes
stage 'simulated boards: campaign' campaign
# The only crate with examples in its documentation.
stage 'documentation tests' cargo test --package sedge-function --doc
stage 'functions: tests' scripts/guests.sh test
stage 'black-box tests' black_box
stage 'the page in a browser' page
stage 'package' package
stage_before 32 'boards: programs' board_programs
stage_before 38 'boards: black-box core' board_core
stage_before 50 'boards: packages' cross/boards.sh cross full -- "${boards[@]}"
stage_before 53 'boards: the page for a Raspberry Pi' board_page
what='everything'
[ -z "$is_late" ] || what='everything that was not skipped'
printf '\n== %s passed in %d min %d s\n' "$what" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
