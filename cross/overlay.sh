# Makes a copy of a Debian tree that can be changed: overlay TREE SIZE. To be sourced, in a mount namespace of one's own. The
# changes are kept in memory, away from the tree; $root is where the copy is.
# shellcheck shell=bash
root=/mnt/root

overlay() {
    mount -t tmpfs -o "size=$2" none /mnt
    mkdir /mnt/upper /mnt/work "$root"
    mount -t overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" none "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
}

# Runs a command in the copy, without anything of this machine's environment: inside [NAME=VALUE...] COMMAND...
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
