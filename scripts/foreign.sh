#!/usr/bin/env bash
# The black-box suite's core, with programs of other processors as the board's: foreign.sh PROGRAM...
# They run under qemu-user, which the kernel must start by itself (Debian: apt install qemu-user-static binfmt-support).
# Brokers, and what an operator does, stay this machine's own.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'sedge: %s\n' "$*" >&2
    exit 1
}

[ $# -gt 0 ] || fail 'usage: foreign.sh PROGRAM...'
tools=${XDG_CACHE_HOME:-$HOME/.cache}/sedge/tools

# A program that is not static needs its C library, and so do the workers that it starts, without any environment. Debian's
# emulators look for it below /etc/qemu-binfmt. A namespace of its own has it there, and the machine stays as it is.
headers=$(readelf --program-headers "$@")
if [ "${SEDGE_FOREIGN:-}" != inside ] && [[ $headers == *'program interpreter'* ]]; then
    [ "$(id -u)" = 0 ] || fail 'become root: the libraries of other processors are mounted'
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

# Everything in everywhere.rs, and of the rest what a processor could change. What an emulator takes of memory says
# nothing.
core=(
    everywhere::
    boards::it_serves_with_39_bits_of_addresses
    limits::whatever_a_function_does_the_message_is_a_dead_letter_and_others_go_on
    deploy::push::a_push_ends_with_the_new_version_at_work
)

for program in "$@"; do
    program=$(realpath "$program")
    version=$("$program" --version) ||
        fail "$program does not run here: install an emulator (Debian: apt install qemu-user-static) and a tree (scripts/need.sh tree-arm64 tree-armhf)"
    printf '\n-- %s for %s\n' "$version" "$(readelf --file-header "$program" | sed -n 's/ *Machine: *//p')"
    # An emulated processor is five to twenty times as slow. One test at a time: each has a processor's work to do.
    SEDGE_BINARY=$program SEDGE_PATIENCE=${SEDGE_PATIENCE:-10} \
        cargo test --quiet --package sedge --test it -- --test-threads "${SEDGE_FOREIGN_THREADS:-1}" "${core[@]}"
done
