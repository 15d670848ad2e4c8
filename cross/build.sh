#!/usr/bin/env bash
# Compiles the program for a board: build.sh TARGET [PROFILE] [runtime]. Prints its path.
# `runtime` is the build without compiler, tools and demo; it is written beside the full one, as sedge-runtime.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

target=${1:-} profile=${2:-dist} variant=${3:-full}
# The version of Debian 11.
glibc=2.31
# A panic ends the process, so unwind tables are never read. trim.py removes those that rustc writes anyway.
flags='-C force-unwind-tables=no'
export TARGET_CFLAGS="${TARGET_CFLAGS:-} -fno-asynchronous-unwind-tables -fno-unwind-tables"
# The same source gives the same bytes, wherever it is compiled.
for place in "$PWD=/sedge" "${CARGO_HOME:-$HOME/.cargo}=/cargo"; do
    flags+=" --remap-path-prefix=$place"
    TARGET_CFLAGS+=" -ffile-prefix-map=$place"
done
case $target in
    aarch64-unknown-linux-gnu | armv7-unknown-linux-gnueabihf | x86_64-unknown-linux-gnu) for_zig=$target.$glibc ;;
    aarch64-unknown-linux-musl) for_zig=$target ;;
    arm-unknown-linux-musleabihf)
        for_zig=$target
        # The processor of Pi Zero and Pi 1. The target's default has no 64-bit atomic instructions.
        # The startup code comes from zig, since the standard library is built from source.
        flags+=' -C target-cpu=arm1176jzf-s -C link-self-contained=no'
        ;;
    *) fail "there is no build for '$target': use TARGET=aarch64-unknown-linux-gnu, armv7-unknown-linux-gnueabihf, arm-unknown-linux-musleabihf, x86_64-unknown-linux-gnu or aarch64-unknown-linux-musl" ;;
esac
case $variant in
    full) features=() name=sedge ;;
    runtime) features=(--no-default-features) name=sedge-runtime ;;
    *) fail "'$variant' is not a build: leave it out, or use runtime" ;;
esac

build_std=()
toolchain=$(cross/toolchain.sh "$target")
eval "$toolchain"
export RUSTFLAGS="${RUSTFLAGS:-} $flags"

folder=${CARGO_TARGET_DIR:-target}/$target/$profile
# Cargo writes both builds to the same path. The full one is moved back, so that the two are not confused.
full=$folder/sedge
# A file of an earlier run must go first: if nothing has changed, cargo links the same file again, and mv fails on identical files.
if [ "$variant" = runtime ]; then
    rm -f "$folder/$name"
    if [ -e "$full" ]; then rm -f "$full.full" && mv "$full" "$full.full"; fi
fi
status=0
cargo-zigbuild zigbuild --package sedge --bin sedge --profile "$profile" --target "$for_zig" \
    "${features[@]}" "${build_std[@]}" >&2 || status=$?
[ "$status" != 0 ] || cross/trim.py "$full"
if [ "$variant" = runtime ]; then
    [ "$status" != 0 ] || mv "$full" "$folder/$name"
    [ ! -e "$full.full" ] || mv "$full.full" "$full"
fi
[ "$status" = 0 ] || exit "$status"
printf '%s\n' "$folder/$name"
