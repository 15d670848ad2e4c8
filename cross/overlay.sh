# Mounts a writable copy of a Debian tree at $root: overlay TREE SIZE. Source this file in a separate mount namespace. Changes are
# kept in memory; the tree itself is not modified.
# shellcheck shell=bash
root=/mnt/root

overlay() {
    mount -t tmpfs -o "size=$2" none /mnt
    mkdir /mnt/upper /mnt/work "$root"
    mount -t overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" none "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
}

# Runs a command in the copy with a clean environment: inside [NAME=VALUE...] COMMAND...
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
