#!/usr/bin/env bash
# Prints why programs and packages cannot be tested in Debian trees on this machine, or nothing if they can: obstacle.sh TREE...
# The trees are those of scripts/need.sh; trees and emulator are installed if possible.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ] || ! unshare --mount mount -t tmpfs none /mnt 2>/dev/null; then
    echo 'that needs root and the right to mount'
elif [ "$*" != tree ] && ! scripts/need.sh qemu >&2; then
    echo 'this machine cannot run programs for ARM'
elif ! scripts/need.sh "$@" >&2; then
    echo 'there is no Debian tree for it'
fi
