#!/usr/bin/env bash
# Says why programs and packages cannot be tried in trees on this machine, and nothing if they can: obstacle.sh TREE...
# The trees are those of scripts/need.sh; they and the emulator are obtained where that is possible.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ] || ! unshare --mount mount -t tmpfs none /mnt 2>/dev/null; then
    echo 'that takes root and the right to mount'
elif [ "$*" != tree ] && ! scripts/need.sh qemu >&2; then
    echo 'this machine does not run programs for ARM'
elif ! scripts/need.sh "$@" >&2; then
    echo 'there is no Debian tree for it'
fi
