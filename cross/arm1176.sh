#!/usr/bin/env bash
# Runs a command, with all its ARM programs and their children on the processor of a Pi 1 or Zero: arm1176.sh COMMAND...
# QEMU_CPU would not reach workers and compilers, which start without an environment. The binary format is registered in a
# namespace (Linux 6.7), which leaves the machine unchanged.
set -euo pipefail

if [ "${SEDGE_ARM1176:-}" != inside ]; then
    SEDGE_ARM1176=inside exec unshare --user --map-root-user --mount --propagation private "$0" "$@"
fi
unset SEDGE_ARM1176
formats=/proc/sys/fs/binfmt_misc
mount -t tmpfs none /mnt
printf '#!/bin/sh\nexec %s -cpu arm1176 "$@"\n' "$(command -v qemu-arm-static)" >/mnt/arm1176
chmod +x /mnt/arm1176
mount -t binfmt_misc none "$formats"
# 32-bit little-endian ELF files for machine 0x28 (ARM). The kernel decodes the escapes.
printf '%s' ':arm1176:M::\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/mnt/arm1176:' \
    >"$formats/register"
exec "$@"
