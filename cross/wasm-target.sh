#!/bin/sh
# Installs Rust's target wasm32-unknown-unknown, which compiles functions.
#
# Prints progress to stderr, and to stdout the shell commands that configure `sedge build`:
#
#     eval "$(cross/wasm-target.sh)"
#
# The first possible of:
#   1. the installed toolchain has the target
#   2. rustup downloads it
#   3. Debian 12's rustc-web, cargo-web, rust-web-src and lld-19: the standard library is built from source with
#      the function. The machine's own cargo is not changed.
set -eu

target=wasm32-unknown-unknown
packages="rustc-web cargo-web rust-web-src lld-19"

say() { echo "wasm-target: $*" >&2; }

has_target() {
    libraries=$("$1" --print target-libdir --target "$target" 2>/dev/null) && [ -d "$libraries" ]
}

has_packages() {
    command -v dpkg-query >/dev/null || return 1
    for package in $packages; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || return 1
    done
}

use_debian() {
    # Edition 2024 and the minimum Rust version of the SDK.
    version=$(/usr/bin/rustc --version | cut -d ' ' -f 2)
    case $version in
        "") return 1 ;;
        1.[0-9].* | 1.[0-8][0-9].* | 1.9[0-4].*)
            say "/usr/bin/rustc is $version; functions need 1.95: run apt-get update, then apt-get install $packages"
            return 1
            ;;
    esac
    say "using Debian's Rust $version for functions"
    echo "export SEDGE_GUEST_TOOLCHAIN=debian"
}

use_own() {
    say "$target is installed"
    echo "unset SEDGE_GUEST_TOOLCHAIN"
}

if [ "${SEDGE_GUEST_TOOLCHAIN:-}" != debian ]; then
    if command -v rustc >/dev/null && has_target rustc; then
        use_own
        exit
    fi
    if command -v rustup >/dev/null; then
        say "rustup target add $target"
        if rustup target add "$target" >&2 && has_target rustc; then
            use_own
            exit
        fi
        say "rustup could not install it"
    fi
fi

if has_packages; then
    use_debian
    exit
fi
if ! command -v apt-get >/dev/null; then
    say "no rustup and no apt-get here. Install Rust with rustup (https://rustup.rs), then run this again"
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        say "as root, run: apt-get install $packages"
        say "then run this again"
        exit 1
    fi
    as_root=sudo
fi
say "apt-get install $packages"
# Without package lists apt does not know the packages. If this fails, the next step fails too.
$as_root apt-get update >&2 || true
# shellcheck disable=SC2086 # a list of words
if ! $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages >&2; then
    say "apt has no $packages (they are in Debian 12 and its security updates). Install Rust with rustup instead"
    say "(https://rustup.rs), then run this again"
    exit 1
fi
use_debian
