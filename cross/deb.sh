#!/usr/bin/env bash
# Builds a Debian package: deb.sh [TARGET] [PROFILE] [runtime]. Prints its path.
# Without a target: for this machine and its libraries. Manual pages and functions are built on this machine; they are the same
# for every board.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

target=${1:-} profile=${2:-dist} build=${3:-full}
tools=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools
# The oldest glibc of those that the package depends on (host/sedge/Cargo.toml).
glibc=2.31

# The time of all files in the package, so that the same source gives the same bytes.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
features=() variant=$build
[ "$build" != runtime ] || features=(--no-default-features)
if [ -n "$target" ]; then
    program=$(cross/build.sh "$target" "$profile" "$build")
    for_target=(--target "$target")
else
    cargo build --package sedge --bin sedge --profile "$profile" "${features[@]}" >&2
    folder=$profile
    case $profile in dev) folder=debug ;; esac
    program=${CARGO_TARGET_DIR:-target}/$folder/sedge
    for_target=() variant=$build-here
fi
case $target in
    *-musl*) variant=$build-static ;;
    *-gnu*)
        # The package declares the oldest glibc that it needs; check it.
        newest=$(readelf --wide --version-info "$program" | grep -o 'GLIBC_[0-9.]*' | cut -d _ -f 2 | sort --version-sort | tail -n 1)
        printf '%s\n%s\n' "$newest" "$glibc" | sort --version-sort --check=quiet ||
            fail "$program needs glibc $newest, and its package promises $glibc: compile it with cross/build.sh"
        ;;
esac

# The path that host/sedge/Cargo.toml names, for every target.
install -D --mode 755 "$program" host/sedge/debian/program/sedge

# A board without a compiler runs scripts by the engine's native code, which the package brings.
rm -rf host/sedge/debian/engine
mkdir -p host/sedge/debian/engine
if [ "$build" = runtime ]; then
    (cd host/sedge/debian/engine && cargo run --quiet --package sedge -- compile --script-engine --target "${target:-$(uname -m)}" >&2)
fi

rm -rf host/sedge/debian/pages
cross/sbom.py "${target:-$(rustc -vV | sed -n 's/^host: //p')}" "$build" >host/sedge/debian/sbom.cdx.json
cargo run --quiet --package sedge "${features[@]}" --example pages -- host/sedge/debian/pages >&2
scripts/guests.sh build >&2
quick=()
# Fast compression for packages that are only tested.
case $profile in dev | cross) quick=(--fast) ;; esac
[ "$variant" != full ] || variant=''
"$tools/bin/cargo-deb" --package sedge --no-build --profile "$profile" "${for_target[@]}" ${variant:+--variant "$variant"} \
    "${quick[@]}" --output target/debian/
