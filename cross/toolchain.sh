#!/usr/bin/env bash
# Installs the tools that compile Sedge for a board: toolchain.sh TARGET
#
# Prints progress to stderr, and to stdout the shell commands that cross/build.sh evaluates:
#
#     eval "$(cross/toolchain.sh TARGET)"
#
# C and linking: zig, which includes headers and libraries of every target. The standard library is the first possible of:
#   1. that of the installed toolchain, or downloaded by rustup
#   2. built from source, which rustup downloads; always for ARMv6, to compile it for its processor
#   3. built from the source in Debian 12's rust-web-src with rustc-web; selected by SEDGE_CROSS_TOOLCHAIN=debian
set -euo pipefail

requirements=$(dirname "$0")/requirements.txt
version_of() { sed -n "s/^$1==\([^ ]*\).*/\1/p" "$requirements"; }
zigbuild_version=$(version_of cargo-zigbuild)
zig_version=$(version_of ziglang)
packages=(rustc-web cargo-web rust-web-src)
tools=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools
zig=$tools/zig-$zig_version

say() { printf 'toolchain: %s\n' "$*" >&2; }
fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

target=$1

need_zig() {
    ! "$zig/bin/python" -c 'import ziglang' 2>/dev/null || [ ! -x "$zig/bin/cargo-zigbuild" ] || return 0
    command -v python3 >/dev/null ||
        fail 'install Python (Debian: apt install python3-venv): the C compiler for boards, zig, comes as a Python package'
    say "installing cargo-zigbuild $zigbuild_version and zig $zig_version into $zig, once (100 MB)"
    rm -rf "$zig"
    python3 -m venv "$zig" >&2 ||
        fail 'install the Python module venv (Debian: apt install python3-venv): zig is installed into a virtual environment'
    "$zig/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --require-hashes --requirement "$requirements" >&2 ||
        fail "pip could not download cargo-zigbuild $zigbuild_version and ziglang $zig_version: connect this machine and try again"
}

has_target() {
    local libraries
    libraries=$(rustc --print target-libdir --target "$target" 2>/dev/null) && [ -d "$libraries" ]
}

has_source() { [ -f "$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; }

# Building from source needs an unstable option of a stable cargo.
from_source() {
    say "the standard library is built from source for $target"
    echo 'export RUSTC_BOOTSTRAP=1'
    echo 'build_std=(-Z build-std=std,panic_abort)'
}

use_own() {
    command -v rustc >/dev/null || return 1
    ! has_target || return 0
    command -v rustup >/dev/null || return 1
    # rustup's library for ARMv6 is compiled for an older processor.
    if [ "$target" != arm-unknown-linux-musleabihf ]; then
        say "rustup target add $target"
        ! rustup target add "$target" >&2 || ! has_target || return 0
        say 'rustup could not install it'
    fi
    if ! has_source; then
        say 'rustup component add rust-src'
        rustup component add rust-src >&2 && has_source || return 1
    fi
    from_source
}

use_debian() {
    local package
    for package in "${packages[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
            fail "this machine's Rust cannot compile for $target: install rustup (https://rustup.rs), or on Debian 12: apt install ${packages[*]}"
    done
    say "using Debian's $(/usr/bin/rustc --version)"
    echo 'export CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc'
    from_source
}

need_zig
# cargo-zigbuild searches zig in its own virtual environment.
printf 'export CARGO_ZIGBUILD_PYTHON_PATH=%q PATH=%q:$PATH\n' "$zig/bin/python" "$zig/bin"
if [ "${SEDGE_CROSS_TOOLCHAIN:-}" = debian ] || ! use_own; then use_debian; fi
