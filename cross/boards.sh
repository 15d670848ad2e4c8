#!/usr/bin/env bash
# Builds packages for boards and tests each as far as this machine allows: boards.sh PROFILE BUILD... -- TARGET...
# With both builds, full and runtime, also tests that the second package replaces the first.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

tools=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools
profile=$1 builds=()
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    builds+=("$1")
    shift
done
[ $# -gt 1 ] && [ "${#builds[@]}" -gt 0 ] || fail 'usage: boards.sh PROFILE BUILD... -- TARGET...'
shift

for target in "$@"; do
    case $target in
        aarch64-*) tree=tree-arm64 folder=bookworm-arm64 ;;
        arm*) tree=tree-armhf folder=bookworm-armhf ;;
        *) tree=tree folder=bookworm ;;
    esac
    debs=()
    for build in "${builds[@]}"; do debs+=("$(cross/deb.sh "$target" "$profile" "$build")"); done
    obstacle=$(cross/obstacle.sh "$tree")
    if [ -n "$obstacle" ]; then
        printf 'skipped: %s was built and NOT installed, because %s\n' "${debs[*]##*/}" "$obstacle"
        continue
    fi
    cross/try-deb.sh "${debs[0]}" "$tools/$folder" "${debs[@]:1}"
    if [[ $target = armv7-* && " ${builds[*]} " = *' full '* ]]; then
        SEDGE_RECORDED_MESSAGES=100000 scripts/foreign.sh "${CARGO_TARGET_DIR:-target}/$target/$profile/sedge"
    fi
    # The programs of the Debian tree need an ARMv7. A static program runs without the tree.
    if [ "$target" = arm-unknown-linux-musleabihf ]; then
        on=(cross/arm1176.sh) where='ran on an arm1176'
        if ! "${on[@]}" true 2>/dev/null; then
            on=(env QEMU_CPU=arm1176) where='ran on an arm1176, but its workers did NOT, because this kernel has no formats in namespaces'
        fi
        for build in "${builds[@]}"; do
            case $build in full) name=sedge ;; *) name=sedge-$build ;; esac
            program=${CARGO_TARGET_DIR:-target}/$target/$profile/$name
            "${on[@]}" "$program" --version
            [ "$build" != full ] || "${on[@]}" "$program" demo --messages 300 --json >/dev/null
            printf '%s: %s\n' "$program" "$where"
        done
    fi
done
