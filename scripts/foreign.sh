#!/usr/bin/env bash
# Runs the core of the black-box tests with programs for other processors: foreign.sh PROGRAM...
# They run under qemu-user, registered with the kernel (Debian: apt install qemu-user-static binfmt-support).
# Brokers and the operator's commands run natively.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

[ $# -gt 0 ] || fail 'usage: foreign.sh PROGRAM...'
tools=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools

# A dynamic program and its workers, which have no environment, need their C library. Debian's emulators search it below
# /etc/qemu-binfmt, which is mounted in a namespace, so that the machine is not changed.
headers=$(readelf --program-headers "$@")
if [ "${SEDGE_FOREIGN:-}" != inside ] && [[ $headers == *'program interpreter'* ]]; then
    [ "$(id -u)" = 0 ] || fail 'run as root: the libraries of other processors are mounted'
    etc=$(mktemp -d)
    trap 'rm -r "$etc"' EXIT
    for pair in aarch64:arm64 arm:armhf; do
        mkdir -p "$etc/qemu-binfmt/${pair%:*}"
        ln -s "$tools/bookworm-${pair#*:}/usr/lib" "$etc/qemu-binfmt/${pair%:*}/lib"
    done
    SEDGE_FOREIGN=inside unshare --mount --propagation private sh -c \
        'mount -t overlay -o lowerdir="$1:/etc" none /etc && shift && exec "$@"' sh "$etc" "$0" "$@"
    exit
fi

# Everything in everywhere.rs, and the tests that depend on the processor. The memory of an emulated program is not tested.
core=(
    everywhere::
    boards::it_serves_with_39_bits_of_addresses
    limits::whatever_a_function_does_its_message_becomes_a_dead_letter_and_others_continue
    deploy::push::a_push_ends_with_the_new_version_at_work
    recordings::what_a_board_recorded_replays_equal_on_this_computer
)

for program in "$@"; do
    program=$(realpath "$program")
    version=$("$program" --version) ||
        fail "$program does not run here: install an emulator (Debian: apt install qemu-user-static) and a tree (scripts/need.sh tree-arm64 tree-armhf)"
    printf '\n-- %s for %s\n' "$version" "$(readelf --file-header "$program" | sed -n 's/ *Machine: *//p')"
    # Emulation is five to twenty times slower. One test at a time: each uses a whole processor.
    SEDGE_BINARY=$program SEDGE_PATIENCE=${SEDGE_PATIENCE:-10} \
        cargo test --quiet --package sedge --test it -- --test-threads "${SEDGE_FOREIGN_THREADS:-1}" "${core[@]}"
done
